"""Each bad input gets one line that names the place and the remedy, and its exit code, before any model loads."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from transformers import T5Config

import raylens
from raylens.storage.errors import UsageError
from raylens.storage.store import Store
from tests.builders import commit_outcomes, make_record, make_run
from tests.command import raylens_command
from tests.tiny import save_word_llama
from tests.waiting import HUNG

pytestmark = pytest.mark.usefixtures("shared_ray")

GOOD = '{"text": "hello"}\n'


def check(done: object, code: int, *parts: str) -> None:
    """One line of error, without a traceback, with these parts."""
    error = done.stderr  # type: ignore[attr-defined]
    assert done.returncode == code, error  # type: ignore[attr-defined]
    lines = [line for line in error.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1, error
    assert "Traceback" not in error
    assert "loading the model" not in error
    for part in parts:
        assert part in lines[0], lines[0]


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b"", ("c.jsonl", "no prompts", "give at least one")),
        (GOOD.encode() + b'{"text": \n', ("c.jsonl:2", "not valid JSON")),
        (GOOD.encode() + b'{"text": "\xff"}\n', ("c.jsonl:2", "UTF-8")),
        (b'{"id": "a", "text": "x"}\n{"id": "a", "text": "y"}\n', ("c.jsonl:2", "duplicate id 'a'", "c.jsonl:1", "unique")),
        (b'{"txt": "x"}\n', ("c.jsonl:1", "txt")),
        (b'{"text": 5}\n', ("c.jsonl:1", "text")),
    ],
    ids=["empty", "json", "utf8", "duplicate", "no-text", "number"],
)
def test_bad_rows(tmp_path: Path, tiny: Path, content: bytes, parts: tuple[str, ...]) -> None:
    """A row that is no prompt names its file and line."""
    (tmp_path / "c.jsonl").write_bytes(content)
    check(raylens_command("run", "c.jsonl", "-m", str(tiny), cwd=tmp_path), 4, *parts)


@pytest.mark.parametrize("command", ["lens hi -m demo", "runs", "doctor"])
def test_a_working_folder_that_is_gone(tmp_path: Path, command: str) -> None:
    """Each command says so, where torch would end the process and transformers fail."""
    (folder := tmp_path / "gone").mkdir()
    script = f'rmdir "$PWD" && exec "{sys.executable}" -m raylens {command}'
    env = os.environ | {"PYTHONPATH": str(Path(raylens.__file__).parents[1])}
    done = subprocess.run(["sh", "-c", script], cwd=folder, env=env, capture_output=True, text=True, timeout=HUNG, check=False)
    check(done, 2, "the working folder cannot be used", "change to one that is there")


def test_a_model_without_a_tokenizer(tmp_path: Path, tiny: Path) -> None:
    """What is lacking of the folder is told, not all that a tokenizer might be made of."""
    shutil.copytree(tiny, tmp_path / "m", ignore=shutil.ignore_patterns("*token*", "*vocab*"))
    done = raylens_command("run", "--text", "hi", "-m", "m", cwd=tmp_path)
    check(done, 4, "--model m: the folder has no tokenizer; save it there too, with its save_pretrained")


def test_bytes_of_another_encoding(tmp_path: Path, tiny: Path) -> None:
    """An argument that is not UTF-8."""
    command = [sys.executable, "-m", "raylens", "lens", b"caf\xe9 is", "-m", str(tiny)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=HUNG, check=False)
    check(done, 2, "the text holds bytes that are not UTF-8")


def test_a_terminal_without_the_characters(tmp_path: Path) -> None:
    """They are told by their numbers."""
    folder, _ = make_run(tmp_path / "raylens-store")
    commit_outcomes(folder, make_record(0, text="中国"))
    env = {"PYTHONIOENCODING": "latin-1"}
    done = raylens_command("sql", "SELECT text FROM prompts", cwd=tmp_path, env=env)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\\u4e2d\\u56fd" in done.stdout


def test_missing_file(tmp_path: Path, tiny: Path) -> None:
    """A file that is not there is named."""
    check(
        raylens_command("run", "nofile.jsonl", "-m", str(tiny), cwd=tmp_path), 4, "nofile.jsonl", "no such file", "check the path"
    )


def test_missing_column_lists_the_columns(tmp_path: Path, tiny: Path) -> None:
    """A wrong column names those there are, and the closest."""
    (tmp_path / "c.csv").write_text("number,question\n1,why\n")
    done = raylens_command("run", "c.csv", "--column", "qestion", "-m", str(tiny), cwd=tmp_path)
    check(done, 4, "c.csv", "qestion", "number", "question")


@pytest.mark.parametrize(
    ("arguments", "code", "parts"),
    [
        (("-m", "./nothere"), 4, ("--model ./nothere", "no such folder")),
        (("-m", "TINY", "--layers", "0,x"), 2, ("--layers", "'x'", "0,5-10")),
        (("-m", "TINY", "--layers", "7"), 2, ("--layers '7'", "layers 0 to 1")),
        (("-m", "TINY", "-k", "50000"), 2, ("--top-k 50000", "vocabulary of 49152")),
        (("-m", "TINY", "-k", "0"), 2, ("--top-k 0",)),
        (("-m", "TINY", "--positions", "first"), 2, ("--positions 'first'", "all, last, last:N, a position, or A:B")),
        (("-m", "TINY", "--taps", "attn,mlp"), 2, ("--taps", "unknown tap 'attn'", "resid_post")),
        (("-m", "TINY", "--name", "../up"), 2, ("--name", "letters")),
        (("-m", "TINY", "--gpus-per-actor", "1.5"), 2, ("--gpus-per-actor 1.5", "whole number")),
        (("-m", "TINY", "--redis", "http://x"), 5, ("--redis http://x", "redis://")),
        (("-m", "TINY", "--redis", "redis://:hunter2@127.0.0.1:1/0"), 5, ("--redis redis://***@127.0.0.1:1", "running")),
    ],
    ids=["model", "layers", "layer-range", "top-k", "top-k-0", "positions", "taps", "name", "gpus", "redis-url", "redis-away"],
)
def test_bad_options(tmp_path: Path, tiny: Path, arguments: tuple[str, ...], code: int, parts: tuple[str, ...]) -> None:
    """An option that cannot be used is named with what would do; a password in a URL is never shown."""
    (tmp_path / "c.jsonl").write_text(GOOD)
    filled = [str(tiny) if argument == "TINY" else argument for argument in arguments]
    done = raylens_command("run", "c.jsonl", *filled, cwd=tmp_path)
    check(done, code, *parts)
    assert "hunter2" not in done.stderr + done.stdout


def test_unknown_option(tmp_path: Path, tiny: Path) -> None:
    """An option that does not exist is an error, not ignored."""
    (tmp_path / "c.jsonl").write_text(GOOD)
    done = raylens_command("run", "c.jsonl", "-m", str(tiny), "--no-such-option", "5", cwd=tmp_path)
    assert done.returncode == 2
    assert "--no-such-option" in done.stderr


def test_no_corpus(tmp_path: Path, tiny: Path) -> None:
    """Without files, texts or stdin there is nothing to do."""
    check(raylens_command("run", "-m", str(tiny), cwd=tmp_path), 2, "no corpus", "--text")


def test_a_store_that_cannot_be_written(tmp_path: Path, tiny: Path) -> None:
    """A file in the place of the store is named; exit code 6."""
    (tmp_path / "c.jsonl").write_text(GOOD)
    (tmp_path / "store").write_text("a file")
    check(
        raylens_command("run", "c.jsonl", "-m", str(tiny), "-o", "store", cwd=tmp_path),
        6,
        "store: cannot be written",
        "choose another folder for the store",
    )


def test_a_run_that_stored_nothing_gives_way(tmp_path: Path, tiny: Path) -> None:
    """After a command that failed before its first result, the corrected one is not refused for its settings."""
    (tmp_path / "c.jsonl").write_text(GOOD)
    options = ["run", "c.jsonl", "-m", str(tiny), "--name", "a"]
    check(raylens_command(*options, "--ray", "127.0.0.1:1", cwd=tmp_path), 5, "--ray")
    assert Store(tmp_path / "raylens-store").names() == ["a"]
    check(raylens_command(*options, "--ray", "127.0.0.1:1", "-k", "3", cwd=tmp_path), 5, "--ray")


def test_a_server_that_is_not_there_leaves_no_run(tmp_path: Path, tiny: Path) -> None:
    """Neither a new one nor an earlier one moved aside."""
    options = ["run", "--text", "hi", "-m", str(tiny), "-o", "st", "--name", "demo", "--redis", "redis://127.0.0.1:1"]
    check(raylens_command(*options, cwd=tmp_path), 5, "--redis")
    assert Store(tmp_path / "st").names() == []
    make_run(tmp_path / "st")
    check(raylens_command(*options, "--fresh", cwd=tmp_path), 5, "--redis")
    assert Store(tmp_path / "st").names() == ["demo"]


def test_errors_are_events_too(tmp_path: Path, tiny: Path) -> None:
    """With --json the last line of stdout is the error with its exit code."""
    (tmp_path / "c.jsonl").write_text('{"text": 5}\n')
    done = raylens_command("run", "c.jsonl", "-m", str(tiny), "--json", cwd=tmp_path)
    last = json.loads(done.stdout.splitlines()[-1])
    assert (last["event"], last["exit_code"], done.returncode) == ("error", 4, 4)
    assert "c.jsonl:1" in last["message"]


def test_options_from_environment_and_file(tmp_path: Path, tiny: Path) -> None:
    """Flags win over the environment, which wins over --config; an unknown name in the file is refused."""
    (tmp_path / "c.txt").write_text("question\nwhy\n")
    (tmp_path / "c.toml").write_text('top-k = 0\nlayers = "7"\n')
    options = ["run", "c.txt", "-m", str(tiny), "--config", "c.toml", "--dry-run", "--json"]
    check(raylens_command(*options, cwd=tmp_path), 2, "--top-k 0")
    environment = {"RAYLENS_RUN_TOP_K": "3", "RAYLENS_RUN_FORMAT": "csv"}
    check(raylens_command(*options, cwd=tmp_path, env=environment), 2, "--layers '7'")
    done = raylens_command(*options, "--layers", "all", cwd=tmp_path, env=environment)
    assert json.loads(done.stdout)["prompts"] == 1, "as CSV the first line is the header"
    (tmp_path / "bad.toml").write_text("topk = 3\n")
    check(raylens_command("run", "c.txt", "-m", str(tiny), "--config", "bad.toml", cwd=tmp_path), 2, "topk")
    (tmp_path / "python.toml").write_text("top_k = 3")
    told = "unknown option 'top_k'; write top-k"
    check(raylens_command("run", "c.txt", "-m", str(tiny), "--config", "python.toml", cwd=tmp_path), 2, told)
    (tmp_path / "many.toml").write_text('track = [" sail", "no single token here"]\n')
    check(raylens_command("run", "c.txt", "-m", str(tiny), "--config", "many.toml", cwd=tmp_path), 2, "--track 'no single")
    (tmp_path / "text.toml").write_text('top-k = "many"\n')
    check(
        raylens_command("run", "c.txt", "-m", str(tiny), "--config", "text.toml", cwd=tmp_path),
        2,
        "'--top-k' (from the file of --config): 'many' is not a valid integer",
    )
    check(
        raylens_command("run", "c.txt", "-m", str(tiny), cwd=tmp_path, env={"RAYLENS_RUN_DTYPE": "int8"}),
        2,
        "'--dtype' (RAYLENS_RUN_DTYPE): 'int8' is not one of",
    )
    (tmp_path / "list.toml").write_text("top-k = [1, 2]\n")
    check(raylens_command("run", "c.txt", "-m", str(tiny), "--config", "list.toml", cwd=tmp_path), 2, "top-k must be one value")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ({"top_k": "3"}, "top_k"),
        ({"logprobs": "float64"}, "float64"),
        ({"on_long": "cut"}, "cut"),
        ({"actors": "2"}, "actors"),
        ({"stats": "kk"}, "kk"),
        ({"top_k": np.float64(3)}, "top_k: give a whole number"),
        ({"actors": np.array([1, 2])}, "actors: give a whole number or None"),
        ({"intervene": []}, "intervene is a list"),
    ],
)
def test_python_values_of_the_wrong_type(tmp_path: Path, tiny: Path, arguments: dict[str, Any], part: str) -> None:
    """raylens.run says which value is wrong before it does anything."""
    with pytest.raises(UsageError, match=part):
        raylens.run(["a"], model=str(tiny), store=tmp_path / "st", quiet=True, **arguments)
    assert not (tmp_path / "st").exists()


@pytest.mark.parametrize(
    "arguments", [{"layers": [0.5]}, {"layers": {0.5}}, {"positions": [0]}, {"heads": [True]}, {"top_k": "3"}]
)
def test_values_of_the_wrong_type_for_one_text(tiny: Path, arguments: dict[str, Any]) -> None:
    """raylens.lens says so too."""
    with pytest.raises(UsageError):
        raylens.lens("a", model=str(tiny), **arguments)


def broken(tiny: Path, folder: Path, name: str, content: str) -> Path:
    """A copy of a model in which one file is another."""
    shutil.copytree(tiny, folder / "broken")
    (folder / "broken" / name).write_text(content)
    return folder / "broken"


@pytest.mark.parametrize(
    ("name", "change"),
    [("config.json", {"vocab_size": None}), ("config.json", {"num_attention_heads": 7}), ("tokenizer_config.json", [])],
)
def test_a_broken_model(tmp_path: Path, tiny: Path, name: str, change: Any) -> None:
    """Whatever its files hold, it is one line."""
    content = change if isinstance(change, list) else json.loads((tiny / name).read_text()) | change
    model = broken(tiny, tmp_path, name, json.dumps(content))
    check(raylens_command("lens", "a", "-m", str(model)), 4, f"--model {model}", "cannot be read")


@pytest.mark.parametrize("change", [{"vocab_size": 10**12}, {"num_hidden_layers": 10**12}, {"num_hidden_layers": 0}])
def test_a_model_of_sizes_that_cannot_be(tmp_path: Path, tiny: Path, change: dict[str, int]) -> None:
    """Refused before anything of such a size is made."""
    model = broken(tiny, tmp_path, "config.json", json.dumps(json.loads((tiny / "config.json").read_text()) | change))
    check(
        raylens_command("lens", "a", "-m", str(model)),
        4,
        f"--model {model}",
        "does not have the sizes of a language model",
        "limit",
    )


def test_a_tokenizer_whose_vocabulary_no_reader_would_take(tmp_path: Path) -> None:
    """Told before the run, not by whoever reads its results."""
    save_word_llama(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(path.read_text().replace('"ishmael"', f'"{"ishmael" * 10_000}"'))
    done = raylens_command("run", "--text", "call me", "-m", str(tmp_path), "--store", str(tmp_path / "store"))
    check(done, 4, f"--model {tmp_path}: its tokenizer has the token", "of 70,000 bytes, limit 65,536")


def test_a_chat_template_without_a_bottom(tmp_path: Path, tiny: Path) -> None:
    """Its nesting is no traceback of Jinja's."""
    template = tmp_path / "template"
    template.write_text("{% if 1 %}" * 5000 + "{% endif %}" * 5000)
    done = raylens_command("run", "--text", "hi", "-m", str(tiny), "--chat-template", str(template), cwd=tmp_path)
    check(done, 2, "--chat-template: nested too deeply")


def test_a_command_line_that_ray_does_not_take(tmp_path: Path, tiny: Path) -> None:
    """A name that is not UTF-8, with a way to give that file all the same."""
    path = tmp_path / os.fsdecode(b"caf\xe9.jsonl")
    path.write_text(GOOD)
    command = [sys.executable, "-m", "raylens", "run", str(path), "-m", str(tiny), "--store", str(tmp_path / "store")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HUNG)
    check(done, 2, "the command line holds what is not UTF-8, which Ray does not take; rename the file, or name it by a pattern")


def test_a_model_of_another_kind(tmp_path: Path, tiny: Path) -> None:
    """An encoder-decoder is refused by its configuration, before Ray starts, without the list of all that could be given."""
    model = broken(tiny, tmp_path, "config.json", T5Config(vocab_size=256, d_model=32, num_layers=2).to_json_string())
    done = raylens_command("run", "--text", "hi", "-m", str(model), cwd=tmp_path)
    check(done, 4, f"--model {model}: transformers {transformers.__version__} has no causal language model of type t5; give")
    assert "starting Ray" not in done.stderr
    assert len(done.stderr.splitlines()[-1]) < 300


def test_a_gguf_that_is_cut_short(tmp_path: Path) -> None:
    """As a download that broke off."""
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + (3).to_bytes(4, "little") + bytes(16))
    done = raylens_command("lens", "a", "-m", str(tmp_path / "m.gguf"), env={"XDG_CACHE_HOME": str(tmp_path / "cache")})
    check(done, 4, "m.gguf: cannot convert")
    assert list((tmp_path / "cache").rglob("*m-*")) == [], "nothing is left of it"


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    """As a home in a container: lens says what to set, and doctor goes on to the next check."""
    (tmp_path / "file").write_text("")
    environment = {"XDG_CACHE_HOME": str(tmp_path / "file")}
    check(raylens_command("lens", "a", "-m", "demo", env=environment), 4, "Not a directory", "set XDG_CACHE_HOME")
    done = raylens_command("doctor", env=environment)
    assert "XDG_CACHE_HOME" in done.stdout
    assert "Traceback" not in done.stderr


def test_a_home_of_nobody(tmp_path: Path, tiny: Path) -> None:
    """A path that begins with a user who is not there, and a text in the place of a path. A store is in a home too."""
    check(raylens_command("lens", "a", "-m", "x" * 300, cwd=tmp_path), 2, "File name too long")
    check(raylens_command("lens", "a", "-m", "~nosuchuser/m", cwd=tmp_path), 2, "--model ~nosuchuser/m")
    run = ("run", "--text", "a", "-m", str(tiny))
    check(raylens_command(*run, "-o", "~nosuchuser/st", cwd=tmp_path), 2, "--store ~nosuchuser/st")
    (tmp_path / "file").write_text("")
    done = raylens_command(*run, "-o", "~/file/st", cwd=tmp_path, env={"HOME": str(tmp_path)})
    check(done, 6, f"{tmp_path}/file/st: cannot be written")
    with pytest.raises(UsageError, match="store ~nosuchuser/st: names no file"):
        raylens.run(["a"], model=str(tiny), store="~nosuchuser/st", quiet=True)


def test_a_file_called_as_standard_input_is(tmp_path: Path) -> None:
    """The two are not one, so that both may be given; what is refused is the model."""
    (tmp_path / "-").write_text("a\n")
    check(raylens_command("run", "-", "./-", "-m", "./nowhere", cwd=tmp_path, stdin="b\n"), 4, "./nowhere: no such folder")


def test_a_disk_that_is_full(tmp_path: Path) -> None:
    """What takes the output may be full too."""
    make_run(tmp_path / "raylens-store")
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "raylens", "runs"]
        done = subprocess.run(command, cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True, timeout=HUNG, check=False)
    check(done, 6, "No space left on device")


@pytest.mark.parametrize("ray", ["local", "auto"])
def test_files_of_the_working_folder_are_not_imported(tmp_path: Path, tiny: Path, ray: str) -> None:
    """A redis.py beside the corpus is the user's, not ours to run; neither by a Ray of ours nor by one that is joined."""
    (tmp_path / "c.jsonl").write_text(GOOD)
    (tmp_path / "redis.py").write_text("raise SystemExit('the wrong redis was imported')\n")
    command = [str(Path(sys.executable).with_name("raylens")), "run", "c.jsonl", "-m", str(tiny), "--ray", ray]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=HUNG, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("closed", ["<&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams(tmp_path: Path, closed: str) -> None:
    """The command does the same and exits with the same code as with streams, though it can tell nobody."""
    command = ["sh", "-c", f'exec "$0" -m raylens "$@" {closed}', sys.executable]
    options = ("run", "none.txt", "-m", "demo")
    done = subprocess.run([*command, *options], cwd=tmp_path, capture_output=True, text=True, timeout=HUNG, check=False)
    assert done.returncode == 4, done.stderr
    assert done.stdout == ""
