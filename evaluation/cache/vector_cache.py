"""Document vectors on disk: a killed evaluation resumes, and tasks with the same documents encode them once.

FEVER and ClimateFEVER share 5.4 million documents, which one CPU encodes in days. A folder holds four files:

- cache.json: dimensions, dtype and format, checked at each start
- vectors: rows of little-endian float32 or float16
- keys: 16 bytes of each text's SHA-256 (`evaluation.cache.key_index`)
- lock: held by the process that uses the folder

Vectors are on disk before their keys are written, and opening cuts both files to the rows that both hold completely.
A kill or a power failure in the middle of an append therefore loses that append and nothing else. The cache does not
know what else a vector depends on (model, revision, token limit, prompt): the caller has one folder for each.
"""

import errno
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Literal, Self

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from e5.vectors import Vectors, check_finite
from e5.weights.files import read_json
from evaluation.cache.key_index import ABSENT, KEY_BYTES, KEY_DTYPE, KeyIndex, Keys, Rows, keys_of
from evaluation.cache.row_file import RowFile
from evaluation.errors import StoppedError

FORMAT = 1
Dtype = Literal["float32", "float16"]
DTYPES: dict[Dtype, np.dtype[np.floating]] = {"float32": np.dtype("<f4"), "float16": np.dtype("<f2")}
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)


def row_bytes(dimensions: int, dtype: Dtype) -> int:
    """The bytes on the disk that one text takes."""
    return dimensions * DTYPES[dtype].itemsize + KEY_BYTES


class CacheError(StoppedError):
    """The cache cannot be used as asked, or cannot grow. The message says the cause and the cure."""


class VectorCache:
    """Vectors of texts in a folder. Used by one thread of one process at a time.

    >>> with VectorCache(Path("cache/e5-small"), 384, "float16") as cache:
    ...     missing = [text for text, row in zip(texts, cache.find(texts)) if row == ABSENT]
    ...     cache.append(missing, embed(missing))
    ...     vectors = cache.read(cache.find(texts))
    """

    def __init__(self, folder: Path, dimensions: int, dtype: Dtype) -> None:
        """Open the folder, or create it. Raises CacheError, e.g. if another process uses it or it holds another dtype.

        Memory: 24 bytes a row while it is open.
        """
        self.folder, self.dimensions, self._dtype = folder, dimensions, DTYPES[dtype]
        self._count = 0
        self._index = KeyIndex()
        with ExitStack() as stack, self._translate_errors():
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(_locked(folder))
            _check_header(folder, {"format": FORMAT, "dimensions": dimensions, "dtype": dtype})
            self._vectors = stack.enter_context(RowFile(folder / "vectors", dimensions * self._dtype.itemsize))
            self._keys = stack.enter_context(RowFile(folder / "keys", KEY_BYTES))
            self._count = min(len(self._vectors), len(self._keys))
            self._cut()
            keys = np.fromfile(folder / "keys", KEY_DTYPE).reshape(-1, 2)
            self._index.add(keys, first_row=0)
            self._resources = stack.pop_all()

    def __len__(self) -> int:
        """The number of rows."""
        return self._count

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files and release the lock. A second call does nothing."""
        self._resources.close()

    def find(self, texts: Sequence[str]) -> Rows:
        """The row of each text, or ABSENT (-1), [N]."""
        return self._index.find(keys_of(texts))

    def read(self, rows: Rows) -> Vectors:
        """The vectors of `rows` in their order, float32 [N, dimensions]. Consecutive rows are read at once.

        Raises IndexError for a row that does not exist, such as ABSENT, and CacheError if the disk fails.
        """
        if len(rows) and not 0 <= rows.min() <= rows.max() < self._count:
            raise IndexError(f"rows {rows.min()} to {rows.max()} of a cache with {self._count} rows")
        order = np.argsort(rows, kind="stable")
        ascending = rows[order]
        stored = np.empty((len(rows), self.dimensions), self._dtype)
        starts = np.flatnonzero(np.diff(ascending, prepend=-2) != 1).tolist()
        with self._translate_errors():
            for begin, end in zip(starts, [*starts[1:], len(rows)], strict=False):  # no rows: no starts, but one end
                self._vectors.read_into(stored[begin:end], int(ascending[begin]))
        vectors = np.empty(stored.shape, np.float32)
        vectors[order] = stored
        return vectors

    def append(self, texts: Sequence[str], vectors: Vectors) -> None:
        """Store `vectors` [N, dimensions], one for each text. They are on the disk when this returns.

        A text that is already there, or that is twice in `texts`, keeps its first vector. Nothing is stored if this
        raises: FloatingPointError for NaN or infinity, CacheError for a value that float16 cannot hold or a disk that
        is full.
        """
        if vectors.shape != (len(texts), self.dimensions):
            raise ValueError(f"this is a bug: vectors {vectors.shape} for {len(texts)} texts of {self.dimensions}")
        check_finite(vectors)
        keys = keys_of(texts)
        first = np.sort(np.unique(keys, axis=0, return_index=True)[1])
        new = first[self._index.find(keys[first]) == ABSENT]
        if not len(new):
            return
        with np.errstate(over="ignore"):
            stored = vectors[new].astype(self._dtype, order="C")
        # Stored as infinity, it would silently spoil every score of this document.
        if not np.isfinite(stored).all():
            raise CacheError(
                f"{self.folder}: a vector has the value {np.abs(vectors[new]).max():.6g}, and the largest of float16 "
                "is 65504: use a cache of float32"
            )
        first_row = self._count
        self._write(stored, keys[new])
        self._index.add(keys[new], first_row)

    def _write(self, stored: NDArray[np.floating], keys: Keys) -> None:
        try:
            with self._translate_errors():
                self._vectors.write(self._count, stored)
                self._keys.write(self._count, keys)
                self._count += len(stored)
        except BaseException:  # also Ctrl-C: old keys behind the end would claim the next append's vectors
            self._cut_or_close()
            raise

    def _cut_or_close(self) -> None:
        try:
            self._cut()
        except OSError:
            self.close()  # the next start cuts

    def _cut(self) -> None:
        """Cut both files to the rows that are complete. Keys first: a key without its vector must never exist."""
        self._keys.cut(self._count)
        self._vectors.cut(self._count)

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        """Turn errors of the disk into CacheError with cause and cure."""
        try:
            yield
        except EOFError:
            problem = "`vectors` became shorter while it was open"
            raise CacheError(f"{self.folder}: {problem}: let no other program write it, and run again") from None
        except OSError as error:
            cure = "check the disk, or name a folder on another one with --cache"
            if error.errno in NO_SPACE:
                cure = "free space, or copy it to a larger disk and name that with --cache; running again resumes"
            elif error.errno in NOT_WRITABLE:
                cure = "allow this user to write it, or name another folder with --cache"
            kept = f"; the {self._count:,} vectors before are kept" if self._count else ""
            raise CacheError(f"{self.folder} cannot be used ({error}{kept}): {cure}") from error


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    lock = FileLock(folder / "lock", thread_local=False)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise CacheError(
            f"{folder} is in use by another evaluation, and two may not write the same vectors: wait until it ends, "
            "or name another folder with --cache"
        ) from None
    try:
        yield
    finally:
        lock.release()


def _check_header(folder: Path, header: dict[str, object]) -> None:
    """Require the header of this cache; write it if the folder has none. Raises CacheError."""
    path = folder / "cache.json"
    if not path.exists():
        if (folder / "vectors").exists():
            problem = "is missing, so nothing says what the vectors there are"
            raise CacheError(f"{path} {problem}: delete {folder}, or name another with --cache")
        new = path.with_suffix(".new")
        with new.open("w", encoding="utf-8") as file:
            json.dump(header, file)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
        return
    try:
        stored = read_json(path)
    except ValueError as error:
        raise CacheError(f"{path} is broken ({error}): delete {folder}, or name another with --cache") from None
    if different := [name for name in header if stored.get(name) != header[name]]:
        found, asked = (", ".join(f"{name} {each.get(name)}" for name in different) for each in (stored, header))
        raise CacheError(f"{folder} holds vectors of {found}, not {asked}: name another folder with --cache")
