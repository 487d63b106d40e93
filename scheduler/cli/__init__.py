"""The command line: a command is a module of this folder, imported only when it is used, so that ``--help`` is quick."""

import atexit
import errno
import gc
import importlib
import io
import os
import pkgutil
import sys
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from raylens import __version__
from raylens.scheduler import process
from raylens.scheduler.cli._config import long_name
from raylens.storage.errors import EXIT_STOPPED, RaylensError, StoreError, UsageError
from raylens.storage.temporary import lacks_place, no_place

#: What a disk says that is full, ill or not to be written.
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO}
#: One line each, so that ``raylens --help`` imports no command.
_SUMMARIES = {
    "cancel": "Stop a run from any terminal.",
    "compact": "Merge the small files of a run into larger ones.",
    "compare": "Compare two runs of the same prompts.",
    "demo": "Lens sixteen bundled prompts with a bundled model, offline.",
    "doctor": "Check that this machine, or a model, is ready for a run.",
    "export": "Export the records of a run for other tools.",
    "fit-lens": "Fit a tuned or linear lens to a model.",
    "lens": "Lens one text and print the grid.",
    "plot": "Draw one prompt, every prompt, or a whole run.",
    "query": "Run a named query over a run.",
    "run": "Lens a corpus into a store.",
    "runs": "List the runs of a store.",
    "show": "Show a run, or one of its prompts.",
    "sql": "Run a SELECT over the runs of a store.",
    "status": "Show the progress of runs, from any terminal.",
    "verify": "Check every byte of a store, and repair damage.",
    "view": "Serve a store to your browser.",
    "writer": "Store the results of runs, on the machine that holds the store.",
}


def _failed(error: RaylensError) -> click.ClickException:
    text = str(error)
    if not text.isprintable():  # it may quote a file of anybody's, and a terminal takes orders
        from raylens.storage.labels import text_label

        text = "\n".join(text_label(line) for line in text.splitlines())
    failed = click.ClickException(text)
    failed.exit_code = error.exit_code  # type: ignore[misc]  # click keeps it on the class
    return failed


def _name_origin(error: click.BadParameter) -> None:
    """Say where a value comes from that was not typed."""
    if error.ctx is None or error.param is None:
        return
    source = error.ctx.get_parameter_source(str(error.param.name))
    origins = {ParameterSource.ENVIRONMENT: error.param.envvar, ParameterSource.DEFAULT_MAP: "from the file of --config"}
    if source in origins:
        error.param_hint = f"{error.param.get_error_hint(error.ctx)} ({origins[source]})"


def _name_variables(command: click.Command, module: str) -> None:
    """Name each option's variable of the environment by the option; click would by its parameter, which may be called otherwise.

    An option that may be repeated has none: click would take a text apart at its spaces.
    """
    for option in command.params:
        if isinstance(option, click.Option) and option.envvar is None and option.allow_from_autoenv:
            option.allow_from_autoenv = False
            option.envvar = None if option.multiple else f"RAYLENS_{module}_{long_name(option)}".upper().replace("-", "_")


def _check_working_folder() -> None:
    """In one that is gone no path has a meaning, and libraries end the process when they are imported."""
    try:
        Path.cwd()
    except OSError as error:
        raise UsageError(f"the working folder cannot be used ({error.strerror}); change to one that is there") from error


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return sorted(
            module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")
        )

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        module = cmd_name.replace("-", "_")
        command: click.Command = importlib.import_module(f"{__name__}.{module}").command
        _name_variables(command, module)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, _SUMMARIES[name]) for name in self.list_commands(ctx)])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            _check_working_folder()
            return super().invoke(ctx)
        except RaylensError as error:
            raise _failed(error) from error
        except click.BadParameter as error:
            _name_origin(error)
            raise
        except OSError as error:
            if lacks_place(error):
                raise _failed(no_place(error)) from error
            if error.errno not in _DISK:
                raise
            raise _failed(StoreError(f"{error.filename or 'output'}: {error.strerror}")) from error
        except KeyboardInterrupt:  # click would make it exit code 1
            click.echo("stopped", err=True)
            ctx.exit(EXIT_STOPPED)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "RAYLENS"})
@click.version_option(__version__, prog_name="raylens")
def group() -> None:
    """The logit lens for corpora.

    Results go to stdout, progress to stderr.

    Exit codes: 0 done, 1 failed, 2 usage error, 3 finished with failed prompts, 4 model or input not loadable,
    5 Ray or Redis unreachable, 6 store damaged, locked or missing, 130 stopped.

    An option can also be set in the environment as RAYLENS_COMMAND_OPTION, for example RAYLENS_RUN_TOP_K=5, and the store as
    RAYLENS_STORE. This does not apply to --fresh, nor to options that can be repeated.
    """


def main() -> None:
    """Entry point of the ``raylens`` command."""
    gc.set_threshold(100_000)  # of the objects that torch and transformers make when they are imported, all of which stay
    atexit.register(_collect_at_end)
    process.claim()
    _open_closed_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):  # what it lacks of a corpus is told by number
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        group()
    finally:  # python -m would end by the signal for an interrupt that came within an exec, such as a dataclass's, until the next
        exec("")  # noqa: S102


def _open_closed_streams() -> None:
    """What a shell closed, as by ``2>&-``, is the null device: the next file opened would get its number, and with it what
    libraries print."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    sys.stdout, sys.stderr = (stream or Path(os.devnull).open("w") for stream in (sys.stdout, sys.stderr))  # noqa: SIM115


def _collect_at_end() -> None:
    """Where DuckDB was used, look for garbage now: its bindings print a page about what Python 3.12 would free after them.

    Elsewhere leave the objects of torch out of Python's last look for garbage, which would take a second or two.
    """
    if "_duckdb" in sys.modules:
        gc.collect()
    elif "torch" in sys.modules:
        gc.freeze()
