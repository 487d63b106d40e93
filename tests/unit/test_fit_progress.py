"""What is said while a lens is fitted: what is done now at once, how far it is now and then."""

import re

import pytest

from raylens.scheduler import progress as module
from raylens.scheduler.fit_progress import fit_display
from raylens.scheduler.progress import LINE_SECONDS
from tests.clock import Clock


def test_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """For logs: prompts that are checked, bytes that have come from the hub, tokens and steps, at most every ten seconds."""
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    progress = fit_display(quiet=False)
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


def test_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing."""
    progress = fit_display(quiet=True)
    progress.stage("checking the corpus")
    progress.scanned(1)
    progress.fetched(1, 2)
    progress.tokenized(1, 2)
    progress.steps(1, 2)
    progress.close()
    assert capsys.readouterr().err == ""


def test_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """On a terminal what is done now stands before the bar, which fills by the tokens, and anew by the steps."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)

    def last(tokens: int = 0, steps: int = 0) -> str:
        progress = fit_display(quiet=False)
        progress.fetched(12_300_000, 345_000_000)
        if tokens:
            progress.stage("tokenizing")
            progress.tokenized(tokens, 1_000)
        if steps:
            progress.stage("fitting 4 maps on 512 tokens")
            progress.steps(steps, 4)
        progress.close()
        return [line for line in re.split(r"[\r\n]+", capsys.readouterr().err) if re.search("maps|token|fetching", line)][-1]

    assert "fetching the model: 12 of 345 MB" in last()
    tokenizing = last(tokens=500)
    assert "tokenizing" in tokenizing
    assert "50%" in tokenizing
    fitting = last(tokens=1_000, steps=1)
    assert "fitting 4 maps on 512 tokens" in fitting
    assert "25%" in fitting


@pytest.mark.parametrize("terminal", [False, True])
def test_a_terminal_takes_no_orders(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], terminal: bool) -> None:
    """Whatever is told."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)
    progress = fit_display(quiet=False)
    progress.stage("reading \x1b]0;owned\x07")
    progress.close()
    assert "reading ‹001B›]0;owned‹0007›" in capsys.readouterr().err
