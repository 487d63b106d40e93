"""The storage writer as a process of the driver's: started, restarted when it dies, ended with the run."""

import subprocess
import sys

import msgspec

from raylens.storage.cores import cores
from raylens.storage.durable import not_through_links, store_errors
from raylens.storage.errors import StoreError
from raylens.storage.layout import RunFolder
from raylens.storage.log import last_message
from raylens.storage.writer import Orders

#: Seconds a writer gets to commit what is complete.
FINISH_SECONDS = 120.0
#: Of the cores, one in so many may be used by a helper unless the user says how many: actors need the others.
CORES_A_HELPER = 4
#: Deaths without a commit in between, after which the run is given up.
MAX_DEATHS = 5


def helpers_here(asked: int | None) -> int:
    """How many helpers a writer on this machine may have."""
    return cores() // CORES_A_HELPER if asked is None else asked


class WriterProcess:
    """Owns the writer process of one run. Its input is a pipe: when this process dies, the writer ends too.

    Args:
        folder: of the run.
        redis: URL of the server.
        helpers: processes that may make segments for it; None chooses by the machine's cores.

    Attributes:
        remedy: what a user may do when nothing is stored: nothing, it is restarted.
        restarts: times that it died and was started again.
    """

    remedy = ""

    def __init__(self, folder: RunFolder, redis: str, helpers: int | None) -> None:
        self._folder = folder
        orders = Orders(str(folder.root.resolve()), redis, helpers_here(helpers))
        self._orders = msgspec.json.encode(orders) + b"\n"
        self._deaths = self.restarts = 0
        self._log_before = 0  # bytes of the log before this process's own
        self._process = self._start()

    def _start(self) -> "subprocess.Popen[bytes]":
        path = self._folder.writer_log
        with store_errors(path), open(path, "ab", opener=not_through_links) as log:
            self._log_before = log.tell()
            # -P: a redis.py in the working folder is not ours to import
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "raylens.storage.writer"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a Ctrl-C in the terminal is for the driver
            )
        assert process.stdin is not None
        process.stdin.write(self._orders)
        process.stdin.flush()
        return process

    def committed(self) -> None:
        """Tell that the writer has made progress."""
        self._deaths = 0

    def ask_again(self) -> None:
        """Nothing: it is started again where it has ended."""

    def ensure_alive(self) -> None:
        """Restart the writer if it died.

        Raises:
            StoreError: it was fenced by a rival, or dies each time.
        """
        code = self._process.poll()
        if code is None:
            return
        self._deaths += 1
        if code == StoreError.exit_code or self._deaths >= MAX_DEATHS:
            raise StoreError(self._told(code))
        if self._process.stdin is not None:
            self._process.stdin.close()
        self.restarts += 1
        self._process = self._start()

    def _told(self, code: int) -> str:
        log = self._folder.writer_log
        unsaid = f"killed by signal {-code}" if code < 0 else "its log says nothing; is the disk full, or the run's folder gone?"
        return f"the writer ended with code {code}: {last_message(log, self._log_before) or unsaid} (see {log})"

    def tell_to_end(self) -> None:
        """Let the writer commit what is complete, and end."""
        if self._process.stdin is not None:
            self._process.stdin.close()

    def finish(self, seconds: float = FINISH_SECONDS) -> str:
        """Tell the writer to end, and wait until it has; what went wrong, or nothing."""
        self.tell_to_end()
        try:
            code = self._process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return f"the writer did not end within {seconds:.0f} s, and was killed (see {self._folder.writer_log})"
        return self._told(code) if code else ""

    def __enter__(self) -> "WriterProcess":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        at_once = kind is not None and issubclass(kind, KeyboardInterrupt)  # the second Ctrl-C
        self.finish(0 if at_once else FINISH_SECONDS)
