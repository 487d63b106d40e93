"""Figures of a run as Ray's metrics: every node serves them to Prometheus where Ray is installed as ray[default]."""

from ray.util.metrics import Counter, Gauge

from raylens.storage.ledger import Commit

#: Name -> what it is; Ray serves it as ray_raylens_NAME. infra/grafana.json draws them.
GAUGES = {
    "prompts": "Prompts of the corpus.",
    "actors": "Actors asked for.",
    "ready": "Actors that have loaded the model.",
    "deaths": "Deaths of actors since the driver began.",
    "resubmitted": "Prompts submitted again since the driver began.",
    "in_flight_bytes": "Bytes submitted and not stored, as expected or known.",
    "unstored_prompts": "Prompts published and not stored: what the writer is behind.",
    "unstored_bytes": "Bytes published and not stored.",
    "failures": "Prompts stored as failures since the driver began.",
}
COUNTERS = {
    "stored_prompts": "Prompts stored, failures among them.",
    "stored_tokens": "Tokens of the stored prompts.",
}


class RunMetrics:
    """The metrics of one run, in a driver that is connected to Ray.

    Args:
        run: its name, the one tag.
        prompts: of its corpus.
    """

    def __init__(self, run: str, prompts: int) -> None:
        self._tags = {"run": run}
        self._gauges = {name: Gauge(f"raylens_{name}", text, ("run",)) for name, text in GAUGES.items()}
        self._counters = {name: Counter(f"raylens_{name}", text, ("run",)) for name, text in COUNTERS.items()}
        self._failures = 0
        self.set(prompts=prompts, failures=0)

    def set(self, **figures: int) -> None:
        """The gauges' values now."""
        for name, value in figures.items():
            self._gauges[name].set(value, self._tags)

    def committed(self, commit: Commit) -> None:
        """Count what a commit stored."""
        if commit.entries:
            self._counters["stored_prompts"].inc(len(commit.entries), self._tags)
        if tokens := sum(entry.tokens for entry in commit.entries):
            self._counters["stored_tokens"].inc(tokens, self._tags)
        self._failures += sum(entry.failure is not None for entry in commit.entries)
        self.set(failures=self._failures)
