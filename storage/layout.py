"""Where things lie in a store: ``STORE/runs/RUN/...`` (docs/FORMAT.md)."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from raylens.storage.durable import fsync_folder, make_folder, not_through_links, store_errors
from raylens.storage.errors import StoreError
from raylens.storage.paths import is_text


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The paths of one run."""

    root: Path

    @property
    def manifest(self) -> Path:
        return self.root / "run.json"

    @property
    def certificate(self) -> Path:
        return self.root / "certificate.json"

    @property
    def vocabulary(self) -> Path:
        return self.root / "vocabulary.msgpack.zst"

    @property
    def commits(self) -> Path:
        return self.root / "commits"

    @property
    def records(self) -> Path:
        return self.root / "records"

    @property
    def tables(self) -> Path:
        return self.root / "tables"

    @property
    def quarantine(self) -> Path:
        return self.root / "quarantine"

    @property
    def damaged(self) -> Path:
        return self.root / "damaged"

    @property
    def wants_external_writer(self) -> Path:
        return self.root / "writer.external"

    @property
    def pulse(self) -> Path:
        return self.root / "driver.json"

    @property
    def cancel(self) -> Path:
        return self.root / "cancel"

    @property
    def writer_log(self) -> Path:
        return self.root / "writer.log"

    @property
    def is_run(self) -> bool:
        """Whether a run was begun here: where run.json was lost, its commits say so. None has a name that is not UTF-8."""
        if not is_text(self.root.name):
            return False
        # Unlike Path's methods, these say False of a name that is too long.
        return os.path.exists(self.manifest) or (os.path.isdir(self.commits) and any(self.commits.glob("*.json")))  # noqa: PTH110, PTH112

    def create(self) -> None:
        """Make the folders.

        Raises:
            StoreError: they cannot be made.
        """
        try:
            for folder in (self.commits, self.records, self.tables, self.quarantine):
                make_folder(folder)
        except OSError as error:
            raise StoreError(f"{self.root}: cannot be written ({error.strerror}); choose another --store") from error

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run for one driver; the kernel lets go when the process dies.

        Raises:
            StoreError: another process on this machine is doing this run, or its folder cannot be written.
        """
        self.create()
        with self._hold("lock", fcntl.LOCK_EX, "run is in use by process {holder}; wait for it or stop it") as descriptor:
            with store_errors(self.root):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
            yield

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the run as one of its writers, between whom the ledger decides.

        Raises:
            StoreError: the run is being repaired or moved.
        """
        with self._hold("writer.lock", fcntl.LOCK_SH, "run is being repaired or moved; wait for it"):
            yield

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the run with neither driver nor writer at work on this machine, to move its files.

        Raises:
            StoreError: one of them is at work.
        """
        with (
            self.lock(),
            self._hold("writer.lock", fcntl.LOCK_EX, "a writer of the run is still working; wait for it or stop it"),
        ):
            yield

    def move_aside(self) -> "RunFolder":
        """Give the folder the first free name ``RUN.old-N``; where it is now.

        Raises:
            StoreError: a driver or writer is at work in it.
        """
        with self.alone(), store_errors(self.root):
            self.wants_external_writer.unlink(missing_ok=True)
            number = 1
            while (target := self.root.with_name(f"{self.root.name}.old-{number}")).exists():
                number += 1
            self.root.rename(target)
            fsync_folder(target.parent)
        return RunFolder(target)

    @contextmanager
    def _hold(self, name: str, kind: int, refusal: str) -> Iterator[int]:
        self._refuse_links()
        path = self.root / name
        with store_errors(path):
            descriptor = not_through_links(str(path), os.O_RDWR | os.O_CREAT)
        try:
            try:
                fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(descriptor, 64, 0).decode(errors="replace").strip() or "unknown"
                raise StoreError(f"{self.root}: {refusal.format(holder=holder)}") from None
            except OSError as error:  # a file system without them
                raise StoreError(
                    f"{path}: cannot be locked ({error.strerror}); keep the store on a file system that can lock files"
                ) from error
            if not path.exists() or not os.path.samestat(os.fstat(descriptor), path.stat()):
                raise StoreError(f"{self.root}: run was moved just now; try again")
            yield descriptor
        finally:
            os.close(descriptor)

    def _refuse_links(self) -> None:
        """What is garbage here would be removed there; a store from elsewhere may have a link to a folder of one's own."""
        for folder in (self.commits, self.records, self.tables, self.quarantine, self.damaged):
            if folder.is_symlink():
                raise StoreError(f"{folder}: a link, through which nothing is written; put the folder itself in its place")


def check_writable(store: Path) -> None:
    """Make the store's folder, and refuse one that cannot be written.

    Raises:
        StoreError: naming it.
    """
    try:
        make_folder(runs_folder(store))
    except OSError as error:
        raise StoreError(f"{store}: cannot be written ({error.strerror}); choose another folder for the store") from error
    if not os.access(runs_folder(store), os.W_OK):
        raise StoreError(f"{store}: cannot be written (Permission denied); choose another folder for the store")


def named_run(store: Path, name: str) -> RunFolder | None:
    """The run of exactly this name, which may be anything; None if there is none."""
    folder = RunFolder(runs_folder(store) / name)
    plain = name != ".." and folder.root.name == name and folder.root.parent == runs_folder(store)
    return folder if plain and folder.is_run else None


def runs_folder(store: Path) -> Path:
    """The folder that holds the runs of a store."""
    return store / "runs"
