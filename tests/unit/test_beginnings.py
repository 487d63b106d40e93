"""Prompts that begin alike: what they share is read once, and each gets what it gets alone."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raylens.storage.record import Prompt, Record
from raylens.workers.batching import pad
from raylens.workers.interventions.edits import read_edits
from raylens.workers.metrics import ALL
from raylens.workers.settings import LensSettings, ModelSettings, WorkerSettings
from raylens.workers.tokenize import Tokenized
from raylens.workers.worker import Worker
from tests.models import CLOSE, save

#: The same prompt twice, one that goes on, beginnings of it, another last token, another first token, and another token tracked.
TEXTS = [[5, 6, 7, 8], [5, 6, 7, 8], [5, 6, 7, 8, 9], [5, 6], [5], [5, 6, 7, 10], [9, 6, 7, 8], [5, 6, 7, 8]]
TRACKED = [11, 11, 11, 11, 11, 11, 11, 12]
KINDS: dict[str, dict[str, Any]] = {
    "metrics": {"stats": ("kl", "next_logprob", "next_rank", "best_logprob"), "track": ("field:token",)},
    "attributions": {"stats": ("attribution", "next_attribution"), "track": ("field:token",)},
    "heads": {"heads": "all"},
    "default": {"residual_stats": ALL},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("model"))


def check(worker: Worker, stats: Iterable[str] = ()) -> None:
    """Each prompt gets in a batch of all what it gets by itself, these statistics among it."""
    prompts = [
        Prompt(number, f"p{number}", token_ids=ids, metadata={"token": f"id:{token}"})
        for number, (ids, token) in enumerate(zip(TEXTS, TRACKED, strict=True))
    ]
    together = {outcome.index: outcome for outcome in worker.run(prompts)}
    assert len(together) == len(prompts)
    for prompt in prompts:
        record, (alone,) = together[prompt.index], worker.run([prompt])
        assert isinstance(record, Record)
        assert isinstance(alone, Record)
        assert (record.token_ids, record.tracked, list(record.taps)) == (alone.token_ids, alone.tracked, list(alone.taps))
        assert set(stats) <= record.taps["resid_post"].stats.keys()
        for name, tap in record.taps.items():
            other = alone.taps[name]
            np.testing.assert_array_equal(tap.ids, other.ids)
            np.testing.assert_allclose(tap.logprobs, other.logprobs, atol=2 * CLOSE)
            assert list(tap.stats) == list(other.stats)
            for stat, values in tap.stats.items():
                np.testing.assert_allclose(values, other.stats[stat], atol=1e-4, err_msg=stat)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_shared_is_what_each_gets_alone(folder: Path, kind: str) -> None:
    """Whatever is asked: of next tokens, of tracked ones, of the final prediction."""
    lens = LensSettings(positions="all", logprobs="float32", **KINDS[kind])
    check(Worker(WorkerSettings(ModelSettings(str(folder)), lens)), [*(lens.stats or ()), *lens.residual_stats])


def test_an_edit_that_counts_from_the_end_is_of_each_prompt(folder: Path) -> None:
    """The last tokens but one of a prompt stand further before the end of another that begins alike."""
    edits = read_edits({"edits": [{"tap": "mlp_out", "layers": 0, "positions": "last:2", "zero": True}]})
    check(Worker(WorkerSettings(ModelSettings(str(folder)), LensSettings(positions="all", logprobs="float32"), edits=edits)))


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=6), st.booleans())
def test_a_row_is_read_once_for_all_that_share_it(texts: list[list[int]], once: bool) -> None:
    """Of each beginning, with the token after it and what is tracked, there is one row; or one of each place, if told so."""
    prompts = [
        Tokenized(Prompt(n, str(n)), "", ids, list(range(n % 2, len(ids))), None, (len(ids) % 2,)) for n, ids in enumerate(texts)
    ]
    batch = pad(prompts, torch.device("cpu"), once=once)
    asked = [(tuple(one.ids[: position + 2]), position, one.tracked) for one in prompts for position in one.positions]
    assert len(batch.rows) == (len(set(asked)) if once else len(asked))
    assert [len(places) for places in batch.places] == [len(one.positions) for one in prompts]
    for one, places in zip(prompts, batch.places, strict=True):
        for position, place in zip(one.positions, places, strict=True):
            number, column = divmod(int(batch.rows[place]), batch.ids.shape[1])
            owner = prompts[number]
            assert (column, owner.ids[: position + 2], owner.tracked) == (position, one.ids[: position + 2], one.tracked)
            assert batch.following[place] == (one.ids[position + 1] if position + 1 < len(one.ids) else -1)
            assert batch.tracked[place] == one.tracked
