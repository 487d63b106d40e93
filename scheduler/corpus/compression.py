"""gzip and zstd as streams that give the plain bytes."""

import gzip
import io
from typing import Any, BinaryIO, cast

import zstandard

# A hostile block of 4 bytes can hold 128 KiB: 512 bytes in mean at most 16 MiB out. Larger reads are hardly faster on text.
_INPUT_BYTES = 512
# Public corpora are often compressed with --long=31.
_WINDOW_BYTES = 1 << 31


class _ZstdReader(io.RawIOBase):
    """Plain bytes of any number of zstd frames; EOFError if the last one is cut short, which zstandard's own reader hides."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self._input = b""
        self._output = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._output:
            if not self._decompress():
                return 0
        size = min(len(buffer), len(self._output))
        buffer[:size] = self._output[:size]
        self._output = self._output[size:]
        return size

    def _decompress(self) -> bool:
        """Decompress some more; False at the end."""
        data = self._input or self._raw.read(_INPUT_BYTES)
        if not data:
            if self._frame is not None:
                raise EOFError("the file ends inside a zstd frame")
            return False
        if self._frame is None:
            self._frame = zstandard.ZstdDecompressor(max_window_size=_WINDOW_BYTES).decompressobj()
        self._output = memoryview(self._frame.decompress(data))
        self._input = b""
        if self._frame.eof:
            self._input = self._frame.unused_data
            self._frame = None
        return True


def decompressed(raw: BinaryIO, compression: str) -> BinaryIO:
    """The plain bytes of ``raw``; ``compression`` is ``.gz``, ``.zst`` or empty."""
    if compression == ".gz":
        return cast(BinaryIO, gzip.GzipFile(fileobj=raw))
    if compression == ".zst":
        return cast(BinaryIO, io.BufferedReader(_ZstdReader(raw), 1 << 17))
    return raw
