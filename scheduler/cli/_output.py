"""What commands print and write: lines and tables that a terminal takes no orders from, and files that appear whole."""

import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, redirect_stdout
from pathlib import Path
from typing import Any

import click

from raylens.scheduler.printable import printable
from raylens.storage.written import write_whole


def only_data() -> AbstractContextManager[object]:
    """While it is entered, stdout is stderr: Ray prints notices there, and only our data belongs there."""
    return redirect_stdout(sys.stderr)


def show_command(store: str | Path, run: str, *options: str) -> str:
    """The command that shows the run, for the user to copy."""
    return shlex.join(["raylens", "show", run, *options, "--store", str(store)])


def say(text: str, err: bool = False) -> None:
    """One line on stdout or stderr, made printable; a line break in it is shown, for it would pass for a line of ours."""
    click.echo(printable(text), err=err)


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A plain table on stdout, as wide as its text: for eyes, grep and column alike."""
    from rich.cells import cell_len

    cells = [list(header), *(list(map(printable, row)) for row in rows)]
    widths = [max(cell_len(row[column]) for row in cells) for column in range(len(header))]
    for row in cells:
        text = "  ".join(cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True))
        click.echo(text.rstrip())


def write_bytes(output: str | None, data: Callable[[Any], object], option: str = "--output") -> None:
    """Hand ``data`` the file to write, or stdout where no file or ``-`` is given.

    Raises:
        UsageError: the file cannot be written.
    """
    if output in {None, "-"}:
        data(sys.stdout.buffer)
    else:
        write_whole(Path(str(output)), data, option)
