"""Options and addresses that several commands take, and what is made of them."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from raylens.storage.errors import UsageError, brief
from raylens.storage.layers import FORMS

if TYPE_CHECKING:  # imported where they are used, for --help is to be quick
    from raylens.scheduler.corpus import Corpus
    from raylens.storage.record import Record
    from raylens.storage.run import Run
    from raylens.storage.store import Store
    from raylens.workers.settings import GenerationSettings, ModelSettings

#: Where runs go when nothing is said.
DEFAULT_STORE = "raylens-store"
#: Of a corpus; those of ``CorpusSettings.format``, whose import takes longer than --help should.
CORPUS_FORMATS = ("auto", "jsonl", "csv", "parquet", "txt", "lines", "paragraphs")

F = TypeVar("F", bound=Callable[..., Any])


class Sectioned(click.Command):
    """A command whose options stand under headings in its --help.

    Args:
        headings: parameter that is the first under a heading -> the heading.
    """

    def __init__(self, *args: Any, headings: Mapping[str, str], **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.headings = headings

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        heading, sections = "Options", dict[str, list[tuple[str, str]]]()
        for parameter in self.get_params(ctx):
            heading = self.headings.get(str(parameter.name), heading)
            if isinstance(parameter, click.Option) and (record := parameter.get_help_record(ctx)) is not None:
                sections.setdefault(heading, []).append(record)
        for name, records in sections.items():
            with formatter.section(name):
                formatter.write_dl(records)


def together(*options: Callable[[Any], Any]) -> Callable[[F], F]:
    """Several options as one decorator, in this order."""

    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


store_option = click.option(
    "-s",
    "--store",
    default=DEFAULT_STORE,
    show_default=True,
    envvar="RAYLENS_STORE",
    metavar="STORE",
    help="Folder that holds the runs.",
)


def model_options(required: bool = True) -> Callable[[F], F]:
    """Which model, and how it is loaded."""
    return together(
        click.option("-m", "--model", required=required, help="Folder, GGUF file, hub id, or demo (the bundled model)."),
        click.option("--revision", help="Branch, tag or commit of a model on the hub."),
        click.option(
            "--dtype",
            type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
            default="auto",
            show_default=True,
            help="Data type of the weights; auto keeps the checkpoint's.",
        ),
        click.option("--device-map", help="Spread the model over several devices, e.g. auto; see accelerate's device_map."),
        click.option("--trust-remote-code", is_flag=True, help="Run Python code that comes with the model."),
    )


#: How a corpus is read, and how much of it.
corpus_options = together(
    click.option(
        "--format",
        "corpus_format",
        type=click.Choice(CORPUS_FORMATS),
        default="auto",
        help="Format of the corpus; auto goes by the file's extension.",
    ),
    click.option("--column", help="Field or column with the text; by default text, prompt, content, question or input."),
    click.option("--id-column", help="Field or column with the id; by default id, if there is one."),
    click.option("--limit", type=int, help="Take only this many prompts, from the start of the corpus."),
)

layers_option = click.option("--layers", default="all", show_default=True, help=f"Layers to lens: {FORMS}.")

lens_option = click.option(
    "--lens",
    default="logit",
    show_default=True,
    metavar="LENS",
    help="Lens to read through: logit, tuned:FOLDER, jacobian:FILE or linear:FILE (docs/LENSES.md).",
)

intervene_option = click.option(
    "--intervene",
    type=click.Path(),
    metavar="FILE",
    help="YAML or JSON file of edits that add to, scale, zero or patch taps while the model runs (docs/INTERVENTIONS.md).",
)

#: What is generated after the prompt.
generation_options = together(
    click.option(
        "--generate",
        type=int,
        metavar="N",
        help="Generate up to N tokens after a prompt and lens every step (docs/GENERATION.md).",
    ),
    click.option(
        "--temperature",
        type=float,
        default=0.0,
        show_default=True,
        help="Sampling temperature; 0 always takes the most probable token.",
    ),
    click.option(
        "--top-p",
        type=float,
        default=1.0,
        show_default=True,
        help="Sample only from the fewest most probable tokens that together have this probability.",
    ),
    click.option(
        "--sample-top-k", type=int, help="Sample only from this many most probable tokens (-k is how many the lens keeps)."
    ),
    click.option("--seed", type=int, default=0, show_default=True, help="Seed for sampling."),
)

ray_option = click.option(
    "--ray",
    default="auto",
    show_default=True,
    help="Ray cluster: an address, local, or auto (RAY_ADDRESS if set, else local).",
)

#: How many actors there are, what each gets, and where they are.
cluster_options = together(
    click.option(
        "--actors",
        default="auto",
        show_default=True,
        help="Number of actors; auto is as many as the GPUs allow, or without GPUs one per node, more on a much larger one.",
    ),
    click.option("--gpus-per-actor", type=float, default=1.0, show_default=True, help="GPUs for each actor; may be a fraction."),
    ray_option,
)


def typed(parameter: str) -> bool:
    """Whether an option is on the command line, and not from the environment, a file or its default."""
    return click.get_current_context().get_parameter_source(parameter) is ParameterSource.COMMANDLINE


def one_store(stores: Sequence[str], option: str) -> str:
    """The store of a command that takes it in front of its other words too, as well as by ``--store``.

    Args:
        stores: the words in front of the others.
        option: the value of ``--store``.

    Raises:
        UsageError: it is given more than once.
    """
    if len(stores) + typed("store") > 1:
        raise UsageError(f"{' '.join(stores)}: give one store, in front or by --store; put what holds blanks in quotes")
    return stores[0] if stores else option


def given_model(options: dict[str, Any]) -> "ModelSettings":
    """What ``model_options`` say."""
    from raylens.workers.settings import ModelSettings

    names = ("model", "revision", "dtype", "device_map", "trust_remote_code")
    return ModelSettings(*(options[name] for name in names))


def given_corpus(options: dict[str, Any]) -> "Corpus":
    """What the argument ``corpus`` says, ``--text`` where a command has it, and ``corpus_options``."""
    from raylens.scheduler.corpus import Corpus, CorpusSettings

    names = ("corpus_format", "column", "id_column", "limit")
    return Corpus(CorpusSettings(options["corpus"], options.get("text", ()), *(options[name] for name in names)))


def given_generation(options: dict[str, Any]) -> "GenerationSettings | None":
    """What ``generation_options`` say, and ``--samples`` where a command has it; None if nothing is generated.

    Raises:
        UsageError: how it is generated is said without ``--generate``.
    """
    from raylens.workers.settings import generation_settings

    given, names = {"samples": 1, **options}, ("generate", "temperature", "top_p", "sample_top_k", "seed", "samples")
    return generation_settings(*(given[name] for name in names))


def given_actors(options: dict[str, Any]) -> int | None:
    """What ``--actors`` says; None for auto.

    Raises:
        UsageError: neither a number nor auto.
    """
    number = options["actors"]
    if number != "auto" and not (number.isascii() and number.isdigit()):
        raise UsageError(f"--actors {brief(number, repr)}: give a number, or auto")
    return None if number == "auto" else int(number)


def open_store(path: str) -> "Store":
    """The store in a folder.

    Raises:
        StoreError: there is none.
    """
    from raylens.storage.store import Store

    return Store(path)


def open_run(store: str, address: str) -> "tuple[Run, str | None]":
    """The run and prompt id of ``RUN`` or ``RUN/PROMPT``; a prompt id may hold slashes, a run's name does not.

    Raises:
        UsageError: there is no such run.
    """
    name, slash, prompt = address.partition("/")
    return open_store(store)[name], prompt if slash else None


def open_record(store: str, address: str) -> "tuple[Run, Record]":
    """The run and record of ``RUN/PROMPT``.

    Raises:
        UsageError: there is no such run or prompt, or the prompt failed.
    """
    run, prompt = open_run(store, address)
    if prompt is None:
        raise UsageError(f"{address!r} names a run; name a prompt of it as {run.name}/PROMPT")
    return run, run.record(prompt)
