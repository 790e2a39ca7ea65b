"""Output files: one Parquet file of vectors for each unit, and one of rejected rows if there are any.

A file is written under a temporary name and renamed, so it is whole or absent. (An object store shows an object when it
is whole.) Its footer has the plan's id, the unit and the number of records. Pages have checksums.
"""

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from e5.corpus.errors import CorpusError
from e5.vectors import Vectors, to_int8, to_ubinary

VectorType = Literal["float32", "float16", "int8", "ubinary"]
DIMENSION_BYTES: dict[VectorType, float] = {"float32": 4, "float16": 2, "int8": 1, "ubinary": 1 / 8}
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class Footer:
    """What a part says of itself. `records`: of the unit; `texts`: with vectors; `vectors`: rows of the file."""

    plan: str
    unit: int
    records: int
    texts: int
    vectors: int
    rejected: int

    def to_metadata(self) -> dict[str, str]:
        return {f"e5.{name}": str(value) for name, value in vars(self).items()}

    @classmethod
    def of(cls, metadata: Any) -> "Footer | None":
        """The footer in a schema's metadata; None if it is of another program."""
        try:
            values = {name: (metadata or {})[f"e5.{name}".encode()].decode() for name in cls.__annotations__}
            return cls(values["plan"], *(int(values[name]) for name in list(values)[1:]))
        except (KeyError, ValueError):
            return None


class Folder:
    """An output folder, local or in a bucket."""

    def __init__(self, url: str) -> None:
        self.filesystem, self.path = fsspec.core.url_to_fs(url)
        self.url, self.full_url = url, self.filesystem.unstrip_protocol(self.path)
        self.is_local = isinstance(self.filesystem, fsspec.implementations.local.LocalFileSystem)

    def file(self, name: str) -> str:
        return f"{self.path}/{name}"

    def names(self) -> set[str]:
        """Names of the files in it; none if the folder does not exist."""
        self.filesystem.invalidate_cache()
        try:
            return {path.rpartition("/")[2] for path in self.filesystem.ls(self.path, detail=False)}
        except FileNotFoundError:
            return set()

    def read_text(self, name: str) -> str | None:
        try:
            return str(self.filesystem.cat_file(self.file(name)).decode())
        except FileNotFoundError:
            return None

    def open(self, name: str) -> Any:
        return self.filesystem.open(self.file(name), "rb")

    def remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.filesystem.rm_file(self.file(name))

    def write_new(self, name: str, content: bytes) -> None:
        """Write a file unless it exists. Raises CorpusError for a full disk."""
        if not self.is_local:
            with contextlib.suppress(FileExistsError):
                self.filesystem.pipe_file(self.file(name), content, mode="create")
            return
        with self.temporary(name) as path:
            path.write_bytes(content)
            try:
                os.link(path, self.file(name))
            except FileExistsError:
                pass
            except OSError:  # a file system without links
                with contextlib.suppress(FileExistsError), open(self.file(name), "xb") as file:  # noqa: PTH123
                    file.write(content)

    def write(self, name: str, table: pa.Table) -> None:
        """Write a Parquet file; one of that name is replaced. Raises CorpusError for a full disk."""
        options: dict[str, Any] = {"compression": "zstd", "write_page_checksum": True, "use_dictionary": False}
        if not self.is_local:
            buffer = pa.BufferOutputStream()  # not a file of fsspec: an error in the middle would upload a half
            pq.write_table(table, buffer, **options)
            self.filesystem.pipe_file(self.file(name), buffer.getvalue().to_pybytes())
            return
        with self.temporary(name) as path:
            with path.open("wb") as handle:
                pq.write_table(table, handle, **options)
                handle.flush()
                os.fsync(handle.fileno())
            path.replace(self.file(name))

    @contextlib.contextmanager
    def temporary(self, name: str) -> Iterator[Path]:
        """A path in the folder for a file that gets its name when it is whole; removed if it does not."""
        Path(self.path).mkdir(parents=True, exist_ok=True)
        path = Path(self.path) / f".{name}.{secrets.token_hex(4)}"
        try:
            yield path
        except OSError as error:
            if error.errno in NO_ROOM:
                cure = "free some space, and start the same command again"
                raise CorpusError(f"{self.path} is full ({error.strerror}): {cure}") from None
            raise
        finally:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


def part_name(plan: str, unit: int) -> str:
    return f"part-{unit:06}-{plan}.parquet"


def rejected_name(plan: str, unit: int) -> str:
    return f"rejected-{unit:06}-{plan}.parquet"


def table_of(
    ids: Sequence[str],
    vectors: Vectors,
    kind: VectorType,
    lengths: Sequence[int],
    truncated: Sequence[int],
    rows: Sequence[int],
    spans: Sequence[tuple[int, int]] | None = None,
) -> pa.Table:
    """The table of a part: id, vector, for int8 its scale, tokens before truncation, whether it was truncated, and row.

    `rows`: the places of the texts in their file. `spans`: for windows, the characters that each vector covers.
    """
    is_cut = np.zeros(len(ids), bool)
    is_cut[list(truncated)] = True
    columns: dict[str, Any] = {"id": pa.array(ids, pa.string())}
    values: np.ndarray[Any, Any] = vectors
    if kind == "float16":
        values = vectors.astype(np.float16)
    elif kind == "int8":
        values, scales = to_int8(vectors) if len(vectors) else (vectors.astype(np.int8), np.empty(0, np.float32))
        columns["scale"] = pa.array(scales)
    elif kind == "ubinary":
        values = to_ubinary(vectors)
    columns["vector"] = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
    columns["tokens"] = pa.array(lengths, pa.int32())
    columns["truncated"] = pa.array(is_cut)
    columns["row"] = pa.array(rows, pa.int64())
    if spans is not None:
        for place, name in enumerate(("start", "end")):
            columns[name] = pa.array([span[place] for span in spans], pa.int32())
    return pa.table(columns)


def rejected_table(rows: Sequence[tuple[str, str]], footer: Footer) -> pa.Table:
    """Ids of rows that were not embedded, and why."""
    columns = {"id": [row[0] for row in rows], "reason": [row[1] for row in rows]}
    schema = pa.schema([("id", pa.string()), ("reason", pa.string())])
    return pa.table(columns, schema=schema).replace_schema_metadata(footer.to_metadata())


def footer_of(folder: Folder, plan: str, unit: int, records: int) -> Footer | None:
    """The footer of a unit's part; None unless the file is there and its footer is as it has to be.

    Raises OSError if the file system does not answer.
    """
    try:
        with folder.open(part_name(plan, unit)) as handle:
            source = pq.ParquetFile(handle)
            footer = Footer.of(source.schema_arrow.metadata)
            rows = source.metadata.num_rows
    except FileNotFoundError:
        return None
    except (OSError, pa.ArrowException) as error:
        if getattr(error, "errno", None):  # Arrow's own errors of damaged files have none
            raise
        return None
    expected = (plan, unit, records, rows)
    return footer if footer and (footer.plan, footer.unit, footer.records, footer.vectors) == expected else None


def read_part(folder: Folder, plan: str, unit: int) -> pa.Table:
    """A unit's part, its checksums compared. Raises CorpusError if it is damaged, OSError if it cannot be read."""
    return _checked(folder, part_name(plan, unit))


def read_rejected(folder: Folder, plan: str, unit: int) -> pa.Table:
    """Like read_part() for the rows that a unit has rejected."""
    return _checked(folder, rejected_name(plan, unit))


def _checked(folder: Folder, name: str) -> pa.Table:
    with folder.open(name) as handle:
        content = handle.read()
    try:
        return pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True).read()
    except (OSError, pa.ArrowException) as error:
        raise CorpusError(f"{name} is damaged ({error}): `finish` removes it, and `run` makes it again") from None


def to_vectors(table: pa.Table, kind: VectorType) -> Vectors:
    """The vectors of a part as float32 [N, D]; bits become -1 and 1."""
    column = table.column("vector").combine_chunks()
    values = column.flatten().to_numpy(zero_copy_only=False).reshape(len(table), -1)
    if kind == "int8":
        scales: Vectors = table.column("scale").to_numpy()
        values = values.astype(np.float32) * scales[:, None]
    if kind == "ubinary":
        values = np.unpackbits(values, axis=1).astype(np.float32) * 2 - 1
    vectors: Vectors = values.astype(np.float32)
    return vectors
