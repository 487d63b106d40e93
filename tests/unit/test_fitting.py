"""Fitted lenses: the divergence and its gradient against float64, the maps read back by ``--lens``, the split, refusals."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from raylens.scheduler.new_folder import new_folder
from raylens.storage.errors import InputError, ModelError, UsageError
from raylens.storage.record import Prompt, Record
from raylens.workers.fitting.divergence import Divergence
from raylens.workers.fitting.fitter import Fitter
from raylens.workers.fitting.moments import Moments
from raylens.workers.fitting.report import LayerReport
from raylens.workers.fitting.rows import places
from raylens.workers.fitting.saving import Maps, lens_option, save_linear, save_tuned
from raylens.workers.fitting.settings import FitSettings, check
from raylens.workers.fitting.texts import PARTS, Texts, part_of, take_texts
from raylens.workers.fitting.translator import Translator, identity
from raylens.workers.lenses.interface import Place
from raylens.workers.preflight import load_tokenizer
from raylens.workers.settings import InputSettings, LensSettings, ModelSettings, WorkerSettings
from raylens.workers.source import resolve
from raylens.workers.tokenize import Tokenizer
from raylens.workers.worker import Worker
from tests.models import FAMILIES, see
from tests.models import save as save_family
from tests.tiny import save_word_llama, sentences
from tests.unit.test_lens import DEVICES, built, logits64, tokens

LAYERS = 3


@dataclass(frozen=True)
class Fitted:
    """What a fit came to."""

    maps: Maps
    reports: list[LayerReport]


def fit(settings: FitSettings, texts: Texts, own: list[Place] | None = None) -> Fitted:
    """All steps of one fitter, on one thread as every other test."""
    wanted = own if own is not None else places(settings.kind, LAYERS)
    fitter = Fitter(settings, texts.parts, wanted)
    for _ in range(fitter.load()):
        fitter.advance()
    return Fitted({place: fitter.map(place) for place in wanted}, fitter.reports())


def prompts(count: int = 160) -> list[Prompt]:
    return [Prompt(number, f"p{number}", text) for number, text in enumerate(sentences(count, 9))]


def taken(model: Path, tokens: int = 800, seed: int = 0, given: list[Prompt] | None = None, longest: int = 128) -> Texts:
    settings = ModelSettings(str(model))
    tokenizer = load_tokenizer(settings, resolve(settings))
    tokenize = Tokenizer(tokenizer, InputSettings(max_tokens=longest, on_long="truncate"), "all", 512, 256)
    return take_texts(given if given is not None else prompts(), tokenize, tokens, seed, "c.jsonl", lambda _done, _total: None)


def settings_of(model: Path, **changed: Any) -> FitSettings:
    given = {"tokens": 800, "steps": 6, "learning_rate": 1e-3, "batch_tokens": 128, **changed}
    return FitSettings(ModelSettings(str(model)), **given)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_word_llama(tmp_path_factory.mktemp("model"), LAYERS)


@pytest.fixture(scope="module")
def texts(model: Path) -> Texts:
    return taken(model)


@pytest.fixture(scope="module")
def tuned(model: Path, texts: Texts) -> Fitted:
    return fit(settings_of(model), texts)


# --- the divergence


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_divergence_and_gradient_against_float64(name: str, device: str) -> None:
    """By the definition, and by differences of it in a random direction."""
    model, adapter = built(name, device)
    blocks, _ = see(model, FAMILIES[name], torch.tensor([tokens(9)], device=model.device))
    rows, last = blocks[0].post.detach().float(), blocks[-1].post.detach().float()

    def plain(hidden: Tensor) -> Tensor:
        final, found = (torch.log_softmax(logits64(name, model, one), -1) for one in (last, hidden))
        return (final.exp() * (final - found)).sum(-1)

    divergence = Divergence(adapter.projection)
    moved = rows.clone().requires_grad_()
    found = divergence(moved, divergence.logprobs(last))
    assert found.detach().double().cpu().numpy() == pytest.approx(plain(rows.double()).cpu().numpy(), abs=1e-5)
    found.sum().backward()  # type: ignore[no-untyped-call]
    assert moved.grad is not None
    way = torch.randn(rows.shape, generator=torch.Generator().manual_seed(3)).to(device).double()
    slope = (plain(rows.double() + 1e-5 * way) - plain(rows.double() - 1e-5 * way)) / 2e-5
    assert (moved.grad.double() * way).sum(-1).cpu().numpy() == pytest.approx(slope.cpu().numpy(), rel=1e-3, abs=1e-5)
    assert divergence(last, divergence.logprobs(last)).abs().max() < 1e-6


def test_chunks_cover_all_rows() -> None:
    """Each row once, in order, and not more at once than fit."""
    _, adapter = built("llama")
    parts = list(Divergence(adapter.projection).chunks(200_000))
    assert [row for part in parts for row in range(part.start, part.stop)] == list(range(200_000))
    assert len(parts) == 4  # 2**24 entries hold 54,648 rows of 307


# --- least squares


def test_ridge_against_numpy() -> None:
    """The penalised least squares of what is missing, whatever the batches; the bias is free."""
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(300, 5, generator=generator) * torch.tensor([1.0, 30.0, 2.0, 1.0, 1.0]) + 3
    y = x @ torch.randn(5, 5, generator=generator) + torch.randn(300, 5, generator=generator) - 7
    moments = Moments(5, torch.device("cpu"))
    for part in (slice(0, 100), slice(100, 110), slice(110, 300)):
        moments.add(x[part], y[part])
    centred, wanted = (x - x.mean(0)).double().numpy(), (y - x).double().numpy()
    wanted -= wanted.mean(0)
    penalty = np.diag(np.sqrt(0.1 * 300 * centred.var(0)))
    expected = np.linalg.lstsq(np.vstack([centred, penalty]), np.vstack([wanted, np.zeros((5, 5))]), rcond=None)[0].T
    found = moments.ridge(0.1)
    assert found.bias is not None
    np.testing.assert_allclose(found.matrix.numpy(), expected, atol=1e-4)
    np.testing.assert_allclose(found(x).mean(0).numpy(), y.mean(0).numpy(), atol=1e-3)
    np.testing.assert_allclose(moments.scale.numpy(), x.std(0, correction=0).numpy(), rtol=1e-4)
    np.testing.assert_allclose(moments.final_scale.numpy(), y.std(0, correction=0).numpy(), rtol=1e-4)


def test_ridge_of_a_constant_direction() -> None:
    """A direction that never varies gets no weight, and nothing is divided by zero."""
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(5))
    x[:, 2] = 5.0
    moments = Moments(4, torch.device("cpu"))
    moments.add(x, x.flip(1))
    found = moments.ridge(0.01)
    assert found.matrix.isfinite().all()
    assert found.matrix[:, 2].abs().max() < 1e-3
    assert float(moments.scale.min()) > 0


def test_merged_translator() -> None:
    """What is saved is what was trained."""
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(6)) * 3 + 1
    moments = Moments(4, torch.device("cpu"))
    moments.add(x, x.flip(1))
    translator = Translator(moments.ridge(0.5), moments)
    torch.testing.assert_close(translator(x), moments.ridge(0.5)(x))
    with torch.no_grad():
        for parameter in translator.parameters:
            parameter += torch.randn(parameter.shape, generator=torch.Generator().manual_seed(7))
    assert (translator(x) - moments.ridge(0.5)(x)).abs().max() > 0.1
    torch.testing.assert_close(translator.merged()(x), translator(x), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(identity(4, torch.device("cpu"))(x), x)


# --- a whole fit


def held_out(model: Path, texts: Texts, lens: str, taps: tuple[str, ...]) -> dict[Place, float]:
    """The mean KL of the held-out prompts, as a run with this lens stores it."""
    read_out = LensSettings(taps=taps, positions="1:", logprobs="float32", stats=("kl",), lens=lens)
    given = [Prompt(number, str(number), token_ids=ids) for number, ids in enumerate(texts.parts["held_out"])]
    worker = Worker(WorkerSettings(ModelSettings(str(model)), read_out))
    records = [outcome for outcome in worker.run(given) if isinstance(outcome, Record)]
    assert len(records) == len(given)
    found: dict[Place, float] = {}
    for tap in taps:
        for at, layer in enumerate(records[0].taps[tap].layers):
            found[tap, layer] = float(np.concatenate([one.taps[tap].stats["kl"][at] for one in records]).mean())
    return found


def expected(reports: list[LayerReport]) -> dict[Place, float]:
    return {(one.tap, one.layer): one.kl_after for one in reports}


def test_a_run_finds_what_the_report_says(tmp_path: Path, model: Path) -> None:
    """The saved files give, over the held-out prompts, the KL of the report at every place, and lower than before it."""
    texts = taken(model, tokens=1 << 16)
    for kind, taps in (("tuned", ("resid_pre", "resid_post")), ("linear", ("resid_post",))):
        changed = {"kind": kind, **({"steps": None, "learning_rate": None} if kind == "linear" else {})}
        fitted = fit(settings_of(model, **changed), texts)
        folder = tmp_path / kind
        folder.mkdir()
        if kind == "tuned":
            save_tuned(folder, fitted.maps, "made-up", None)
        else:
            save_linear(folder, fitted.maps)
        found = held_out(model, texts, lens_option(kind, folder), taps)
        assert found.pop(("resid_post", LAYERS - 1)) == pytest.approx(0, abs=1e-6)
        assert found == pytest.approx(expected(fitted.reports), abs=1e-4)
        before = held_out(model, texts, "logit", taps)
        for one in fitted.reports:
            assert one.kl_before == pytest.approx(before[one.tap, one.layer], abs=1e-4)
            assert one.kl_after < 0.9 * one.kl_before, one


def test_translators_of_the_wrong_layer_are_told(tmp_path: Path, model: Path, texts: Texts, tuned: Fitted) -> None:
    """Saved one layer off, the lens does not give what the report says at any layer."""
    order = places("tuned", LAYERS)
    shifted = {place: tuned.maps[order[(number + 1) % len(order)]] for number, place in enumerate(order)}
    save_tuned(tmp_path, shifted, "made-up", None)
    found = held_out(model, texts, lens_option("tuned", tmp_path), ("resid_pre", "resid_post"))
    for place, kl in expected(tuned.reports).items():
        assert abs(found[place] - kl) > 0.01, place


def test_training_lowers_what_it_trains(model: Path, texts: Texts) -> None:
    """On the text that it sees the KL falls below that of least squares at every place."""
    same = Texts(dict.fromkeys(PARTS, texts.parts["fit"][:30]))
    plain = expected(fit(settings_of(model, steps=0), same).reports)
    for one in fit(settings_of(model, steps=20, learning_rate=0.003), same).reports:
        assert one.chosen == "trained"
        assert one.kl_after < plain[one.tap, one.layer]


def test_the_seed_repeats_a_fit_and_another_does_not(model: Path, texts: Texts, tuned: Fitted) -> None:
    """Equal to the last bit on one machine."""
    again, other = fit(settings_of(model), texts), fit(settings_of(model, seed=1), texts)
    assert again.reports == tuned.reports
    for place, (weight, bias) in tuned.maps.items():
        assert np.array_equal(weight, again.maps[place][0])
        assert np.array_equal(bias, again.maps[place][1])
    assert other.reports != tuned.reports


def test_two_that_share_the_layers_fit_what_one_does(model: Path, texts: Texts, tuned: Fitted) -> None:
    """No layer knows of another."""
    order = places("tuned", LAYERS)
    shares = [fit(settings_of(model), texts, order[number::2]) for number in range(2)]
    together = shares[0].maps | shares[1].maps
    assert set(together) == set(tuned.maps)
    for place, (weight, bias) in tuned.maps.items():
        np.testing.assert_array_equal(together[place][0], weight)
        np.testing.assert_array_equal(together[place][1], bias)


def test_a_learning_rate_that_spoils_leaves_the_start(model: Path, texts: Texts) -> None:
    """What is worse on the validation part is not kept."""
    plain = fit(settings_of(model, steps=0), texts)
    spoiled = fit(settings_of(model, learning_rate=1.0), texts)
    assert spoiled.reports == plain.reports


def test_a_model_in_a_short_type(tmp_path: Path) -> None:
    """Its norm is copied where no gradient is recorded; fitting goes through it all the same."""
    folder = save_family(tmp_path / "m", dtype=torch.bfloat16)
    generator = torch.Generator().manual_seed(8)
    parts = {part: torch.randint(3, 300, (16, 9), generator=generator).tolist() for part in PARTS}
    found = fit(settings_of(folder, steps=2), Texts(parts))
    assert all(np.isfinite(one.kl_after) for one in found.reports)


@pytest.mark.parametrize("spoiled", PARTS)
@pytest.mark.parametrize(
    ("dtype", "remedy"),
    [(torch.float32, ", in float32 already"), (torch.bfloat16, "; try --dtype float32")],
    ids=["long", "short"],
)
def test_numbers_that_are_not_finite(tmp_path: Path, spoiled: str, dtype: torch.dtype, remedy: str) -> None:
    """Told with the place, instead of a lens of NaN, or one that changes nothing; in whichever part they are."""
    folder = save_family(tmp_path / "m", spoiled=5, dtype=dtype)
    parts = {part: [[4, 5 if part == spoiled else 8, 6, 7]] for part in PARTS}
    told = re.escape(f"hidden states at resid_pre 0 are not finite (NaN or overflow){remedy}")
    with pytest.raises(ModelError, match=f"{told}$"):
        fit(settings_of(folder), Texts(parts))


# --- the split


def test_parts_are_of_prompts(model: Path, texts: Texts) -> None:
    """Each prompt is in one part, whatever the order; the shares are about those asked; another seed splits otherwise."""
    drawn = [part_of([number, 7], 0) for number in range(4000)]
    assert 400 < drawn.count("held_out") < 600
    assert 400 < drawn.count("validation") < 600
    assert drawn != [part_of([number, 7], 1) for number in range(4000)]
    whole, turned = taken(model, 1 << 16), taken(model, 1 << 16, given=prompts()[::-1])
    for part in PARTS:
        assert sorted(whole.parts[part]) == sorted(turned.parts[part])
    assert sum(len(found) for found in whole.parts.values()) == len(prompts())
    assert (texts.tokens("fit"), texts.tokens("validation"), texts.tokens("held_out")) == (800, 100, 100)


def test_equal_prompts_are_in_one_part(model: Path) -> None:
    """Under whatever ids, and where they differ only behind what is cut off: no held-out text has been fitted to."""
    given = [Prompt(number, f"{text} {number}", text) for number in range(4) for text in sentences(160, 9)]
    longer = [Prompt(number, f"longer {number}", f"{text} and more") for number, text in enumerate(sentences(160, 9))]
    parts = taken(model, 1 << 16, given=[*given, *longer], longest=9).parts.values()
    assert sum(map(len, parts)) == 5 * 160
    different = [{tuple(ids) for ids in part} for part in parts]
    assert sum(map(len, different)) == len(set.union(*different)) <= 160


def test_no_more_is_read_than_is_needed(model: Path) -> None:
    """A corpus may be far larger than what a lens is fitted on."""
    seen: list[str] = []

    def endless() -> Iterator[Prompt]:
        number = 0
        while True:
            seen.append(str(number))
            yield Prompt(number, str(number), token_ids=[1 + number % 200, 2, 3, 4, 5, 6])
            number += 1

    settings = ModelSettings(str(model))
    tokenize = Tokenizer(load_tokenizer(settings, resolve(settings)), InputSettings(), "all", 512, 256)
    told: list[tuple[int, int]] = []
    found = take_texts(endless(), tokenize, 80, 0, "c", lambda done, total: told.append((done, total)))
    assert {part: found.tokens(part) for part in PARTS} == {"fit": 80, "validation": 10, "held_out": 10}
    assert len(seen) < 200
    assert told[0] == (0, 100)
    assert sorted(told) == told
    assert 50 < told[-1][0] < 100


def test_prompts_that_cannot_be_read(model: Path) -> None:
    """Those of one token are counted; a part without a prompt is refused."""
    short = [Prompt(number, f"s{number}", "call") for number in range(30)]
    found = taken(model, given=[*short, *prompts()])
    assert found.skipped == 30
    equal = [Prompt(number, f"e{number}", "call me ishmael") for number in range(30)]
    for given in (short, equal):
        with pytest.raises(InputError, match=r"^c.jsonl: no prompt of two tokens or more for the part .*; give more that differ"):
            taken(model, given=given)
    unknown = [Prompt(number, f"u{number}", token_ids=[number, 1 << 20]) for number in range(30)]
    with pytest.raises(InputError, match=r"for the part fit \(prompt 'u0': token ids must be from 0 to 255\); give more"):
        taken(model, given=[*short, *unknown])
    long = [Prompt(number, f"p{number}", text) for number, text in enumerate(sentences(60, 40))]
    assert max(len(ids) for part in taken(model, given=long, longest=16).parts.values() for ids in part) == 16


# --- refusals


@pytest.mark.parametrize(
    ("changed", "part"),
    [
        ({"tokens": 7}, "--tokens 7: must be at least 8"),
        ({"steps": -1}, "--steps -1: must be 0 or more"),
        ({"learning_rate": 0.0}, "--learning-rate 0: must be over 0"),
        ({"learning_rate": float("nan")}, "--learning-rate nan"),
        ({"batch_tokens": 1}, "--batch-tokens 1: must be at least 2"),
        ({"seed": -1}, "--seed -1: must be from 0"),
        ({"kind": "linear"}, "--steps 6: a linear lens is least squares and is not trained; give --kind tuned"),
        ({"kind": "linear", "steps": None}, "--learning-rate 0.001: a linear lens"),
        ({"tokens": "many"}, "tokens: give a whole number"),
        ({"kind": "jacobian"}, "kind 'jacobian': choose from tuned, linear"),
    ],
)
def test_settings_that_cannot_be(changed: dict[str, Any], part: str) -> None:
    """Told with the option, before anything is loaded."""
    with pytest.raises(UsageError, match=part):
        check(settings_of(Path("m"), **changed))


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    """What is there is never touched, and an error or Ctrl-C leaves nothing."""
    with new_folder("--output", tmp_path / "a" / "lens") as folder:
        (folder / "file").write_text("whole")
        assert not (tmp_path / "a" / "lens").exists()
    assert (tmp_path / "a" / "lens" / "file").read_text() == "whole"
    with (
        pytest.raises(UsageError, match=r"--output .*lens: is there already; give another name"),
        new_folder("--output", tmp_path / "a" / "lens"),
    ):
        pass
    for name in ("/", "."):
        with (
            pytest.raises(UsageError, match="is there already; give the name of a new folder"),
            new_folder("--output", Path(name)),
        ):
            pass
    with pytest.raises(KeyboardInterrupt), new_folder("--output", tmp_path / "b") as folder:
        _stopped(folder)
    with pytest.raises(TimeoutError, match="server away"), new_folder("--output", tmp_path / "b"):
        raise TimeoutError("server away")  # which is an OSError, and not of the folder
    with pytest.raises(UsageError, match="File name too long"), new_folder("--output", tmp_path / ("x" * 300)):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["lens"]
    with (
        pytest.raises(UsageError, match=r"--output .*: File exists; give a folder that can be written"),
        new_folder("--output", tmp_path / "a" / "lens" / "file" / "c"),
    ):
        pass


def _stopped(folder: Path) -> None:
    (folder / "file").write_text("half")
    raise KeyboardInterrupt
