"""Choosing the next token: the most probable one, or one drawn after temperature, top-k and top-p, in transformers' order.

Top-p is nucleus sampling (Holtzman et al. 2020, arXiv:1904.09751). A draw is a race: each token waits for a time that is
exponential with its probability as rate, and the first wins (the Gumbel-max trick). The times come from a counting generator
keyed by seed, prompt and step, so a draw depends on nothing else. Logits that are rounded otherwise in another batch change the
winner only where the first two are as close as that; on a line of cumulated probabilities each rounding moves all tokens behind.
Shapes: B prompts, V vocabulary.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raylens.workers.settings import GenerationSettings

#: Tokens among which a nucleus is looked for before all are sorted.
CANDIDATES = 1024

_Floats = NDArray[np.float64]
_Ids = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Choice:
    """The tokens chosen for B prompts.

    Attributes:
        ids: [B].
        logprobs: [B] in the model's own distribution; not a number where the model's logits are none.
        sampling_logprobs: [B] in the distribution that was drawn from.
    """

    ids: list[int]
    logprobs: list[float]
    sampling_logprobs: list[float]


class Sampler:
    """Chooses tokens as one run's settings have it."""

    def __init__(self, settings: GenerationSettings) -> None:
        self._settings = settings

    def __call__(self, logits: Tensor, prompts: Sequence[str], step: int) -> Choice:
        """One token each.

        Args:
            logits: [B, V] float32.
            prompts: [B] their ids, which with seed and step are the key of the draw.
            step: number of the token, from 0.
        """
        if self._settings.temperature == 0:
            # the first of equal logits, as transformers takes it
            ids, drawn = logits.argmax(dim=1).tolist(), [0.0] * len(logits)
        else:
            rows = logits.cpu().numpy()
            found = [self._draw(self._scores(row), prompt, step) for row, prompt in zip(rows, prompts, strict=True)]
            ids, drawn = [token for token, _ in found], [logprob for _, logprob in found]
        chosen = logits.gather(1, torch.tensor(ids, device=logits.device).unsqueeze(1)).squeeze(1).double()
        logprobs = (chosen - logits.logsumexp(dim=1).double()).clamp(max=0.0)
        return Choice(ids, logprobs.tolist(), drawn)

    def _scores(self, logits: NDArray[np.float32]) -> _Floats:
        scores = logits.astype(np.float64)
        # from the best one down, so that no temperature is so low that the best is out of range
        with np.errstate(invalid="ignore", over="ignore"):  # of an infinite logit, which _draw looks for; of a tiny temperature
            scores -= scores.max()
            scores /= self._settings.temperature
        return scores

    def _draw(self, scores: _Floats, prompt: str, step: int) -> tuple[int, float]:
        """The token drawn from [V] logits, and its logprob in what it was drawn from."""
        if not np.isfinite(scores.max()):  # the model failed on this prompt, which its record will say
            return 0, 0.0
        kept = self._kept(scores)
        logprobs = scores[kept]
        logprobs -= logprobs.max()
        logprobs -= np.log(np.exp(logprobs).sum())
        times = _exponentials(self._settings.seed, prompt, step, len(scores), kept)
        winner = int((logprobs - np.log(times, out=times)).argmax())
        return int(kept[winner]), float(min(logprobs[winner], 0.0))

    def _kept(self, scores: _Floats) -> _Ids:
        """Ids of the tokens that may be drawn."""
        kept: _Ids = np.arange(len(scores))
        if self._settings.top_k is not None and self._settings.top_k < len(scores):
            kept = np.flatnonzero(scores >= np.partition(scores, -self._settings.top_k)[-self._settings.top_k])
        if self._settings.top_p < 1:
            kept = kept[_nucleus(scores[kept], self._settings.top_p)]
        return kept


def _nucleus(scores: _Floats, share: float) -> _Ids:
    """Places of the fewest largest scores that have this share of the probability together, equal ones in order."""
    weights = np.exp(scores - scores.max())
    wanted = share * weights.sum()
    best = _largest(scores, CANDIDATES)
    if weights[best].sum() < wanted:
        best = _largest(scores, len(scores))
    before = np.cumsum(weights[best]) - weights[best]
    return np.sort(best[before < wanted])


def _largest(scores: _Floats, count: int) -> _Ids:
    """Places of at least ``count`` largest scores, largest first; those equal to the last are all there."""
    places: _Ids = np.arange(len(scores))
    if count < len(scores):
        places = np.flatnonzero(scores >= np.partition(scores, -count)[-count])
    return places[np.argsort(-scores[places], kind="stable")]


def _exponentials(seed: int, prompt: str, step: int, count: int, kept: _Ids) -> _Floats:
    """The waiting times of rate 1 of the kept among ``count`` tokens, always the same for one seed, prompt and step."""
    key = hashlib.sha256(msgspec.msgpack.encode((seed, prompt.encode("utf-8", "surrogatepass"), step))).digest()[:16]
    philox: Any = np.random.Philox(key=int.from_bytes(key, "little"))
    # the raw numbers, which numpy promises to keep, as 52 bits strictly between 0 and 1; fresh memory costs more than they do
    times: _Floats = (philox.random_raw(count)[kept] >> np.uint64(12)).astype(np.float64)
    times += 0.5
    times *= 2.0**-52
    np.log(times, out=times)
    return np.negative(times, out=times)
