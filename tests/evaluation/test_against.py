"""scripts/evaluate.py --against: the same scores through servers, and servers that cannot do what is asked."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from e5 import Embedder, normalize
from evaluation import main as program
from tests.evaluation import small_data
from tests.evaluation.http_stand_in import Request, Response, serving
from tests.gateways import Gateway

PREFIX_MODEL = "e5-small"


@pytest.fixture(scope="module")
def bert(bert_folder: Path) -> Embedder:
    return Embedder.load(PREFIX_MODEL, bert_folder, dtype="float32", device="cpu")


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("E5_DTYPE", "float32")
    monkeypatch.setenv("OPENAI_API_KEY", "test-key")
    return small_data.all_types(tmp_path / "data")


def evaluate(tmp_path: Path, data: Path, *arguments: object) -> tuple[int, dict[str, Any]]:
    """The exit status, and the report's tasks."""
    out = tmp_path / "out.json"
    out.unlink(missing_ok=True)
    words = ["--data", data, "--out", out, "--cache", tmp_path / "cache", *arguments]
    status = program.main([str(word) for word in words])
    return status, json.loads(out.read_text("utf-8"))["tasks"] if out.exists() else {}


def main_scores(tasks: dict[str, Any]) -> dict[str, float]:
    return {name: round(task["main_score"], 2) for name, task in tasks.items()}


@contextmanager
def tei(embedder: Embedder, failing_on: str | None = None) -> Iterator[tuple[str, list[str]]]:
    """A server of TEI's API, whose vectors have length 1. Yields its URL and the texts that it has got.

    It closes the connection of a request with a text that begins with `failing_on`.
    """
    got: list[str] = []

    def answer(request: Request) -> Response | None:
        texts = request.body["inputs"]
        if failing_on is not None and any(text.startswith(failing_on) for text in texts):
            return None
        got.extend(texts)
        return Response(200, normalize(embedder.embed_texts(texts)).tolist())

    with serving(answer) as url:
        yield url, got


@pytest.mark.parametrize("api", ["cog", "openai"])
def test_scores_through_the_real_servers(tmp_path: Path, data: Path, api: str, shared_gateway: Gateway) -> None:
    assert shared_gateway.server is not None
    url = shared_gateway.server.url if api == "cog" else shared_gateway.url
    for protocol in ("mteb", "unilm"):
        tasks = "towers,pairs,topics" if protocol == "mteb" else "pairs"  # unilm has no instruction for the others
        options = ("--tasks", tasks, "--protocol", protocol)
        status, local = evaluate(tmp_path, data, *options)
        assert status == 0
        status, remote = evaluate(tmp_path, data, *options, "--against", url, "--api", api)
        assert status == 0
        assert main_scores(remote) == main_scores(local)
        assert all(task["tokens"] == local[name]["tokens"] for name, task in remote.items())


@pytest.mark.parametrize("protocol", ["mteb", "unilm"])
def test_scores_through_tei_and_the_prompts_that_it_gets(
    tmp_path: Path, data: Path, bert: Embedder, bert_folder: Path, protocol: str
) -> None:
    options = ("--model", PREFIX_MODEL, "--tasks", "towers,pairs", "--protocol", protocol)
    _, local = evaluate(tmp_path, data, *options, "--weights", bert_folder)
    with tei(bert) as (url, got):
        status, remote = evaluate(tmp_path, data, *options, "--against", url, "--api", "tei")
    assert status == 0 and main_scores(remote) == main_scores(local)
    assert "query: how high is the tower in Paris" in got
    assert "passage: Big Ben The clock tower in London is 96 metres high and strikes every hour." in got
    assert ("query: A man plays the guitar." in got) == (protocol == "unilm")


def test_unilm_classifies_vectors_that_keep_their_lengths(
    tmp_path: Path, data: Path, bert: Embedder, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--model", PREFIX_MODEL, "--tasks", "topics")
    with tei(bert) as (url, _):
        assert evaluate(tmp_path, data, *options, "--protocol", "unilm", "--against", url, "--api", "tei")[0] == 2
        error = capsys.readouterr().err
        assert "evaluates topics on vectors of any length" in error and "--protocol mteb" in error
        assert evaluate(tmp_path, data, *options, "--against", url, "--api", "tei")[0] == 0


def test_texts_without_prompts_through_a_gateway_that_adds_them(
    tmp_path: Path, data: Path, bert: Embedder, capsys: pytest.CaptureFixture[str]
) -> None:
    """This project's gateway with a prefix model: mteb's protocol has STS texts without a prompt."""

    def answer(request: Request) -> Response:
        if request.method == "GET":
            return Response(200, {"data": [{"id": PREFIX_MODEL, "owned_by": "e5", "prompt": "prefix"}]})
        embed = bert.embed_queries if request.body["input_type"] == "query" else bert.embed_documents
        vectors = embed(request.body["input"], normalize=request.body["normalize"])
        rows = [{"index": index, "embedding": vector.tolist()} for index, vector in enumerate(vectors)]
        return Response(200, {"data": rows})

    options = ("--model", PREFIX_MODEL, "--api", "openai")
    with serving(answer) as url:
        assert evaluate(tmp_path, data, *options, "--tasks", "pairs", "--against", url)[0] == 2
        assert "embeds pairs without prompts" in capsys.readouterr().err
        status, tasks = evaluate(
            tmp_path, data, *options, "--tasks", "pairs,topics", "--protocol", "unilm", "--against", url
        )
        assert status == 0 and set(tasks) == {"pairs", "topics"}
        assert evaluate(tmp_path, data, *options, "--tasks", "towers", "--against", url)[0] == 0


def test_unilm_cuts_long_texts_before_a_server_that_would_read_more(
    tmp_path: Path, data: Path, library: Embedder
) -> None:
    long = "a word of this text and 漢字 " * 300
    small_data.sts(data / "pairs.csv", ((long, "a", 1.0), ("b", "c", 2.0), ("d", "e", 3.0)))
    options = ("--tasks", "pairs", "--protocol", "unilm")
    _, local = evaluate(tmp_path, data, *options)
    with tei(library) as (url, got):
        status, remote = evaluate(tmp_path, data, *options, "--against", url, "--api", "tei")
    assert status == 0 and main_scores(remote) == main_scores(local)
    longest = max(got, key=len)
    assert remote["pairs"]["truncated"] == 1
    assert 509 <= library.tokenizer.encode([longest]).total <= 512
    assert longest.startswith("Instruct: Retrieve semantically similar text.\nQuery: a word of this text")


def test_cutting_needs_the_tokenizer(
    tmp_path: Path, data: Path, bert: Embedder, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--model", "e5-mistral-7b-instruct", "--tasks", "pairs", "--api", "tei")
    with tei(bert) as (url, _):
        assert evaluate(tmp_path, data, *options, "--protocol", "unilm", "--against", url)[0] == 2
        assert "pass --weights with a folder that has its tokenizer.json" in capsys.readouterr().err
        assert evaluate(tmp_path, data, *options, "--against", url)[0] == 0


def test_a_server_that_stops_in_the_middle(
    tmp_path: Path, data: Path, bert: Embedder, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--model", PREFIX_MODEL, "--tasks", "pairs,towers,topics", "--api", "tei")
    with tei(bert, failing_on="query: ") as (url, _):
        status, tasks = evaluate(tmp_path, data, *options, "--against", url)
        assert status == 2
        message = capsys.readouterr().err
        assert url in message and "the finished work is kept" in message and "Traceback" not in message
    assert set(tasks) == {"pairs"}  # the queries of `towers` are the first with this prompt
    with tei(bert) as (url, _):
        status, tasks = evaluate(tmp_path, data, *options, "--against", url)
        assert status == 0 and set(tasks) == {"pairs", "towers", "topics"}
        assert tasks["pairs"]["texts"] is None  # read from the first run: the same model at another address


def test_a_text_that_a_server_refuses_costs_its_task_only(
    tmp_path: Path, data: Path, library: Embedder, capsys: pytest.CaptureFixture[str]
) -> None:
    """text-embeddings-inference refuses empty texts; documents of instruct models have no prompt around them."""

    def answer(request: Request) -> Response:
        texts = request.body["inputs"]
        if not all(text.strip() for text in texts):
            return Response(422, {"error": "`inputs` cannot be empty", "error_type": "Validation"})
        return Response(200, normalize(library.embed_texts(texts)).tolist())

    with (data / "towers" / "corpus.jsonl").open("a", encoding="utf-8") as corpus:
        corpus.write('{"_id": "empty", "text": ""}\n')
    with serving(answer) as url:
        status, tasks = evaluate(tmp_path, data, "--tasks", "towers,pairs", "--against", url, "--api", "tei")
    printed = capsys.readouterr().out
    assert status == 2 and list(tasks) == ["pairs"]
    assert "towers: FAILED" in printed and "`inputs` cannot be empty" in printed and printed.count(url) == 1
