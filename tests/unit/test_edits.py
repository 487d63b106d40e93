"""What an intervention's file may say: one error with file, place and remedy for all else, before any model is loaded."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from raylens.storage.errors import UsageError
from raylens.storage.positions import FORMS
from raylens.workers.interventions.checking import check_edits
from raylens.workers.interventions.edits import Add, Edit, Patch, identity, read_edits
from raylens.workers.interventions.file import MOST_BYTES
from tests.lens_files import save_packed

ADD = {"tap": "attn_out", "layers": 1, "add": {"values": [1.0, 2.0]}}


def one(**changes: Any) -> dict[str, Any]:
    """A file of one edit."""
    edit = {**ADD, **changes}
    return {"edits": [{name: value for name, value in edit.items() if value is not ...}]}


def test_forms(tmp_path: Path) -> None:
    """YAML, JSON and a dictionary of one content are the same edits, with names and numbers spelled in one way."""
    text = """
    edits:
    - tap: attention_mechanism   # a name of LogitLens4LLMs
      layers: [3, 4]
      positions: [0, -1]
      add: {prompt: bananas, scale: 0.6}
    - {tap: resid_post, layers: "::2", positions: last, scale: 2}
    - {tap: mlp_out, layers: 5, zero: true}
    - {tap: resid_pre, layers: 0 - 2, patch: {prompt: "a b", position: each, tap: block_output, layer: 1}}
    - {tap: attn_out, layers: all, positions: "2:", add: {difference: [yes it is, no it is not], position: -2}}
    """
    (tmp_path / "steer.yaml").write_text(text)
    (tmp_path / "steer.json").write_text(json.dumps(yaml.safe_load(text)))
    found = read_edits(tmp_path / "steer.yaml")
    assert found == read_edits(str(tmp_path / "steer.json")) == read_edits(yaml.safe_load(text))
    assert found == (
        Edit("attn_out", "3,4", "0,-1", add=Add(prompt="bananas", scale=0.6)),
        Edit("resid_post", "::2", "last", scale=2.0),
        Edit("mlp_out", "5", zero=True),
        Edit("resid_pre", "0-2", patch=Patch("a b", "resid_post", 1, "each")),
        Edit("attn_out", "all", "2:", add=Add(difference=("yes it is", "no it is not"), position=-2)),
    )
    assert read_edits(None) == ()


@pytest.mark.parametrize(
    "of", [np.array, torch.tensor, lambda numbers: [*map(np.float32, numbers)]], ids=["numpy", "torch", "list"]
)
def test_arrays_and_numbers_of_other_libraries(of: Callable[[Any], Any]) -> None:
    """Stand for the lists and numbers that they hold."""
    given = one(add={"values": of([0.5, 2.0]), "scale": np.float32(0.5)}, layers=np.array([0, 2]), positions=torch.tensor(-1))
    assert read_edits(given) == (Edit("attn_out", "0,2", "-1", add=Add(values=(0.5, 2.0), scale=0.5)),)
    patched = one(add=..., patch={"prompt": "a", "layer": np.int64(1), "position": np.int32(-1)})
    assert read_edits(patched) == (Edit("attn_out", "1", patch=Patch("a", layer=1, position=-1)),)
    with pytest.raises(UsageError, match=r"edits\[0\].add.values\[1\]: nan is not a finite float32"):
        read_edits(one(add={"values": of([0.5, np.nan])}))
    with pytest.raises(UsageError, match=r"edits\[0\].add.values\[0\]: Expected `float`, got `array`"):
        read_edits(one(add={"values": np.eye(2)}))


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ([], "Expected `object`, got `array`; docs/INTERVENTIONS.md has the form"),
        ({}, "Object missing required field `edits`"),
        ({"edits": []}, "edits: 0 edits; 1 to 256 can be given"),
        ({"edits": [ADD["add"]]}, "edits[0]: Object contains unknown field `values`"),
        ({"edits": [ADD] * 257}, "edits: 257 edits"),
        ({"edits": [ADD], "version": 1}, "Object contains unknown field `version`"),
        (one(tap="attn"), "edits[0].tap: unknown tap 'attn'; choose from resid_pre, attn_out"),
        (one(tap=3), "edits[0].tap: Expected `str`, got `int`"),
        (one(tap=...), "edits[0]: Object missing required field `tap`"),
        (one(layers=True), "edits[0].layers: Expected `str`, got `bool`"),
        (one(layers=...), "edits[0]: Object missing required field `layers`"),
        (one(layers=[]), "edits[0].layers: chooses no layer; write all, a list such as 0,5-10"),
        (one(layers=[1, True]), "edits[0].layers: Expected `str`, got `array`"),
        (one(positions=10**9), f"edits[0].positions: '1000000000': write {FORMS}, in numbers of at most 9 digits, or a list"),
        (one(positions=[0, -(10**9)]), f"edits[0].positions: '0,-1000000000': write {FORMS}, in numbers of at most 9 digits"),
        (one(positions="first"), f"edits[0].positions: 'first': write {FORMS}, or a list of positions"),
        (one(positions="0:9:2"), "edits[0].positions: '0:9:2'"),
        (one(positions=[]), f"edits[0].positions: '': write {FORMS}"),
        (one(positions=1.5), f"edits[0].positions: Expected `str`, got `float`; write {FORMS}, or a list"),
        (one(add=...), "edits[0]: has no change; give one of add, scale, zero, patch"),
        (one(scale=2), "edits[0]: has add and scale; give one of"),
        (one(add=..., zero=False), "edits[0].zero: is false, which changes nothing; write zero: true"),
        (one(add=..., zero=0), "edits[0].zero: Expected `bool | null`, got `int`"),
        (one(add=..., scale=float("nan")), "edits[0].scale: nan is not a finite float32"),
        (one(add=..., scale=float("-inf")), "edits[0].scale: -inf is not a finite float32"),
        (one(add=..., scale=1e39), "edits[0].scale: 1e+39 is not a finite float32"),
        (one(add=..., scale="1"), "edits[0].scale: Expected `float | null`, got `str`"),
        (one(add={}), "edits[0].add: has no vector; give one of values, file, prompt, difference"),
        (one(add={"values": [1.0], "prompt": "a"}), "edits[0].add: has values and prompt; give one of"),
        (one(add={"values": []}), "edits[0].add.values: 0 numbers; 1 to 65,536 can be given"),
        (one(add={"values": [1.0, float("nan")]}), "edits[0].add.values[1]: nan is not a finite float32"),
        (one(add={"values": [1.0, -2e38], "scale": -2}), "edits[0].add: its largest number times scale: -4e+38 is not a finite"),
        (one(add={"values": [1.0, None]}), "edits[0].add.values[1]: Expected `float`, got `null`"),
        (one(add={"values": [1.0], "scale": float("inf")}), "edits[0].add.scale: inf is not"),
        (one(add={"values": [1.0], "layer": 3}), "edits[0].add.layer: is of a prompt's tap; leave it out beside values"),
        (one(add={"values": [1.0], "position": 0}), "edits[0].add.position: is of a prompt's tap; leave it out beside values"),
        (one(add={"values": [1.0], "key": "v"}), "edits[0].add: key and file go together"),
        (one(add={"file": "v.safetensors"}), "edits[0].add: key and file go together"),
        (one(add={"difference": ["a"]}), "edits[0].add.difference: Expected `array` of length 2"),
        (one(add={"prompt": 7}), "edits[0].add.prompt: Expected `str | null`, got `int`"),
        (one(add={"prompt": "a", "tap": "mlp"}), "edits[0].add.tap: unknown tap 'mlp'"),
        (
            one(add={"prompt": "a", "position": "each"}),
            "edits[0].add.position: Invalid enum value 'each'; write a number, or last",
        ),
        (one(add=..., patch={"prompt": "a", "position": "first"}), "edits[0].patch.position: Invalid enum value 'first'"),
        (one(add=..., patch={"prompt": "a", "scale": 2}), "edits[0].patch: Object contains unknown field `scale`"),
        (one(add=..., patch={}), "edits[0].patch: Object missing required field `prompt`"),
        (one(add=..., patch={"prompt": "a", "tap": "x"}), "edits[0].patch.tap: unknown tap 'x'"),
    ],
)
def test_refused(value: Any, problem: str, tmp_path: Path) -> None:
    """Each is told with its place, from a dictionary and from a file alike."""
    (tmp_path / "e.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(value))))
    with pytest.raises(UsageError) as refused:
        read_edits(tmp_path / "e.yaml")
    assert problem in str(refused.value)
    assert str(refused.value).startswith(f"--intervene {tmp_path / 'e.yaml'}: ")
    if isinstance(value, dict):
        with pytest.raises(UsageError) as refused:
            read_edits(value)
        assert f"--intervene dictionary: {problem}" in str(refused.value)


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("e.toml", "", "ends in .toml; name it .yaml or .json by what it holds"),
        ("edits", "", "ends in nothing; name it"),
        ("gone.yaml", None, "No such file or directory; check the path"),
        ("gone", None, "No such file or directory; check the path"),
        ("e.json", "{", "line 1: not JSON (Expecting property name"),
        ("e.json", '{"edits": [],\n "edits": []}', "'edits' is given twice; keep one"),
        ("e.json", '{"edits": [{"tap": "attn_out", "layers": 0, "scale": NaN}]}', "edits[0].scale: nan is not"),
        ("e.json", '{"edits": ' + "9" * 5000 + "}", "cannot be read (Exceeds the limit"),
        ("e.json", "[" * 100_000, "cannot be read (maximum recursion depth exceeded"),
        ("e.yaml", "edits: [", "line 1: not YAML ("),
        ("e.yaml", "- &a [x]\n- *a\n", "line 2: uses an alias (*a); write it out"),
        ("e.yaml", "edits:\n- tap: attn_out\n  layers: 1\n  layers: 2\n", "line 2: 'layers' is given twice; keep one"),
        ("e.yaml", "edits:\n- !!bool maybe", "line 2: uses the tag '!!bool'; write the value without it"),
        ("e.yaml", "edits: !!float ''", "line 1: uses the tag '!!float'"),
        ("e.yaml", "edits: !!timestamp never", "line 1: uses the tag '!!timestamp'"),
        ("e.yaml", "edits: !!python/object/apply:os.system [ls]", "line 1: uses the tag '!!python/object/apply:os.system'"),
        ("e.yaml", "edits: !foo {a: 1}", "line 1: uses the tag '!foo'"),
        ("e.yaml", 'edits: "\\UFFFFFFFF"', "cannot be read ("),
        ("e.yaml", "{a: " * 5_000 + "1" + "}" * 5_000, "line 1: nests more than 32 deep; docs/INTERVENTIONS.md has the form"),
        ("e.yaml", "[" * MOST_BYTES[".yaml"], "line 1: nests more than 32 deep"),
        ("e.yaml", "#" * 131_073, "is larger than 131,072 bytes; put long vectors into a .safetensors file"),
        ("e.json", " " * 1_048_577, "is larger than 1,048,576 bytes; put long vectors into a .safetensors file"),
        (
            "e.json",
            json.dumps(one(add={"values": [0] * 65_537})),
            "edits[0].add.values: 65,537 numbers; 1 to 65,536 can be given",
        ),
        ("e.yaml", b"edits: \xff", "byte 7: not UTF-8; save it as UTF-8"),
        ("e.yaml", "\x07", "not YAML ("),
    ],
)
def test_files_that_are_not_what_they_say(tmp_path: Path, name: str, text: str | bytes | None, problem: str) -> None:
    """One line that names the file, whatever is in it."""
    path = tmp_path / name
    if text is not None:
        path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(UsageError) as refused:
        read_edits(path)
    assert f"--intervene {path}: {problem}" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_yaml_numbers_are_those_of_its_current_version(tmp_path: Path) -> None:
    """To YAML 1.1 a range without quotes was a number of base 60, and the edit quietly changed something else."""
    path = tmp_path / "e.yaml"
    path.write_text(
        "edits: [{tap: resid_post, layers: 1:15, positions: 1:4, scale: 1e3}, {tap: mlp_out, layers: 010, scale: -.5}]"
    )
    one, other = read_edits(path)
    assert (one.layers, one.positions, one.scale) == ("1:15", "1:4", 1000.0)
    assert (other.layers, other.scale) == ("10", -0.5)


def test_text_that_is_not_unicode(tmp_path: Path) -> None:
    """Half of a character is told, as of a prompt in a corpus; and a path that names no file."""
    for add, problem in (
        ({"prompt": "\ud800"}, "edits[0]: holds half of a surrogate pair"),
        ({"file": "~nosuchuser/x", "key": "k"}, "~nosuchuser/x: names no file here"),
    ):
        with pytest.raises(UsageError, match=re.escape(problem)):
            read_edits({"edits": [{"tap": "resid_post", "layers": "0", "add": {**add, "scale": 1}}]})


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    """Nor is a device, which might never end."""
    (tmp_path / "e.yaml").mkdir()
    with pytest.raises(UsageError, match="no plain file; give a file"):
        read_edits(tmp_path / "e.yaml")


def test_vectors_of_files(tmp_path: Path) -> None:
    """A file's vector is found beside the intervention and becomes its numbers, whatever its type."""
    vector = torch.linspace(-1, 1, 7)
    save_file(
        {"v": vector, "short": vector.bfloat16(), "whole": vector.long(), "matrix": torch.eye(3)}, tmp_path / "v.safetensors"
    )
    save_file({"v": torch.tensor([0.0, torch.nan])}, tmp_path / "nan.safetensors")
    save_packed(tmp_path / "packed.safetensors", "v", [4])
    (tmp_path / "broken.safetensors").write_bytes(b"{}")
    (tmp_path / "folder.safetensors").mkdir()

    def read(file: str, key: str) -> tuple[Edit, ...]:
        (tmp_path / "e.json").write_text(json.dumps(one(add={"file": file, "key": key, "scale": 2.0})))
        return read_edits(tmp_path / "e.json")

    (edit,) = read("v.safetensors", "v")
    assert edit.add == Add(values=tuple(vector.double().tolist()), scale=2.0)
    (edit,) = read("v.safetensors", "short")
    assert edit.add == Add(values=tuple(vector.bfloat16().double().tolist()), scale=2.0)
    for file, key, problem in [
        ("v.safetensors", "w", "has no tensor 'w'; it has 'matrix', 'short', 'v', 'whole'"),
        ("v.safetensors", "whole", "is torch.int64; save it as a floating type, such as float32"),
        ("v.safetensors", "matrix", r"has shape [3, 3]; save a vector of the model's width"),
        ("packed.safetensors", "v", f"{tmp_path / 'packed.safetensors'} "),
        ("nan.safetensors", "v", f"number 1 of tensor 'v' of {tmp_path / 'nan.safetensors'}: nan is not a finite float32"),
        ("gone.safetensors", "v", "cannot be read (No such file"),
        ("broken.safetensors", "v", "cannot be read ("),
        ("folder.safetensors", "v", "is no plain file"),
    ]:
        with pytest.raises(UsageError) as refused:
            read(file, key)
        assert "edits[0].add.file: " in str(refused.value)
        assert problem in str(refused.value)


def test_identity(tmp_path: Path) -> None:
    """It is of what the edits say, not of how or where they are written; a vector is in it as its hash."""
    save_file({"v": torch.tensor([0.1, 0.2])}, tmp_path / "v.safetensors")
    (tmp_path / "one.json").write_text(json.dumps(one(add={"file": "v.safetensors", "key": "v"})))
    (tmp_path / "two.yaml").write_text("edits: [{add: {values: [0.1, 0.2], scale: 1}, layers: '1', tap: attention_mechanism}]")
    found = identity(read_edits(tmp_path / "one.json"))
    assert found == identity(read_edits(tmp_path / "two.yaml"))
    assert list(found) == ["digest", "1"]
    assert found["1"]["positions"] == "all"
    assert identity(read_edits(one(positions="0, -1"))) == identity(read_edits(one(positions=[0, -1])))
    assert found["1"]["add"]["values"].startswith("2 numbers, sha256 ")
    others = [one(add={"values": [0.1, 0.3]}), one(add={"values": [0.1, 0.2], "scale": 2}), one(layers=2), one(positions="last")]
    digests = {identity(read_edits(other))["digest"] for other in others} | {found["digest"]}
    assert len(digests) == 5
    assert identity(()) == {}


def ids_of(text: str) -> list[int]:
    return [1] * len(text.split())


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"layers": 4}, r"--intervene: edits[1].layers: '4': the model has layers 0 to 3"),
        ({"layers": "x"}, r"--intervene: edits[1].layers: 'x': 'x' is not a layer; write all"),
        ({"add": {"values": [1.0]}}, "edits[1].add: a vector of 1 numbers; the model's residual has 2"),
        ({"add": {"prompt": "a", "layer": 4}}, "edits[1]: layer 4 of a prompt: the model has layers 0 to 3"),
        ({"add": {"prompt": "a", "layer": -1}}, "edits[1]: layer -1 of a prompt: the model has layers 0 to 3"),
        ({"add": {"prompt": ""}}, "edits[1]: prompt '' has no tokens; give a text"),
        ({"add": {"prompt": "a b", "position": 2}}, "prompt 'a b' has no position 2: it has 2 tokens; give 0 to 1, or last"),
        ({"add": {"prompt": "a b", "position": -3}}, "prompt 'a b' has no position -3"),
        ({"add": {"difference": ["a b", "a"], "position": 1}}, "prompt 'a' has no position 1"),
        ({"add": {"prompt": "a " * 9}}, "has 9 tokens, and the model's limit is 8; give a shorter one"),
    ],
)
def test_what_does_not_fit_the_model(changes: dict[str, Any], problem: str) -> None:
    """Told from configuration and tokenizer, with the place in the file."""
    edits = read_edits({"edits": [ADD, {**ADD, **changes}]})
    with pytest.raises(UsageError) as refused:
        check_edits(edits, ids_of, 4, 2, 8)
    assert problem in str(refused.value)
    check_edits(read_edits({"edits": [ADD]}), ids_of, 4, 2, 8)


plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
names = st.sampled_from(
    ["edits", "tap", "layers", "positions", "add", "scale", "zero", "patch", "values", "prompt", "attn_out", "all"]
)
values = st.recursive(
    plain | names, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names | st.text(max_size=3), inner, max_size=4)
)


@given(st.dictionaries(names, values, max_size=3) | st.fixed_dictionaries({"edits": st.lists(values, max_size=2)}))
def test_whatever_is_given(value: dict[str, Any]) -> None:
    """Either it is edits, or one error says why not."""
    try:
        edits = read_edits(value)
    except UsageError as error:
        assert str(error).startswith("--intervene dictionary: ")  # noqa: PT017
    else:
        assert all(isinstance(edit, Edit) for edit in edits)


def test_the_documented_file(tmp_path: Path) -> None:
    """The example of docs/INTERVENTIONS.md has every change, and is read as it stands."""
    page = (Path(__file__).parents[2] / "docs" / "INTERVENTIONS.md").read_text()
    (tmp_path / "e.yaml").write_text(page.partition("```yaml\n")[2].partition("```")[0])
    edits = read_edits(tmp_path / "e.yaml")
    assert {name for edit in edits for name in ("add", "scale", "zero", "patch") if getattr(edit, name) is not None} == {
        "add",
        "scale",
        "zero",
        "patch",
    }
    check_edits(edits, ids_of, 30, 2, 99)
