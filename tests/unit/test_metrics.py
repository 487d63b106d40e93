"""Every metric of the table against its definition in float64, by every way of reading out, and the questions behind them."""

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from raylens.storage.errors import UsageError
from raylens.storage.record import Record
from raylens.storage.taps import TAPS
from raylens.workers import lens as lens_module
from raylens.workers import projection, running
from raylens.workers import reading as reading_module
from raylens.workers.adapter import Adapter, adapt
from raylens.workers.asked import Asked, Final, Tally
from raylens.workers.batching import pad
from raylens.workers.lens import Lens
from raylens.workers.metrics import ALL, METRICS, Truth, metrics_of, parse_stats
from raylens.workers.product import Unembedding
from raylens.workers.projection import Projection
from raylens.workers.running import CompiledReadout
from raylens.workers.settings import LensSettings, with_default_stats
from raylens.workers.topk import RunningReadout
from tests.models import FAMILIES, VOCABULARY, build, see
from tests.unit.test_lens import DEVICES, NORMS, built, logits64, prompts
from tests.unit.test_topk import logits_of_all_kinds

TRACKED = (3, VOCABULARY - 1, 0)
#: How far float32 may put a logit off; logits nearer than this may change ranks.
NEAR = 2e-4


def records(model: Any, adapter: Adapter, k: int = 5, **settings: Any) -> list[Record]:
    taps = tuple(tap for tap in TAPS if tap not in adapter.certificate["refused"])
    chosen = LensSettings(**{"top_k": k, "logprobs": "float32", "stats": ALL, **settings})
    outcomes = Lens(adapter, chosen, (0, 1, 2), taps, len(TRACKED))(pad(prompts(tracked=TRACKED), model.device))
    assert all(isinstance(outcome, Record) for outcome in outcomes)
    return [outcome for outcome in outcomes if isinstance(outcome, Record)]


def truths(name: str, model: Any, record: Record, tap: str, layer: int) -> list[Truth]:
    """The float64 logits of each position at a tap and at the end, by hooks that share nothing with the package."""
    blocks, _ = see(model, FAMILIES[name], torch.tensor([record.token_ids], device=model.device))
    place = {"resid_pre": "pre", "attn_out": "attn", "resid_mid": "mid", "mlp_out": "mlp", "resid_post": "post"}[tap]
    here = logits64(name, model, getattr(blocks[layer], place)).cpu().numpy()
    final = logits64(name, model, blocks[-1].post).cpu().numpy()
    following = [*record.token_ids[1:], -1]
    return [Truth(here[p], final[p], following[p], list(TRACKED)) for p in record.positions]


def check(name: str, truth: Truth, found: Any) -> None:
    """One metric at one place: 1e-4 for numbers, and for ranks what logits moved by their error allow."""
    expected = METRICS[name].reference(truth)
    if found.dtype == np.float32:
        np.testing.assert_allclose(found, expected, atol=1e-4)
        return
    tokens = {"tracked": truth.tracked, "next": [truth.next], "best": [truth.best]}[METRICS[name].needs]
    for rank, token in zip(np.atleast_1d(found), tokens, strict=True):
        surely = 1 + int((truth.logits > truth.logits[token] + NEAR).sum())
        perhaps = int((truth.logits >= truth.logits[token] - NEAR).sum())
        assert surely <= rank <= perhaps, (name, token)


def check_all(family: str, model: Any, adapter: Adapter) -> None:
    """All rows of the table at every tap, layer and position of a padded batch."""
    for record in records(model, adapter):
        assert record.tracked == list(TRACKED)
        for tap, lens in record.taps.items():
            assert tuple(lens.stats) == metrics_of(ALL, tracked=True) == tuple(METRICS)
            for at, layer in enumerate(lens.layers):
                for p, truth in enumerate(truths(family, model, record, tap, layer)):
                    for name in METRICS:
                        found = lens.stats[name][at, p]
                        if METRICS[name].needs != "next" or truth.next >= 0:
                            check(name, truth, found)
                        else:  # after the last token there is none
                            assert np.isnan(found) if found.dtype == np.float32 else found == 0


@pytest.mark.parametrize("device", [DEVICES[1]])
@pytest.mark.parametrize("family", NORMS)
def test_every_metric_on_a_gpu(family: str, device: str) -> None:
    """The same there."""
    check_all(family, *built(family, device))


@pytest.mark.parametrize("way", ["sums", "tap by tap", "plain", "segments", "final first"])
@pytest.mark.parametrize("family", NORMS)
def test_every_metric_against_its_definition(family: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All rows of the table at every tap, layer and position, for each kind of norm, softcap, factor and bias."""
    model, adapter = built(family)
    if way == "final first":  # as of batches whose rows do not fit in memory
        monkeypatch.setattr(lens_module, "KEPT_BYTES", 0)
    if way not in ("sums", "segments", "final first"):
        adapter = replace(adapter, walk=None)
    if way == "plain":
        monkeypatch.setattr(running, "is_compiled", lambda: False)
    if way == "segments":
        monkeypatch.setattr(reading_module, "PENDING_BYTES", 3000)
    check_all(family, model, adapter)


@pytest.mark.parametrize("way", ["sums", "tap by tap", "plain"])
@pytest.mark.parametrize("family", ["gpt2", "gptj"])  # whose logits have a constant part: of the norm's bias, and the head's
def test_every_metric_by_tiles_and_blocks(family: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same where a batch is read in several tiles and the vocabulary in several blocks, as large ones are."""
    model, adapter = built(family)
    monkeypatch.setattr(Unembedding, "most_rows", 7)
    monkeypatch.setattr(running, "PIECE", 64)
    for most in ("COMPILED_LOGITS", "PLAIN_LOGITS"):
        monkeypatch.setattr(running, most, 1)
    if way == "plain":
        monkeypatch.setattr(running, "is_compiled", lambda: False)
    check_all(family, model, adapter if way == "sums" else replace(adapter, walk=None))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter counts with numpy, which warns of infinity and NaN
@pytest.mark.parametrize("family", ["gemma2", "gptj"])
def test_every_metric_by_the_kernel(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same in one Triton kernel, handed the final layer's probabilities of two tokens at a time."""
    model, adapter = built(family)
    found = adapter.projection
    fused = Projection(found.norm, found.head, found.step)
    fused.fused = True
    monkeypatch.setattr(projection, "FINAL_BYTES", 8 * VOCABULARY)
    check_all(family, model, replace(adapter, walk=None, projection=fused))


@pytest.mark.parametrize("walk", [True, False])
def test_ranks_agree_with_the_stored_lists(walk: bool) -> None:
    """A tracked token among the k best has the rank and logprob that it has there, any other a larger rank."""
    model, adapter = built("llama")
    listed_at_all = 0
    for record in records(model, adapter if walk else replace(adapter, walk=None), k=40):
        for lens in record.taps.values():
            for m, token in enumerate(TRACKED):
                ranks, logprobs = lens.stats["tracked_rank"][..., m], lens.stats["tracked_logprob"][..., m]
                listed = lens.ids == token
                kept = listed.any(axis=2)
                listed_at_all += int(kept.sum())
                assert (ranks[kept] == listed.argmax(axis=2)[kept] + 1).all()
                assert (logprobs[kept] == lens.logprobs[listed]).all()
                assert (ranks[~kept] > 40).all()
    assert listed_at_all > 20


@pytest.mark.parametrize("family", ["mamba", "mamba2"])
def test_a_residual_wider_than_what_is_added(family: str) -> None:
    """KL is of the final prediction as the record has it, also where the residual is float32 and all that is added bfloat16."""
    model, adapter = built(family, "cpu", torch.bfloat16)
    for record in records(model, adapter, k=VOCABULARY, stats=("kl",)):
        final = _by_token(record, "resid_post")[-1]
        for tap, lens in record.taps.items():
            expected = (np.exp(final) * (final - _by_token(record, tap))).sum(axis=2)
            np.testing.assert_allclose(lens.stats["kl"], expected, atol=1e-5)


def _by_token(record: Record, tap: str) -> NDArray[np.float64]:
    """[L, N, V] logprobs of a record that keeps them all."""
    lens = record.taps[tap]
    return np.take_along_axis(lens.logprobs.astype(np.float64), lens.ids.argsort(axis=2), axis=2)


def test_the_end_is_no_distance_from_itself() -> None:
    """KL at the last block's output is 0 to rounding, and nowhere negative."""
    model, adapter = built("llama")
    for record in records(model, adapter):
        assert (record.taps["resid_post"].stats["kl"][2] < 1e-5).all()
        assert all((lens.stats["kl"] >= 0).all() for lens in record.taps.values())


def test_only_what_is_asked_is_stored() -> None:
    """Without questions there are no statistics, and of several only those named; tracking alone brings two."""
    model, adapter = built("llama")
    asked: list[tuple[tuple[str, ...], tuple[int, ...], tuple[str, ...]]] = [
        ((), (), ()),
        (("kl",), (), ("kl",)),
        ((), (1,), ("tracked_logprob", "tracked_rank")),
    ]
    for stats, tracked, names in asked:
        lens = Lens(adapter, LensSettings(3, stats=stats), (2,), ("resid_post",), len(tracked))
        (record, *_) = lens(pad(prompts(tracked=tracked), model.device))
        assert isinstance(record, Record)
        assert tuple(record.taps["resid_post"].stats) == names
        assert record.tracked == list(tracked)


@pytest.mark.parametrize(("kept", "passes"), [(lens_module.KEPT_BYTES, 1), (0, 2)])
def test_the_final_prediction_is_waited_for(kept: int, passes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the rows of a batch fit in memory, comparing with the final layer takes no second forward pass."""
    model, adapter = built("llama")
    monkeypatch.setattr(lens_module, "KEPT_BYTES", kept)
    runs: list[None] = []
    hook = adapter.trunk.register_forward_hook(lambda *_: runs.append(None))
    try:
        records(model, adapter)
    finally:
        hook.remove()
    assert len(runs) == passes


def test_impossible_tokens_stay_finite() -> None:
    """A masked token has a logprob and a distance at the end of what float32 can say, which formats can hold."""
    model = copy.deepcopy(build("gptj"))
    with torch.no_grad():
        model.lm_head.bias[TRACKED[0]] = -torch.inf
    for record in records(model, adapt(model)):
        for lens in record.taps.values():
            assert (lens.stats["tracked_logprob"][..., 0] == np.finfo(np.float32).min).all()
            assert (lens.stats["tracked_rank"][..., 0] == VOCABULARY).all()
            assert np.isfinite(lens.stats["kl"]).all()


def asked_of(logits: Tensor, seed: int, targets: int) -> tuple[Asked, Tensor, Tensor]:
    """A question about rows of two tokens, the targets' logits, and the final layer's logits of both tokens."""
    rows, columns = logits.shape
    generator = torch.Generator().manual_seed(seed)
    final = torch.randn(2, columns, generator=generator) * 3
    ids = torch.randint(columns, (rows, targets), generator=generator)
    token = torch.arange(rows) * 2 // rows
    whole = RunningReadout(2, 1, torch.device("cpu"))
    whole.add(final)
    read = whole.finish()
    return Asked(ids, token, Final(torch.empty(2, 1), read.logsumexp, read.entropy)), logits.gather(1, ids), final


@given(logits_of_all_kinds, st.integers(1, 20), st.lists(st.integers(1, 299), max_size=4), st.integers(0, 99), st.integers(0, 4))
def test_any_partition_by_both_forms(logits: Tensor, k: int, places: list[int], seed: int, targets: int) -> None:
    """Plain and compiled counting give exactly the ranks of a stable sort, ties and impossible tokens included, and one KL."""
    k = min(k, logits.shape[1])
    asked, target_logits, final = asked_of(logits, seed, targets)
    cuts = sorted({place for place in places if 0 < place < logits.shape[1]})
    answers = []
    for make in (
        lambda tally: RunningReadout(len(logits), k, torch.device("cpu"), tally),
        lambda t: CompiledReadout(len(logits), k, t),
    ):
        tally = Tally(asked, target_logits.clone())
        reading = make(tally)
        for block, last in zip(torch.tensor_split(logits, cuts, dim=1), torch.tensor_split(final, cuts, dim=1), strict=True):
            reading.add(block, tally.weights(last.clone()))
        answers.append(reading.finish())
    for row, values in enumerate(logits.double().numpy()):
        truth = Truth(values, final[int(asked.token[row])].double().numpy(), 0, asked.targets[row].tolist())
        for answer in answers:
            assert answer.target_ranks[row].tolist() == [truth.rank(token) for token in truth.tracked]
            if np.isfinite(values).all():
                np.testing.assert_allclose(answer.kl[row], METRICS["kl"].reference(truth), rtol=1e-5, atol=3e-5)
                expected = METRICS["tracked_logprob"].reference(truth)
                np.testing.assert_allclose(answer.target_logprobs[row], expected, rtol=1e-6, atol=2e-5)


def test_parts_of_a_question() -> None:
    """A part keeps only the tokens that its rows are of, and numbers them anew."""
    final = Final(torch.arange(8.0).view(4, 2), torch.arange(4.0), torch.arange(4.0))
    asked = Asked.of_tokens(torch.arange(4).unsqueeze(1), final).repeated(3)
    assert asked.token.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    part = asked.part(slice(4, 8))
    assert part.token.tolist() == [0, 0, 1, 1]
    assert part.targets.squeeze(1).tolist() == [1, 1, 2, 2]
    assert part.final is not None
    assert part.final.logsumexp.tolist() == [1.0, 2.0]
    assert part.final.rows.tolist() == [[2.0, 3.0], [4.0, 5.0]]


def test_a_head_that_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    """A head that is not a plain linear layer gives the same answers."""
    model, adapter = built("llama")
    expected = records(model, replace(adapter, walk=None))
    projection = Projection(adapter.projection.norm, adapter.projection.head, adapter.projection.step)
    monkeypatch.setattr(projection, "unembedding", None)
    for one, other in zip(records(model, replace(adapter, walk=None, projection=projection)), expected, strict=True):
        for tap, lens in one.taps.items():
            for name, values in lens.stats.items():
                np.testing.assert_allclose(values, other.taps[tap].stats[name], atol=1e-5)


def test_names_of_statistics() -> None:
    """A comma list or any iterable, each once and in the order of the table; an unknown name lists those there are."""
    assert parse_stats("next_rank, kl,kl") == parse_stats(["kl", "next_rank"]) == ("kl", "next_rank")
    assert parse_stats("all") == parse_stats(["all"]) == ALL
    assert parse_stats("best_attribution, all") == (*ALL, "best_attribution")
    with pytest.raises(UsageError, match=r"--stats nothing: .* choose from kl, next_logprob, next_rank"):
        parse_stats("kl,nothing")
    with pytest.raises(UsageError, match="--stats none,kl: none goes with no other"):
        parse_stats("none,kl")
    assert METRICS.keys() == {*ALL, "tracked_logprob", "tracked_rank"}


@pytest.mark.parametrize("asked", [(), ("kl",), ("next_rank", "best_rank")])
@pytest.mark.parametrize("walk", [True, False])
def test_metrics_of_the_residual_only(walk: bool, asked: tuple[str, ...]) -> None:
    """Other taps have what was asked and all of tracked tokens; numbers are those of all taps having all."""
    model, adapter = built("llama")
    adapter = adapter if walk else replace(adapter, walk=None)
    whole = records(model, adapter)
    more = tuple(name for name in ALL if name not in asked)
    for some, every in zip(records(model, adapter, stats=asked, residual_stats=more), whole, strict=True):
        for tap, lens in some.taps.items():
            others = {name for name in METRICS if name in asked or METRICS[name].needs == "tracked"}
            assert lens.stats.keys() == (METRICS.keys() if tap == "resid_post" else others)
            for name, values in lens.stats.items():
                np.testing.assert_allclose(values, every.taps[tap].stats[name], atol=1e-5)


@pytest.mark.parametrize("asked", [{"stats": ALL}, {"residual_stats": ALL}], ids=["every tap", "the residual"])
def test_metrics_where_nothing_is_tracked(asked: dict[str, Any]) -> None:
    """The residual's numbers are those of a run that reads each tap by itself, also where no other tap is asked anything."""
    model, adapter = built("llama")
    whole = records(model, replace(adapter, walk=None))
    taps = ("attn_out", "resid_mid", "mlp_out", "resid_post")
    lens = Lens(adapter, LensSettings(5, logprobs="float32", **asked), (0, 1, 2), taps)
    assert "sums" in lens.path
    for one, every in zip(lens(pad(prompts(), model.device)), whole, strict=True):
        assert isinstance(one, Record)
        for name in ALL:
            found, expected = (record.taps["resid_post"].stats[name] for record in (one, every))
            np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("lens", "expected"),
    [
        (LensSettings(stats=None), ((), ALL)),
        (LensSettings(stats=None, taps=("resid_pre", "resid_post"), layers="0-2"), ((), ALL)),
        (LensSettings(stats=None, lens="tuned:x"), ((), ALL)),
        (LensSettings(stats=None, taps=("attn_out",)), ((), ())),
        (LensSettings(stats=None, layers="::2"), ((), ())),
        (LensSettings(stats=()), ((), ())),
        (LensSettings(stats=("kl",)), (("kl",), ALL[1:])),
        (LensSettings(stats=("kl",), layers="::2"), (("kl",), ())),
        (LensSettings(stats=ALL), (ALL, ())),
    ],
)
def test_which_come_by_default(lens: LensSettings, expected: tuple[tuple[str, ...], tuple[str, ...]]) -> None:
    """Of three layers: those that tell how a prediction is decided, of the residual, where all of its layers are lensed."""
    found = with_default_stats(lens, 3)
    assert (found.stats, found.residual_stats) == expected
