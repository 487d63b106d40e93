"""The real command in a process of its own.

Most of a command's time is the import of torch, transformers and Ray, so its process is forked from one that has them. Tests
with an environment of their own, ``tests.running`` and the guides' blocks start the command as users do.
"""

import atexit
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.waiting import HUNG

_FORKS = multiprocessing.get_context("forkserver")
#: What the longest of the commands import, among it what others import when they are asked for something.
_PRELOADED = (
    "raylens.scheduler.cli.lens",
    "raylens.scheduler.cli.plot",
    "raylens.scheduler.cli.query",
    "raylens.scheduler.cli.run",
    "raylens.scheduler.pool",
    "raylens.storage.charts",
    "raylens.storage.pages.page",
    "raylens.storage.plots.grid",
    "raylens.storage.plots.rank",
    "raylens.workers.api",
    "raylens.workers.model",
    "raylens.workers.worker",
    "duckdb",
    "pyarrow.parquet",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama",
)
_FORKS.set_forkserver_preload(list(_PRELOADED))


def raylens_command(
    *arguments: str,
    cwd: Path | None = None,
    stdin: str | None = None,
    env: dict[str, str] | None = None,
    timeout: float | None = HUNG,
) -> "subprocess.CompletedProcess[str]":
    """Run ``raylens ARGUMENTS`` to its end; output as text."""
    if env is None:
        return _forked(list(arguments), cwd or Path.cwd(), stdin or "", timeout)
    return subprocess.run(
        [sys.executable, "-m", "raylens", *arguments],
        cwd=cwd,
        input=stdin,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def _forked(arguments: list[str], cwd: Path, stdin: str, timeout: float | None) -> "subprocess.CompletedProcess[str]":
    with TemporaryDirectory() as folder:
        files = [Path(folder, name) for name in ("stdin", "stdout", "stderr")]
        files[0].write_text(stdin)
        process = _FORKS.Process(target=_main, args=(arguments, cwd, dict(os.environ), files))
        process.start()
        process.join(timeout)
        output, errors = (file.read_text() for file in files[1:])
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired(arguments, timeout or 0.0, output, errors)
        return subprocess.CompletedProcess(arguments, process.exitcode, output, errors)


def _main(arguments: list[str], cwd: Path, environment: dict[str, str], files: list[Path]) -> None:
    """The command, as the first thing that a new process does."""
    for number, file in enumerate(files):
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w", 1)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.argv = ["raylens", *arguments]
    from raylens.scheduler.cli import main

    try:
        main()
    finally:
        atexit._run_exitfuncs()  # which multiprocessing leaves out
