"""The real command in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

#: Seconds after which a command counts as hung.
HUNG = 240


def raylens_command(
    *arguments: str,
    cwd: Path | None = None,
    stdin: str | None = None,
    env: dict[str, str] | None = None,
    timeout: float | None = HUNG,
) -> "subprocess.CompletedProcess[str]":
    """Run ``raylens ARGUMENTS`` to its end; output as text."""
    return subprocess.run(
        [sys.executable, "-m", "raylens", *arguments],
        cwd=cwd,
        input=stdin,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
