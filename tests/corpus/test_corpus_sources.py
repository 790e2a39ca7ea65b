"""Files of every format, cut into units of every size: each row exactly once, against csv, json and pyarrow."""

import csv
import gzip
import json
import os
import random
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from e5.corpus.errors import CorpusError
from e5.corpus.sources import Columns, Row, SourceFile, cut, find, read

COLUMNS = Columns("text", "title", "id")
HARD = [
    'a "quoted" cell',
    "two\nlines",
    "two\r\nlines",
    'ends with "',
    ",",
    "日本\u2028語",
    "🙂",
    " spaces ",
    "x" * 3000,
]


def records(count: int) -> list[dict[str, str]]:
    rng = random.Random(0)
    return [
        {"id": f"row-{index}", "title": f"t{index % 7}", "text": f"{rng.choice(HARD)} {index}", "other": "no"}
        for index in range(count)
    ]


def write_csv(path: Path, rows: list[dict[str, str]], delimiter: str = ",", line_end: str = "\n") -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["other", "text", "id", "title"], delimiter=delimiter, lineterminator=line_end)
        writer.writeheader()
        writer.writerows(rows)


def write_jsonl(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")


def write_parquet(path: Path, rows: list[dict[str, str]]) -> None:
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=max(1, len(rows) // 3))


WRITERS: dict[str, Callable[[Path, list[dict[str, str]]], None]] = {
    "a.csv": write_csv,
    "windows.csv": lambda path, rows: write_csv(path, rows, line_end="\r\n"),
    "a.tsv": lambda path, rows: write_csv(path, rows, "\t"),
    "a.jsonl": write_jsonl,
    "a.parquet": write_parquet,
}


def rows_of(file: SourceFile, unit_bytes: int, columns: Columns = COLUMNS) -> list[Row]:
    units = cut(0, file, columns, unit_bytes)
    assert all(unit.records > 0 for unit in units)
    assert [unit.first for unit in units[1:]] == [unit.first + unit.records for unit in units[:-1]]
    return [row for unit in units for row in read(file, unit, columns)]


@pytest.mark.parametrize("count", [1, 2, 50])
@pytest.mark.parametrize("name", WRITERS)
def test_every_row_is_read_exactly_once(tmp_path: Path, name: str, count: int) -> None:
    WRITERS[name](tmp_path / name, rows := records(count))
    (file,) = find([str(tmp_path / name)])
    expected = [Row(row["id"], f"{row['title']} {row['text']}".strip()) for row in rows]
    for unit_bytes in (1, 10, 333, 4096, 10**9):
        assert rows_of(file, unit_bytes) == expected
    assert len(cut(0, file, COLUMNS, 1)) >= count
    assert len(cut(0, file, COLUMNS, 10**9)) == (
        1 if name != "a.parquet" else pq.ParquetFile(tmp_path / name).num_row_groups
    )


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_compressed_files_are_cut_like_plain_ones(tmp_path: Path, name: str, ending: str) -> None:
    WRITERS[name](tmp_path / name, records(60))
    content = (tmp_path / name).read_bytes()
    packed = gzip.compress(content) if ending == ".gz" else zstandard.ZstdCompressor().compress(content)
    (tmp_path / (name + ending)).write_bytes(packed)
    plain, compressed = find([str(tmp_path / name), str(tmp_path / (name + ending))])
    assert cut(0, plain, COLUMNS, 700) == cut(0, compressed, COLUMNS, 700)
    assert rows_of(plain, 700) == rows_of(compressed, 700)


def test_cuts_do_not_depend_on_the_size_of_a_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_csv(tmp_path / "a.csv", records(200))
    (file,) = find([str(tmp_path / "a.csv")])
    expected = {size: cut(0, file, COLUMNS, size) for size in (1, 500, 5_000)}
    for block in (1, 7, 64, 1000):
        monkeypatch.setattr("e5.corpus.sources.BLOCK", block)
        assert {size: cut(0, file, COLUMNS, size) for size in expected} == expected


def test_lines_of_a_text_file_are_rows(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffone\n\n two \r\n  \nthr\u0085ee".encode())
    (file,) = find([str(tmp_path / "a.txt")])
    for unit_bytes in (1, 6, 100):
        rows = rows_of(file, unit_bytes, Columns())
        assert rows == [Row("a.txt:1", "one"), Row("a.txt:3", "two"), Row("a.txt:5", "thr\u0085ee")]
    for unit_bytes in (1, 100):
        assert sum(unit.records for unit in cut(0, file, Columns(), unit_bytes)) == 5


def test_rows_without_a_text_have_the_reason(tmp_path: Path) -> None:
    lines = [
        b'{"text": "a"}',
        b"nonsense",
        b"[1]",
        b'{"text": null}',
        b'{"id": 1}',
        b'{"text": 3}',
        b'{"text": "\xff"}',
    ]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    (file,) = find([str(tmp_path / "a.jsonl")])
    rows = rows_of(file, 10, Columns())
    assert [row.id for row in rows] == [f"a.jsonl:{line}" for line in range(1, 8)]
    assert [row.text for row in rows] == ["a", None, None, None, None, 3, "\udcff"]
    for row, words in zip(rows[1:5], ("not JSON", "not a JSON object", "missing or null", "missing"), strict=True):
        assert words in str(row.problem)
    (tmp_path / "a.csv").write_text("text,id\na,1\nb\nc,3\n")
    (file,) = find([str(tmp_path / "a.csv")])
    rows = rows_of(file, 1, Columns(id="id"))
    assert [(row.id, row.text) for row in rows] == [("1", "a"), ("a.csv:3", None), ("3", "c")]
    assert rows[1].problem == "the row has 1 cells, the header 2"


def test_folders_globs_and_names(tmp_path: Path) -> None:
    for name in ("x/a.txt", "x/deep/b.jsonl.gz", "x/ignored.md", "y/a.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("one\n")
    assert [file.name for file in find([str(tmp_path)])] == ["x/a.txt", "x/deep/b.jsonl.gz", "y/a.txt"]
    assert [file.name for file in find([str(tmp_path / "*" / "a.txt")])] == ["x/a.txt", "y/a.txt"]
    once = find([str(tmp_path / "x"), str(tmp_path / "x" / "a.txt"), f"file://{tmp_path}/x/a.txt"])
    assert [file.name for file in once] == ["a.txt", "deep/b.jsonl.gz"]
    assert (once[1].format, once[1].compression) == ("jsonl", "gzip")


@pytest.mark.parametrize(
    ("name", "words"),
    [("none.txt", "has no files of texts"), ("a.pdf", "of no known format"), ("a.parquet.gz", "of no known format")],
)
def test_inputs_that_cannot_be_read_are_refused(tmp_path: Path, name: str, words: str) -> None:
    if name != "none.txt":
        (tmp_path / name).write_text("x")
    with pytest.raises(CorpusError, match=words):
        find([str(tmp_path / name)])


def test_broken_files_and_missing_columns_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 nonsense")
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"x\n" * 1000)[:-9])
    write_parquet(tmp_path / "b.parquet", records(3))
    write_csv(tmp_path / "b.csv", records(3))
    for name in ("a.parquet", "a.txt.gz"):
        (file,) = find([str(tmp_path / name)])
        with pytest.raises(CorpusError, match="cannot be read"):
            cut(0, file, Columns(), 10)
    for name in ("b.parquet", "b.csv"):
        (file,) = find([str(tmp_path / name)])
        with pytest.raises(CorpusError, match=r"has no column `body`: it has .*text"):
            rows_of(file, 100, Columns("body"))


def test_file_that_has_become_shorter_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one\ntwo\nthree\n")
    (file,) = find([str(path)])
    units = cut(0, file, Columns(), 1)
    os.truncate(path, 6)
    with pytest.raises(CorpusError, match="is shorter than when the run was planned"):
        list(read(file, units[-1], Columns()))
