"""Whether rows are read out by the Triton kernel: only where, on this very device, it was seen to be right and faster.

Compiled code differs between GPUs and versions of Triton, so it is measured when a model loads, as everything else is.
"""

import time

import torch
from torch import Tensor

from raylens.storage.errors import named_line
from raylens.workers.asked import Asked, Final
from raylens.workers.blocks import device_of
from raylens.workers.projection import Projection
from raylens.workers.running import MOST_FUSED
from raylens.workers.tolerances import of_logits
from raylens.workers.topk import Readout

#: Rows of the trial, and the fewest tokens kept.
ROWS, K = 1024, 10
#: Rows of the trial of which all there is is asked.
ASKED = 64
#: Largest difference of a logprob, logsumexp or entropy between the kernel and the product by block, at ordinary logits.
ALLOWED = 2e-4


def try_fused(projection: Projection, rows: Tensor, k: int = K) -> str:
    """Let the projection use the kernel if it is right and faster; what was found, for the certificate.

    Args:
        projection: of the model, which reads by block until now.
        rows: [N, D] hidden rows of the model.
        k: tokens that will be kept: longer lists are another kernel, which may not fit a device that the one of shorter fits.
    """
    k = max(k, K) if k <= MOST_FUSED else K
    if projection.unembedding is None:
        return "not used: the head is no plain linear layer"
    many = rows.repeat(-(-ROWS // len(rows)), 1)[:ROWS].to(device_of(projection.head, rows.device))  # as in a run
    expected, by_block = _timed(projection, many, k)
    asked = _question(expected, many[:ASKED])
    answers = projection.read(many[:ASKED], k, asked)
    projection.fused = True
    try:
        found, fused = _timed(projection, many, k)
        found_answers = projection.read(many[:ASKED], k, asked)
    except Exception as failure:  # noqa: BLE001  a compiler may raise anything; the other path is there
        projection.fused = False
        return f"the Triton kernel does not run here: {named_line(failure)}"
    error = max(difference(found, expected), difference(found_answers, answers))
    allowed = of_logits(ALLOWED, float(expected.logsumexp.abs().max()))
    projection.fused = error <= allowed and fused < by_block
    return f"Triton kernel: off by {error:.1e} from the product by block, {by_block / fused:.2f} times as fast"


def difference(found: Readout, expected: Readout) -> float:
    """The largest difference of a number; infinite if one is not finite or ids differ that are not nearly as probable."""
    pairs = [(found.logprobs, expected.logprobs), (found.logsumexp, expected.logsumexp), (found.entropy, expected.entropy)]
    if expected.target_logprobs.numel():
        pairs += [(found.target_logprobs, expected.target_logprobs), (found.kl, expected.kl)]
    differences = torch.stack([(one.double() - other.double()).abs().max() for one, other in pairs])
    gaps = expected.logprobs.diff(dim=1).abs()
    left = torch.nn.functional.pad(gaps, (1, 0), value=torch.inf)
    right = torch.nn.functional.pad(gaps, (0, 1), value=0.0)  # what comes after the last is not known
    clear = torch.minimum(left, right) > 2 * ALLOWED
    same = bool((found.ids == expected.ids)[clear].all()) and _near(found.target_ranks, expected.target_ranks)
    return float(differences.max()) if same and bool(differences.isfinite().all()) else float("inf")


def _near(ranks: Tensor, expected: Tensor) -> bool:
    """Whether ranks differ by no more than logits that are nearly equal may make them: tokens crowd at the lower ones."""
    return bool(((ranks - expected).abs() <= 3 + expected // 100).all())


def _question(read: Readout, rows: Tensor) -> Asked:
    """Of rows: their best token, a worse one and one that may be any; and how far each is from the row after it."""
    best = read.ids[: len(rows)]
    targets = torch.stack([best[:, 0], best[:, -1], best.roll(1, 0)[:, 1]], dim=1)
    numbers = (rows, read.logsumexp[: len(rows)], read.entropy[: len(rows)])
    return Asked(targets, torch.arange(len(rows)), Final(*(number.roll(-1, 0) for number in numbers)))


def _timed(projection: Projection, rows: Tensor, k: int) -> tuple[Readout, float]:
    """A read-out, and the seconds of a second one, when everything is compiled."""
    read = projection.read(rows, k)
    _wait(projection)
    began = time.perf_counter()
    projection.read(rows, k)
    _wait(projection)
    return read, time.perf_counter() - began


def _wait(projection: Projection) -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize(device_of(projection.head, torch.device("cuda")))
