"""Open plain, gzip and zstd files. (fsspec's zstd reader stops at the end of a frame, and misses a missing end.)"""

import io
from typing import Any

import fsspec
import zstandard

BLOCK = 1 << 20


def open_text(url: str, compression: str | None) -> Any:
    """The uncompressed bytes of a file; read(n) returns n bytes unless the file ends. Raises OSError."""
    if compression != "zstd":
        return fsspec.open(url, "rb", compression=compression).open()
    return io.BufferedReader(_Zstd(fsspec.open(url, "rb").open()), BLOCK)


class _Zstd(io.RawIOBase):
    """All frames of a file, one after the other. A file that ends inside one raises EOFError."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._frame: Any = None
        self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            packed = self._frame.unused_data if self._frame is not None and self._frame.eof else b""
            packed = packed or self._file.read(BLOCK)
            if self._frame is not None and self._frame.eof:
                self._frame = None
            if not packed:
                if self._frame is not None:
                    raise EOFError("the file ends inside a zstd frame")
                return 0
            if self._frame is None:
                self._frame = zstandard.ZstdDecompressor().decompressobj()
            self._ready = self._frame.decompress(packed)
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def close(self) -> None:
        self._file.close()
        super().close()
