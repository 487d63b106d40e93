"""The colour scales of each stat: fixed, so that pictures of one stat compare."""

from raylens.storage.plots.canvas import Scale

#: Where the scale of exact ranks ends; beyond it a token is as good as nowhere.
_LAST_RANK = 1000


def prob_scale(label: str) -> Scale:
    """Of probabilities and shares."""
    return Scale(label, 0, 1, "viridis", tuple((v / 4, f"{v / 4:g}") for v in range(5)))


def logprob_scale(label: str) -> Scale:
    """Of logprobs in nats."""
    return Scale(label, -8, 0, "viridis", tuple((v, f"{v}") for v in range(-8, 1, 2)))


def entropy_scale(label: str) -> Scale:
    """Of entropies in nats, where less is surer."""
    # Twelve nats are those of 160,000 equally likely tokens; a scale by vocabulary size would not compare across models.
    return Scale(label, 0, 12, "cividis_r", tuple((v, f"{v}") for v in range(0, 13, 3)))


def kl_scale(label: str) -> Scale:
    """Of KL in nats, which has no bound: tens of nats in early layers, hundredths in the last ones."""
    return Scale(label, 0.1, 100, "cividis_r", ((0.1, "≤0.1"), (1, "1"), (10, "10"), (100, "≥100")), log=True)


def logit_scale(label: str) -> Scale:
    """Of what is added to a logit, or taken off: beyond 4 a write decides by itself, for e^4 is fifty-fold."""
    ticks = tuple((v, f"{v:+d}" if v else "0") for v in range(-4, 5, 2))
    return Scale(label, -4, 4, "PuOr_r", ticks)


def rank_scale(label: str, k: int) -> Scale:
    """Of ranks among the k stored, and k + 1 for all beyond."""
    marked = [v for v in (1, 2, 5, 10, 20, 50, 100, 200, 500) if 1.4 * v <= k + 1]  # further right they would touch the last
    ticks = (*((v, f"{v}") for v in marked), (k + 1, f">{k}"))
    return Scale(label, 1, k + 1, "viridis_r", ticks, log=True)


def exact_rank_scale(label: str) -> Scale:
    """Of ranks in the whole vocabulary."""
    return Scale(
        label, 1, _LAST_RANK, "viridis_r", ((1, "1"), (10, "10"), (100, "100"), (_LAST_RANK, f"≥{_LAST_RANK}")), log=True
    )
