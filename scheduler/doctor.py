"""What a run needs of the machine, each looked at by trying it, with the remedy where it is not as it should be."""

import importlib.metadata
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from raylens import __version__
from raylens.scheduler.requirements import requirements
from raylens.storage.cores import cores
from raylens.storage.counted import counted
from raylens.storage.errors import RaylensError
from raylens.storage.temporary import temporary

Status = Literal["ok", "warning", "problem"]
GIB = 1 << 30
#: Free memory and disk below which a warning is given.
LITTLE_MEMORY, LITTLE_DISK = 4 * GIB, 5 * GIB
#: Shared memory that a local Ray needs beside its 200 MB of objects.
SHARED_MEMORY = 512 << 20
#: Bytes of a temporary folder's path that leave room for the names of Ray's sockets, of which a path may have 107.
TMPDIR_BYTES = 40
#: A character of each script that needs a font beyond DejaVu Sans.
_SCRIPTS = {"Chinese": "漢", "Japanese": "あ", "Korean": "한", "Devanagari": "अ", "Thai": "ก", "emoji": "🎉"}


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found of one thing.

    Attributes:
        remedy: what to do; empty where nothing is to be done.
    """

    name: str
    status: Status
    found: str
    remedy: str = ""


def examine(store: Path, redis: str, ray: str) -> Iterator[Finding]:
    """Each thing in turn, as it is known.

    Args:
        store: where runs are to go; need not exist.
        redis, ray: as of ``raylens run``.
    """
    missing = _missing()
    yield _versions(missing)
    if missing:  # which the others import
        return
    try:
        temporary(tempfile.gettempdir)
    except RaylensError as error:  # without it torch cannot be imported, nor server or Ray start
        problem, _, remedy = str(error).partition("; ")
        yield Finding("temporary folder", "problem", problem, remedy)
        return
    checks: tuple[Callable[[], Finding], ...] = (
        _devices,
        _compiled,
        _memory,
        _shared_memory,
        _temporary_folder,
        lambda: _disk(store),
        _fonts,
        _demo_model,
        lambda: _redis(redis),
        lambda: _ray(ray),
    )
    for check in checks:
        yield check()


def _missing() -> list[str]:
    """Packages that raylens asks for and that are not installed."""
    return [one.name for one in requirements() if not any(importlib.metadata.Distribution.discover(name=one.name))]


def _versions(missing: list[str]) -> Finding:
    """Python, and every package that raylens asks for, against its range."""
    needed = requirements()
    versions = {one.name: importlib.metadata.version(one.name) for one in needed if one.name not in missing}
    wrong = [
        f"{one.name} {versions[one.name]}, needs {one.specifier}"
        for one in needed
        if one.name in versions and not one.specifier.contains(versions[one.name], prereleases=True)
    ]
    wrong += [f"{name} is missing" for name in missing]
    some = [f"{name} {versions[name]}" for name in ("torch", "transformers", "ray") if name in versions]
    found = f"Python {platform.python_version()}, {', '.join([f'raylens {__version__}', *some])}"
    if wrong:
        return Finding("versions", "problem", f"{found}; {'; '.join(wrong)}", "pip install --upgrade raylens")
    return Finding("versions", "ok", f"{found}; all {len(needed)} packages in range")


def _devices() -> Finding:
    import torch

    if torch.cuda.is_available():
        gpus = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
        names = ", ".join(f"{gpu.name} ({gpu.total_memory / GIB:.0f} GiB)" for gpu in gpus)
        return Finding("devices", "ok", f"{cores()} CPU cores; {names}")
    found = f"{cores()} CPU cores, no GPU that torch can use"
    if shutil.which("nvidia-smi"):
        return Finding("devices", "problem", f"{found}, though the machine has nvidia-smi", "install a CUDA build of torch")
    return Finding("devices", "ok", found)


def _compiled() -> Finding:
    from raylens.workers.running import not_compiled

    if why := not_compiled():
        what = f"cannot be used ({why}): the lens takes several times as long"
        return Finding("compiled code", "warning", what, "unset it" if why.endswith("is set") else "pip install --upgrade numba")
    return Finding("compiled code", "ok", f"numba {importlib.metadata.version('numba')}")


def _memory() -> Finding:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return Finding("memory", "ok", "not known on this system")
    fields = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
    free, total = fields["MemAvailable"], fields["MemTotal"]
    found = f"{free / GIB:.1f} of {total / GIB:.1f} GiB free"
    remedy = "stop what else runs, or use fewer --actors and --dtype bfloat16"
    return Finding("memory", "warning", found, remedy) if free < LITTLE_MEMORY else Finding("memory", "ok", found)


def _shared_memory() -> Finding:
    folder = Path("/dev/shm")  # noqa: S108  not a file of ours, but the system's shared memory
    if not folder.exists():
        return Finding("shared memory", "ok", "no /dev/shm on this system")
    free = shutil.disk_usage(folder).free
    found = f"{free / GIB:.1f} GiB free in /dev/shm"
    if free >= SHARED_MEMORY:
        return Finding("shared memory", "ok", found)
    return Finding("shared memory", "problem", found, "a local Ray needs 512 MiB: in a container, docker run --shm-size 1g")


def _temporary_folder() -> Finding:
    folder = tempfile.gettempdir()
    if len(os.fsencode(folder)) <= TMPDIR_BYTES:
        return Finding("temporary folder", "ok", folder)
    found = f"{folder} is too long for the sockets of Ray and Valkey"
    return Finding("temporary folder", "problem", found, f"set TMPDIR to a folder of at most {TMPDIR_BYTES} bytes, such as /tmp")


def _disk(store: Path) -> Finding:
    try:
        there = _nearest(store.absolute())
    except OSError as error:
        return Finding("store", "problem", f"{store} cannot be used ({error.strerror})", "choose another --store")
    free = shutil.disk_usage(there).free
    found = f"{free / GIB:.0f} GiB free for {store}"
    if not there.is_dir() or not os.access(there, os.W_OK):
        return Finding("store", "problem", f"{there} cannot be written", "choose another --store, or correct its owner")
    if free < LITTLE_DISK:
        return Finding("store", "warning", found, "choose a larger disk by --store")
    return Finding("store", "ok", found)


def _nearest(path: Path) -> Path:
    """A path, or the first folder above it that is there."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return _nearest(path.parent)
    return path


def _fonts() -> Finding:
    from raylens.storage.fonts import choose_fonts

    fonts = choose_fonts()
    lacking = [script for script, character in _SCRIPTS.items() if fonts.drawable(character) != character]
    if not lacking:
        return Finding("fonts", "ok", "pictures can draw " + ", ".join(_SCRIPTS))
    remedy = "install Noto fonts (fonts-noto-cjk, fonts-noto-core), or give --font; pages and the terminal have their own"
    return Finding("fonts", "warning", f"pictures draw {', '.join(lacking)} as code points", remedy)


def _demo_model() -> Finding:
    from raylens.workers.settings import ModelSettings
    from raylens.workers.source import resolve

    try:
        return Finding("demo model", "ok", resolve(ModelSettings("demo")).label)
    except RaylensError as error:
        return Finding("demo model", "warning", str(error), "only --model demo needs it")


def _redis(address: str) -> Finding:
    from raylens.scheduler.broker import Broker
    from raylens.storage.stream import MAX_VALUE_BYTES
    from raylens.storage.urls import redact

    name = "embedded server" if address == "embedded" else f"server {redact(address)}"
    try:
        with Broker(address) as broker:
            memory, largest = broker.memory(), broker.largest_value()
    except RaylensError as error:
        return Finding("redis", "problem", str(error), "correct --redis, or leave it out for the embedded server")
    limit = f"{memory.limit / GIB:.1f} GiB at most" if memory.limit else "no memory limit"
    if not memory.limit:
        return Finding("redis", "warning", f"{name}: {limit}", "set its maxmemory, or a slow writer may fill the machine")
    if largest is not None and largest > MAX_VALUE_BYTES:
        remedy = f"set its proto-max-bulk-len to {MAX_VALUE_BYTES >> 20}mb, or a stranger's value may fill the writer's memory"
        return Finding("redis", "warning", f"{name}: {limit}, values of {largest >> 20} MiB", remedy)
    return Finding("redis", "ok", f"{name}: {limit}, {memory.used / (1 << 20):.0f} MiB used")


def _ray(address: str) -> Finding:
    from raylens.scheduler.cluster import cluster, resources

    try:
        with cluster(address) as one:
            nodes = resources()
    except RaylensError as error:
        return Finding("ray", "problem", str(error), "correct --ray, or use --ray local")
    cpus = sum(node.get("CPU", 0.0) for node in nodes)
    return Finding("ray", "ok", f"{counted(len(nodes), 'node')}, {cpus:g} CPUs, {one.gpus:g} GPUs")
