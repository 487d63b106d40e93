"""Lenses against plain transcriptions in float64, on the right layer and no other, and files that are not what they say."""

import io
import json
import pickle
import re
import zipfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import raylens
from raylens.storage.errors import ModelError, UsageError
from raylens.storage.record import Record
from raylens.workers.adapter import Adapter
from raylens.workers.batching import pad
from raylens.workers.chosen import chosen_places
from raylens.workers.lens import Lens
from raylens.workers.lenses.interface import HiddenLens, Shape
from raylens.workers.lenses.opening import open_lens
from raylens.workers.lenses.source import LensSource, lens_digest, lens_taps, parse_lens
from raylens.workers.lenses.tensors import open_tensors
from raylens.workers.settings import LensSettings, ModelSettings, WorkerSettings
from raylens.workers.tokenize import Tokenized
from raylens.workers.worker import Worker
from tests.lens_files import matrices, save_packed, save_tuned, translators
from tests.models import CLOSE, FAMILIES, save, see
from tests.permissions import closed, open_folder
from tests.unit.test_lens import DEVICES, built, compare, logits64, prompts

SHAPE = Shape(3, 32)
LAYERS = (0, 1, 2)
#: RMSNorm, LayerNorm with a bias, and a norm of 1 + w with a softcap.
NAMES = ("llama", "gpt2", "gemma2")
every_model = pytest.mark.parametrize("name", NAMES)

#: What a lens is by its definition: (block inputs and outputs, layer) -> [T, D] float64.
Plain = Callable[[list[Tensor], int], Tensor]


def opened(spec: str, taps: tuple[str, ...] = ("resid_post",), layers: tuple[int, ...] = LAYERS) -> HiddenLens:
    return open_lens(parse_lens(spec), SHAPE, chosen_places(taps, layers))


def records(
    model: Any,
    adapter: Adapter,
    hidden: HiddenLens | None,
    taps: tuple[str, ...],
    read: list[Tokenized] | None = None,
    **settings: Any,
) -> list[Record]:
    settings = {"top_k": 10, "logprobs": "float32", **settings}
    outcomes = Lens(adapter, LensSettings(**settings), LAYERS, taps, 0, hidden)(pad(read or prompts(), model.device))
    assert all(isinstance(outcome, Record) for outcome in outcomes)
    return [outcome for outcome in outcomes if isinstance(outcome, Record)]


def residuals(name: str, model: Any, ids: list[int]) -> list[Tensor]:
    """The 4 residuals around 3 blocks: entry i is what block i reads, and entry i + 1 is what it gives; float64."""
    blocks, _ = see(model, FAMILIES[name], torch.tensor([ids], device=model.device))
    return [blocks[0].pre.double().cpu(), *(block.post.double().cpu() for block in blocks)]


def against(name: str, device: str, hidden: HiddenLens, plain: Plain, tap: str, layers: tuple[int, ...] = LAYERS) -> None:
    """The records' numbers at each layer are those of the definition."""
    model, adapter = built(name, device)
    for prompt, record in zip(prompts(), records(model, adapter, hidden, (tap,)), strict=True):
        states = residuals(name, model, prompt.ids)
        for layer in layers:
            logits = logits64(name, model, plain(states, layer).to(model.device)).cpu()
            compare(record, tap, layer, torch.log_softmax(logits, dim=1))


def fails(check: Callable[..., None], *given: Any) -> bool:
    try:
        check(*given)
    except AssertionError:
        return True
    return False


def tuned_plain(lens: Any, states: list[Tensor], translator: int) -> Tensor:
    """h + W h + b of the translator's own input, hidden_states[translator]; the last hidden state has none."""
    state = states[translator]
    if translator == len(lens):
        return state
    return state + state @ lens[translator].weight.double().T + lens[translator].bias.double()


@pytest.mark.parametrize("device", DEVICES)
@every_model
def test_tuned_against_float64(tmp_path: Path, name: str, device: str) -> None:
    """Translator i reads the input of block i: resid_pre of block 0, and resid_post of block i - 1; the last block has none."""
    lens = translators(3, 32).requires_grad_(requires_grad=False)
    taps = ("resid_pre", "resid_post")
    hidden = opened(f"tuned:{save_tuned(tmp_path / 'lens', lens)}", taps)
    against(name, device, hidden, lambda states, _: tuned_plain(lens, states, 0), "resid_pre", (0,))
    against(name, device, hidden, lambda states, layer: tuned_plain(lens, states, layer + 1), "resid_post")

    def off_by_one(states: list[Tensor], layer: int) -> Tensor:  # the translator of this layer's own input
        return states[layer + 1] + states[layer + 1] @ lens[layer].weight.double().T + lens[layer].bias.double()

    for layer in LAYERS:
        assert fails(against, name, device, hidden, off_by_one, "resid_post", (layer,)), layer


@pytest.mark.parametrize("device", DEVICES)
@every_model
@pytest.mark.parametrize("kind", ["jacobian.pt", "jacobian.safetensors", "jacobian++.pt", "linear.pt", "linear.safetensors"])
def test_matrix_against_float64(tmp_path: Path, name: str, kind: str, device: str) -> None:
    """Matrices are keyed by block output; where the last block's has none it is read as it is."""
    maps, path = matrices(3, 32), tmp_path / kind
    bias = {0: torch.linspace(-1, 1, 32)} if "linear" in kind else {}
    group = "A" if "linear" in kind else "J"
    if kind.endswith("safetensors"):
        named = {f"{group}.{layer}": matrix for layer, matrix in maps.items()}
        save_file({**named, **{f"b.{layer}": value for layer, value in bias.items()}}, path)
    elif "++" in kind:
        torch.save({"parameters": {"jacobians": maps}, "model": "made-up"}, path)
    else:
        torch.save({group: maps, "b": bias, "source_layers": [0, 1], "d_model": 32, "n_prompts": 7}, path)

    def plain(states: list[Tensor], layer: int, shift: int = 0) -> Tensor:
        state, at = states[layer + 1], layer + shift
        return state @ maps[at].double().T + bias.get(at, torch.zeros(32)).double() if at in maps else state

    hidden = opened(f"{kind.split('.')[0].rstrip('+')}:{path}")
    against(name, device, hidden, plain, "resid_post")
    for shift, layers in ((1, (0, 1)), (-1, (1, 2))):
        for layer in layers:
            assert fails(against, name, device, hidden, partial(plain, shift=shift), "resid_post", (layer,)), (shift, layer)

    def transposed(states: list[Tensor], layer: int) -> Tensor:
        return states[layer + 1] @ maps[layer].double() + bias.get(layer, torch.zeros(32)).double()

    assert fails(against, name, device, hidden, transposed, "resid_post", (0,))


def test_a_matrix_of_the_last_layer_is_used(tmp_path: Path) -> None:
    """A file may say what becomes of the last block's output too."""
    maps = {**matrices(3, 32), 2: 2 * torch.eye(32).flip(0)}
    torch.save({"J": {str(layer): matrix for layer, matrix in maps.items()}}, tmp_path / "lens.pt")
    hidden = opened(f"jacobian:{tmp_path / 'lens.pt'}")
    against("llama", "cpu", hidden, lambda states, layer: states[layer + 1] @ maps[layer].double().T, "resid_post")


@every_model
def test_identity_translators_are_the_logit_lens(tmp_path: Path, name: str) -> None:
    """A tuned lens before its training gives what the logit lens gives where each tap is read by itself."""
    model, adapter = built(name)
    taps = ("resid_pre", "resid_post")
    hidden = opened(f"tuned:{save_tuned(tmp_path / 'lens', translators(3, 32, scale=0.0))}", taps)
    tuned, plain = records(model, adapter, hidden, taps), records(model, replace(adapter, walk=None), None, taps)
    for one, other in zip(tuned, plain, strict=True):
        for tap in taps:
            assert np.array_equal(one.taps[tap].ids, other.taps[tap].ids)
            assert np.array_equal(one.taps[tap].logprobs, other.taps[tap].logprobs)
            assert np.array_equal(one.taps[tap].entropy, other.taps[tap].entropy)


def test_running_sums_are_for_the_logit_lens_only(tmp_path: Path) -> None:
    """The walk is taken for the same taps without a lens, and not with one, which would read sums of what is not mapped."""
    _, adapter = built("llama")
    taps = ("attn_out", "resid_mid", "mlp_out", "resid_post")
    hidden = opened(f"tuned:{save_tuned(tmp_path / 'lens', translators(3, 32))}")
    assert "sums" in Lens(adapter, LensSettings(), LAYERS, taps).path
    assert "sums" not in Lens(adapter, LensSettings(), LAYERS, taps, 0, hidden).path


@pytest.mark.parametrize("device", DEVICES)
def test_lens_in_a_short_model(tmp_path: Path, device: str) -> None:
    """With hidden states in bfloat16 the map and what follows are float32; the map may be stored in a short type too."""
    model, adapter = built("llama", device, torch.bfloat16)
    lens = translators(3, 32).to(torch.float16).requires_grad_(requires_grad=False)
    hidden = opened(f"tuned:{save_tuned(tmp_path / 'lens', lens)}")
    (prompt,) = alone = prompts(lengths=[9])  # a padded batch is rounded otherwise in bfloat16
    (record,) = records(model, adapter, hidden, ("resid_post",), alone)
    states, found = residuals("llama", model, prompt.ids), record.taps["resid_post"]
    for layer in LAYERS:
        logits = logits64("llama", model, tuned_plain(lens, states, layer + 1).to(device)).cpu()
        exact = torch.log_softmax(logits, dim=1).gather(1, torch.from_numpy(found.ids[layer].astype(np.int64)))
        assert np.abs(found.logprobs[layer] - exact.numpy()).max() < 10 * CLOSE


def test_kl_is_to_the_models_own_prediction(tmp_path: Path) -> None:
    """Also where the file maps the last block's output, whose distance from the model is then not 0."""
    model, adapter = built("llama")
    torch.save({"J": {**matrices(3, 32), 2: torch.eye(32).flip(0)}}, tmp_path / "lens.pt")
    hidden = opened(f"jacobian:{tmp_path / 'lens.pt'}")
    (record, *_), (plain, *_) = (
        records(model, adapter, one, ("resid_post",), stats=("kl",), top_k=300) for one in (hidden, None)
    )
    final = plain.taps["resid_post"]
    states = residuals("llama", model, record.token_ids)
    own = torch.log_softmax(logits64("llama", model, states[3]), dim=1)
    flipped = torch.log_softmax(logits64("llama", model, states[3].flip(1)), dim=1)
    wanted = (own.exp() * (own - flipped)).sum(dim=1)
    np.testing.assert_allclose(record.taps["resid_post"].stats["kl"][2], wanted.numpy(), rtol=1e-3)
    assert final.stats["kl"][2].max() < 1e-4


def test_only_chosen_layers_are_wanted_of_a_file(tmp_path: Path) -> None:
    """A file with some layers serves a run of these; any other layer is refused with those there are."""
    torch.save({"J": {0: torch.eye(32)}}, tmp_path / "lens.pt")
    opened(f"jacobian:{tmp_path / 'lens.pt'}", layers=(0, 2))
    with pytest.raises(ModelError, match=r"lens.pt: has no matrix for layer 1; choose layers 0,2 \(--layers\)"):
        opened(f"jacobian:{tmp_path / 'lens.pt'}")


@pytest.mark.parametrize(
    ("spec", "part"),
    [
        ("tuend:x", "no such lens; choose logit, tuned:FOLDER"),
        ("tuned", "give its path"),
        ("tuned:", "give its path"),
        ("logit:x", "takes no path"),
        ("", "no such lens"),
    ],
)
def test_wrong_words(spec: str, part: str) -> None:
    """What is no lens is refused with those there are."""
    with pytest.raises(UsageError, match=part):
        parse_lens(spec)


@pytest.mark.parametrize("kind", ["tuned", "jacobian", "linear"])
@pytest.mark.parametrize("tap", ["attn_out", "resid_mid", "mlp_out"])
def test_taps_no_map_was_fitted_to(kind: str, tap: str) -> None:
    """They are refused with the reason; by default the block's output is read."""
    with pytest.raises(UsageError, match=rf"--taps {tap}: the {kind} lens does not read it, for .*; choose from .*resid_post"):
        lens_taps(LensSource(kind, Path("x")), ("resid_post", tap))
    assert lens_taps(LensSource(kind, Path("x")), None) == ("resid_post",)
    assert lens_taps(LensSource("logit"), None) is None
    assert lens_taps(LensSource("logit"), (tap,)) == (tap,)


# --- files that are not what they say


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("a lens ran code",))


def archive(path: Path, described: bytes, compressed: bool = False) -> None:
    """A file as torch.save's, with a pickle of one's own."""
    kind = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", kind) as file:
        file.writestr("lens/data.pkl", described)
        file.writestr("lens/version", "3\n")
        file.writestr("lens/byteorder", "little")
        file.writestr("lens/data/0", bytes(64))


def claimed(path: Path, old: bytes, new: bytes) -> None:
    """A file of torch.save whose pickle says something else of its tensor of shape [3, 3]."""
    plain = io.BytesIO()
    torch.save({"J": {0: torch.ones(3, 3)}}, plain)
    with zipfile.ZipFile(plain) as file:
        described = file.read("archive/data.pkl")
    assert described.count(old) == 1
    archive(path, described.replace(old, new))


def deep() -> bytes:
    """A dictionary in a dictionary, and so on, more often than Python may recurse."""
    return b"\x80\x02" + b"}(K\x00" * 20_000 + b"K\x00" + b"s" * 20_000 + b"."


def shared(keys: int) -> dict[int, Any]:
    """Of a file of some kilobytes, with as many names as the fourth power of the keys."""
    value: Any = torch.zeros(1)
    for _ in range(4):
        value = dict.fromkeys(range(keys), value)
    return {0: value}


HOSTILE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a pickle": (lambda path: path.write_bytes(pickle.dumps(Bomb())), "not a file of torch.save"),
    "code": (lambda path: torch.save({"J": {0: Bomb()}}, path), "holds more than tensors, numbers and strings .*print"),
    "code, other protocol": (
        lambda path: torch.save({"J": {0: Bomb()}}, path, pickle_protocol=4),
        "holds more than tensors, numbers and strings",
    ),
    "a large allocation": (
        lambda path: archive(path, b"\x80\x02c__builtin__\nbytearray\n\x8a\x05\x00\x00\x00\x00\x7f\x85R."),
        "holds more than tensors, numbers and strings .*bytearray",
    ),
    "no pickle": (lambda path: archive(path, b"\x80\x02nonsense"), "not a file of torch.save"),
    "nesting": (lambda path: archive(path, deep()), "torch cannot read it|has no tensor named"),
    "shared dictionaries": (lambda path: torch.save(shared(100), path), "has more than 65,536 parts"),
    "nothing": (lambda path: path.write_bytes(b""), "not a file of torch.save"),
    "compressed": (lambda path: archive(path, bytes(10_000), compressed=True), "compressed records"),
    "long pickle": (lambda path: archive(path, b"\x80\x02" + b"N0" * (2 << 19) + b"N."), "more than"),
    "huge tensor": (
        lambda path: claimed(path, b"K\x03K\x03\x86", b"J\x00\x00\x00\x7fJ\x00\x00\x00\x7f\x86"),
        "torch cannot read",
    ),
    "huge file": (lambda path: torch.save({"J": {0: torch.zeros(1000, 1000)}}, path), "more than a lens of this model can have"),
    "stretched tensor": (lambda path: torch.save({"J": {0: torch.zeros(1).expand(1 << 30, 1 << 20)}}, path), "has shape"),
    "not a dictionary": (lambda path: torch.save([torch.eye(32)], path), "has no tensor named J.LAYER .it has no tensor"),
    "other names": (lambda path: torch.save({"K": {0: torch.eye(32)}}, path), "has no tensor named J.LAYER .it has 'K.0'"),
    "keys that are no layers": (lambda path: torch.save({"J": {"²": torch.eye(32), -1: torch.eye(32)}}, path), "J.LAYER"),
    "other width": (
        lambda path: torch.save({"J": {0: torch.eye(32), 1: torch.eye(31)}}, path),
        r"tensor 'J.1' has shape \[31, 31\], and the model wants \[32, 32\]",
    ),
    "other depth": (
        lambda path: torch.save({"J": dict.fromkeys(range(4), torch.eye(32))}, path),
        "has a matrix for layer 3, and the model has layers 0 to 2",
    ),
    "NaN": (lambda path: torch.save({"J": dict.fromkeys(LAYERS, torch.full((32, 32), torch.nan))}, path), "not finite"),
    "integers": (lambda path: torch.save({"J": dict.fromkeys(LAYERS, torch.eye(32).long())}, path), "not of a floating type"),
    "sparse": (
        lambda path: torch.save({"J": dict.fromkeys(LAYERS, torch.eye(32).to_sparse())}, path),
        "holds more than tensors, numbers and strings",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_file(tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One error that names the file; nothing in it runs."""
    write, part = HOSTILE[case]
    path = tmp_path / "lens.pt"
    write(path)
    with pytest.raises(ModelError, match=rf"^--lens: {re.escape(str(path))}: .*({part}).*; .+") as found:
        opened(f"jacobian:{path}")
    assert "\n" not in str(found.value)
    assert "ran code" not in capsys.readouterr().out


def test_a_file_cut_or_changed_anywhere(tmp_path: Path) -> None:
    """Whatever zipfile, pickle or torch make of it, the error names the file; what is still whole is read."""
    path = tmp_path / "lens.pt"
    torch.save({"J": {0: torch.eye(2)}}, path)
    whole, refused = path.read_bytes(), 0
    cut = [whole[:length] for length in range(0, len(whole), 7)]
    changed = [whole[:place] + b"\xff" + whole[place + 1 :] for place in range(len(whole))]
    for data in (*cut, *changed):
        path.write_bytes(data)
        try:
            with open_tensors(path, SHAPE) as tensors:
                tensors.check("J.0", [2, 2])
                tensors.get("J.0")
        except ModelError as error:
            assert str(error).startswith(f"--lens: {path}: ")  # noqa: PT017
            refused += 1
    assert refused > len(cut)


def test_a_type_that_torch_cannot_convert(tmp_path: Path) -> None:
    """Nor older versions of safetensors read."""
    path = tmp_path / "lens.safetensors"
    save_packed(path, "J.0", [4, 4])
    with (
        pytest.raises(
            ModelError, match=f"^--lens: {path}: (tensor 'J.0' is .*, which cannot be converted|not a safetensors file)"
        ),
        open_tensors(path, SHAPE) as tensors,
    ):
        tensors.get("J.0")


def test_a_bias_of_another_width(tmp_path: Path) -> None:
    """One number, which could be added to a vector of any width, is no bias of this model."""
    torch.save({"A": matrices(3, 32), "b": {0: torch.ones(1)}}, tmp_path / "lens.pt")
    with pytest.raises(ModelError, match=r"tensor 'b\.0' has shape \[1\], and the model wants \[32\]"):
        opened(f"linear:{tmp_path / 'lens.pt'}")


def test_a_tensor_that_claims_more_than_its_file(tmp_path: Path) -> None:
    """Its storage ends where the file does; nothing beyond is read."""
    claimed(tmp_path / "lens.pt", b"K\x09t", b"M\xff\xfft")
    with open_tensors(tmp_path / "lens.pt", SHAPE) as tensors:
        assert tensors.get("J.0").shape == (3, 3)


@pytest.mark.parametrize("data", [b"", b"\xff" * 64, b"\x02\x00\x00\x00\x00\x00\x00\x00{}", None])
def test_hostile_safetensors(tmp_path: Path, data: bytes | None) -> None:
    """A header that lies, or no header, or no matrices."""
    path = tmp_path / "lens.safetensors"
    if data is None:
        header = json.dumps({"J.0": {"dtype": "F32", "shape": [1 << 40, 32], "data_offsets": [0, 1 << 47]}}).encode()
        data = len(header).to_bytes(8, "little") + header
    path.write_bytes(data)
    with pytest.raises(ModelError, match=r"^--lens: .*lens.safetensors: (not a safetensors file|has no tensor named J.LAYER)"):
        opened(f"jacobian:{path}")


@pytest.mark.parametrize("path", ["/dev/zero", "/"])
def test_no_plain_file(path: str) -> None:
    """What never ends, or is a folder, is not read."""
    with pytest.raises(ModelError, match=f"^--lens: {path}: no plain file; give one file"):
        lens_digest(parse_lens(f"jacobian:{path}"))
    with pytest.raises(ModelError, match=f"^--lens: {path}: no"):
        opened(f"jacobian:{path}")


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"d_model": 64}, "of a model with 3 layers of width 64, and this one has 3 of width 32; give the lens of this model"),
        ({"num_hidden_layers": 4}, "of a model with 4 layers"),
        ({"lens_type": "other"}, "only linear_tuned_lens is read"),
        ({"d_model": "wide"}, "not the configuration of a tuned lens"),
        ({"base_model_name_or_path": "x" * (2 << 20)}, "larger than"),
    ],
)
def test_wrong_configuration(tmp_path: Path, change: dict[str, Any], part: str) -> None:
    """config.json must be tuned-lens's, of a model of this shape."""
    folder = save_tuned(tmp_path / "lens", translators(3, 32), **change)
    with pytest.raises(ModelError, match=rf"config.json: .*{part}"):
        opened(f"tuned:{folder}")


@pytest.mark.parametrize("config", [b'{"a":' + b"[" * 200_000, b'{"d_model": 32, "num_hidden_layers": 3, "lens_type": "\xff"}'])
def test_a_configuration_that_is_no_json(tmp_path: Path, config: bytes) -> None:
    """Nested without end, or not UTF-8."""
    folder = save_tuned(tmp_path / "lens", translators(3, 32))
    (folder / "config.json").write_bytes(config)
    with pytest.raises(ModelError, match=r"config.json: not the configuration of a tuned lens"):
        opened(f"tuned:{folder}")


@pytest.mark.parametrize("missing", ["config.json", "params.pt"])
def test_missing_file_of_a_tuned_lens(tmp_path: Path, missing: str) -> None:
    """A folder that lacks one of the two files, or is none, names the file that was looked for."""
    folder = save_tuned(tmp_path / "lens", translators(3, 32))
    (folder / missing).unlink()
    with pytest.raises(ModelError, match=f"{missing}: No such file or directory; "):
        opened(f"tuned:{folder}")


def test_a_folder_that_may_not_be_read() -> None:
    """The file that was looked for is named."""
    with open_folder() as folder:
        path = save_tuned(folder / "lens", translators(3, 32))
        source = parse_lens(f"tuned:{path}")
        with closed(path), pytest.raises(ModelError, match=f"^--lens: {path}/config.json: Permission denied; give the folder"):
            lens_digest(source)


def test_translators_that_lack_one(tmp_path: Path) -> None:
    """Fewer translators than the configuration says, or none with a bias."""
    folder = save_tuned(tmp_path / "lens", translators(2, 32), num_hidden_layers=3)
    with pytest.raises(ModelError, match=r"params.pt: has no tensor '2.weight'; give the lens of this model"):
        opened(f"tuned:{folder}")
    torch.save({f"{layer}.weight": torch.eye(32) for layer in LAYERS}, folder / "params.pt")
    with pytest.raises(ModelError, match=r"params.pt: has no tensor '0.bias'"):
        opened(f"tuned:{folder}")
    save_tuned(folder, translators(3, 32), bias=False)
    opened(f"tuned:{folder}")


# --- with a model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("model"))


def test_worker_refuses_a_file_that_changed(tmp_path: Path, model: Path) -> None:
    """An actor that starts again while the lens is being replaced does not mix two lenses in one run."""
    folder = save_tuned(tmp_path / "lens", translators(3, 32))
    spec = f"tuned:{folder}"
    digest = lens_digest(parse_lens(spec))
    asked = WorkerSettings(ModelSettings(str(model)), LensSettings(lens=spec, lens_digest=digest))
    certificate = Worker(asked).certificate
    assert (certificate["lens"]["kind"], certificate["lens"]["file"]) == ("tuned", digest)
    assert certificate["run_taps"] == ["resid_post"]
    save_tuned(folder, translators(3, 32, scale=0.1))
    with pytest.raises(ModelError, match="is not the file that the run began with"):
        Worker(asked)


def test_lens_from_python(tmp_path: Path, model: Path) -> None:
    """raylens.lens takes a lens, and reads a file anew that was written anew under its old name."""
    folder = tmp_path / "lens"
    found = []
    for scale in (0.7, 0.0):
        save_tuned(folder, translators(3, 32, scale))
        found.append(raylens.lens("w5 w6 w7", model=str(model), lens=f"tuned:{folder}").taps)
    plain = raylens.lens("w5 w6 w7", model=str(model)).taps["resid_post"]
    assert [list(taps) for taps in found] == [["resid_post"]] * 2
    first, second = (taps["resid_post"] for taps in found)
    assert np.abs(first.logsumexp[:2] - plain.logsumexp[:2]).max() > 0.01
    np.testing.assert_allclose(first.logprobs[2], plain.logprobs[2], atol=1e-5)
    np.testing.assert_allclose(second.logprobs, plain.logprobs, atol=1e-5)
    with (tmp_path / "large.pt").open("wb") as file:
        file.truncate(1 << 42)  # which would be read for hours
    with pytest.raises(ModelError, match="more than a lens of this model can have"):
        raylens.lens("w5", model=str(model), lens=f"linear:{tmp_path / 'large.pt'}")
    with pytest.raises(UsageError, match=r"lens: give text, .* not a whole number"):
        raylens.lens("w5", model=str(model), lens=5)  # type: ignore[arg-type]
