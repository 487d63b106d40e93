"""What a run says of itself: how fast it is, how long it still takes, and how often it says so."""

import json
import re
from collections.abc import Callable

import pytest

from raylens.scheduler import progress as module
from raylens.scheduler.events import Events
from raylens.scheduler.progress import LINE_SECONDS, Bar, Lines, Meter, Progress, choose, duration
from tests.clock import Clock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def started(total: int = 100, done: int = 0) -> Meter:
    meter = Meter()
    meter.start("demo", total, done, failed=0)
    return meter


def test_rates_count_from_when_a_model_is_loaded(clock: Clock) -> None:
    """The time that loading takes says nothing of how fast the run is."""
    meter = started()
    clock.now += 30
    meter.begin()
    clock.now += 10
    meter.add(records=4, failures=1, tokens=50)
    assert meter.rate() == (0.5, 5.0)
    assert meter.eta() == 190.0
    meter.begin()
    assert meter.rate() == (0.5, 5.0), "a second actor's loading does not begin it anew"


def test_what_was_done_before_does_not_count_as_speed(clock: Clock) -> None:
    """A run that is resumed tells how fast it is now."""
    meter = started(total=1000, done=900)
    meter.begin()
    clock.now += 20
    meter.add(records=10, failures=0, tokens=200)
    assert meter.rate() == (0.5, 10.0)
    assert meter.eta() == 180.0


def test_rates_are_of_the_last_minute(clock: Clock) -> None:
    """A corpus may become slower: what was longer ago is forgotten."""
    meter = started(total=10_000)
    for _ in range(100):
        clock.now += 1
        meter.add(records=10, failures=0, tokens=100)
    for _ in range(61):
        clock.now += 1
        meter.add(records=1, failures=0, tokens=10)
    assert meter.rate() == (1.0, 10.0)
    clock.now += 61
    assert meter.rate()[0] == pytest.approx(0.5), "and falls while nothing comes"


def test_nothing_is_foretold_before_anything_is_done(clock: Clock) -> None:
    """Without a rate there is no time to the end."""
    assert Meter().rate() == (0.0, 0.0)
    assert Meter().eta() is None
    meter = started()
    clock.now += 5
    assert meter.eta() is None
    assert meter.line() == "0/100 prompts, 0.0 tokens/s"
    meter.add(records=0, failures=1, tokens=0)
    assert meter.line() == "1/100 prompts, 0.0 tokens/s, 1 failed", "which says nothing of prompts that are lensed"


def test_a_line(clock: Clock) -> None:
    """All that is known in one line; what there is none of is left out."""
    meter = started(total=2_000)
    clock.now += 2
    meter.add(records=999, failures=1, tokens=12_000)
    meter.in_flight = 2_500_000
    assert meter.line() == "1,000/2,000 prompts, 6,000.0 tokens/s, 2.5 MB in flight, 1 failed, ETA 0:02"
    meter.in_flight = 0
    meter.add(records=1_000, failures=0, tokens=0)
    assert meter.line() == "2,000/2,000 prompts, 6,000.0 tokens/s, 1 failed"


def test_durations() -> None:
    """Minutes and seconds, with hours where there are any."""
    assert [duration(seconds) for seconds in (0, 59.9, 60, 3599, 3600, 90_061)] == [
        *("0:00", "0:59", "1:00", "59:59", "1:00:00", "25:01:01")
    ]


def test_lines_come_now_and_then(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """A log gets what happens at once, how far a run is at most every ten seconds, and its end in any case."""
    lines = Lines()

    def said() -> str:
        return capsys.readouterr().err

    lines.stage("checking the corpus")
    assert said() == "checking the corpus\n"
    lines.scanned(10)
    assert said() == ""
    clock.now += LINE_SECONDS
    lines.scanned(20)
    lines.scanned(30)
    assert said() == "checking the corpus: 20 prompts so far\n"
    lines.start("demo", total=3, done=1, failed=0)
    assert said() == "run demo: 3 prompts, 1 already done\n"
    lines.working()
    clock.now += 1
    lines.committed(1, 0, tokens=5)
    assert said() == ""
    clock.now += LINE_SECONDS
    lines.passed(8_192)
    lines.passed(16_384)
    assert said() == "reading past what is stored: 8,192 prompts so far\n"
    lines.waiting("the server is full")
    assert said() == "the server is full\n"
    lines.committed(1, 0, tokens=5)
    assert said() == "3/3 prompts, 0.9 tokens/s\n"


def test_lines_tell_failures_and_what_is_in_flight(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """Failures of the calls before too; standard output is for data."""
    lines = Lines()
    lines.start("demo", total=9, done=2, failed=1)
    lines.in_flight(3_000_000)
    clock.now += LINE_SECONDS
    lines.committed(1, 1, tokens=5)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1] == "4/9 prompts, 0.5 tokens/s, 3.0 MB in flight, 2 failed, ETA 0:25"
    clock.now += LINE_SECONDS
    lines.fetched(12_300_000, 345_000_000)
    assert capsys.readouterr().err == "fetching the model: 12 of 345 MB\n"


def test_the_display_fits_options_and_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Events for programs even where it is to be quiet, a bar for eyes, lines for logs."""
    assert isinstance(choose(as_json=True, quiet=True), Events)
    assert type(choose(quiet=True)) is Progress
    assert isinstance(choose(quiet=False), Lines)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    for terminal, display in (("xterm", Bar), ("dumb", Lines)):  # the second cannot draw a line anew
        monkeypatch.setenv("TERM", terminal)
        shown = choose(quiet=False)
        assert isinstance(shown, display)
        shown.close()


def test_events_tell_the_same(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """Numbers of an event are those that a line would show."""
    events = Events()
    events.start("demo", total=10, done=2, failed=1)
    events.working()
    events.in_flight(77)
    clock.now += 4
    events.committed(1, 1, tokens=10)
    *_, last = map(json.loads, capsys.readouterr().out.splitlines())
    del last["time"]
    assert last == {
        "event": "progress",
        "run": "demo",
        "done": 4,
        "prompts": 10,
        "failed": 2,
        "prompts_per_second": 0.5,
        "tokens_per_second": 2.5,
        "eta_seconds": 12.0,
        "in_flight_bytes": 77,
    }


def test_a_bar_says_what_is_done_now(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Preparations by their names, the fetching of a model by its bytes, and once a model is loaded the run's name."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "140")

    def last(*told: Callable[[Bar], None]) -> str:
        bar = Bar()
        bar.start("demo", total=4, done=1, failed=0)
        for tell in told:
            tell(bar)
        bar.close()
        return [line for line in re.split(r"[\r\n]+", capsys.readouterr().err) if "/4" in line][-1]

    def load(bar: Bar) -> None:
        bar.stage("loading the model in 1 actor")

    assert "1/4" in last()
    assert "loading the model in 1 actor" in last(load)
    assert "fetching the model: 12 of 345 MB" in last(lambda bar: bar.fetched(12_300_000, 345_000_000))
    working = last(load, Bar.working, lambda bar: bar.committed(2, 0, tokens=10))
    assert "demo" in working
    assert "loading" not in working
    assert "3/4" in working
    assert "tokens/s, 2.5 MB in flight" in last(lambda bar: bar.in_flight(2_500_000), lambda bar: bar.committed(1, 0, tokens=10))
    assert "the server is full" in last(lambda bar: bar.waiting("the server is full"))


def test_lines_of_a_fit(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """For logs: prompts that are checked, bytes that have come from the hub, tokens and steps, at most every ten seconds."""
    progress = Lines()
    progress.stage("checking the corpus")
    progress.scanned(1_000)
    clock.now += LINE_SECONDS
    progress.scanned(2_000)
    progress.fetched(1_000_000, 5_000_000)
    clock.now += LINE_SECONDS
    progress.fetched(2_000_000, 5_000_000)
    progress.tokenized(100, 1_250)
    clock.now += LINE_SECONDS
    progress.tokenized(1_000, 1_250)
    progress.steps(1, 9)
    clock.now += LINE_SECONDS
    progress.steps(2, 9)
    progress.close()
    assert capsys.readouterr().err.splitlines() == [
        "checking the corpus",
        "checking the corpus: 2,000 prompts so far",
        "fetching the model: 2 of 5 MB",
        "tokenizing: 1,000 of 1,250 tokens",
        "2/9 steps",
    ]


def test_a_bar_of_a_fit(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """What is done now stands before the bar, which fills by the steps."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")

    def last(*told: Callable[[Bar], None]) -> str:
        bar = Bar()
        for tell in told:
            tell(bar)
        bar.close()
        return [line for line in re.split(r"[\r\n]+", capsys.readouterr().err) if "token" in line][-1]

    assert "tokenizing: 500 of 1,000 tokens" in last(lambda bar: bar.tokenized(500, 1_000))
    fitting = last(lambda bar: bar.stage("fitting 4 maps on 512 tokens"), lambda bar: bar.steps(1, 4))
    assert "fitting 4 maps on 512 tokens" in fitting
    assert "1/4" in fitting


@pytest.mark.parametrize("display", [Lines, Bar])
def test_a_terminal_takes_no_orders(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], display: type[Lines | Bar]
) -> None:
    """What is told may quote a server, or the name of a file: it writes no title, erases nothing and makes no line of ours."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "140")
    shown = display()
    shown.stage("server \x1b]0;owned\x07away\nError: all is lost")
    shown.waiting("server \x9b2Jaway")
    shown.close()
    said = capsys.readouterr().err
    assert "server ‹001B›]0;owned‹0007›away↵Error: all is lost" in said
    assert "server ‹009B›2Jaway" in said
    assert "\x1b]0" not in said
