"""``--intervene FILE``: YAML or JSON as plain values; the file may be anybody's. Knows no torch.

YAML's anchors are refused, for a few lines of them can stand for gigabytes; so are names given twice, of which one would be lost,
and tags, by which what a value says is read as what it is not.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import yaml

from raylens.storage.errors import UsageError, one_line

#: Bytes of a file by what it is: YAML of a megabyte would be read for half a minute.
MOST_BYTES = {".json": 1 << 20, ".yaml": 1 << 17, ".yml": 1 << 17}
#: Brackets within brackets; an intervention has five.
_DEPTH = 32
FORM = "docs/INTERVENTIONS.md has the form"


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # yaml has no types
    """Plain values, with numbers as YAML 1.2 writes them: to 1.1, which PyYAML reads, ``1:4`` is 64 and ``1e3`` a text."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {
        first: [(tag, pattern) for tag, pattern in rules if tag.rpartition(":")[2] in {"bool", "null"}]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_FLOAT = r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"[-+]?[0-9]+\Z"), list("-+0123456789"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(rf"(?:{_FLOAT})\Z"), list("-+0123456789."))
_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(loader.construct_scalar(node)))


def bad(name: str, place: str, problem: str, remedy: str = FORM) -> UsageError:
    """The error of an intervention that cannot be used.

    Args:
        name: of the file.
        place: in it, such as ``edits[0].layers``.
        problem, remedy: in words.
    """
    return UsageError(f"--intervene {name}: {place + ': ' if place else ''}{problem}; {remedy}")


def read_values(path: Path) -> Any:
    """What the file says, as dictionaries, lists, texts and numbers.

    Raises:
        UsageError: it cannot be read, or is not what it is named.
    """
    name, suffix = str(path), path.suffix.lower()
    if path.exists() and not path.is_file():  # a device might never end
        raise bad(name, "", "no plain file", "give a file")
    if suffix not in MOST_BYTES:
        if not path.exists():
            raise bad(name, "", "No such file or directory", "check the path")
        raise bad(name, "", f"ends in {suffix or 'nothing'}", "name it .yaml or .json by what it holds")
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES[suffix] + 1)
    except OSError as error:
        raise bad(name, "", str(error.strerror), "check the path") from error
    if len(data) > MOST_BYTES[suffix]:
        raise bad(name, "", f"is larger than {MOST_BYTES[suffix]:,} bytes", "put long vectors into a .safetensors file")
    try:
        return _json(name, data.decode()) if suffix == ".json" else _yaml(name, data.decode())
    except UnicodeDecodeError as error:
        raise bad(name, f"byte {error.start}", "not UTF-8", "save it as UTF-8") from error
    except json.JSONDecodeError as error:
        raise bad(name, f"line {error.lineno}", f"not JSON ({error.msg})") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = " ".join(str(getattr(error, "problem", None) or error).split())[:200]
        raise bad(name, f"line {mark.line + 1}" if mark else "", f"not YAML ({problem})") from error
    except (RecursionError, ValueError, OverflowError) as error:  # nested without end; thousands of digits; "\UFFFFFFFF"
        raise bad(name, "", f"cannot be read ({one_line(error)})") from error


def _json(name: str, text: str) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        _check_once(name, "", (key for key, _ in pairs))
        return dict(pairs)

    return json.loads(text, object_pairs_hook=once)


def _yaml(name: str, text: str) -> Any:
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.AliasEvent):
            raise bad(name, f"line {event.start_mark.line + 1}", f"uses an alias (*{event.anchor})", "write it out")
        if tag := getattr(event, "tag", None):
            shown = tag.replace("tag:yaml.org,2002:", "!!")[:100]
            raise bad(name, f"line {event.start_mark.line + 1}", f"uses the tag {shown!r}", "write the value without it")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEPTH:
            raise bad(name, f"line {event.start_mark.line + 1}", f"nests more than {_DEPTH} deep")
    _check_nodes(name, yaml.compose(text, Loader=_Loader))
    return yaml.load(text, Loader=_Loader)  # noqa: S506  a SafeLoader


def _check_nodes(name: str, node: Any) -> None:
    """Refuse a key that stands twice in one mapping."""
    if isinstance(node, yaml.MappingNode):
        _check_once(name, f"line {node.start_mark.line + 1}", (str(key.value) for key, _ in node.value))
    children = node.value if isinstance(node, yaml.CollectionNode) else []
    for child in children:
        for one in child if isinstance(child, tuple) else (child,):
            _check_nodes(name, one)


def _check_once(name: str, place: str, keys: Iterable[str]) -> None:
    seen: set[str] = set()
    for key in keys:
        if key in seen:
            raise bad(name, place, f"{key[:100]!r} is given twice", "keep one")
        seen.add(key)
