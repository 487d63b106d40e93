"""Models and the Ray that tests of this folder share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rays import head, own_env
from tests.servers import free_port
from tests.tiny import save_tiny_llama


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small random Llama."""
    return save_tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def ray_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a Ray of one node that stays up for the session."""
    folder, port = tmp_path_factory.mktemp("ray"), free_port()
    with head(folder, port, own_env(folder), cpus=2):
        yield f"127.0.0.1:{port}"


@pytest.fixture(scope="module")
def shared_ray(ray_address: str) -> Iterator[str]:
    """What commands of a module that is not about Ray join; to start and end a Ray is half of a short run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", ray_address)
        yield ray_address
