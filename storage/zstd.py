"""Compressors of small parts: making one takes longer than using it, and of one only a single thread may use it."""

import threading

import zstandard


class _OfThread(threading.local):
    """Of each thread its own."""

    def __init__(self) -> None:
        self.compress = zstandard.ZstdCompressor(level=1).compress
        self.decompress = zstandard.ZstdDecompressor().decompress


zstd = _OfThread()
