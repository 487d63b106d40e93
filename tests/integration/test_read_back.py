"""Reading a store by the command line: without torch, Ray or Redis, for prompts of any id and content."""

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import click
import pytest
from PIL import Image

from raylens.scheduler.cli import group
from tests.command import raylens_command
from tests.waiting import HUNG

pytestmark = pytest.mark.usefixtures("shared_ray")

HOSTILE_ID = "../../<script>alert('id')</script>/" + "long" * 75
HOSTILE = "<img src=x onerror=alert(1)> $$x^2$ \u202egnirts\u202c \x00\x1b[31m \U0001f389 مرحبا بالعالم שלום 日本語 \u200b"
ROWS = [
    {"id": "plain", "text": "call me ishmael", "book": "moby dick"},
    {"id": HOSTILE_ID, "text": HOSTILE},
    {"id": "empty", "text": ""},
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    folder = tmp_path_factory.mktemp("read")
    (folder / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    options = ["-m", str(tiny), "-s", "st", "--positions", "all", "--name", "r", "--taps", "resid_pre,attn_out,resid_post"]
    done = raylens_command("run", "c.jsonl", *options, cwd=folder)
    assert done.returncode == 3, done.stderr
    return folder / "st"


def show(store: Path, *arguments: str) -> str:
    """stdout of a command that succeeds."""
    done = raylens_command(*arguments, "--store", str(store))
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_reading_imports_no_torch_ray_or_redis(store: Path, tmp_path: Path) -> None:
    """runs, verify, show, plot and export need none of the heavy packages."""
    commands = [
        ["runs", str(store)],
        ["verify", str(store)],
        ["show", "r", "--quarantine", "--store", str(store)],
        ["show", "r", "--store", str(store)],
        ["show", "r/plain", "--store", str(store)],
        ["show", "r/plain", "--json", "--store", str(store)],
        ["plot", "r/plain", "-o", str(tmp_path / "x.png"), "--store", str(store)],
        ["export", "r", "-o", str(tmp_path / "x.jsonl"), "--store", str(store)],
    ]
    script = (
        "import sys; from raylens.scheduler.cli import group\n"
        f"for command in {commands!r}: group(command, standalone_mode=False)\n"
        "heavy = {'torch', 'ray', 'redis', 'transformers'} & set(sys.modules); assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=HUNG)
    assert done.returncode == 0, done.stderr


def test_the_store_is_named_in_front_or_by_an_option(store: Path) -> None:
    """Every command takes -s; those that took the store in front of their other words still do, but not both."""
    for words in (["runs"], ["verify"], ["status"], ["status", "r"], ["sql", "SELECT 1 AS x"]):
        command, *rest = words
        by_option = raylens_command(command, *rest, "-s", str(store))
        assert by_option.returncode == 0, by_option.stderr
        assert by_option.stdout.splitlines()[0] == raylens_command(command, str(store), *rest).stdout.splitlines()[0]
    alone = raylens_command("status", "r", cwd=store.parent, env={"RAYLENS_STORE": store.name})
    assert alone.stdout.splitlines()[0] == raylens_command("status", str(store), "r").stdout.splitlines()[0]
    assert "nowhere: no such store" in raylens_command("status", "nowhere", cwd=store.parent / store.name).stderr
    twice = raylens_command("runs", str(store), "-s", str(store))
    assert twice.returncode == 2
    assert f"{store}: give one store" in twice.stderr
    for words in (["cancel", "r"], ["cancel", str(store), "r"]):
        done = raylens_command(*words, env={"RAYLENS_STORE": str(store)})
        assert "there is nothing to cancel" in done.stderr


def test_commands_that_write_a_file_name_it_as_json(store: Path, tmp_path: Path) -> None:
    """plot and export print one object on request; an export to stdout has no place for it."""
    picture, lines = tmp_path / "x.png", tmp_path / "x.jsonl"
    drawn = json.loads(show(store, "plot", "r/plain", "-o", str(picture), "--json"))
    assert drawn == {"file": str(picture), "kind": "grid", "run": "r", "prompt": "plain"}
    written = json.loads(show(store, "export", "r", "-o", str(lines), "--json"))
    assert written == {"file": str(lines), "format": "jsonl", "run": "r", "lines": len(ROWS)}
    assert len(lines.read_bytes().splitlines()) == len(ROWS)


def test_runs_lists_the_run(store: Path) -> None:
    """Name, model and counts; as JSON too."""
    done = raylens_command("runs", str(store), "--json")
    (row,) = json.loads(done.stdout)
    assert (row["run"], row["prompts"], row["records"], row["failures"], row["complete"]) == ("r", 3, 2, {"empty": 1}, True)
    assert row["edited"] is False


def test_show_run_names_settings_and_failures(store: Path) -> None:
    """Counts, settings, what was certified, and each failure with its reason."""
    text = show(store, "show", "r")
    for part in (
        "2 records, 1 failure, of 3 prompts",
        "positions all",
        "resid_pre, attn_out, resid_post",
        "failed empty (empty)",
    ):
        assert part in text
    value = json.loads(show(store, "show", "r", "--json"))
    assert value["certificate"]["lens"]["error"] < 1e-4
    assert value["failures"] == [{"id": "empty", "index": 2, "kind": "empty", "message": "the prompt has no tokens"}]


def test_show_prompt_table_and_json(store: Path) -> None:
    """A row a layer, and one of what is known of the residual there by default; the JSON has every place's tokens and numbers."""
    table = show(store, "show", "r/plain", "--top", "2").splitlines()
    assert table[2].split() == ["layer", "resid_pre", "attn_out", "resid_post"]
    assert [row.split()[0] for row in table[3:5]] == ["0", "1"]
    assert table[6].split() == ["layer", "tap", "kl", "next_logprob", "next_rank", "best_logprob", "best_rank"]
    assert [row.split()[:2] for row in table[7:]] == [["0", "resid_post"], ["1", "resid_post"]]
    assert table[8].split()[-1] == "1", "the last layer's best token is the final one"
    record = json.loads(show(store, "show", "r/plain", "--json"))
    assert (record["id"], record["text"], record["metadata"]) == ("plain", "call me ishmael", {"book": "moby dick"})
    places = len(record["token_ids"])
    assert record["taps"]["resid_pre"]["layers"] == [0]
    for tap, layers in (("resid_pre", 1), ("attn_out", 2), ("resid_post", 2)):
        lens = record["taps"][tap]
        for name in ("ids", "tokens", "logprobs", "probabilities"):
            assert [len(lens[name]), len(lens[name][0]), len(lens[name][0][0])] == [layers, places, 10], (tap, name)
        assert [len(lens["entropy"]), len(lens["entropy"][0])] == [layers, places]


def test_a_prompt_with_a_hostile_id_is_found_and_shown_safely(store: Path) -> None:
    """The id is data; what is printed holds no control or bidi character."""
    text = show(store, "show", f"r/{HOSTILE_ID}")
    assert not [character for character in text if character in "\x00\x1b\u202e\u202c\u200b"]
    assert json.loads(show(store, "show", f"r/{HOSTILE_ID}", "--json"))["text"] == HOSTILE
    assert not [path for path in store.rglob("*") if "script" in path.name]


@pytest.mark.parametrize("kind", ["grid", "rank"])
def test_pictures_of_a_hostile_prompt(store: Path, tmp_path: Path, kind: str) -> None:
    """PNG, SVG and PDF are drawn; the SVG is well-formed and holds no element made from the text."""
    for suffix in ("png", "svg", "pdf"):
        show(store, "plot", f"r/{HOSTILE_ID}", "--kind", kind, "-o", str(tmp_path / f"x.{suffix}"))
    with Image.open(tmp_path / "x.png") as picture:
        assert min(picture.size) > 200
    names = {element.tag.rpartition("}")[2] for element in ElementTree.parse(tmp_path / "x.svg").iter()}
    assert not names & {"script", "img", "image", "foreignObject"}
    assert (tmp_path / "x.pdf").read_bytes().startswith(b"%PDF")


def test_export_writes_every_prompt_in_corpus_order(store: Path, tmp_path: Path) -> None:
    """One line a prompt, failures included; to a file or to stdout alike."""
    show(store, "export", "r", "--format", "jsonl", "-o", str(tmp_path / "x.jsonl"))
    lines = (tmp_path / "x.jsonl").read_text()
    assert [json.loads(line)["id"] for line in lines.splitlines()] == [row["id"] for row in ROWS]
    assert json.loads(lines.splitlines()[2])["error"]["kind"] == "empty"
    assert show(store, "export", "r") == lines
    show(store, "export", "r", "-o", "/dev/null")
    assert Path("/dev/null").is_char_device()
    assert [path.name for path in tmp_path.iterdir()] == ["x.jsonl"]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("show", "nope"), ("no run 'nope'", "it has r")),
        (("show", "r/nope"), ("no prompt 'nope'", "'plain'")),
        (("plot", "r", "-o", "x.png"), ("names a run", "r/PROMPT")),
        (("plot", "r/empty", "-o", "x.png"), ("it failed (empty)",)),
        (("plot", "r/plain", "-o", "x.gif"), (".png, .svg or .pdf",)),
        (("plot", "r/plain", "-o", "x.png", "--tap", "mlp_out"), ("mlp_out", "attn_out")),
        (("export", "r/plain"), ("names a prompt",)),
        (("export", "r", "--json"), ("--output FILE",)),
        (("show", "r", "--position", "3"), ("--position 3", "r/PROMPT")),
        (("show", "r", "--top", "3"), ("--top 3", "r/PROMPT")),
        (("show", "r", "--quarantine", "--important-threshold", "5"), ("--important-threshold 5", "r/PROMPT")),
        (("show", "r/plain", "--json", "--position", "1"), ("--position 1", "--json, which has all of the prompt")),
    ],
)
def test_wrong_addresses_and_options(store: Path, tmp_path: Path, arguments: tuple[str, ...], parts: tuple[str, ...]) -> None:
    """One line that says what there is instead; exit code 2."""
    done = raylens_command(*arguments, "--store", str(store), cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    for part in parts:
        assert part in done.stderr
    assert "Traceback" not in done.stderr


def test_missing_and_damaged_stores(store: Path, tmp_path: Path) -> None:
    """A folder that is no store, and a manifest that is no JSON, are named; exit code 6."""
    assert raylens_command("runs", str(tmp_path / "nothing")).returncode == 6
    broken = tmp_path / "st" / "runs" / "b"
    broken.mkdir(parents=True)
    (broken / "run.json").write_text("{")
    done = raylens_command("runs", str(tmp_path / "st"))
    assert done.returncode == 6
    assert "run.json" in done.stderr


def test_help_imports_nothing_heavy() -> None:
    """--help of the group and of every command loads neither models, servers and tables nor so much as numpy."""
    script = (
        "import sys; from raylens.scheduler.cli import group\n"
        "for name in ('', *group.list_commands(None)):\n"
        "    try: group([name, '--help'] if name else ['--help'])\n"
        "    except SystemExit as done: assert done.code == 0\n"
        "heavy = {'torch', 'ray', 'redis', 'transformers', 'matplotlib', 'numpy', 'pyarrow', 'duckdb'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=HUNG)
    assert done.returncode == 0, done.stderr
    assert "Lens a corpus into a store" in done.stdout


def test_help_has_every_option_under_its_heading() -> None:
    """Headings are those of parameters that there are, and no option is left out."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        shown = command.get_help(click.Context(command, info_name=name))
        for parameter in command.params:
            assert not isinstance(parameter, click.Option) or max(parameter.opts, key=len) in shown, (name, parameter.name)
        for heading in getattr(command, "headings", {}).values():
            assert f"\n{heading}:\n" in shown, (name, heading)
