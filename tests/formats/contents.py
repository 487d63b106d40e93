"""What is in a run, as JSON: every number of every record, failures, and what queries give."""

from typing import Any

import numpy as np
import orjson

from raylens.storage.record import Failure, Record
from raylens.storage.run import Run
from raylens.storage.verify import examine

#: Over the documented views; each in an order of its own.
QUERIES = {
    "prompts": "SELECT prompt, id, text, tokens, truncated_from, metadata::VARCHAR AS data, failure FROM prompts ORDER BY ALL",
    "positions": "SELECT prompt, position, token_id, token, next_id, next FROM positions ORDER BY ALL",
    "topk": "SELECT prompt, position, tap, layer, rank, token_id, token, logprob FROM topk ORDER BY ALL",
    "metrics": """SELECT prompt, position, tap, layer, top_id, final_rank, entropy, kl, next_logprob, next_rank
        FROM metrics ORDER BY ALL""",
    "tracked": "SELECT prompt, position, tap, layer, token_id, token, logprob, rank FROM tracked ORDER BY ALL",
    "failures": "SELECT prompt, id, kind, message FROM failures ORDER BY ALL",
}


def contents(run: Run) -> dict[str, Any]:
    """All that a reader sees of a run."""
    found = examine(run.folder)
    value: dict[str, Any] = {
        "uid": run.manifest.uid,
        "identity": run.manifest.identity,
        "counts": run.counts(),
        "certificate": run.certificate,
        "vocabulary": [None if token is None else token.hex() for token in run.vocabulary],
        "outcomes": [_outcome(outcome) for outcome in run],
        "quarantine": len(run.quarantine()),
        "damage": [[one.file, one.problem.split(";")[0]] for one in found.damage],
        "verified": [found.records, found.failures, found.lost],
    }
    if not found.damage:
        value["queries"] = {name: run.sql(sql).rows() for name, sql in QUERIES.items()}
    return plain(value)


def plain(value: dict[str, Any]) -> dict[str, Any]:
    """As it comes back from JSON."""
    return orjson.loads(orjson.dumps(value))


def _outcome(outcome: Record | Failure) -> dict[str, Any]:
    if isinstance(outcome, Failure):
        return {name: getattr(outcome, name) for name in ("id", "index", "kind", "message", "metadata")}
    fields = ("id", "index", "text", "token_ids", "tokens", "positions", "layers", "metadata", "truncated_from", "tracked")
    taps = {}
    for name, tap in outcome.taps.items():
        arrays = {"ids": tap.ids, "logprobs": tap.logprobs, "logsumexp": tap.logsumexp, "entropy": tap.entropy, **tap.stats}
        taps[name] = {
            "layers": list(tap.layers),
            **{one: [values.dtype.str, values.shape, _numbers(values)] for one, values in arrays.items()},
        }
    return {**{name: getattr(outcome, name) for name in fields}, "taps": taps}


def _numbers(values: np.ndarray) -> list[Any]:
    """Exactly, as float64."""
    return [None if number != number else number for number in values.astype(np.float64).ravel().tolist()]
