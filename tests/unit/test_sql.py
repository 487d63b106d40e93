"""SQL over a store: the documented views, and nothing beyond them, whatever the statement."""

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

from raylens.storage.comparison import compare
from raylens.storage.errors import UsageError
from raylens.storage.run import Run
from raylens.storage.store import Store, open_store
from raylens.storage.vocabulary import write_vocabulary
from tests.builders import make_vocabulary
from tests.memory import bounded_memory
from tests.queried import places, write_run
from tests.waiting import HUNG, wait_until

#: View -> columns, as docs/QUERIES.md has them.
VIEWS = {
    "prompts": "run prompt id text tokens truncated_from metadata failure",
    "failures": "run prompt id kind message metadata",
    "positions": "run prompt position token_id token next_id next",
    "metrics": "run prompt position tap layer top_id top_logprob final_rank entropy kl next_logprob next_rank "
    "best_logprob best_rank next_attribution best_attribution attribution_error",
    "topk": "run prompt position tap layer rank token_id token logprob",
    "tracked": "run prompt position tap layer number token_id token logprob rank attribution",
    "decisions": "run prompt position final_id final_logprob before_id first stable",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return write_run(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, list[Run]]:
    """Two runs of other records, numbers of layers and vocabularies, and each of them."""
    path = tmp_path_factory.mktemp("store-of-two")
    runs = [write_run(path, seed=seed, layers=4 - seed, name=name) for seed, name in enumerate(("one", "other"))]
    write_vocabulary(runs[1].folder.vocabulary, [b"another", *make_vocabulary()[:-1]])
    return open_store(path), runs


def test_parameters_of_other_libraries(run: Run) -> None:
    """A number or an array of numpy is the number or list that it holds."""
    asked = "SELECT $number AS number, list_sum($numbers) AS sum"
    assert run.sql(asked, {"number": np.int64(3), "numbers": np.array([1, 2])}).rows() == [{"number": 3, "sum": 3}]


@pytest.mark.parametrize("view", VIEWS)
def test_views_are_as_documented(run: Run, view: str) -> None:
    """Names and order of columns; and the document names each."""
    assert run.sql(f"SELECT * FROM {view} LIMIT 1").to_arrow().schema.names == VIEWS[view].split()
    guide = (Path(__file__).parents[2] / "docs" / "QUERIES.md").read_text()
    (line,) = [line for line in guide.splitlines() if line.startswith(f"| `{view}` | ") and "`run`" in line]
    assert all(f"`{column}`" in line for column in VIEWS[view].split())


def test_views_against_the_records(run: Run) -> None:
    """A row for each prompt, failure, position, place and rank."""
    records = list(run.records())
    positions = sum(len(record.positions) for record in records)
    places = sum(len(record.positions) * sum(len(tap.layers) for tap in record.taps.values()) for record in records)
    counts = run.sql(f"SELECT {', '.join(f'(SELECT count(*) FROM {view}) AS {view}' for view in VIEWS)}").rows()[0]
    assert counts == {
        "prompts": len(records) + 2,
        "failures": 2,
        "positions": positions,
        "metrics": places,
        "topk": 3 * places,
        "tracked": 2 * places,
        "decisions": positions,
    }


def test_final_rank_is_null_beyond_the_k_best(run: Run) -> None:
    """So that means, counts and comparisons are of the places where it is known."""
    ranks = [place["final_rank"] for place in places(run)]
    found = run.sql("SELECT avg(final_rank) AS mean, count(final_rank) AS known, count(*) AS places FROM metrics").rows()[0]
    known = [rank for rank in ranks if rank]
    assert found == {"mean": pytest.approx(sum(known) / len(known)), "known": len(known), "places": len(ranks)}
    assert len(known) < len(ranks)


def test_all_runs_of_a_store(tmp_path: Path) -> None:
    """A store's SQL is over its runs together; each row says whose it is."""
    for seed, name in enumerate(("one", "other")):
        write_run(tmp_path, seed=seed, name=name)
    found = open_store(tmp_path).sql("SELECT run, count(*) AS n FROM prompts GROUP BY run ORDER BY run").rows()
    assert found == [{"run": "one", "n": 9}, {"run": "other", "n": 9}]


@pytest.mark.parametrize("view", VIEWS)
def test_a_store_mixes_no_two_runs(store: tuple[Store, list[Run]], view: str) -> None:
    """Each view over all runs has the rows that it has over each run alone, although both use the same tokens and places."""
    together, runs = store
    alone = [row for run in runs for row in run.sql(f"SELECT * FROM {view}").rows()]
    assert sorted(map(repr, together.sql(f"SELECT * FROM {view}").rows())) == sorted(map(repr, alone))


def test_runs_of_one_vocabulary_share_it(tmp_path: Path) -> None:
    """In memory there is one of them, and of its rows a part at a time: a model has 262,144 tokens, and a store many runs."""
    tokens = [b" token %d" % number for number in range(1 << 16)]
    for name in ("one", "two", "three", "four"):
        write_vocabulary(write_run(tmp_path, name=name).folder.vocabulary, tokens)
    with bounded_memory(8 << 20):  # one takes 4 MiB
        found = open_store(tmp_path).sql("SELECT run, count(token) AS n, min(token) AS least FROM topk GROUP BY run ORDER BY run")
        rows = found.rows()
    assert {row["least"] for row in rows} == {" token 0"}
    assert len({row["n"] for row in rows}) == 1
    assert len(rows) == 4


def test_columns_of_one_name_are_told_apart(run: Run) -> None:
    """A join has two; a row, which is a dictionary, has both."""
    rows = run.sql("SELECT 1 AS entropy, 2 AS entropy, 3 AS entropy_1").rows()
    assert rows == [{"entropy": 1, "entropy_1": 2, "entropy_1_1": 3}]


def test_a_statement_without_end_is_stopped(run: Run) -> None:
    """By Ctrl-C, at once, in a process of its own."""
    script = "import sys, raylens; print('begun', flush=True); raylens.open(sys.argv[1])['demo'].sql(sys.argv[2]).rows()"
    endless = "SELECT count(*) FROM range(100000000000) a, range(100000) b"
    command = [sys.executable, "-c", script, str(run.folder.root.parents[1]), endless]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        child = psutil.Process(process.pid)
        wait_until(lambda: child.cpu_times().user > 3, "the statement is at work")
        process.send_signal(signal.SIGINT)
        assert "KeyboardInterrupt" in process.communicate(timeout=HUNG)[1]


def test_an_interrupt_while_a_database_is_opened(run: Run) -> None:
    """Is one wherever it comes, and no damage; but for where Python's own locks are not safe from one."""
    script = (
        "import signal, sys, raylens\n"
        "from raylens.storage.database import Database\n"
        "from raylens.storage.errors import StoreError\n"
        "run = raylens.open(sys.argv[1])['demo']\n"
        "signal.signal(signal.SIGALRM, signal.default_int_handler)\n"
        "for number in range(150):\n"
        "    try:\n"
        "        signal.setitimer(signal.ITIMER_REAL, number * 3e-4 + 1e-4, 10.0)\n"
        "        with Database([run]):\n"
        "            while True:\n"
        "                signal.pause()\n"
        "    except StoreError as error:\n"
        "        print(error)\n"
        "    except (KeyboardInterrupt, RuntimeError):\n"
        "        signal.setitimer(signal.ITIMER_REAL, 0)\n"
    )
    command = [sys.executable, "-c", script, str(run.folder.root.parents[1])]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=HUNG)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_result_that_a_script_keeps_half_read_leaves_nothing_to_complain_of(run: Run) -> None:
    """DuckDB lists what is still in use when Python ends."""
    script = (
        "import sys, raylens\n"
        "rows = iter(raylens.open(sys.argv[1])[sys.argv[2]].sql('SELECT * FROM topk'))\n"
        "print(next(rows)['rank'])"
    )
    command = [sys.executable, "-c", script, str(run.folder.root.parents[1]), run.name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")


def test_a_result_says_what_it_is_of(run: Run) -> None:
    """Printed, before it is read: a notebook's cell may end with one."""
    ways = ": read by a loop, rows(), to_pandas(), to_polars(), to_arrow() or to_xarray()>"
    assert repr(run.query("depth")) == f"<Result of query 'depth' over 'demo'{ways}"
    assert repr(run.sql("SELECT\n  1")) == f"<Result of 'SELECT 1' over 'demo'{ways}"
    with pytest.raises(UsageError, match="tok: query token does not take it; it takes token,"):
        run.query("token", tok=7)  # before it is read
    assert repr(compare(run, run)) == f"<Result of a comparison over 'demo'{ways}"


def test_parameters_are_values(run: Run) -> None:
    """Text of a parameter is never SQL."""
    hostile = "x' OR '1' = '1"
    assert run.sql("SELECT count(*) AS n FROM prompts WHERE id = $id", {"id": hostile}).rows() == [{"n": 0}]


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT * FROM read_csv('{secret}')",
        "SELECT * FROM '{secret}'",
        "SELECT * FROM read_text('{secret}')",
        "SELECT * FROM read_blob('{secret}')",
        "SELECT * FROM read_json('{secret}')",
        "SELECT * FROM read_parquet('{secret}')",
        "SELECT * FROM read_parquet('https://example.com/x.parquet')",
        "SELECT * FROM sniff_csv('{secret}')",
        "SELECT * FROM glob('{folder}/*')",
        "SELECT * FROM parquet_metadata('{secret}')",
        "WITH x AS (SELECT * FROM read_csv('{secret}')) SELECT * FROM x",
        "SELECT (SELECT content FROM read_text('{secret}'))",
        "SELECT * FROM query('SELECT * FROM read_text(''{secret}'')')",
        "COPY topk TO '{folder}/out.csv'",
        "COPY (SELECT 1) TO '{folder}/out.parquet'",
        "EXPLAIN ANALYZE COPY topk TO '{folder}/out.csv'",
        "EXPORT DATABASE '{folder}/out'",
        "ATTACH '{folder}/out.db'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET enable_external_access = true",
        "RESET enable_external_access",
        "SET GLOBAL allowed_directories = ['/']",
        "PRAGMA enable_external_access = true",
        "CALL pragma_version()",
        "CREATE TABLE mine AS SELECT 1",
        "CREATE OR REPLACE VIEW topk AS SELECT 1",
        "DROP VIEW topk",
        "INSERT INTO tokens VALUES (1)",
        "DELETE FROM tokens",
        "SELECT 1; SELECT 2",
        "SELECT 1; COPY topk TO '{folder}/out.csv'",
        "",
        "SELECT",
        "SELECT * FROM nothing_of_the_kind",
        "not SQL at all",
        "SELECT '\udcff'",
        "FROM load_aws_credentials()",
        "SELECT '1'::INET",
    ],
)
def test_nothing_beyond_the_views(run: Run, tmp_path: Path, statement: str) -> None:
    """Files, the network, settings and changes are out of reach, with one clear error and no file written."""
    secret = tmp_path / "secret.csv"
    secret.write_text("password\nhunter2\n")
    with pytest.raises(UsageError) as refused:
        run.sql(statement.format(secret=secret, folder=tmp_path)).rows()
    assert "hunter2" not in str(refused.value)
    assert list(tmp_path.iterdir()) == [secret]


def test_a_variable_of_the_caller_is_no_table(run: Run) -> None:
    """DuckDB would read a data frame of that name from the calling program."""
    mine = run.sql("SELECT 1 AS one").to_arrow()
    assert len(mine) == 1
    with pytest.raises(UsageError, match="mine"):
        run.sql("SELECT * FROM mine").rows()
