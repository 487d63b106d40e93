"""The places in a transformer block that can be lensed, under TransformerLens's names."""

from collections.abc import Sequence

from raylens.storage.errors import UsageError

#: Canonical names, in the order in which a block computes them.
TAPS = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")

#: What a run reads when ``--taps`` is not given; a tap the model lacks is left out.
DEFAULT_TAPS = ("attn_out", "resid_mid", "mlp_out", "resid_post")

#: Names that LogitLens4LLMs uses for the same places.
ALIASES = {
    "attention_mechanism": "attn_out",
    "intermediate_residual": "resid_mid",
    "mlp_output": "mlp_out",
    "block_output": "resid_post",
}


def parse_taps(spec: str | Sequence[str]) -> tuple[str, ...]:
    """Canonical tap names from names or a comma-separated list of them, in block order and without repeats.

    Raises:
        UsageError: an unknown or missing name.
    """
    names = [name.strip() for name in (spec.split(",") if isinstance(spec, str) else spec) if name.strip()]
    chosen = {ALIASES.get(name, name) for name in names}
    unknown = sorted(chosen - set(TAPS))
    if unknown or not chosen:
        wrong = f"unknown tap {unknown[0]!r}" if unknown else "no tap named"
        raise UsageError(f"--taps {spec!r}: {wrong}; choose from {', '.join(TAPS)}")
    return tuple(tap for tap in TAPS if tap in chosen)
