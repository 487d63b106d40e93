"""Errors as programs get them, and their other processes."""

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

import raylens
from raylens.storage import errors
from raylens.storage.arguments import arguments, as_arguments
from raylens.storage.errors import InputError, RaylensError
from tests.builders import make_record, make_vocabulary

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, RaylensError)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("through", [copy.copy, copy.deepcopy, lambda error: pickle.loads(pickle.dumps(error))])
def test_an_error_stays_as_it_is(kind: type[RaylensError], through: Callable[[Any], Any]) -> None:
    """Also in the program that gets it from a process of ``multiprocessing``, which makes it anew there."""
    error = kind("corpus.jsonl:2", "not JSON", "correct it") if kind is InputError else kind("what is wrong")
    error.add_note("while reading")
    again = through(error)
    assert (type(again), str(again), again.exit_code) == (kind, str(error), error.exit_code)
    assert vars(again) == vars(error)


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("--top-k 0: must be at least 1", "top_k 0: must be at least 1"),
        ("--max-tokens and --on-long", "max_tokens and on_long"),
        ("--track ' --top-k': is no token", "track ' --top-k': is no token"),
        ("the prompt's --text; it's --format", "the prompt's text; it's format"),
        ("run.json: missing; start over with raylens run --fresh", "run.json: missing; start over with raylens run --fresh"),
        ("start one, with ray start --address HEAD; or give --ray", "start one, with ray start --address HEAD; or give ray"),
        ("a--b, --9 and ---", "a--b, --9 and ---"),
    ],
)
def test_options_are_arguments(message: str, said: str) -> None:
    """But in a quotation, or in a command for a shell."""
    assert as_arguments(message) == said


@pytest.mark.parametrize("kind", KINDS)
def test_python_is_told_of_arguments(kind: type[RaylensError]) -> None:
    """The error is the same one, so that its cause stays with it."""
    error = kind("--track 1", "no field --column", "give --id-column") if kind is InputError else kind("--track 1")
    with pytest.raises(kind) as caught, arguments():
        raise error
    assert caught.value is error
    assert "--" not in str(error)


CALLS: dict[str, tuple[Callable[..., Any], str]] = {
    "lens": (partial(raylens.lens, "a", top_k=0), "^top_k 0: must be at least 1"),
    "run": (partial(raylens.run, ["a"], model="demo", writer="external"), "^writer external: .*; give redis URL"),
    "fit_lens": (partial(raylens.fit_lens, ["a"], model="demo", output="lens", batch_tokens=1), "^batch_tokens 1: "),
    "Record.plot": (partial(replace(make_record(), vocabulary=make_vocabulary()).plot, layer_step=0), "^layer_step 0: "),
}


@pytest.mark.parametrize("name", CALLS)
def test_calls_tell_of_arguments(name: str) -> None:
    """Every function that takes what an option of a command is too; those of runs and queries are with their tests."""
    call, said = CALLS[name]
    with pytest.raises(RaylensError, match=said):
        call()
