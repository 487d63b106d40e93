"""Pictures of whole runs, computed by queries (docs/QUERIES.md) and drawn small, like those of records."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from raylens.storage.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from raylens.storage.database import Database
    from raylens.storage.run import Run

#: The kinds of chart.
KINDS = ("aggregate", "compare")
#: Values of a metadata key that are drawn apart.
MOST_VALUES = 8

_VALUES = """
    SELECT count(DISTINCT value) AS named, count(*) - count(value) AS lacking
    FROM (SELECT metadata_value(metadata, $by) AS value FROM prompt_rows WHERE failure IS NULL)
"""


def values_of(run: "Run", database: "Database", by: str) -> int:
    """How many values a key of metadata has among prompts that have a record; to lack it is one, where others have it.

    Asked before anything is told apart by them: of a mistyped key they may be as many as prompts.

    Raises:
        UsageError: no prompt has it.
    """
    from raylens.storage.selection import check_key

    check_key(run, database, by)
    (row,) = database.rows(_VALUES, {"by": by})
    if row["lacking"] and not row["named"]:
        raise UsageError(f"--by {by}: no prompt that has a record has it")
    return int(row["named"] + (row["lacking"] > 0))


def undrawn(by: str, values: int) -> str | None:
    """Why there is no picture by a key of metadata that has so many values; None if there is one."""
    return (
        f"--by {by}: {values:,} values; at most {MOST_VALUES} are drawn; choose a key with fewer"
        if values > MOST_VALUES
        else None
    )


def depth(run: "Run", database: "Database", chosen: "Mapping[str, str]") -> "list[dict[str, Any]]":
    """At which layer predictions are decided, by the query of that name; nothing of a run without the final prediction."""
    from raylens.storage.result import ask

    try:
        return ask(run, database, "depth", chosen)
    except UsageError:
        return []


def render(
    run: "Run",
    suffix: str,
    *,
    other: "Run | None" = None,
    by: str | None = None,
    positions: str | None = None,
    font: str | Path | None = None,
) -> bytes:
    """The picture of a run, or of how another run differs from it. The same store gives the same bytes.

    Args:
        suffix: png, svg or pdf.
        other: the run that is compared.
        by: a metadata key whose values are drawn apart.
        positions: those that are counted: all, last, last:N, a position or A:B; all by default.
        font: a font file to use for what DejaVu Sans lacks.

    Raises:
        UsageError: runs without what is drawn, or nothing to compare.
        StoreError: tables are missing or damaged.
    """
    from raylens.storage.charts import aggregate, compare
    from raylens.storage.fonts import choose_fonts
    from raylens.storage.plots import canvas
    from raylens.storage.plots.files import encode

    for option, given in (("by", by), ("positions", positions)):
        if other is not None and given is not None:
            raise UsageError(
                f"--{option}: does not go with a comparison of two runs, which is of all prompts and positions of both"
            )
    fonts = choose_fonts(None if font is None else Path(font))
    picture = aggregate.aggregate(run, by, positions) if other is None else compare.compared(run, other)
    with canvas.settled(fonts):
        (data,) = encode([picture.draw(fonts)], suffix, picture.heading)
    return data
