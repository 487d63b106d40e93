"""The statistics that are stored beside the k best tokens of a place (docs/FORMAT.md, section Record)."""

from typing import Literal, NamedTuple


class Form(NamedTuple):
    """Of the numbers of a statistic.

    Attributes:
        dtype: their type.
        each_tracked: whether there is one for each tracked token, else one a place.
    """

    dtype: Literal["float32", "uint32"]
    each_tracked: bool = False


#: The most characters of a name.
MAX_NAME = 64
#: Those that this version knows; a record may have others, which tables leave out.
STATISTICS = {
    "kl": Form("float32"),
    "next_logprob": Form("float32"),
    "next_rank": Form("uint32"),
    "tracked_logprob": Form("float32", each_tracked=True),
    "tracked_rank": Form("uint32", each_tracked=True),
    "best_logprob": Form("float32"),
    "best_rank": Form("uint32"),
    "attribution": Form("float32", each_tracked=True),
    "next_attribution": Form("float32"),
    "best_attribution": Form("float32"),
    "attribution_error": Form("float32"),
}


def misfit(name: str, form: Form) -> str | None:
    """Why there can be no such statistic, in words; None where there can."""
    if not (name.isascii() and name.isidentifier() and len(name) <= MAX_NAME):
        return f"name of a statistic: {name[:80]!r}"
    if STATISTICS.get(name, form) == form:
        return None
    axes = "for each tracked token" if form.each_tracked else "for each place"  # it would have no column in the tables
    return f"{name} is {form.dtype} {axes}, which is not what that statistic is"
