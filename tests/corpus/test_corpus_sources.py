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
from e5.corpus.rows import Columns, Row, cut, read
from e5.corpus.sources import SourceFile, find

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
    first = 1 if name.endswith("sv") else 0  # a header is record 0
    expected = [Row(number, row["id"], f"{row['title']} {row['text']}") for number, row in enumerate(rows, first)]
    for unit_bytes in (1, 10, 333, 4096, 10**9):
        assert rows_of(file, unit_bytes) == expected
    assert len(cut(0, file, COLUMNS, 1)) >= count
    assert len(cut(0, file, COLUMNS, 10**9)) == 1
    for unit_records in (1, 7, 49):
        units = cut(0, file, COLUMNS, 10**9, unit_records)
        assert max(unit.records for unit in units) <= unit_records
        assert sum(unit.records for unit in units) == count + first
        assert len(units) <= 2 * -(-(count + first) // unit_records)


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


def test_lines_of_a_text_file_are_rows(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffone\n\n two \r\n  \nthr\u0085ee".encode())
    (file,) = find([str(tmp_path / "a.txt")])
    for unit_bytes in (1, 6, 100):
        rows = rows_of(file, unit_bytes, Columns())
        assert rows == [Row(0, "a.txt:1", "one"), Row(2, "a.txt:3", " two "), Row(4, "a.txt:5", "thr\u0085ee")]
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
    assert rows[1].problem == "the row has 1 cells, the header has 2"


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
    (tmp_path / "a.txt.zst").write_bytes(zstandard.ZstdCompressor().compress(b"x\n" * 100_000)[:-9])
    (tmp_path / "b.txt.zst").write_bytes(b"nonsense")
    (tmp_path / "c.txt.gz").write_bytes(b"nonsense")
    for name in ("a.txt.zst", "b.txt.zst", "c.txt.gz"):
        (file,) = find([str(tmp_path / name)])
        with pytest.raises(CorpusError, match="cannot be read"):
            cut(0, file, Columns(), 10)
    (tmp_path / "a.txt").write_bytes("x".encode("utf-16"))
    (file,) = find([str(tmp_path / "a.txt")])
    with pytest.raises(CorpusError, match="is UTF-16"):
        cut(0, file, Columns(), 10)
    for name in ("b.parquet", "b.csv"):
        (file,) = find([str(tmp_path / name)])
        with pytest.raises(CorpusError, match=r"has no column `body`: it has .*text"):
            cut(0, file, Columns("body"), 100)


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        ('text,id\na 5" disk,1\n"two\nlines",2\n"three\nlines",3\n', ['a 5" disk', "two\nlines", "three\nlines"]),
        ('text,id\n"a ""b"" c",1\n"",2\n" , ",3', ['a "b" c', "", " , "]),
        ('\ufeff"text",id\r\na,1\r\n\r\nb,2\r\n', ["a", "b"]),
        ("\n\nid,text\n1,a\n2,b", ["a", "b"]),
        ('id,text\n1,"' + "x" * 300_000 + '"\n2,b\n', ["x" * 300_000, "b"]),
        ('id,text\n1,"never closed\n2,b\n', ["never closed\n2,b\n"]),
    ],
    ids=["quote in a cell", "doubled quotes", "BOM and blank lines", "blank first lines", "long cell", "open quote"],
)
def test_units_of_any_size_read_csv_alike(tmp_path: Path, content: str, rows: list[str]) -> None:
    (tmp_path / "a.csv").write_bytes(content.encode())
    (file,) = find([str(tmp_path / "a.csv")])
    whole = rows_of(file, 10**9, Columns())
    assert [row.text for row in whole] == rows
    for unit_bytes in (1, 9, 30):
        assert rows_of(file, unit_bytes, Columns()) == whole


def test_a_lone_carriage_return_costs_one_row(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"text,id\na,1\nb\rc,2\nd,3\n")
    (file,) = find([str(tmp_path / "a.csv")])
    for unit_bytes in (1, 10**9):
        rows = rows_of(file, unit_bytes, Columns())
        assert [row.id for row in rows] == ["a.csv:2", "a.csv:3", "a.csv:4"]
        assert "new-line character" in str(rows[1].problem) and [rows[0].text, rows[2].text] == ["a", "d"]


def test_zstd_files_of_several_frames_are_read_to_the_end(tmp_path: Path) -> None:
    pack = zstandard.ZstdCompressor().compress
    lines = [f"line {index}\n".encode() for index in range(1000)]
    (tmp_path / "a.txt.zst").write_bytes(pack(b"".join(lines[:500])) + pack(b"") + pack(b"".join(lines[500:])))
    (file,) = find([str(tmp_path / "a.txt.zst")])
    for unit_bytes in (700, 10**9):
        assert [row.text for row in rows_of(file, unit_bytes, Columns())] == [f"line {index}" for index in range(1000)]


def test_parquet_of_bytes_and_ids_that_are_not_unicode(tmp_path: Path) -> None:
    columns = {"text": [b"one", b"\xff", "drei ü".encode()], "id": [b"1", b"2", b"3"]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_text('{"id": "\\ud800", "text": "a"}\n{"id": 7, "text": "b"}\n')
    parquet, lines = (find([str(tmp_path / name)])[0] for name in ("a.parquet", "a.jsonl"))
    rows = rows_of(parquet, 100, Columns(id="id"))
    assert [(row.id, row.text) for row in rows] == [("1", "one"), ("a.parquet:2", None), ("3", "drei ü")]
    rows = rows_of(lines, 100, Columns(id="id"))
    assert [(row.id, row.text) for row in rows] == [("a.jsonl:1", None), ("7", "b")]
    assert rows[0].problem == "the row is not valid Unicode"


def test_title_does_not_make_a_text_of_a_blank_one(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"title": "t", "text": " "}\n{"title": "t", "text": "x"}\n')
    (file,) = find([str(tmp_path / "a.jsonl")])
    assert [row.text for row in rows_of(file, 100, Columns(title="title"))] == [" ", "t x"]


def test_hidden_files_the_output_and_odd_names(tmp_path: Path) -> None:
    names = ("a[1].txt", "b.txt", "._c.txt", "_temporary/0/d.txt", ".ipynb_checkpoints/e.txt", "out/f.parquet")
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x\n")
    found = find([str(tmp_path)], without=f"file://{tmp_path}/out")
    assert [file.name for file in found] == ["a[1].txt", "b.txt"]
    assert [file.name for file in find([str(tmp_path / "a[1].txt")])] == ["a[1].txt"]


def test_small_row_groups_are_joined_and_large_ones_cut(tmp_path: Path) -> None:
    table = pa.table({"text": pa.array(["x" * 100] * 6000)})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=10, use_dictionary=False, compression="none")
    pq.write_table(table, tmp_path / "b.parquet", row_group_size=6000, use_dictionary=False, compression="none")
    for file in find([str(tmp_path)]):
        sizes = [unit.records for unit in cut(0, file, Columns(), 104 * 1000)]
        assert sum(sizes) == 6000 and 6 <= len(sizes) <= 8
        assert max(sizes) <= 1001


def test_file_that_has_become_shorter_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one\ntwo\nthree\n")
    (file,) = find([str(path)])
    units = cut(0, file, Columns(), 1)
    os.truncate(path, 6)
    with pytest.raises(CorpusError, match="has changed since the run was planned"):
        list(read(file, units[-1], Columns()))
