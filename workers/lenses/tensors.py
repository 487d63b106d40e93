"""Named tensors of a file that may be hostile: its size is bounded by the model's, nothing in it runs, each tensor is checked.

Of torch.save's format only zip files of uncompressed records are read, mapped into memory and with ``weights_only``, after a
look at the pickle that allows tensors, dictionaries, numbers and strings.
"""

import pickletools
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from raylens.storage.errors import ModelError, one_line
from raylens.workers.lenses.interface import Shape
from raylens.workers.lenses.source import bad_file

_ALLOWED = {"collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter", "torch Size"}
_STORAGES = {f"torch {kind}Storage" for kind in ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Bool", "Byte")}
#: Operations of a pickle that name a function or class; torch.save writes the first only.
_IMPORTS = {"GLOBAL", "INST", "STACK_GLOBAL", "EXT1", "EXT2", "EXT4"}
#: Bytes of a pickle that describes no more tensors than a lens has.
_MOST_PICKLE = 4 << 20
#: Values in the dictionaries of a file, and how deep these are nested.
_MOST_PARTS, _DEPTH = 1 << 16, 4
#: A lens has a matrix and a bias for each layer, at most in float64; twice that leaves room for what else is saved with it.
_ROOM = 2
_SLACK = 1 << 20
_SAVE_AGAIN = "save it again as .safetensors, or by torch.save of a dictionary of tensors"
_OTHER_MODEL = "give the lens of this model"


class Tensors:
    """The tensors of an open file.

    Args:
        path: of the file, for messages.
        names: of its tensors; those in dictionaries have the keys joined by dots.
        shape_of, load: the shape of a named tensor, and the tensor.
    """

    def __init__(
        self, path: Path, names: list[str], shape_of: Callable[[str], Sequence[int]], load: Callable[[str], Tensor]
    ) -> None:
        self._path = path
        self.names = names
        self._known = frozenset(names)
        self._shape_of = shape_of
        self._load = load

    def check(self, name: str, shape: list[int]) -> None:
        """Refuse a tensor that is not there or of another shape, before anything is allocated for it.

        Raises:
            ModelError: naming file, tensor and both shapes.
        """
        if name not in self._known:
            raise bad_file(self._path, f"has no tensor {name!r}", _OTHER_MODEL)
        found = list(self._shape_of(name))
        if found != shape:
            raise bad_file(self._path, f"tensor {name!r} has shape {found}, and the model wants {shape}", _OTHER_MODEL)

    def get(self, name: str) -> Tensor:
        """A tensor whose shape was checked, float32, a copy of its own.

        Raises:
            ModelError: it is not of a floating type, or has numbers that are not finite.
        """
        found = self._load(name)
        if not found.is_floating_point() or found.layout != torch.strided:
            raise bad_file(self._path, f"tensor {name!r} is {found.dtype}, not of a floating type", _SAVE_AGAIN)
        try:
            tensor = found.detach().to(torch.float32, copy=True).contiguous()
        except RuntimeError as error:  # of two numbers in a byte torch makes no others
            raise bad_file(self._path, f"tensor {name!r} is {found.dtype}, which cannot be converted", _SAVE_AGAIN) from error
        if not bool(tensor.isfinite().all()):
            raise bad_file(self._path, f"tensor {name!r} has numbers that are not finite (NaN or overflow)", "fit the lens again")
        return tensor


@contextmanager
def open_tensors(path: Path, shape: Shape) -> Iterator[Tensors]:
    """The tensors of a lens's file, while it is open.

    Args:
        path: a .safetensors file, or one of torch.save.
        shape: of the model, which bounds the file's size.

    Raises:
        ModelError: it is no such file, too large, or holds what is not allowed.
    """
    try:
        size = path.stat().st_size
    except OSError as error:
        raise bad_file(path, str(error.strerror), "check the path") from error
    most = _ROOM * 8 * (shape.layers + 1) * (shape.width + 1) * shape.width + _SLACK
    if not path.is_file() or size > most:
        problem = f"{size:,} bytes, more than a lens of this model can have ({most:,})" if path.is_file() else "no file"
        raise bad_file(path, problem, _OTHER_MODEL)
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                yield Tensors(path, list(file.keys()), lambda name: file.get_slice(name).get_shape(), file.get_tensor)
        except (SafetensorError, OSError) as error:
            raise bad_file(path, f"not a safetensors file ({one_line(error)})", _SAVE_AGAIN) from error
    else:
        tensors = _flat(path, _loaded(path))
        yield Tensors(path, list(tensors), lambda name: tensors[name].shape, tensors.__getitem__)


def _loaded(path: Path) -> Any:
    _check_zip(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a file that is not what it says may make anything fail
        raise bad_file(path, f"torch cannot read it ({one_line(error)})", _SAVE_AGAIN) from error


def _check_zip(path: Path) -> None:
    """Refuse what is no zip file of plain records, and a pickle with more than tensors, before torch sees it."""
    try:
        with zipfile.ZipFile(path) as archive:
            if any(record.compress_type != zipfile.ZIP_STORED for record in archive.infolist()):
                raise bad_file(path, "has compressed records, which torch.save does not write", _SAVE_AGAIN)
            (described,) = (record for record in archive.infolist() if record.filename.endswith("data.pkl"))
            if described.file_size > _MOST_PICKLE:
                raise bad_file(path, f"describes its tensors in more than {_MOST_PICKLE:,} bytes", _SAVE_AGAIN)
            _check_pickle(path, archive.read(described))
    except ModelError:
        raise
    except Exception as error:  # as above: of a file cut in other places another
        raise bad_file(path, "not a file of torch.save (since torch 1.6)", _SAVE_AGAIN) from error


def _check_pickle(path: Path, described: bytes) -> None:
    for operation, argument, _ in pickletools.genops(described):
        wanted = str(argument) if operation.name == "GLOBAL" else operation.name
        if operation.name in _IMPORTS and wanted not in _ALLOWED | _STORAGES:
            raise bad_file(path, f"holds more than tensors, numbers and strings ({wanted[:100]})", _SAVE_AGAIN)


def _flat(path: Path, value: Any) -> dict[str, Tensor]:
    """The tensors in nested dictionaries; what else is in them is left out."""
    found: dict[str, Tensor] = {}
    for number, (name, inner) in enumerate(_parts("", value, 0)):
        if number == _MOST_PARTS:  # a dictionary may stand in a small file many times
            raise bad_file(path, f"has more than {_MOST_PARTS:,} parts", _SAVE_AGAIN)
        if isinstance(inner, Tensor):
            found[name] = inner
    return found


def _parts(name: str, value: Any, depth: int) -> Iterator[tuple[str, Any]]:
    """A value and, where it is a dictionary, those in it, with their names."""
    yield name, value
    if isinstance(value, dict) and depth < _DEPTH:
        for key, inner in value.items():
            if isinstance(key, str | int):
                yield from _parts(f"{name}.{key}" if name else str(key), inner, depth + 1)
