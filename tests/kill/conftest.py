"""Models shared by the tests of this folder."""

from pathlib import Path

import pytest

from tests.tiny import save_tiny_llama


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small random Llama."""
    return save_tiny_llama(tmp_path_factory.mktemp("tiny"))
