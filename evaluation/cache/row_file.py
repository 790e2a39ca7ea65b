"""A file of rows of the same length, written at the end and cut to complete rows."""

import os
from io import FileIO
from pathlib import Path
from typing import Any, Self

from numpy.typing import NDArray


class RowFile:
    """Rows of `row_bytes` bytes. Every method raises OSError if the disk fails or is full."""

    def __init__(self, path: Path, row_bytes: int) -> None:
        """Open the file, or create it empty."""
        path.touch()
        self._file = FileIO(path, "r+")  # unbuffered: a kill loses nothing that `write` was given
        self._row_bytes = row_bytes

    def __len__(self) -> int:
        """The number of complete rows."""
        return os.fstat(self._file.fileno()).st_size // self._row_bytes

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, row: int, rows: NDArray[Any]) -> None:
        """Write contiguous `rows` from number `row` on. Returns when they are on the disk."""
        self._file.seek(row * self._row_bytes)
        rest = rows.data.cast("B")
        while rest:  # a nearly full disk takes a part before it fails
            rest = rest[self._file.write(rest) :]
        os.fsync(self._file.fileno())

    def read_into(self, rows: NDArray[Any], row: int) -> None:
        """Fill contiguous `rows` with the file's rows from number `row` on. Raises EOFError if the file is shorter."""
        self._file.seek(row * self._row_bytes)
        rest = rows.data.cast("B")
        while rest:  # Linux reads at most 2 GiB at once
            length = self._file.readinto(rest)
            if not length:
                raise EOFError
            rest = rest[length:]

    def cut(self, rows: int) -> None:
        """Remove everything behind the first `rows` rows."""
        if os.fstat(self._file.fileno()).st_size != rows * self._row_bytes:
            self._file.truncate(rows * self._row_bytes)
            os.fsync(self._file.fileno())
