"""Exports as the command line and Python ask for them: which format, of a run or of one prompt, and into what."""

import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

from raylens.storage.errors import UsageError, brief
from raylens.storage.exports import FORMATS
from raylens.storage.layers import as_text
from raylens.storage.record import Record
from raylens.storage.run import Run
from raylens.storage.written import write_whole

#: The formats; the last is a page of one prompt.
KINDS = (*FORMATS, "html")
#: What a file's name says of what it is to hold.
_NAMED = {".parquet": "parquet", ".csv": "csv", ".html": "html", ".htm": "html"}


def kind_of(output: Path | None) -> str:
    """The format that a file's name asks for."""
    return _NAMED.get(output.suffix.lower(), "jsonl") if output is not None else "jsonl"


def export(run: Run, output: Path | None, kind: str, prompt_id: str | None = None, positions: str | int | None = None) -> None:
    """Write a run, or one prompt of it, for other tools.

    Args:
        output: file, or folder for a format of several files; None for stdout.
        kind: one of ``KINDS``.
        prompt_id: of the one prompt; of it there are ``html``, and ``logitlens4llms`` with its generated steps.
        positions: those that a page shows; by default all.

    Raises:
        UsageError: what is asked does not go together, the run lacks what the format needs, or a file cannot be written.
        StoreError: a segment is damaged.
    """
    if kind not in KINDS:
        raise UsageError(f"--format {brief(kind)}: choose from {', '.join(KINDS)}")
    if kind == "html":
        _write(output, _page(run, prompt_id, positions))
        return
    if positions is not None:
        raise UsageError(f"--positions: does not go with --format {kind}; leave it out")
    if prompt_id is not None and kind != "logitlens4llms":
        there = "html and logitlens4llms, and its JSON by raylens show"
        raise UsageError(f"--format {kind}: {brief(prompt_id, repr)} names a prompt; of one there are {there}")
    module = import_module(f"raylens.storage.exports.{kind.replace('-', '_')}")
    if not hasattr(module, "FILES"):
        _write(output, partial(module.write, run))
        return
    _write_files(run, output, kind, module.FILES, None if prompt_id is None else [run.record(prompt_id)])


def _page(run: Run, prompt_id: str | None, positions: str | int | None) -> Callable[[BinaryIO], object]:
    from raylens.storage.pages.page import record_page
    from raylens.storage.plots.request import positions_of

    if prompt_id is None:
        raise UsageError(f"--format html: a page is of one prompt; name it as {run.name}/PROMPT, in Python by prompt_id")
    record = run.record(prompt_id)
    page = record_page(run, record, None if positions is None else positions_of(record, str(as_text(positions))))
    return lambda file: file.write(page.encode())


def _write_files(run: Run, folder: Path | None, kind: str, files: dict[str, Any], only: list[Record] | None) -> None:
    if folder is None:
        raise UsageError(f"--format {kind}: is {len(files)} files; give --output FOLDER")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--output {folder}: {error.strerror}") from error
    for name, write in files.items():
        _write(folder / name, partial(write, run, records=only))


def _write(output: Path | None, data: Callable[[BinaryIO], object]) -> None:
    if output is None:
        data(sys.stdout.buffer)
    else:
        write_whole(output, data)
