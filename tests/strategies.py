"""Hypothesis strategies for outcomes."""

from typing import Any

from hypothesis import strategies as st

from raylens.storage.generated import MAX_SAMPLES, Generated
from raylens.storage.record import FAILURE_KINDS, Failure, Record
from raylens.storage.taps import TAPS
from tests.builders import make_record

#: Ids as users write them: paths, dots, 300 characters, emoji, anything that is Unicode text.
ids = st.one_of(
    st.sampled_from(["0", "a/b/c.txt", "..", ".", "/", "x" * 300, "日" * 300, "👩\u200d🔬", "a\nb", "a\0b", " ", ""]),
    st.text(max_size=40),
)

_scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)
metadata: st.SearchStrategy[dict[str, Any]] = st.dictionaries(
    st.text(max_size=10),
    st.recursive(
        _scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=8
    ),
    max_size=3,
)


@st.composite
def records(draw: st.DrawFn) -> Record:
    """Records of every small shape, of one tap to all."""
    tokens = draw(st.integers(1, 6))
    positions = sorted(draw(st.sets(st.integers(0, tokens - 1), min_size=1)))
    layers = tuple(sorted(draw(st.sets(st.integers(0, 90), min_size=1, max_size=3))))
    taps = draw(st.lists(st.sampled_from((*TAPS, "head_0", "head_10")), min_size=1, unique=True))
    generated = draw(st.none() | generations(tokens)) if tokens > 1 else None
    return make_record(
        draw(st.integers(0, 9)),
        id=draw(ids),
        seed=draw(st.integers(0, 1 << 32)),
        tokens=tokens,
        positions=positions,
        layers=layers,
        taps=tuple(taps),
        k=draw(st.integers(1, 5)),
        dtype=draw(st.sampled_from(["float16", "float32"])),
        text=draw(st.text(max_size=30)),
        metadata=draw(metadata),
        truncated_from=draw(st.none() | st.integers(tokens + 1, (1 << 32) - 1)),
        tracked=draw(st.integers(0, 3)),
        stats=draw(st.booleans()),
        generated=generated,
    )


@st.composite
def generations(draw: st.DrawFn, tokens: int) -> Generated:
    """What may have been generated at the end of so many tokens."""
    start = draw(st.integers(1, tokens - 1))
    logprobs = st.lists(st.floats(-1e30, 0), min_size=tokens - start, max_size=tokens - start)
    return Generated(
        start,
        draw(st.sampled_from(["eos", "length"])),
        draw(st.text(max_size=10)),
        draw(logprobs),
        draw(logprobs),
        draw(st.integers(0, MAX_SAMPLES)),
    )


@st.composite
def failures(draw: st.DrawFn) -> Failure:
    """Failures of every kind."""
    kind = draw(st.sampled_from(FAILURE_KINDS))
    return Failure(draw(ids), draw(st.integers(0, 9)), kind, draw(st.text(max_size=50)), draw(metadata))
