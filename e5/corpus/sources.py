"""Input files: find them, cut them into ranges of records, and read a range's rows.

Parquet, JSONL, CSV, TSV and txt; all but Parquet may be compressed with gzip or zstd. fsspec opens the files, so they
may be local or in a bucket. A record of a text file is a line; in CSV a quoted cell may have several.
"""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import PurePosixPath
from typing import Any

import fsspec
import numpy as np
import pyarrow.parquet as pq

from e5.corpus.errors import CorpusError

FORMATS = {
    ".parquet": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".txt": "txt",
}
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
BLOCK = 8 * 2**20
BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class SourceFile:
    """`url`: as fsspec opens it. `version`: changes with the content: ETag, or the time of the last change in ns."""

    url: str
    name: str
    format: str
    compression: str | None
    size: int
    version: str


@dataclass(frozen=True)
class Range:
    """Consecutive records of a file. `offset`, `length`: bytes of the uncompressed text; 0 for Parquet."""

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


@dataclass(frozen=True)
class Row:
    """One record. `text` is what the input has there, of any type, and `problem` why there is none."""

    id: str
    text: object
    problem: str | None = None


def find(inputs: Sequence[str]) -> list[SourceFile]:
    """The files of paths, URLs, folders and globs, sorted. Raises CorpusError for none, and for other formats."""
    found: dict[str, SourceFile] = {}
    for given in inputs:
        try:
            filesystem, path = fsspec.core.url_to_fs(given)
            if filesystem.isdir(path):
                paths = [each for each in filesystem.find(path) if _format(each)]
            elif "*" in path or "?" in path or "[" in path:
                paths = [each for each in filesystem.glob(path) if not filesystem.isdir(each)]
            else:
                paths = [path] if filesystem.exists(path) else []
        except (OSError, ValueError, ImportError) as error:
            raise CorpusError(f"{given} cannot be read: {error}") from None
        if not paths:
            raise CorpusError(f"{given} has no files of texts: name {', '.join(FORMATS)} files, folders or globs")
        for each in paths:
            source = _describe(filesystem, each)
            found[source.url] = source
    files = [found[url] for url in sorted(found)]
    names = _short_names([file.url for file in files])
    return [SourceFile(**{**vars(file), "name": name}) for file, name in zip(files, names, strict=True)]


def _describe(filesystem: Any, path: str) -> SourceFile:
    kind = _format(path)
    if kind is None:
        raise CorpusError(f"{path} is of no known format: the names end in {', '.join(FORMATS)}, and .gz or .zst")
    info = filesystem.info(path)
    version = info.get("ETag") or info.get("etag") or info.get("mtime") or info.get("LastModified") or ""
    return SourceFile(filesystem.unstrip_protocol(path), path, *kind, int(info["size"] or 0), str(version))


def _format(path: str) -> tuple[str, str | None] | None:
    """Format and compression by the file's name; None for another kind of file."""
    suffixes = PurePosixPath(path.lower()).suffixes
    compression = COMPRESSIONS.get(suffixes[-1]) if suffixes else None
    rest = suffixes[:-1] if compression else suffixes
    kind = FORMATS.get(rest[-1]) if rest else None
    return None if kind is None or (kind == "parquet" and compression) else (kind, compression)


def _short_names(urls: Sequence[str]) -> list[str]:
    """The paths below the folder that all files share."""
    parts = [PurePosixPath(url).parts for url in urls]
    shared = 0
    while all(len(each) > shared + 1 and each[shared] == parts[0][shared] for each in parts):
        shared += 1
    return ["/".join(each[shared:]) for each in parts]


def cut(index: int, file: SourceFile, columns: Columns, unit_bytes: int) -> list[Range]:
    """Cut a file into ranges of about `unit_bytes` of text. `index`: its place in the plan. Raises CorpusError."""
    try:
        if file.format == "parquet":
            return _cut_parquet(index, file, columns, unit_bytes)
        return _cut_text(index, file, unit_bytes)
    except (OSError, EOFError, ValueError) as error:
        if isinstance(error, CorpusError):
            raise
        raise CorpusError(f"{file.url} cannot be read: {error}") from None


def _cut_parquet(index: int, file: SourceFile, columns: Columns, unit_bytes: int) -> list[Range]:
    with fsspec.open(file.url, "rb") as handle:
        metadata = pq.ParquetFile(handle).metadata
    ranges: list[Range] = []
    names = [metadata.schema.column(place).path for place in range(metadata.num_columns)]
    used = [names.index(name) for name in (columns.text, columns.title) if name in names]
    first = 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        size = sum(group.column(place).total_uncompressed_size for place in used)
        count = max(1, -(-size // unit_bytes))
        edges = np.linspace(0, group.num_rows, min(count, max(1, group.num_rows)) + 1).astype(int)
        for start, stop in pairwise(edges):
            if stop > start:
                ranges.append(Range(index, first + int(start), int(stop - start), 0, 0))
        first += group.num_rows
    return ranges


def _cut_text(index: int, file: SourceFile, unit_bytes: int) -> list[Range]:
    """One pass over the file. In CSV a line break is the end of a record if the quotes before it are even in number."""
    is_csv = file.format in ("csv", "tsv")
    ranges: list[Range] = []
    start = position = record = first = quotes = 0
    with _open(file) as handle:
        while block := handle.read(BLOCK):
            data = np.frombuffer(block, np.uint8)
            ends = np.flatnonzero(data == 10)
            if is_csv:
                before = np.cumsum(data == 34)
                ends = ends[(quotes + before[ends]) % 2 == 0]
                quotes += int(before[-1])
            done = 0
            while done < len(ends):
                # The first end of a record at or behind the size of a unit.
                place = int(np.searchsorted(ends, start + unit_bytes - 1 - position, "left"))
                if place >= len(ends):
                    break
                place = max(place, done)
                stop = position + int(ends[place]) + 1
                records = record + place - done + 1
                ranges.append(Range(index, first, records, start, stop - start))
                start, first, record, done = stop, first + records, 0, place + 1
            record += len(ends) - done
            position += len(block)
            is_ended = len(ends) > 0 and int(ends[-1]) == len(block) - 1
    if position > start:
        ranges.append(Range(index, first, record + (not is_ended), start, position - start))
    return ranges


def read(file: SourceFile, part: Range, columns: Columns) -> Iterator[Row]:
    """The rows of a range. Blank lines are no rows. Raises CorpusError for a column that the file does not have."""
    if file.format == "parquet":
        return _read_parquet(file, part, columns)
    content = _read_bytes(file, part)
    if file.format in ("csv", "tsv"):
        return _read_csv(file, part, columns, content)
    return _read_lines(file, part, columns, content)


def _read_parquet(file: SourceFile, part: Range, columns: Columns) -> Iterator[Row]:
    wanted = [name for name in (columns.text, columns.title, columns.id) if name]
    with fsspec.open(file.url, "rb") as handle:
        source = pq.ParquetFile(handle)
        _check_columns(file, wanted, source.schema_arrow.names)
        first = skip = 0
        groups: list[int] = []
        for number in range(source.metadata.num_row_groups):
            rows = source.metadata.row_group(number).num_rows
            if first < part.first + part.records and first + rows > part.first:
                skip = skip if groups else part.first - first
                groups.append(number)
            first += rows
        table = source.read_row_groups(groups, columns=wanted).slice(skip, part.records)
    values = {name: table.column(name).to_pylist() for name in wanted}
    for place in range(table.num_rows):
        yield _row(file, part.first + place, {name: column[place] for name, column in values.items()}, columns)


def _read_csv(file: SourceFile, part: Range, columns: Columns, content: bytes) -> Iterator[Row]:
    delimiter = "\t" if file.format == "tsv" else ","
    header = _header(file, delimiter)
    wanted = [name for name in (columns.text, columns.title, columns.id) if name]
    _check_columns(file, wanted, header)
    lines = io.StringIO(content.decode("utf-8", "surrogateescape"), newline="")
    for place, cells in enumerate(csv.reader(lines, delimiter=delimiter)):
        number = part.first + place
        if number == 0 or not cells:  # the header
            continue
        if len(cells) != len(header):
            problem = f"the row has {len(cells)} cells, the header {len(header)}"
            yield Row(_default_id(file, number), None, problem)
        else:
            yield _row(file, number, dict(zip(header, cells, strict=True)), columns)


def _read_lines(file: SourceFile, part: Range, columns: Columns, content: bytes) -> Iterator[Row]:
    for place, line in enumerate(content.split(b"\n")):
        number = part.first + place
        if not line.strip():
            continue
        text = line.decode("utf-8", "surrogateescape").strip()
        if file.format == "txt":
            yield Row(_default_id(file, number), text)
            continue
        try:
            record = json.loads(text)
        except (ValueError, RecursionError) as error:
            yield Row(_default_id(file, number), None, f"the line is not JSON: {error}")
            continue
        if not isinstance(record, dict):
            yield Row(_default_id(file, number), None, "the line is not a JSON object")
        else:
            yield _row(file, number, record, columns)


def _row(file: SourceFile, number: int, record: dict[str, Any], columns: Columns) -> Row:
    text, problem = record.get(columns.text), None
    if text is None:
        problem = f"`{columns.text}` is missing or null"
    elif columns.title and isinstance(text, str) and isinstance(title := record.get(columns.title), str):
        text = f"{title} {text}".strip()
    name = record.get(columns.id) if columns.id else _default_id(file, number)
    if name is None:
        return Row(_default_id(file, number), None, f"`{columns.id}` is missing or null")
    return Row(str(name), text, problem)


def _default_id(file: SourceFile, number: int) -> str:
    return f"{file.name}:{number + 1}"


def _check_columns(file: SourceFile, wanted: Iterable[str], names: Sequence[str]) -> None:
    for name in wanted:
        if name not in names:
            raise CorpusError(f"{file.url} has no column `{name}`: it has {', '.join(names)}")


def _header(file: SourceFile, delimiter: str) -> list[str]:
    with _open(file) as handle, io.TextIOWrapper(handle, "utf-8-sig", "surrogateescape", newline="") as lines:
        return next(csv.reader(lines, delimiter=delimiter), [])


def _read_bytes(file: SourceFile, part: Range) -> bytes:
    """The range's bytes. A compressed file is read from its beginning."""
    with _open(file) as handle:
        if file.compression is None:
            handle.seek(part.offset)
        else:
            left = part.offset
            while left and (skipped := len(handle.read(min(left, BLOCK)))):
                left -= skipped
        content: bytes = handle.read(part.length)
    if len(content) != part.length:
        raise CorpusError(f"{file.url} is shorter than when the run was planned: use another --out for a changed input")
    return content.removeprefix(BOM) if part.offset == 0 else content


def _open(file: SourceFile) -> Any:
    return fsspec.open(file.url, "rb", compression=file.compression).open()
