"""Standard input, pipes and what is decompressed, in an unnamed temporary file, to be read more than once or from its end."""

import io
import os
import shutil
import tempfile
import weakref
from typing import Any, BinaryIO, cast

from raylens.storage.errors import InputError
from raylens.storage.temporary import temporary

_COPY_BYTES = 1 << 20


class _Reader(io.RawIOBase):
    """Reads a descriptor at its own offset, so that several readers share one file."""

    def __init__(self, spool: "Spool") -> None:
        self._spool = spool  # keeps the descriptor open
        self._offset = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._offset

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._offset, os.SEEK_END: self._spool.size}[whence]
        self._offset = base + offset
        return self._offset

    def readinto(self, buffer: Any) -> int:
        data = os.pread(self._spool.descriptor, len(buffer), self._offset)
        buffer[: len(data)] = data
        self._offset += len(data)
        return len(data)


class Spool:
    """A stream read to its end once.

    The file has no name, so nothing is left behind however the process ends.

    Args:
        stream: what to read.
        name: what to call it in errors.

    Raises:
        InputError: if there is no room for it.
        RaylensError: there is no temporary folder.
    """

    def __init__(self, stream: BinaryIO, name: str) -> None:
        try:
            with temporary(tempfile.TemporaryFile) as file:
                shutil.copyfileobj(stream, file, _COPY_BYTES)
                self.size = file.tell()
                file.flush()
                self.descriptor = os.dup(file.fileno())
        except OSError as error:
            if error.errno is None:  # not the system's: the stream is decompressed, and damaged
                raise
            remedy = f"make room in {tempfile.gettempdir()}, or save the input as a plain file and name it"
            raise InputError(name, f"cannot be read to its end and kept in a temporary file ({error.strerror})", remedy) from None
        weakref.finalize(self, os.close, self.descriptor)

    def open(self) -> BinaryIO:
        """A new reader from the start."""
        return cast(BinaryIO, io.BufferedReader(_Reader(self)))
