"""Exports of a run, one module a format, whose ``write(run, file)`` has one record at a time in memory (docs/EXPORTS.md)."""

#: Format, whose module is named alike -> what it is.
FORMATS = {
    "jsonl": "one record or failure per line",
    "parquet": "one row per prompt, tap, layer, position and rank",
    "csv": "the same rows",
    "logitlens4llms": "the two JSON files of LogitLens4LLMs, in the folder --output",
    "logitlenskit": "one line of V2 widget data per record",
    "tuned-lens": "means by layer, as in tuned-lens's aggregate_metrics.json",
}
