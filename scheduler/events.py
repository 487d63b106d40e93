"""What a run tells, as structured logs: one JSON object a line on stdout (``raylens run --json``)."""

import json
import sys
from datetime import UTC, datetime
from typing import Any

from raylens.scheduler.progress import Meter, Progress


def event_line(event: str, **fields: Any) -> str:
    """One event, without the end of the line."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    return json.dumps({"time": now, "event": event, **fields})


class Events(Progress):
    """Each line has ``time`` (ISO 8601, UTC), ``event``, and ``run`` once it has a name.

    ``event`` is stage, scan, fetch, start, progress, failure (of one prompt, with its id) or waiting; the last is done, stopped
    or error.
    """

    def __init__(self) -> None:
        self._meter = Meter()
        self._out = sys.stdout  # kept, because a run may turn sys.stdout aside
        self._run: dict[str, str] = {}

    def stage(self, text: str) -> None:
        self._emit("stage", text=text)

    def scanned(self, prompts: int) -> None:
        self._emit("scan", prompts=prompts)

    def fetched(self, done: int, total: int) -> None:
        self._emit("fetch", bytes=done, total=total)

    def start(self, run: str, total: int, done: int, failed: int) -> None:
        self._meter.start(run, total, done, failed)
        self._run = {"run": run}
        self._emit("start", prompts=total, done=done, failed=failed)

    def working(self) -> None:
        self._meter.begin()

    def committed(self, records: int, failures: int, tokens: int) -> None:
        self._meter.add(records, failures, tokens)
        meter, (prompts_rate, tokens_rate) = self._meter, self._meter.rate()
        self._emit(
            "progress",
            done=meter.done,
            prompts=meter.total,
            failed=meter.failures,
            prompts_per_second=round(prompts_rate, 3),
            tokens_per_second=round(tokens_rate, 3),
            eta_seconds=None if (eta := meter.eta()) is None else round(eta, 1),
            in_flight_bytes=meter.in_flight,
        )

    def prompt_failed(self, prompt: str, kind: str) -> None:
        self._emit("failure", prompt=prompt, kind=kind)

    def in_flight(self, size: int) -> None:
        self._meter.in_flight = size

    def waiting(self, text: str) -> None:
        self._emit("waiting", text=text, in_flight_bytes=self._meter.in_flight)

    def failed(self, message: str, exit_code: int) -> None:
        self._emit("error", message=message, exit_code=exit_code)

    def interrupted(self) -> None:
        self._emit("stopped")

    def _emit(self, event: str, **fields: Any) -> None:
        print(event_line(event, **self._run, **fields), file=self._out, flush=True)
