"""``raylens.lens`` called from several threads at once."""

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import raylens
from raylens.workers import api


def test_threads_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model has one set of hooks, so that no two texts are read at a time."""
    inside: list[str] = []
    most: list[int] = []

    def slow(_worker: Any, text: str) -> None:
        inside.append(text)
        most.append(len(inside))
        time.sleep(0.05)
        inside.remove(text)

    monkeypatch.setattr(api, "loaded", lambda _settings: None)
    monkeypatch.setattr(api, "read", slow)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(raylens.lens, "abcd"))
    assert most == [1, 1, 1, 1]
