"""Reads the files of local data sets: JSONL, tables, judgements. Errors name the file and the line."""

import csv
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from evaluation.errors import EvaluationError


def documents(path: Path, fields: tuple[str, ...]) -> dict[str, list[str]]:
    columns: dict[str, list[str]] = {name: [] for name in ("id", *fields)}
    seen: set[str] = set()
    for number, line in enumerate(_lines(path), 1):
        try:
            record = json.loads(line)
            values = [str(record.get("_id", record.get("id"))), *(record.get(name) or "" for name in fields)]
            valid = isinstance(record, dict) and all(isinstance(value, str) for value in values) and values[0] != "None"
            "".join(values).encode()
        except (ValueError, AttributeError, TypeError):
            valid = False
        if not valid:
            cause = 'not a JSON object with "_id" and "text" as strings'
            raise EvaluationError(f"{path}, line {number}: {cause}: {line[:60]!r}")
        if values[0] in seen:
            raise EvaluationError(f"{path}, line {number}: the _id {values[0]!r} is there twice")
        seen.add(values[0])
        for column, value in zip(columns.values(), values, strict=True):
            column.append(value)
    if not seen:
        raise EvaluationError(f"{path} is empty")
    return columns


def judgements(path: Path, queries: set[str], documents: set[str]) -> dict[str, dict[str, int]]:
    grades: dict[str, dict[str, int]] = {}
    for number, row in enumerate(records(path), 1):
        if len(row) == 4:  # TREC's format has a column that is not used
            row = [row[0], *row[2:]]
        if number == 1 and not row[-1].lstrip("-").isdecimal():
            continue
        if len(row) != 3 or not row[2].lstrip("-").isdecimal():
            cause = "not query, document and a whole number, separated by tabs"
            raise EvaluationError(f"{path}, line {number}: {cause}: {row}")
        query, document, grade = row
        for kind, name, known_names in (("query", query, queries), ("document", document, documents)):
            if name not in known_names:
                raise EvaluationError(f"{path}, line {number}: no {kind} has the _id {name!r}")
        grades.setdefault(query, {})[document] = int(grade)
    if not grades:
        raise EvaluationError(f"{path} has no judgements")
    return grades


def table_rows(path: Path, names: tuple[str, ...]) -> Iterator[tuple[int, list[str]]]:
    """The rows of a table with their numbers, without a header: the named columns, or all if no header names them."""
    order: list[int] | None = None
    count = 0
    for number, row in enumerate(records(path), 1):
        cells = [cell.strip().lower() for cell in row]
        named = set(names) <= set(cells)
        if number == 1 and (named or cells[0] in names):
            order = [cells.index(name) for name in names] if named else None
            continue
        picked = row if order is None else [row[index] for index in order if index < len(row)]
        if len(picked) != len(names):
            raise EvaluationError(f"{path}, row {number} has {len(row)} columns, not {', '.join(names)}: {row}")
        count += 1
        yield number, picked
    if not count:
        raise EvaluationError(f"{path} has no rows")


def records(path: Path) -> Iterator[list[str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            tabs = path.suffix == ".tsv"
            reader = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE) if tabs else csv.reader(file, strict=True)
            yield from filter(None, reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _unreadable(path, error) from error


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            yield from (line for line in file if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from error


def digest(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> EvaluationError:
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return EvaluationError(f"{path} cannot be read: {reason}")
