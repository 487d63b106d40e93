"""What ``raylens doctor`` says of a machine that lacks something; each thing is really so, or its bound is moved."""

import importlib.metadata
import sys
from pathlib import Path

import pytest
import torch

from raylens.scheduler import doctor as module
from raylens.scheduler.doctor import Finding, examine
from raylens.storage.server import RIGHTS
from tests.servers import KINDS, RealServer


def found(name: str, store: Path, redis: str = "redis://127.0.0.1:1") -> Finding:
    """What is found of one thing; nothing after it is looked at."""
    return next(finding for finding in examine(store, redis, "local") if finding.name == name)


def test_packages_out_of_range(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is named with what is needed; one of an extra that was not asked for is not."""
    assert found("versions", tmp_path).status == "ok"
    installed = tmp_path / "raylens-0.1.0.dist-info"
    installed.mkdir()
    needs = ["torch<1", "numpy>=1", "no-such-package>=2", 'not-asked-for; extra == "dev"']
    lines = ["Metadata-Version: 2.1", "Name: raylens", "Version: 0.1.0", *(f"Requires-Dist: {one}" for one in needs)]
    (installed / "METADATA").write_text("\n".join(lines))
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    wrong = found("versions", tmp_path)
    assert wrong.status == "problem"
    assert wrong.found.endswith(f"; torch {importlib.metadata.version('torch')}, needs <1; no-such-package is missing")
    assert wrong.remedy == "pip install --upgrade raylens"
    assert [one.name for one in examine(tmp_path, "embedded", "local")] == ["versions"], "the others would import what is missing"


def test_a_store_that_cannot_be(tmp_path: Path) -> None:
    """A name that no file may have is told, as a run does; a folder that is to be made is well."""
    wrong = found("store", tmp_path / ("a" * 300))
    assert (wrong.status, wrong.remedy) == ("problem", "choose another --store")
    assert wrong.found.endswith("cannot be used (File name too long)")
    assert found("store", tmp_path / "a" / "b").status == "ok"


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch can use the GPU of this machine")
def test_a_gpu_that_torch_cannot_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with NVIDIA's driver and a torch without CUDA."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert found("devices", tmp_path).status == "ok"
    (tmp_path / "nvidia-smi").touch(mode=0o755)
    wrong = found("devices", tmp_path)
    assert (wrong.status, wrong.remedy) == ("problem", "install a CUDA build of torch")


@pytest.mark.parametrize(
    ("name", "bound", "status", "remedy"),
    [
        ("memory", "LITTLE_MEMORY", "warning", "fewer --actors"),
        ("shared memory", "SHARED_MEMORY", "problem", "--shm-size"),
        ("store", "LITTLE_DISK", "warning", "--store"),
    ],
)
def test_too_little_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, bound: str, status: str, remedy: str
) -> None:
    """Less than the bound is told with a remedy, and as much as that is well."""
    monkeypatch.setattr(module, bound, 1 << 60)
    little = found(name, tmp_path)
    assert little.status == status
    assert "free" in little.found
    assert remedy in little.remedy
    monkeypatch.setattr(module, bound, 0)
    assert (found(name, tmp_path).status, found(name, tmp_path).remedy) == ("ok", "")


def test_a_server_without_a_limit(tmp_path: Path) -> None:
    """A slow writer may fill the machine's memory; with a limit it is told."""
    with RealServer("valkey9", "--maxmemory", "0") as server:
        free = found("redis", tmp_path, server.url)
        assert (free.status, free.found.partition(": ")[2]) == ("warning", "no memory limit")
        assert "maxmemory" in free.remedy
    with RealServer("valkey9", "--maxmemory", "2gb", "--proto-max-bulk-len", "2mb") as server:
        limited = found("redis", tmp_path, server.url)
        assert limited.status == "ok"
        assert ": 2.0 GiB at most, " in limited.found


@pytest.mark.parametrize("kind", KINDS)
def test_a_server_that_takes_large_values(tmp_path: Path, kind: str) -> None:
    """It is told with the setting where the user may ask for that, and is well where he may not."""
    acl = tmp_path / "users.acl"
    acl.write_text(f"user default on nopass ~* +@all\nuser raylens on nopass {RIGHTS}\n")
    with RealServer(kind, "--maxmemory", "2gb", "--aclfile", str(acl)) as server:
        large = found("redis", tmp_path, server.url)
        assert (large.status, large.found.partition(": ")[2]) == ("warning", "2.0 GiB at most, values of 512 MiB")
        assert "proto-max-bulk-len to 2mb" in large.remedy
        assert found("redis", tmp_path, f"unix://raylens:any@{server.socket}").status == "ok"
