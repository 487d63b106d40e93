"""What a run takes and what would make it cheaper, by a rehearsal of some prompts: the corpus's share of what was measured."""

from array import array
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import orjson
import pytest

from raylens.scheduler.corpus import Corpus
from raylens.scheduler.dry_run.advice import Advice, advise, size
from raylens.scheduler.dry_run.bill import Bill
from raylens.scheduler.dry_run.costs import Costs, Crew
from raylens.scheduler.dry_run.extent import Extent
from raylens.scheduler.dry_run.rehearsal import Call, Rehearsal, rehearse
from raylens.scheduler.dry_run.stored import Stored
from raylens.storage.writer import COMMIT_SECONDS
from raylens.workers.settings import GenerationSettings, InputSettings, LensSettings, ModelSettings, WorkerSettings
from raylens.workers.tokenize import Tokenized
from tests.tiny import save_word_llama, sentences

PROMPTS, WORDS, LAYERS, TOP_K = 6, 20, 8, 10
TAPS = ("attn_out", "resid_post")
EVERY = tuple(range(LAYERS))


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> WorkerSettings:
    folder = save_word_llama(tmp_path_factory.mktemp("model"), layers=LAYERS)
    read_out = LensSettings(TOP_K, taps=TAPS, positions="all")
    return WorkerSettings(ModelSettings(str(folder)), read_out, InputSettings(batch_tokens=64))


@pytest.fixture(scope="module")
def rehearsed(settings: WorkerSettings) -> Rehearsal:
    prompts = list(Corpus.from_rows([*sentences(PROMPTS - 1, WORDS), ""]).prompts())
    return rehearse(settings, prompts, PROMPTS, 1, 1, lambda _: None)


def bill(rehearsed: Rehearsal, times: int = 1, heads: int = 0, here: bool = True, start: float = 0.0) -> Bill:
    """Of a corpus that is so many times what was rehearsed; each has one failure in it."""
    tokens = (PROMPTS - 1) * WORDS * times
    extent = Extent(PROMPTS * times, times, tokens, tokens, tokens, 1, array("I"))
    return Bill(extent, rehearsed, Costs(rehearsed, start, Crew(1.0, 1.0, 1)), TAPS, EVERY, heads, here)


def test_every_byte_on_disk_is_told_once(rehearsed: Rehearsal, tmp_path: Path) -> None:
    """Of a run's folder, with the certificate that a run has in it too."""
    worker = rehearsed.worker
    found = [worker.tokenize(prompt) for prompt in Corpus.from_rows(sentences(3, WORDS)).prompts()]
    stored = Stored(tmp_path, worker)
    stored.add(list(worker.read([one for one in found if isinstance(one, Tokenized)])), 0.0)
    stored.finish()
    files = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert stored.fixed_bytes + stored.prompt_bytes + stored.lens_bytes == files + len(orjson.dumps(worker.certificate))


def test_what_was_rehearsed_is_what_was_stored(rehearsed: Rehearsal) -> None:
    """Of a corpus of just these prompts each byte is known; one five times as large takes five times as many, but for what each
    run has once."""
    stored = rehearsed.stored
    assert (stored.prompts, stored.positions) == (PROMPTS, (PROMPTS - 1) * WORDS)
    assert stored.sent_bytes > bill(rehearsed).places * TOP_K, "a token takes a byte at least"
    assert bill(rehearsed).store_bytes() == stored.fixed_bytes + stored.prompt_bytes + stored.lens_bytes
    assert bill(rehearsed, 5).store_bytes() == stored.fixed_bytes + 5 * (stored.prompt_bytes + stored.lens_bytes)
    assert bill(rehearsed, 5).sent_bytes() == 5 * stored.sent_bytes


def test_places(rehearsed: Rehearsal) -> None:
    """Heads are read whatever the taps and layers."""
    positions = (PROMPTS - 1) * WORDS
    assert bill(rehearsed).places == positions * 2 * LAYERS
    assert bill(rehearsed, heads=6).places == positions * (2 * LAYERS + 6)
    assert bill(rehearsed, heads=6).places_with(10, ("resid_post",), (0, 4)) == 10 * (2 + 6)


def test_fewer_places_take_fewer_bytes(rehearsed: Rehearsal) -> None:
    """In proportion, but for what there is of each prompt and run; heads stay."""
    stored = rehearsed.stored
    fixed = stored.fixed_bytes + stored.prompt_bytes
    assert bill(rehearsed).store_bytes(positions=10) == round(fixed + stored.lens_bytes * 10 / stored.positions)
    assert bill(rehearsed).store_bytes(positions=0) == fixed
    assert bill(rehearsed).store_bytes(taps=("resid_post",)) == round(fixed + stored.lens_bytes / 2)
    assert bill(rehearsed).store_bytes(layers=(0, 4)) == round(fixed + stored.lens_bytes / 4)
    assert bill(rehearsed, heads=16).store_bytes(layers=(0, 4)) == round(fixed + stored.lens_bytes * 20 / 32)


def test_fewer_places_take_less_time(rehearsed: Rehearsal) -> None:
    """Had a token taken 10 ms and a position 20: what is multiplied at a position counts, heads always among it. Elsewhere
    nothing is known."""
    stored = copy(rehearsed.stored)
    stored.seconds = 0.0
    timed = replace(rehearsed, stored=stored, calls=[Call(100, 100, 3.0)], contrasts=[Call(100, 1, 1.02)])

    def expected(heads: int = 0, **changes: Any) -> float:
        found = bill(timed, heads=heads, start=7.0).seconds(**changes)
        assert found is not None
        return found.expected - 7 - COMMIT_SECONDS / 2

    products = rehearsed.worker.products
    every, fewer = products(TAPS, EVERY), products(TAPS, (0, 4))
    assert expected() == expected(heads=5) == pytest.approx(3.0)
    assert expected(positions=0) == pytest.approx(1.0)
    assert expected(layers=(0, 4)) == pytest.approx(1 + 2 * fewer / every)
    assert expected(heads=5, layers=(0, 4)) == pytest.approx(1 + 2 * (fewer + 5) / (every + 5))
    assert expected(taps=("resid_post",)) == pytest.approx(1 + 2 * products(("resid_post",), EVERY) / every)
    assert bill(timed, here=False).seconds() is None
    assert bill(timed, here=False).seconds(positions=0) is None


def test_where_no_position_was_told_from_a_token(settings: WorkerSettings) -> None:
    """As where a run generates: its own time is known, not what other places would take."""
    generating = msgspec.structs.replace(
        settings, lens=LensSettings(taps=TAPS, positions="last"), generation=GenerationSettings(2)
    )
    found = rehearse(generating, list(Corpus.from_rows(sentences(2, 3)).prompts()), 2, 1, 1, lambda _: None)
    assert found.stored.prompts == 2, "however often they were read"
    assert bill(found).seconds() is not None
    assert bill(found).seconds(layers=(0, 4)) is None
    assert bill(found).seconds(positions=1) is None
    options = [one.option for one in advise(generating, bill(found), LAYERS)]
    assert options == ["--layers ::4", "--taps resid_post"], "--positions cannot be given with --generate"


def test_advice_is_what_saves_enough(rehearsed: Rehearsal, settings: WorkerSettings) -> None:
    """The most first, by bytes where the time is not known; nothing for a run that reads that little."""
    unknown = bill(rehearsed, 50, here=False)
    found = advise(settings, unknown, LAYERS)
    assert [one.option for one in found] == ["--positions last", "--layers ::4", "--taps resid_post"]
    records = 50 * (PROMPTS - 1)
    assert [one.places for one in found] == [records * 2 * LAYERS, records * WORDS * 4, records * WORDS * LAYERS]
    assert [one.store_bytes for one in found] == [
        unknown.store_bytes(positions=records),
        unknown.store_bytes(layers=(0, 4)),
        unknown.store_bytes(taps=("resid_post",)),
    ]
    assert all(one.seconds is None for one in found)
    little = msgspec.structs.replace(settings, lens=LensSettings(taps=("resid_post",), layers="0,7", positions="last"))
    last = Extent(PROMPTS, 1, 100, 100, PROMPTS - 1, 1, array("I"))
    reading = Bill(last, rehearsed, unknown.costs, ("resid_post",), (0, 7), 0, here=True)
    assert advise(little, reading, LAYERS) == []


def test_a_line_of_advice() -> None:
    """What remains of the places, and each figure before and after; no time where there is none to compare."""
    one = Advice("--layers ::4", 25, 1_500_000, 61.0)
    assert one.line(100, 2_000_000_000, 120.0) == "--layers ::4: 25% of the places, 2.00 GB -> 1.5 MB, about 2:00 -> 1:01"
    assert one.line(100, 2_000_000, None) == "--layers ::4: 25% of the places, 2.0 MB -> 1.5 MB"
    assert (size(999_900_000), size(12_345_000_000)) == ("999.9 MB", "12.35 GB")
