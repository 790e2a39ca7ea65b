"""The rows of an input file: cut it into ranges of records, and read a range.

A record of a text file is a line; in CSV a quoted cell may have several.
"""

import csv
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from e5.corpus.compression import open_text
from e5.corpus.errors import CorpusError
from e5.corpus.sources import SourceFile, changed

BLOCK = 8 * 2**20
BOM = b"\xef\xbb\xbf"
UTF16 = (b"\xff\xfe", b"\xfe\xff")
PARQUET_ROWS = 64
"""Rows in memory while a row group is read: a file of a kilobyte may repeat one long text a million times."""
MAX_RECORDS = 2**31
UNREADABLE = (OSError, EOFError, ValueError, zlib.error, zstandard.ZstdError, pa.ArrowException)


@dataclass(frozen=True)
class Range:
    """Consecutive records of a file, blank lines included. `offset`, `length`: bytes of the text; 0 for Parquet."""

    file: int
    first: int
    records: int
    offset: int
    length: int


@dataclass(frozen=True)
class Columns:
    """Names of the input's columns. `title` goes in front of the text. Without `id`, an id is file name and row."""

    text: str = "text"
    title: str | None = None
    id: str | None = None

    @property
    def names(self) -> list[str]:
        return list(dict.fromkeys(name for name in (self.text, self.title, self.id) if name))


@dataclass(frozen=True)
class Row:
    """One record: its place in the file, and its text, of any type, or the problem why there is none."""

    number: int
    id: str
    text: object
    problem: str | None = None


def cut(
    index: int, file: SourceFile, columns: Columns, unit_bytes: int, unit_records: int = MAX_RECORDS
) -> list[Range]:
    """Cut a file into ranges of about `unit_bytes` of text, at most `unit_records` records. Raises CorpusError.

    `index`: the file's place in the plan.
    """
    try:
        if file.format == "parquet":
            return list(_cut_parquet(index, file, columns, unit_bytes, unit_records))
        return list(_cut_text(index, file, columns, unit_bytes, unit_records))
    except UNREADABLE as error:
        raise CorpusError(f"{file.url} cannot be read: {error}") from None


def _cut_parquet(index: int, file: SourceFile, columns: Columns, unit_bytes: int, unit_records: int) -> Iterator[Range]:
    """Large row groups are cut into equal parts, and small ones joined."""
    with fsspec.open(file.url, "rb") as handle:
        source = pq.ParquetFile(handle)
        metadata = source.metadata
        _check_columns(file, columns.names, source.schema_arrow.names)
    first = records = size = 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        chunks = [group.column(place) for place in range(group.num_columns)]
        texts = [each for each in chunks if each.path_in_schema in (columns.text, columns.title)]
        group_bytes = sum(each.total_uncompressed_size for each in texts)
        parts = min(group.num_rows, max(1, -(-group_bytes // unit_bytes), -(-group.num_rows // unit_records)))
        for start, stop in pairwise(np.linspace(0, group.num_rows, parts + 1).astype(int).tolist()):
            part_bytes = group_bytes // parts
            if records and (size + part_bytes > unit_bytes or records + stop - start > unit_records):
                yield Range(index, first, records, 0, 0)
                first, records, size = first + records, 0, 0
            records, size = records + stop - start, size + part_bytes
    if records:
        yield Range(index, first, records, 0, 0)


def _cut_text(index: int, file: SourceFile, columns: Columns, unit_bytes: int, unit_records: int) -> Iterator[Range]:
    if file.format in ("csv", "tsv"):
        _check_columns(file, columns.names, _header(file)[0])
    start = first = position = number = 0
    with open_text(file.url, file.compression) as handle:
        if handle.read(2) in UTF16:
            raise CorpusError(f"{file.url} is UTF-16: convert it to UTF-8")
    for number, position in enumerate(_ends(file), 1):
        if position - start >= unit_bytes or number - first >= unit_records:
            yield Range(index, first, number - first, start, position - start)
            start, first = position, number
    if position > start:
        yield Range(index, first, number - first, start, position - start)


def _ends(file: SourceFile) -> Iterator[int]:
    """Where each record ends, in bytes."""
    with open_text(file.url, file.compression) as handle:
        if file.format in ("csv", "tsv"):
            lines = _Lines(handle)
            for _ in _csv_records(lines, _delimiter(file)):
                yield lines.position
        else:
            position = 0
            for line in handle:
                position += len(line)
                yield position


class _Lines:
    """The lines of a file as text, for csv, and how many bytes have been taken."""

    def __init__(self, lines: Iterable[bytes]) -> None:
        self._lines, self.position = lines, 0

    def __iter__(self) -> Iterator[str]:
        for line in self._lines:
            text = line if self.position else line.removeprefix(BOM)
            self.position += len(line)
            yield text.decode("utf-8", "surrogateescape")


def _csv_records(lines: Iterable[str], delimiter: str) -> Iterator[list[str] | str]:
    """The cells of each record, or the problem with it. Cutting and reading use this alike, so records never differ."""
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(iter(lines), delimiter=delimiter)
    while True:
        try:
            yield next(reader)
        except csv.Error as error:
            yield str(error)
        except StopIteration:
            return


def read(file: SourceFile, part: Range, columns: Columns) -> Iterator[Row]:
    """The rows of a range. Blank lines and a header are no rows.

    Raises CorpusError if the file is not what it was when it was cut.
    """
    if file.format == "parquet":
        yield from _read_parquet(file, part, columns)
        return
    records, lines = 0, _split(_read_bytes(file, part))
    reader = _read_csv if file.format in ("csv", "tsv") else _read_lines
    for records, row in enumerate(reader(file, part, columns, lines), 1):  # noqa: B007 – used after the loop
        if row is not None:
            yield row
    if records != part.records:
        raise changed(file)


def _split(content: bytes) -> list[bytes]:
    """Lines with their ends. bytes.splitlines() also splits at a carriage return."""
    lines = content.split(b"\n")
    return [line + b"\n" for line in lines[:-1]] + ([lines[-1]] if lines[-1] else [])


def _read_parquet(file: SourceFile, part: Range, columns: Columns) -> Iterator[Row]:
    stop, number = part.first + part.records, 0
    with fsspec.open(file.url, "rb") as handle:
        source = pq.ParquetFile(handle)
        _check_columns(file, columns.names, source.schema_arrow.names)
        first, groups, skip = 0, list[int](), 0
        for group in range(source.metadata.num_row_groups):
            rows = source.metadata.row_group(group).num_rows
            if rows and first < stop and first + rows > part.first:
                skip = skip if groups else first
                groups.append(group)
            first += rows
        number = skip
        for batch in source.iter_batches(PARQUET_ROWS, row_groups=groups, columns=columns.names) if groups else ():
            low, high = max(part.first - number, 0), min(stop - number, batch.num_rows)
            if low < high:
                values = {name: batch.column(name).slice(low, high - low).to_pylist() for name in columns.names}
                for place in range(high - low):
                    record = {name: column[place] for name, column in values.items()}
                    yield _row(file, number + low + place, record, columns)
            number += batch.num_rows
            if number >= stop:
                break
    if number < stop:
        raise changed(file)


def _read_csv(file: SourceFile, part: Range, columns: Columns, lines: list[bytes]) -> Iterator[Row | None]:
    header, place = _header(file)
    for number, record in enumerate(_csv_records(_Lines(lines), _delimiter(file)), part.first):
        if number <= place or not record:
            yield None
        elif isinstance(record, str):
            yield Row(number, _default_id(file, number), None, f"the row cannot be read: {record}")
        elif len(record) != len(header):
            problem = f"the row has {len(record)} cells, the header has {len(header)}"
            yield Row(number, _default_id(file, number), None, problem)
        else:
            yield _row(file, number, dict(zip(header, record, strict=True)), columns)


def _read_lines(file: SourceFile, part: Range, columns: Columns, lines: list[bytes]) -> Iterator[Row | None]:
    for number, line in enumerate(lines, part.first):
        text = line.decode("utf-8", "surrogateescape").removesuffix("\n").removesuffix("\r")
        if not text.strip():
            yield None
        elif file.format == "txt":
            yield Row(number, _default_id(file, number), text)
        else:
            yield _read_json(file, number, text, columns)


def _read_json(file: SourceFile, number: int, text: str, columns: Columns) -> Row:
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        return Row(number, _default_id(file, number), None, f"the line is not JSON: {error}")
    if not isinstance(record, dict):
        return Row(number, _default_id(file, number), None, "the line is not a JSON object")
    return _row(file, number, record, columns)


def _row(file: SourceFile, number: int, record: dict[str, Any], columns: Columns) -> Row:
    name = _default_id(file, number)
    try:
        text = _decoded(record.get(columns.text))
        title = _decoded(record.get(columns.title)) if columns.title else None
        if columns.id:
            given = _decoded(record.get(columns.id))
            if given is None:
                return Row(number, name, None, f"`{columns.id}` is missing or null")
            str(given).encode()
            name = str(given)
    except UnicodeError:
        return Row(number, name, None, "the row is not valid Unicode")
    if text is None:
        return Row(number, name, None, f"`{columns.text}` is missing or null")
    if isinstance(text, str) and text.strip() and isinstance(title, str) and title:
        text = f"{title} {text}"
    return Row(number, name, text)


def _decoded(value: object) -> object:
    """Some writers of Parquet store texts as bytes."""
    return value.decode() if isinstance(value, bytes) else value


def _default_id(file: SourceFile, number: int) -> str:
    name = file.name.encode("utf-8", "replace").decode()
    return f"{name}:{number + 1}" if name else str(number + 1)


def _check_columns(file: SourceFile, wanted: Iterable[str], names: Sequence[str]) -> None:
    for name in wanted:
        if names.count(name) != 1:
            state = "no" if name not in names else "more than one"
            raise CorpusError(f"{file.url} has {state} column `{name}`: it has {', '.join(names) or 'none'}")


def _header(file: SourceFile) -> tuple[list[str], int]:
    """The cells of the first record that is not blank, and its place; no cells and -1 if there is none."""
    with open_text(file.url, file.compression) as handle:
        for place, record in enumerate(_csv_records(_Lines(handle), _delimiter(file))):
            if record and isinstance(record, list):
                return record, place
    return [], -1


def _delimiter(file: SourceFile) -> str:
    return "\t" if file.format == "tsv" else ","


def _read_bytes(file: SourceFile, part: Range) -> bytes:
    """The range's bytes. A compressed file is read from its beginning."""
    with open_text(file.url, file.compression) as handle:
        if file.compression is None:
            handle.seek(part.offset)
        else:
            left = part.offset
            while left and (skipped := len(handle.read(min(left, BLOCK)))):
                left -= skipped
        content: bytes = handle.read(part.length)
    if len(content) != part.length:
        raise changed(file)
    return content.removeprefix(BOM) if part.offset == 0 else content
