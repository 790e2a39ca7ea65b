"""What the input `file` is, from its content: a file that came as a data URL has no name.

Its columns have fixed names: `text` for documents or `query` for queries, and if they are there, `id` and `title`.
"""

import csv
import itertools
import json
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from e5.corpus.plan import Side
from e5.corpus.rows import BOM, UTF16, Columns
from e5.errors import InputError

FIRST_BYTES = 8 * 2**20
"""What is looked at: more than the longest text may have."""
FIRST_LINES = 1000
"""Lines of JSONL whose keys count as columns."""
SIDES: dict[str, Side] = {"text": "document", "query": "query"}
"""Column of the texts → what they are."""
OPTIONAL = ("id", "title")
COMPRESSED = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PK\x03\x04", b"BZh", b"\xfd7zXZ\x00")  # gzip, zstd, zip, bzip2, xz


class Layout(NamedTuple):
    """How to read a file. `format`: as in `e5.corpus.sources.FORMATS`."""

    format: str
    columns: Columns
    side: Side


def recognize(path: Path) -> Layout:
    """The format and columns of a file. Raises InputError for one of another kind, and OSError."""
    with path.open("rb") as file:
        start = file.read(FIRST_BYTES)
    if start.startswith(COMPRESSED):
        raise InputError("`file` is compressed: unpack it, or pass Parquet")
    if start.startswith(UTF16):
        raise InputError("`file` is UTF-16: convert it to UTF-8")
    kind, names = _parquet(path) if start.startswith(b"PAR1") else _text(path.suffix.lower(), start)
    if kind == "txt":
        return Layout(kind, Columns(), "document")
    found = [name for name in SIDES if name in names]
    if len(found) != 1:
        state = "both columns" if found else "neither of the columns"
        raise InputError(f"`file` has {state} `text`, for documents, and `query`, for queries: {_listed(names)}")
    optional = {name: name for name in OPTIONAL if name in names}
    return Layout(kind, Columns(found[0], **optional), SIDES[found[0]])


def _parquet(path: Path) -> tuple[str, list[str]]:
    try:
        return "parquet", list(pq.read_schema(path).names)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"`file` is not readable Parquet ({error}): write it again") from None


def _text(suffix: str, start: bytes) -> tuple[str, list[str]]:
    """Format and names of the columns; of txt none."""
    text = start.removeprefix(BOM).decode("utf-8", "replace")
    first = next((line for line in text.split("\n") if line.strip()), "").strip()
    if not first:
        raise InputError("`file` has no text in its first 8 MiB: pass JSONL, CSV, txt or Parquet")
    if suffix in (".jsonl", ".ndjson", ".json") or first.startswith(("{", "[{")) or first == "[":
        return "jsonl", _keys(text, first)
    for kind, delimiter in (("csv", ","), ("tsv", "\t")):
        header = _header(text, delimiter)
        if suffix == f".{kind}" or any(cell in SIDES for cell in header):
            return kind, header
    for delimiter in (",", "\t", ";"):
        cells = [cell.strip() for cell in _header(text, delimiter)]
        if len(cells) > 1 and any(cell.lower() in SIDES for cell in cells):
            raise InputError(
                f"`file` looks like a table with the columns {', '.join(cells)[:200]}: separate them by commas or "
                "tabs, and call the one with the texts `text`, or `query`"
            )
    return "txt", []


def _keys(text: str, first: str) -> list[str]:
    try:
        record = json.loads(first)
    except (ValueError, RecursionError) as error:
        raise InputError(f"`file` is JSON, but its first line is no JSON object ({error}): pass JSONL") from None
    if not isinstance(record, dict):
        raise InputError("`file` is JSON, but not JSONL: write one object a line")
    keys = dict.fromkeys(record)
    for line in text.split("\n")[1:FIRST_LINES]:
        try:
            keys |= dict.fromkeys(json.loads(line))
        except (ValueError, RecursionError, TypeError):  # the last line may be cut, and bad ones are named later
            continue
    return list(keys)


def _header(text: str, delimiter: str) -> list[str]:
    try:
        rows = csv.reader(text.splitlines(keepends=True), delimiter=delimiter)
        return next(itertools.filterfalse(lambda row: not row, rows), [])
    except csv.Error:
        return []


def _listed(names: list[str]) -> str:
    listed = ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
    return f"its columns are {listed}; rename one of them"
