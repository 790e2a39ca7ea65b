"""What a file without a name is: its format, its columns, and whether its texts are documents or queries."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from e5.corpus.rows import Columns
from e5.errors import InputError
from e5.serving.recognize import Layout, recognize

ALL = Columns("text", "title", "id")


@pytest.mark.parametrize(
    ("content", "layout"),
    [
        ('{"text": "a"}\n', Layout("jsonl", Columns("text"), "document")),
        ('\ufeff\n\n{"id": 1, "title": "t", "text": "a"}\n', Layout("jsonl", ALL, "document")),
        ('{"query": "a", "other": 1}\n', Layout("jsonl", Columns("query"), "query")),
        ('{"text": "a\u2028b"}\n', Layout("jsonl", Columns("text"), "document")),
        ('{"text": "a"}\n{"text": "b", "id": 1, "title": "t"}\n', Layout("jsonl", ALL, "document")),
        (json.dumps({"text": "漢" * 500_000}, ensure_ascii=False), Layout("jsonl", Columns("text"), "document")),
        ("text\na\n", Layout("csv", Columns("text"), "document")),
        ("id,text,title\n1,a,b\n", Layout("csv", ALL, "document")),
        ('\n"id","query"\n1,a\n', Layout("csv", Columns("query", id="id"), "query")),
        ("\ufeffid\ttext\n1\ta, b\n", Layout("tsv", Columns("text", id="id"), "document")),
        ("a text of one line, with text in it\n", Layout("txt", Columns(), "document")),
        ("[1] a note\n", Layout("txt", Columns(), "document")),
        ("the query\n", Layout("txt", Columns(), "document")),
    ],
)
@pytest.mark.parametrize("name", ["file", "file.bin", "file.txt"])
def test_format_is_recognized_by_the_content(tmp_path: Path, content: str, layout: Layout, name: str) -> None:
    path = tmp_path / name
    path.write_text(content, "utf-8")
    assert recognize(path) == layout


def test_parquet(tmp_path: Path) -> None:
    pq.write_table(pa.table({"title": ["t"], "text": ["a"], "id": [1], "more": [2]}), tmp_path / "file.txt")
    assert recognize(tmp_path / "file.txt") == Layout("parquet", ALL, "document")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a", b"", "has no text in its first 8 MiB"),
        ("a", b" \n\t\n", "has no text"),
        ("a", gzip.compress(b"a", mtime=0), "is compressed: unpack it"),
        ("a", b"PK\x03\x04xx", "is compressed"),
        ("a", "a".encode("utf-16"), "is UTF-16: convert it"),
        ("a", b"PAR1xx", "is not readable Parquet"),
        ("a", b'[{"text": "a"}]', "not JSONL: write one object a line"),
        ("a", b'[\n {"text": "a"}\n]', "first line is no JSON object"),
        ("a", b'{\n "text": "a"\n}', "first line is no JSON object"),
        ("a.jsonl", b'"a"\n', "not JSONL"),
        ("a.jsonl", b"a\n", "first line is no JSON object"),
        (
            "a.csv",
            b"body\na\n",
            "neither of the columns `text`, for documents, and `query`, for queries: its columns are",
        ),
        ("a", b'{"id": 1}\n', "its columns are id"),
        ("a", b"text,query\na,b\n", "has both columns"),
        ("a", b"id;text\n1;a\n", "looks like a table with the columns id, text: separate them by commas or tabs"),
        ("a", b"Id,Text\n1,a\n", "and call the one with the texts `text`"),
        ("a", json.dumps({f"c{index}": 1 for index in range(50)}).encode(), r"c19, …; rename"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=words):
        recognize(path)
