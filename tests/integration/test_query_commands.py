"""query, sql and compare by the command line, over a run without any model."""

import csv
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.builders import make_run
from tests.command import raylens_command
from tests.queried import write_run


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("asked")
    write_run(folder, name="one")
    write_run(folder, name="other", lens_seed=3)
    return folder


def ask(store: Path, *arguments: str) -> str:
    """stdout of a command that succeeds."""
    done = raylens_command(*arguments, "--store", str(store))
    assert done.returncode == 0, done.stderr
    return done.stdout


QUESTIONS = [
    ("query", "one", "token", "--token", "id:1", "--rank", "2"),
    ("query", "one", "depth", "--by", "kind"),
    ("sql", "SELECT id, metadata, tokens FROM prompts", "--run", "one"),
    ("compare", "one", "other"),
]


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question[0] + "-" + question[2])
def test_one_result_in_every_form(store: Path, tmp_path: Path, question: tuple[str, ...]) -> None:
    """JSON lines, CSV and Parquet have the same columns and as many rows; the table has the same header."""
    rows = [json.loads(line) for line in ask(store, *question, "--json").splitlines()]
    assert rows
    names = list(rows[0])
    header, *lines = csv.reader(io.StringIO(ask(store, *question, "--csv")))
    assert (header, len(lines)) == (names, len(rows))
    ask(store, *question, "--parquet", str(tmp_path / "x.parquet"))
    table = pq.read_table(tmp_path / "x.parquet")
    assert (table.schema.names, len(table)) == (names, len(rows))
    shown = ask(store, *question).splitlines()
    assert shown[0].split() == names
    assert len(shown) == 1 + min(len(rows), 500)


@pytest.mark.parametrize("code", [10, 13, 34, 44], ids=["line feed", "carriage return", "quote", "comma"])
def test_csv_of_any_text(store: Path, code: int) -> None:
    """Whatever ends a line, a field or a text elsewhere does not within one."""
    text = ask(store, "sql", f"SELECT 'a' || chr({code}) || 'b' AS one, NULL AS two", "--csv")
    within = "\n" if code == 13 else chr(code)  # Python reads one as the other from what a command says
    assert list(csv.reader(io.StringIO(text))) == [["one", "two"], [f"a{within}b", ""]]


@pytest.mark.parametrize(
    "arguments",
    [*QUESTIONS, ("runs",), ("show", "one"), ("status",), ("compact", "one"),
     ("plot", "one", "--kind", "aggregate", "-o", "aggregate.png")],
    ids=lambda arguments: arguments[0] + "-" + arguments[-1][:12],
)  # fmt: skip
def test_a_process_of_its_own_says_no_more_than_its_answer(store: Path, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """Whatever a process does when it ends, stderr stays empty."""
    shutil.copytree(store, tmp_path / "raylens-store")
    done = raylens_command(*arguments, env={}, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_process_of_its_own_says_no_more_than_its_error(store: Path) -> None:
    """Not what DuckDB still held when the error ended it."""
    done = raylens_command("sql", "SELECT * FROM topk", "--parquet", "no/file", "--store", str(store), env={})
    assert (done.returncode, done.stderr) == (2, "Error: --parquet no/file: No such file or directory\n")


def test_an_interrupt_within_an_exec_ends_a_module_as_any_other(tmp_path: Path) -> None:
    """Imports run text too, as dataclasses do; Python itself would end by the signal when it was started with -m."""
    (tmp_path / "interrupted.py").write_text(
        "import click\n"
        "from raylens.scheduler.cli import main, runs\n"
        "runs.command = click.Command('runs', callback=lambda: exec('raise KeyboardInterrupt'))\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "interrupted", "runs"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (130, "stopped\n")


def test_variables_are_named_as_the_options_are(store: Path) -> None:
    """RAYLENS_COMMAND_OPTION, whatever the option's parameter is called in the code; what may be repeated has none."""
    ask = ("sql", "SELECT 1 AS one", "--store", str(store))
    assert raylens_command(*ask, env={"RAYLENS_SQL_JSON": "1"}).stdout == '{"one":1}\n'
    assert raylens_command(*ask, env={"RAYLENS_SQL_RUN": "none"}).returncode != 0
    asked = raylens_command("query", "one", "token", "--store", str(store), env={"RAYLENS_QUERY_TOKEN": "id:1"})
    assert (asked.returncode, "needs --token" in asked.stderr) == (2, True)


def test_a_long_table_is_cut_and_says_so(store: Path) -> None:
    """Five hundred rows for people, and how to get all."""
    done = raylens_command("sql", "SELECT * FROM range(501)", "--store", str(store))
    assert len(done.stdout.splitlines()) == 501
    assert done.stderr == "only the first 500 rows are shown; --json, --csv and --parquet give all\n"


def test_a_table_of_nothing_says_so(store: Path) -> None:
    """Beside its header; the forms for programs say nothing."""
    ask = ("sql", "SELECT 1 AS one WHERE false", "--store", str(store))
    done = raylens_command(*ask)
    assert (done.returncode, done.stdout, done.stderr) == (0, "one\n", "no rows\n")
    done = raylens_command(*ask, "--json")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_store_may_come_first(store: Path) -> None:
    """As for the other commands over a store."""
    first = raylens_command("sql", str(store), "SELECT count(*) AS prompts FROM prompts", "--json")
    assert first.returncode == 0, first.stderr
    assert (
        first.stdout == raylens_command("sql", "SELECT count(*) AS prompts FROM prompts", "--json", "--store", str(store)).stdout
    )


def test_the_list_names_every_query(store: Path) -> None:
    """Without a name; and as JSON with defaults."""
    listed = {query["name"] for query in json.loads(ask(store, "query", "--list", "--json"))}
    assert {"token", "depth", "layers", "trajectory", "handoff", "promoted", "flips", "outliers"} <= listed
    assert all(f"{name}: " in ask(store, "query", "one") for name in listed)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("query", "one", "nothing"), ("nothing", "depth", "token")),
        (("query", "one", "token"), ("--token",)),
        (("query", "one", "depth", "--rank", "3"), ("--rank",)),
        (("query", "one/prompt", "depth"), ("names a prompt", "one")),
        (("query", "nope", "depth"), ("no run 'nope'", "one, other")),
        (("query", "one", "token", "--token", "no such token"), ("no such token",)),
        (("query", "one", "depth", "--json", "--csv"), ("--json, --csv, --parquet",)),
        (("query", "--list", "--csv"), ("--csv",)),
        (("sql", "DROP VIEW topk"), ("read-only",)),
        (("sql", "SELECT", "1", "+ 1"), ("quotes",)),
        (("sql", "SELECT nothing FROM topk"), ("nothing",)),
        (("sql", "SELECT 1", "--parquet", "no/folder/x.parquet"), ("no/folder/x.parquet",)),
        (("compare", "one", "nope"), ("no run 'nope'",)),
    ],
)
def test_wrong_questions(store: Path, tmp_path: Path, arguments: tuple[str, ...], parts: tuple[str, ...]) -> None:
    """One line that says what there is instead; exit code 2."""
    done = raylens_command(*arguments, "--store", str(store), cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    for part in parts:
        assert part in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_table_is_damage(tmp_path: Path) -> None:
    """Exit code 6, with the file and what repairs it."""
    run = write_run(tmp_path)
    gone = next(run.folder.tables.glob("*.lens.parquet"))
    gone.unlink()
    done = raylens_command("query", "demo", "depth", "--store", str(tmp_path))
    assert done.returncode == 6
    assert gone.name.split(".")[0] in done.stderr
    assert "raylens verify STORE --repair" in done.stderr


def test_a_run_that_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    """The others are asked, with a word on each; one that is named is an error. A run that has only begun has no rows."""
    write_run(tmp_path, name="whole")
    begun, _ = make_run(tmp_path, name="begun")
    begun.vocabulary.unlink()
    no_table, no_manifest = (write_run(tmp_path, name=name).folder for name in ("no-table", "no-manifest"))
    sorted(no_table.tables.iterdir())[0].unlink()
    no_manifest.manifest.write_text("{")
    ask = ("sql", "SELECT DISTINCT run FROM topk", "--json", "--store", str(tmp_path))
    done = raylens_command(*ask)
    assert (done.returncode, done.stdout) == (6, '{"run":"whole"}\n')
    assert len(done.stderr.splitlines()) == 1
    assert re.search(r"run no-manifest is left out: .*run.json: damaged", done.stderr)
    assert re.search(r"run no-table is left out: .*no tables for 1 of 2 segments", done.stderr)
    assert [raylens_command(*ask, "--run", name).returncode for name in ("no-manifest", "no-table", "begun")] == [6, 6, 0]
    for folder in (no_table, no_manifest):
        shutil.rmtree(folder.root)
    done = raylens_command(*ask)
    assert (done.returncode, done.stdout, done.stderr) == (0, '{"run":"whole"}\n', "")


def test_a_store_of_nothing_but_damage(tmp_path: Path) -> None:
    """Is damaged, and not empty."""
    make_run(tmp_path)[0].manifest.write_text("{")
    done = raylens_command("sql", "SELECT 1", "--store", str(tmp_path))
    assert (done.returncode, done.stdout) == (6, "")
    assert "run demo is left out" in done.stderr
    no_table = write_run(tmp_path / "other").folder
    shutil.rmtree(no_table.tables)
    done = raylens_command("sql", "SELECT 1", "--store", str(tmp_path / "other"))
    assert (done.returncode, done.stdout) == (6, "")
    assert "no tables for 2 of 2 segments" in done.stderr
