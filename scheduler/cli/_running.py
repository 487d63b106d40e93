"""Running a corpus from a command: signals, progress, and a stdout that holds nothing but data."""

from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING

from raylens.scheduler.cli._output import only_data
from raylens.storage.errors import RaylensError

if TYPE_CHECKING:
    from raylens.scheduler.corpus import Corpus
    from raylens.scheduler.run import RunResult
    from raylens.scheduler.settings import RunSettings


def run_from_command(
    settings: "RunSettings", corpus: "Corpus", *, as_json: bool, quiet: bool, words: Callable[[RaylensError], str] = str
) -> "RunResult":
    """Run to the end or to Ctrl-C.

    Args:
        words: those of an error, where the command has other options than ``raylens run``.

    Raises:
        RaylensError, KeyboardInterrupt: as ``run_corpus``.
    """
    from raylens.scheduler.progress import choose
    from raylens.scheduler.run import run_corpus
    from raylens.scheduler.stopping import Stopping

    progress = choose(as_json=as_json, quiet=quiet)
    with Stopping() as stopping, only_data(), closing(progress):
        try:
            return run_corpus(settings, corpus, progress, stopping)
        except RaylensError as error:
            error.args = (words(error),)
            progress.failed(str(error), error.exit_code)
            raise
        except KeyboardInterrupt:
            progress.interrupted()
            raise
