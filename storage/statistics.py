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
