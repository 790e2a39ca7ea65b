"""The input `file` through Cog's real server: files of texts come back as Parquet with the library's vectors."""

import base64
import io
import itertools
import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from e5 import Embedder, normalize
from e5.corpus.parts import to_vectors
from e5.vectors import Vectors
from e5_cog.housekeeping import FILES
from e5_cog.server import Server, running
from tests.gateways import SETTINGS, Gateway, until
from tests.reference import relative_l2
from tests.web_server import web_server

LINE = "the tower is high and a recipe for soup needs water salt time paper music rain trains"
WORDS = LINE.split()
TASK = "Given a question, retrieve passages that answer it"
_ids = itertools.count()


def text_of(index: int) -> str:
    return " ".join(WORDS[(index * step) % len(WORDS)] for step in range(1, 4 + index % 40))


TEXTS = [text_of(index) for index in range(60)]


@pytest.fixture(scope="module")
def client(shared_gateway: Gateway) -> Iterator[httpx.Client]:
    assert shared_gateway.server is not None
    with httpx.Client(base_url=shared_gateway.server.url, timeout=120) as client:
        yield client


def data_url(content: bytes | str, kind: str = "application/octet-stream") -> str:
    content = content.encode() if isinstance(content, str) else content
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def jsonl(records: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def parquet(columns: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


def predict(client: httpx.Client, **inputs: object) -> dict[str, Any]:
    body = {"id": f"file-{next(_ids)}", "input": inputs}
    prediction: dict[str, Any] = client.post("/predictions", json=body).raise_for_status().json()
    return prediction


def table_of(prediction: dict[str, Any]) -> pa.Table:
    assert prediction["status"] == "succeeded", prediction
    start, _, content = prediction["output"]["file"].partition(";base64,")
    assert start.startswith("data:")
    return pq.read_table(io.BytesIO(base64.b64decode(content)))


def embedded(client: httpx.Client, **inputs: object) -> tuple[pa.Table, Vectors]:
    table = table_of(predict(client, **inputs))
    return table, to_vectors(table, "float32")


RECORDS = [{"id": f"r{index}", "text": text} for index, text in enumerate(TEXTS)]
AS_CSV = "id,text\n" + "".join(f'r{index},"{text}"\n' for index, text in enumerate(TEXTS))
AS_PARQUET = parquet({"id": [f"r{index}" for index in range(60)], "text": TEXTS})


@pytest.mark.parametrize(
    "url",
    [
        data_url(jsonl(RECORDS)),
        data_url(jsonl(RECORDS), "text/plain"),
        data_url(AS_CSV, "text/csv"),
        data_url(AS_CSV.replace(",", "\t"), "text/plain"),
        data_url(AS_PARQUET),
    ],
)
def test_file_of_documents_has_the_library_s_vectors(client: httpx.Client, library: Embedder, url: str) -> None:
    prediction = predict(client, file=url)
    table = table_of(prediction)
    assert table.column("id").to_pylist() == [f"r{index}" for index in range(60)]
    assert relative_l2(to_vectors(table, "float32"), library.embed_documents(TEXTS)) < 1e-5
    lengths = library.tokenize([], TEXTS, "").lengths
    assert table.column("tokens").to_pylist() == lengths
    assert table.column("truncated").to_pylist() == [False] * 60
    output, metrics = prediction["output"], prediction["metrics"]
    assert (output["tokens"], output["truncated"], output["embeddings"], output["score"]) == ([], [], None, None)
    assert (metrics["texts"], metrics["input_tokens"], metrics["model"]) == (60, sum(lengths), "e5-mistral-tiny")
    assert "1 of 1 units, 60 texts" in prediction["logs"]


def test_lines_of_a_text_file_are_documents(client: httpx.Client, library: Embedder) -> None:
    table, vectors = embedded(client, file=data_url("\n".join(TEXTS[:9]) + "\n\n", "text/plain"))
    assert relative_l2(vectors, library.embed_documents(TEXTS[:9])) < 1e-5
    assert table.column("row").to_pylist() == list(range(9))


def test_queries_get_the_task_and_titles_go_in_front(client: httpx.Client, library: Embedder) -> None:
    records = [{"query": text, "title": f"title {index}"} for index, text in enumerate(TEXTS[:9])]
    _, vectors = embedded(client, file=data_url(jsonl(records)), task=TASK)
    whole = [f"title {index} {text}" for index, text in enumerate(TEXTS[:9])]
    assert relative_l2(vectors, library.embed_queries(whole, task=TASK)) < 1e-5
    assert relative_l2(vectors, library.embed_documents(whole)) > 1e-2


def test_options_are_those_of_texts(client: httpx.Client, library: Embedder) -> None:
    long = ["word " * 5000, *TEXTS[:3]]
    url = data_url(jsonl([{"text": text} for text in long]))
    prediction = predict(client, file=url)
    assert table_of(prediction).column("truncated").to_pylist() == [True, False, False, False]
    assert "Warning: 1 of 4 texts were cut to 4096 tokens" in prediction["logs"]
    assert prediction["metrics"]["truncated"] == 1
    _, averaged = embedded(client, file=url, long_texts="average", normalize=True)
    assert relative_l2(averaged, normalize(library.embed_documents(long, long_texts="average"))) < 1e-5
    refused = predict(client, file=url, long_texts="error")
    assert "`file`, row 1: `text` has 5,003 tokens, more than the 4,096" in refused["error"]


@pytest.mark.parametrize("encoding_format", ["base64", "float16", "int8", "ubinary"])
def test_formats(client: httpx.Client, library: Embedder, encoding_format: Any) -> None:
    table = table_of(predict(client, file=data_url(jsonl(RECORDS)), encoding_format=encoding_format))
    expected = library.embed_documents(TEXTS)
    if encoding_format == "base64":
        assert relative_l2(to_vectors(table, "float32"), expected) < 1e-5
    elif encoding_format == "ubinary":
        bits = np.unpackbits(np.array(table.column("vector").to_pylist(), np.uint8), axis=1)
        clear = np.abs(expected) > 1e-4
        assert (bits == (expected > 0))[clear].all()
    else:
        rows = to_vectors(table, encoding_format)
        assert relative_l2(rows, expected) < {"float16": 1e-3, "int8": 2e-2}[encoding_format]


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"file": "/etc/passwd"}, "`file` is not a URL"),
        ({"file": "file:///etc/passwd"}, "`file` is not a URL"),
        ({"file": ""}, "`file` is not a URL"),
        ({"file": data_url("a\n"), "query": "a"}, "`file` cannot be combined with texts"),
        ({"file": data_url("a\n"), "documents": []}, "`file` cannot be combined with texts"),
        ({"file": data_url("a\n"), "encoding_format": "tokens"}, "with `file` choose one of float"),
        ({"file": data_url(b"\x1f\x8b")}, "`file` is compressed"),
        ({"file": data_url('{"text": "a"}\n{"text": null}\n')}, "`file`, row 2: `text` is missing or null"),
        ({"file": data_url('{"text": "a"}\n{"text": " "}\n')}, "`file`, row 2: `text` is only white space"),
        ({"file": data_url('{"text": "a"}\n{"text": 3}\n')}, "`file`, row 2: `text` is of type int"),
        ({"file": data_url('{"text": "a"}\nb\n')}, "`file`, row 2: the line is not JSON"),
        ({"file": data_url(jsonl([{"text": "x" * 1_000_001}]))}, "more than the 1,000,000 of E5_MAX_CHARACTERS"),
        ({"file": data_url(b"text\nab\xff\n")}, "`file`, row 2: `text` is not valid Unicode"),
        ({"file": data_url("text,id\na,1\nb\n")}, "row 3: the row has 1 cells, the header has 2"),
        ({"file": data_url("text\n")}, "`file` has no rows"),
        ({"file": data_url(jsonl([{"query": "a"}])), "task": "word " * 3000}, "`task` takes"),
        ({"file": data_url(AS_PARQUET[:-20] + b"x" * 16 + b"PAR1")}, "`file` is not readable Parquet"),
    ],
)
def test_bad_files_are_refused_with_the_cure(client: httpx.Client, inputs: dict[str, Any], words: str) -> None:
    prediction = predict(client, **inputs)
    assert prediction["status"] == "failed"
    assert words in prediction["error"] and "InputError" in prediction["error"]
    assert "/tmp" not in prediction["error"]


def test_url_is_downloaded(client: httpx.Client, library: Embedder) -> None:
    with web_server({"/texts.jsonl": (200, {}, jsonl(RECORDS).encode())}) as address:
        _, vectors = embedded(client, file=f"{address}/texts.jsonl?token=1")
        assert relative_l2(vectors, library.embed_documents(TEXTS)) < 1e-5
        missing = predict(client, file=f"{address}/missing.jsonl")
    assert missing["status"] == "failed" and "404" in missing["error"]


def jobs() -> set[str]:
    return {path.name for path in FILES.glob("e5-file-*")}


def test_canceled_job_ends_and_its_files_are_removed(client: httpx.Client, library: Embedder) -> None:
    """While it runs, other predictions are answered."""
    before = jobs()
    large = jsonl([{"text": text_of(index) * 20} for index in range(20_000)])
    body = {"input": {"file": data_url(large)}}
    client.put("/predictions/large", json=body, headers={"Prefer": "respond-async"}).raise_for_status()
    (name,) = until(lambda: jobs() - before)
    until(lambda: (FILES / name / "file.jsonl").exists())
    for _ in range(5):
        answer = predict(client, document=TEXTS[0])
        assert relative_l2(np.array(answer["output"]["embeddings"], "f4"), library.embed_documents(TEXTS[:1])) < 1e-5
    assert name in jobs()
    client.post("/predictions/large/cancel").raise_for_status()
    until(lambda: name not in jobs())
    assert predict(client, document="a")["status"] == "succeeded"


@pytest.fixture(scope="module")
def limited() -> Iterator[Server]:
    """A server whose files may have ten vectors."""
    with running({**SETTINGS, "E5_MAX_FILE_BYTES": str(10 * 256 * 4)}) as server:
        yield server


def test_file_of_too_many_rows_is_refused_with_the_number_that_fits(limited: Server) -> None:
    with httpx.Client(base_url=limited.url, timeout=60) as client:
        for ten in (jsonl(RECORDS[:10]), AS_CSV[: AS_CSV.index("r10")], jsonl(RECORDS[:10]) + "\n" * 5):
            assert predict(client, file=data_url(ten))["status"] == "succeeded"
        error = predict(client, file=data_url(jsonl(RECORDS[:11])))["error"]
        assert "about 11 rows, more than the 10 whose float32 vectors fit into E5_MAX_FILE_BYTES=10,240" in error
        assert predict(client, file=data_url(jsonl(RECORDS[:20])), encoding_format="float16")["status"] == "succeeded"


def test_files_are_private(client: httpx.Client) -> None:
    predict(client, file=data_url("a\n"))
    assert FILES.parent.stat().st_mode & 0o077 == 0
    newest = max(FILES.glob("e5-file-*"), key=lambda path: path.stat().st_mtime)
    assert newest.stat().st_mode & 0o077 == 0 and time.time() - newest.stat().st_mtime < 60
    assert [path.name for path in newest.iterdir()] == ["vectors.parquet"]
