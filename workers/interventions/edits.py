"""What an intervention's file may say, and what it says once it is checked (docs/INTERVENTIONS.md). Knows no torch but for
vectors of .safetensors files."""

import hashlib
import math
import struct
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from raylens.storage.errors import UsageError, one_line
from raylens.storage.layers import FORMS as LAYERS
from raylens.storage.layers import as_text
from raylens.storage.paths import given_path
from raylens.storage.positions import FORMS as POSITIONS
from raylens.storage.python_values import plain
from raylens.storage.taps import ALIASES, TAPS
from raylens.workers.interventions.file import FORM, bad, read_values
from raylens.workers.interventions.places import check_positions

MOST_EDITS = 256
#: Numbers of a vector; no model is that wide.
MOST_VALUES = 1 << 16

#: Of a field of another type -> what to write.
_REMEDIES = {
    "layers": f"write {LAYERS}, or a list of layers",
    "positions": f"write {POSITIONS}, or a list of positions",
    "position": "write a number, or last; in a patch also each",
}
_OPERATIONS = ("add", "scale", "zero", "patch")
_VECTORS = ("values", "file", "prompt", "difference")


class Add(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A vector that is added: numbers, or what a tap holds for a prompt, or for one prompt less another.

    Attributes:
        values: [D] numbers; those of a file too, once it is read.
        file, key: a .safetensors file and the name of its tensor, [D].
        prompt, difference: a text, or two of which the second is subtracted.
        tap, layer, position: where the prompts' tap is taken; by default the tap and layer that are edited, at the last token.
        scale: a factor on the vector.
    """

    values: tuple[float, ...] | None = None
    file: str | None = None
    key: str | None = None
    prompt: str | None = None
    difference: tuple[str, str] | None = None
    tap: str | None = None
    layer: int | None = None
    position: int | Literal["last"] = "last"
    scale: float = 1.0


class Patch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a tap holds for another prompt, put in place of what it holds.

    Attributes:
        prompt: a text.
        tap, layer: as of Add.
        position: of that prompt's token; or ``each``: of the token at the edited position, which takes prompts of that length.
    """

    prompt: str
    tap: str | None = None
    layer: int | None = None
    position: int | Literal["last", "each"] = "last"


class Edit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One change; exactly one of the last four is given.

    Attributes:
        tap: canonical name.
        layers: as ``--layers``.
        positions: as ``--positions``, or a list such as ``0,3,-1`` (places.py).
        add, patch: a vector.
        scale: a factor on the tap.
        zero: the tap is set to 0.
    """

    tap: str
    layers: str
    positions: str = "all"
    add: Add | None = None
    scale: float | None = None
    zero: bool | None = None
    patch: Patch | None = None

    @property
    def source(self) -> Add | Patch | None:
        """The vector, if there is one."""
        return self.add or self.patch

    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompts that the model must read for it."""
        source = self.source
        if isinstance(source, Add) and source.difference is not None:
            return source.difference
        return (source.prompt,) if source is not None and source.prompt is not None else ()


class _File(msgspec.Struct, forbid_unknown_fields=True):
    edits: list[Edit]


def read_edits(given: str | Path | Mapping[str, Any] | None) -> tuple[Edit, ...]:
    """The edits of a file, or of a dictionary of its form; vectors of files as numbers.

    Raises:
        UsageError: naming file, place and remedy.
    """
    if given is None:
        return ()
    if isinstance(given, Mapping):
        return _edits("dictionary", given, Path())
    if not isinstance(given, str | Path):
        raise UsageError(f"intervene is a {type(given).__name__}; give a file, or a dictionary of its form")
    path = given_path(given, "--intervene")
    return _edits(str(given), read_values(path), path.parent)


def _edits(name: str, value: Any, folder: Path) -> tuple[Edit, ...]:
    try:
        found = msgspec.convert(_spelled_out(plain(value, f"--intervene {name}")), _File).edits
    except msgspec.ValidationError as error:
        problem, _, place = str(error).partition(" - at `$")
        place = place.strip("`.")
        raise bad(name, place, problem, _REMEDIES.get(place.rpartition(".")[2], FORM)) from error
    if not 1 <= len(found) <= MOST_EDITS:
        raise bad(name, "edits", f"{len(found)} edits; 1 to {MOST_EDITS} can be given")
    return tuple(_checked(name, f"edits[{number}]", edit, folder) for number, edit in enumerate(found))


def _spelled_out(value: Any) -> Any:
    """Layers and positions that are a number or a list of numbers as the text that stands for them."""
    if not isinstance(value, Mapping) or not isinstance(value.get("edits"), list | tuple):
        return value
    return {**value, "edits": [_with_texts(edit) if isinstance(edit, Mapping) else edit for edit in value["edits"]]}


def _with_texts(edit: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(edit)
    for name in ("layers", "positions"):
        if name in found:
            found[name] = as_text(found[name])
    return found


def _checked(name: str, place: str, edit: Edit, folder: Path) -> Edit:
    given = [operation for operation in _OPERATIONS if getattr(edit, operation) is not None]
    if len(given) != 1:
        raise bad(name, place, f"has {' and '.join(given) or 'no change'}", f"give one of {', '.join(_OPERATIONS)}")
    if edit.zero is False:
        raise bad(name, f"{place}.zero", "is false, which changes nothing", "write zero: true, or leave the edit out")
    if edit.scale is not None:
        _check_number(name, f"{place}.scale", edit.scale)
    try:
        msgspec.json.encode(edit)  # so that every text in it can be tokenized
    except UnicodeEncodeError as error:
        raise bad(name, place, "holds half of a surrogate pair", "write the whole character, or remove it") from error
    if not edit.layers:
        raise bad(name, f"{place}.layers", "chooses no layer", f"write {LAYERS}")
    edit = msgspec.structs.replace(edit, positions=edit.positions.replace(" ", ""), layers=edit.layers.replace(" ", ""))
    try:
        check_positions(edit.positions)
    except UsageError as error:
        raise bad(name, f"{place}.positions", str(error)) from error
    edit = msgspec.structs.replace(edit, tap=_tap(name, f"{place}.tap", edit.tap))
    if edit.add is not None:
        return msgspec.structs.replace(edit, add=_checked_add(name, f"{place}.add", edit.add, folder))
    if edit.patch is not None and edit.patch.tap is not None:
        tap = _tap(name, f"{place}.patch.tap", edit.patch.tap)
        return msgspec.structs.replace(edit, patch=msgspec.structs.replace(edit.patch, tap=tap))
    return edit


def _checked_add(name: str, place: str, add: Add, folder: Path) -> Add:
    given = [vector for vector in _VECTORS if getattr(add, vector) is not None]
    if len(given) != 1:
        raise bad(name, place, f"has {' and '.join(given) or 'no vector'}", f"give one of {', '.join(_VECTORS)}")
    _check_number(name, f"{place}.scale", add.scale)
    if (add.file is None) != (add.key is None):
        raise bad(name, place, "key and file go together", "give both: key is the name of the file's tensor")
    if given[0] in {"values", "file"}:
        for option in ("tap", "layer", "position"):
            if getattr(add, option) != msgspec.structs.fields(Add)[Add.__struct_fields__.index(option)].default:
                raise bad(name, f"{place}.{option}", "is of a prompt's tap", f"leave it out beside {given[0]}")
    if add.tap is not None:
        add = msgspec.structs.replace(add, tap=_tap(name, f"{place}.tap", add.tap))
    if add.file is not None and add.key is not None:
        values = _tensor(name, f"{place}.file", folder / given_path(add.file, f"--intervene {name}: {place}.file"), add.key)
        add = msgspec.structs.replace(add, values=values, file=None, key=None)
    elif add.values is not None:
        if not 1 <= len(add.values) <= MOST_VALUES:
            raise bad(name, f"{place}.values", f"{len(add.values):,} numbers; 1 to {MOST_VALUES:,} can be given")
        for number, value in enumerate(add.values):
            _check_number(name, f"{place}.values[{number}]", value)
    if add.values is not None:
        _check_number(name, f"{place}: its largest number times scale", max(map(abs, add.values)) * add.scale)
        # as float32, which is what is added: equal vectors are equal wherever they came from
        return msgspec.structs.replace(add, values=tuple(array("f", add.values)))
    return add


def _check_number(name: str, place: str, value: float) -> None:
    if not math.isfinite(value) or abs(value) > 3e38:
        raise bad(name, place, f"{value:g} is not a finite float32", "write a number")


def _tap(name: str, place: str, given: str) -> str:
    tap = ALIASES.get(given, given)
    if tap not in TAPS:
        raise bad(name, place, f"unknown tap {given[:100]!r}", f"choose from {', '.join(TAPS)}")
    return tap


def _tensor(name: str, place: str, path: Path, key: str) -> tuple[float, ...]:
    """A vector of a .safetensors file, whose shape is looked at before anything is allocated."""
    from safetensors import SafetensorError, safe_open

    try:
        if path.exists() and not path.is_file():
            raise bad(name, place, f"{path} is no plain file", "give a file")
        path.open("rb").close()  # says why it cannot be read, where safetensors says that it is not there
        with safe_open(path, framework="pt") as file:
            if key not in file.keys():  # noqa: SIM118  it is no dictionary
                raise bad(name, place, f"{path} has no tensor {key!r}", f"it has {', '.join(map(repr, list(file.keys())[:8]))}")
            shape = list(file.get_slice(key).get_shape())
            if len(shape) != 1 or not 1 <= shape[0] <= MOST_VALUES:
                raise bad(name, place, f"tensor {key!r} of {path} has shape {shape}", "save a vector of the model's width")
            tensor = file.get_tensor(key)
    except (SafetensorError, OSError) as error:
        why = getattr(error, "strerror", None) or one_line(error)
        raise bad(name, place, f"{path} cannot be read ({why})", "give a .safetensors file") from error
    try:
        values = tensor.double().tolist() if tensor.is_floating_point() else None
    except RuntimeError:  # of two numbers in a byte torch makes no others
        values = None
    if values is None:
        raise bad(name, place, f"tensor {key!r} of {path} is {tensor.dtype}", "save it as a floating type, such as float32")
    for number, value in enumerate(values):
        _check_number(name, f"{place}: number {number} of tensor {key!r} of {path}", value)
    return tuple(values)


def identity(edits: tuple[Edit, ...]) -> dict[str, Any]:
    """What a run's results depend on: the edits by number, vectors by their hash, and the digest of all.

    The same edits give equal values, wherever they and their vectors are kept.
    """
    if not edits:
        return {}
    each = {str(number): _described(edit) for number, edit in enumerate(edits, 1)}
    digest = hashlib.sha256(msgspec.json.encode(each, order="deterministic")).hexdigest()[:16]
    return {"digest": digest, **each}


def _described(edit: Edit) -> dict[str, Any]:
    found = _given(edit)
    if edit.add is not None and edit.add.values is not None:
        digest = hashlib.sha256(struct.pack(f"<{len(edit.add.values)}f", *edit.add.values)).hexdigest()[:16]
        found["add"] = {"values": f"{len(edit.add.values)} numbers, sha256 {digest}", "scale": edit.add.scale}
    return found


def _given(one: msgspec.Struct) -> dict[str, Any]:
    values = {name: value for name, value in msgspec.structs.asdict(one).items() if value is not None}
    return {name: _given(value) if isinstance(value, msgspec.Struct) else value for name, value in values.items()}
