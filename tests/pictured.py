"""Records that pictures are tested on, by number and by hand, and how their pictures are drawn."""

from typing import Any

import numpy as np

from raylens.storage.plots import render as render_files
from raylens.storage.plots.request import Request
from raylens.storage.record import Record, TapLens
from raylens.storage.taps import DEFAULT_TAPS

ENGLISH = [b"The", b" capital", b" of", b" France", b" is", b" Paris", b",", b" and", b" it", b" is", b" large", b".\n"]
HOSTILE = [
    *(b"<script>alert('x')</script>", b" &amp;", b"]]>", b"--", b"$$", b"$\\frac{1}", b"\\", b"%s{}"),
    *(b"\x00", b"\x1b[31m", b"\r\n", b"", b"   ", b"\xc2\xa0", b"\xe0\xb8", b"\xff", b"WWWWWWWWWWWWWWWWWWWWWW"),
    *(
        text.encode()
        for text in ["\u202eabc", "🎉", "👩\u200d🔬", "日本語", " مرحبا بالعالم", "שלום", "\u0301a", "नमस्ते", "\u2028", "\ufffe"]
    ),
]
MODEL = Request("model")


def make(
    tokens: list[bytes], taps: tuple[str, ...] = DEFAULT_TAPS, layers: int = 4, k: int = 5, seed: int = 0, name: str = "p"
) -> tuple[Record, list[bytes | None]]:
    """A record of random numbers over a vocabulary of the tokens and a few more, with one id that has no token."""
    vocabulary: list[bytes | None] = [*dict.fromkeys([*tokens, b" the", b" yes", b" no", b" 1", b" 2"]), None]
    rng = np.random.default_rng(seed)
    lenses = {}
    for tap in taps:
        depth = 1 if tap == "resid_pre" else layers
        logits = rng.normal(size=(depth, len(tokens), len(vocabulary))) * 4
        logprobs = logits - np.logaddexp.reduce(logits, axis=2)[:, :, None]
        ids = np.argsort(-logprobs, axis=2)[:, :, :k]
        entropy = -(np.exp(logprobs) * logprobs).sum(axis=2)
        best = np.take_along_axis(logprobs, ids, axis=2).astype(np.float16)
        nothing = np.zeros(entropy.shape, np.float32)
        stats = _attributions(entropy.shape, whole=tap in ("resid_mid", "resid_post"), seed=seed)
        lenses[tap] = TapLens(tuple(range(depth)), ids.astype(np.uint32), best, nothing, entropy.astype(np.float32), stats)
    ids_read = [vocabulary.index(token) for token in tokens]
    text = b"".join(tokens).decode("utf-8", "replace")
    places = list(range(len(tokens)))
    return Record(name, 0, text, ids_read, [], places, list(range(layers)), lenses), vocabulary


def _attributions(shape: tuple[int, ...], whole: bool, seed: int) -> dict[str, Any]:
    """Terms of the best and the next token's logit, and how far they are off at a whole residual."""
    terms = np.random.default_rng(seed).normal(size=(2, *shape)).astype(np.float32) * 3
    error = np.full(shape, 1e-6 if whole else np.nan, np.float32)
    return {"next_attribution": terms[0], "best_attribution": terms[1], "attribution_error": error}


def fixed() -> tuple[Record, list[bytes | None]]:
    """Two layers, three positions, k = 2, by hand. Layer 1 predicts b, c, a; the prompt goes on b, c."""
    vocabulary: list[bytes | None] = [b" a", b" b", b" c", b" d"]
    ids = np.array([[[0, 1], [2, 1], [3, 1]], [[1, 0], [2, 0], [0, 3]]], np.uint32)
    logprobs = np.log(np.array([[[0.5, 0.25], [0.4, 0.1], [0.9, 0.1]], [[0.75, 0.2], [0.6, 0.3], [0.3, 0.3]]], np.float32))
    entropy = np.array([[1.0, 2.0, 3.0], [0.5, 0.25, 0.125]], np.float32)
    lens = TapLens((0, 1), ids, logprobs, np.zeros((2, 3), np.float32), entropy)
    return Record("r", 0, " a b c", [0, 1, 2], [], [0, 1, 2], [0, 1], {"resid_post": lens}), vocabulary


def render(record: Record, kind: str, suffix: str, request: Request, **options: Any) -> bytes:
    """The one file of a picture."""
    (data,) = render_files(record, kind, suffix, request, **options)
    return data
