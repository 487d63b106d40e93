"""Errors as other processes and programs get them."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from raylens.storage import errors
from raylens.storage.errors import InputError, RaylensError

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
