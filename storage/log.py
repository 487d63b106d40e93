"""The writer's log: one JSON object a line, with the run's name and what the line is about."""

import json
import logging
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


class JsonLines(logging.Formatter):
    """``time`` (ISO 8601, UTC), ``level``, ``run`` and ``message``, and the fields that the line was logged with.

    Args:
        run: its name.
    """

    def __init__(self, run: str) -> None:
        super().__init__()
        self._run = run

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        value = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "run": self._run,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            value["traceback"] = self.formatException(record.exc_info)
        return json.dumps(value, default=str)


def log_to_stderr(run: str) -> None:
    """Have every logger of this process write such lines to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines(run))
    logging.basicConfig(handlers=[handler], level=logging.INFO)


def about(**fields: Any) -> dict[str, Any]:
    """The ``extra`` of a logging call that gives its line these fields."""
    return {"fields": fields}


def last_message(log: Path, start: int) -> str:
    """What the last line of a log says; a line that is none of ours, such as of a traceback, is given as it is.

    Args:
        start: bytes that are not looked at; if nothing is after them, or the log cannot be read, the message is empty.
    """
    try:
        with log.open("rb") as file:
            file.seek(start)
            lines = file.read().decode(errors="replace").strip().splitlines()
    except OSError:  # such as of a run that was moved or deleted, and its log with it
        return ""
    if not lines:
        return ""
    try:
        return str(json.loads(lines[-1])["message"])[-300:]
    except (ValueError, KeyError, TypeError):
        return lines[-1][-300:]
