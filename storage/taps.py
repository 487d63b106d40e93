"""The places in a transformer block that can be lensed, under TransformerLens's names."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from raylens.storage.errors import UsageError, brief
from raylens.storage.python_values import plain

#: Canonical names, in the order in which a block computes them.
TAPS = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")

#: What a run reads when ``--taps`` is not given; a tap the model lacks is left out.
DEFAULT_TAPS = ("attn_out", "resid_mid", "mlp_out", "resid_post")

#: Attention heads of a block that have a tap each, of what they write.
MAX_HEADS = 1024
_HEAD = re.compile(r"head_(0|[1-9][0-9]{0,3})")

#: Names that LogitLens4LLMs uses for the same places.
ALIASES = {
    "attention_mechanism": "attn_out",
    "intermediate_residual": "resid_mid",
    "mlp_output": "mlp_out",
    "block_output": "resid_post",
}


def head_tap(head: int) -> str:
    """The tap of what one head of a block's attention writes to the residual."""
    return f"head_{head}"


def is_head(tap: str) -> bool:
    """Whether a tap is that of a head."""
    match = _HEAD.fullmatch(tap)
    return match is not None and int(match[1]) < MAX_HEADS


def is_tap(tap: str) -> bool:
    """Whether there is such a tap."""
    return tap in TAPS or is_head(tap)


def tap_order(tap: str) -> int:
    """By which taps of a layer are sorted: as a block computes them, then its heads."""
    return TAPS.index(tap) if tap in TAPS else len(TAPS) + int(tap.removeprefix("head_"))


def names_in(spec: object, option: str) -> list[str]:
    """Names from a list of them or a comma-separated text.

    Raises:
        UsageError: it is neither.
    """
    spec = plain(spec, option)
    given: list[Any] = spec.split(",") if isinstance(spec, str) else list(spec) if isinstance(spec, Iterable) else [spec]
    if not all(isinstance(name, str) for name in given):
        raise UsageError(f"{option} {brief(spec, repr)}: give names, as a list or as a text with commas between them")
    return [name.strip() for name in given]


def parse_taps(spec: str | Sequence[str], option: str = "--taps") -> tuple[str, ...]:
    """Canonical tap names from names or a comma-separated list of them, in order and without repeats.

    Raises:
        UsageError: an unknown or missing name.
    """
    chosen = {ALIASES.get(name, name) for name in names_in(spec, option) if name}
    unknown = sorted(tap for tap in chosen if not is_tap(tap))
    if unknown or not chosen:
        wrong = f"unknown tap {brief(unknown[0], repr)}" if unknown else "no tap named"
        raise UsageError(f"{option} {brief(spec, repr)}: {wrong}; choose from {', '.join(TAPS)}")
    return tuple(sorted(chosen, key=tap_order))
