"""Exports of a run, one module a format, whose ``write(run, file)`` has one record at a time in memory (docs/EXPORTS.md)."""

#: Format, whose module is named alike -> what it is.
FORMATS = {
    "jsonl": "a record or failure a line",
    "parquet": "a row for each prompt, tap, layer, position and rank",
    "csv": "the same rows",
    "logitlens4llms": "the two JSON files of LogitLens4LLMs, into the folder --output",
    "logitlenskit": "a line of V2 widget data a record",
    "tuned-lens": "means by layer, as tuned-lens's aggregate_metrics.json",
}
