"""The client of four APIs: vectors through the real servers and a TEI server, batches, retries, and what it refuses."""

import base64
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from e5 import DEFAULT_TASK, Embedder
from e5.prompts import query_prompt
from e5_cog.repository import ROOT
from e5_cog.server import free_port
from evaluation.client.apis import tei_answer
from evaluation.client.http_client import Connection, Reply
from evaluation.client.remote import ServerError, catalog_name, connect
from tests.evaluation.http_stand_in import Request, Response, serving
from tests.gateways import Gateway

MODEL, KEY = "e5-mistral-tiny", "test-key"
TEXTS = ["how tall is the tower?", "It is 300 m high – 漢字, é, 𝄞.", *(f"text number {i} " * (i + 1) for i in range(5))]


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "REPLICATE_API_TOKEN"):
        monkeypatch.setenv(name, KEY)


def address(api: str, gateway: Gateway) -> tuple[str, str]:
    """URL and name of the model."""
    assert gateway.server is not None
    match api:
        case "cog":
            return gateway.server.url, MODEL
        case "replicate":
            return gateway.url, f"someone/{MODEL}"
    return f"{gateway.url}/v1", MODEL


@pytest.mark.parametrize("api", ["openai", "cog", "replicate"])
@pytest.mark.parametrize("normalize", [False, True])
def test_vectors_of_this_project_s_servers(
    api: str, normalize: bool, shared_gateway: Gateway, library: Embedder
) -> None:
    url, model = address(api, shared_gateway)
    server = connect(url, api, model, batch=3)
    assert server.adds_prompts and server.takes_normalize
    queries = server.embed(TEXTS, "query", DEFAULT_TASK, normalize)
    bare = server.embed(TEXTS, "query", "", normalize)
    documents = server.embed(TEXTS, "document", normalize=normalize)
    raw = server.embed(TEXTS, "raw", normalize=normalize)
    expected = library.embed_documents(TEXTS, normalize=normalize)
    assert queries.dtype == np.float32
    np.testing.assert_allclose(queries, library.embed_queries(TEXTS, normalize=normalize), rtol=0, atol=1e-6 * 3)
    for vectors in (bare, documents, raw):
        np.testing.assert_allclose(vectors, expected, rtol=0, atol=3e-6)
    server.close()


def tei(embedder: Embedder) -> Callable[[Request], Response]:
    def answer(request: Request) -> Response:
        if (request.method, request.path) != ("POST", "/embed"):
            return Response(404, {"error": "not found", "error_type": "NotFound"})
        inputs = request.body["inputs"]
        if len(inputs) > 3:
            return Response(413, {"error": f"batch size {len(inputs)} > 3", "error_type": "Validation"})
        vectors = embedder.embed_texts(inputs, normalize=request.body["normalize"])
        tokens = embedder.tokenizer.encode(inputs).total
        return Response(200, vectors.tolist(), {"x-compute-tokens": str(tokens)})

    return answer


@pytest.fixture(scope="module")
def tei_url(library: Embedder) -> Iterator[str]:
    with serving(tei(library)) as url:
        yield url


@pytest.mark.parametrize("normalize", [False, True])
def test_vectors_of_a_tei_server(normalize: bool, tei_url: str, library: Embedder) -> None:
    server = connect(tei_url, "tei", MODEL, batch=3)
    assert not server.adds_prompts
    texts = [query_prompt("instruct", DEFAULT_TASK, text) for text in TEXTS]
    received = server.embed(texts, "raw", normalize=normalize)
    np.testing.assert_allclose(received, library.embed_queries(TEXTS, normalize=normalize), rtol=0, atol=3e-6)
    answer = server.ask(texts[:2])
    assert answer.tokens == library.tokenizer.encode(texts[:2]).total and answer.error is None


def test_a_refusal_is_an_answer_to_ask_and_an_error_of_embed(tei_url: str) -> None:
    server = connect(tei_url, "tei", MODEL)
    answer = server.ask(["a"] * 4)
    assert (answer.status, answer.refused, answer.error, answer.vectors) == (413, True, "batch size 4 > 3", None)
    with pytest.raises(ServerError, match=r"answered 413: batch size 4 > 3: send fewer or shorter texts") as error:
        server.embed(["a"] * 4)
    assert error.value.status == 413


@pytest.mark.parametrize("api", ["cog", "replicate", "openai"])
def test_the_model_s_own_refusal(api: str, shared_gateway: Gateway) -> None:
    url, model = address(api, shared_gateway)
    server = connect(url, api, model)
    answer = server.ask(["fine", ""], "document")
    assert answer.refused and "[1]` is empty" in str(answer.error)
    with pytest.raises(ServerError, match="is empty: pass the text to embed"):
        server.embed(["fine", ""], "document")


def test_truncated_texts_are_reported_by_cog(shared_gateway: Gateway) -> None:
    url, model = address("cog", shared_gateway)
    answer = connect(url, "cog", model).ask(["word " * 4100, "short"], "document")
    assert answer.truncated == 1 and answer.tokens == 4096 + 3


def test_replicate_runs_the_latest_version_if_the_model_has_no_path_of_its_own(library: Embedder) -> None:
    polls = 0
    vector = library.embed_documents(["a"])

    def answer(request: Request) -> Response:
        nonlocal polls
        match request.method, request.path:
            case "GET", "/v1/models/me/e5-mistral-tiny":
                return Response(200, {"latest_version": {"id": "f" * 64}})
            case "POST", "/v1/predictions":
                assert request.body["version"] == "f" * 64 and request.headers["prefer"] == "wait"
                return Response(202, {"id": "p1", "status": "starting"})
            case "GET", "/v1/predictions/p1":
                polls += 1
                output = {"embeddings": None, "embeddings_base64": [base64.b64encode(vector.tobytes()).decode()]}
                ended = {"status": "succeeded", "output": output, "metrics": {"input_tokens": 3}}
                return Response(200, ended if polls == 2 else {"id": "p1", "status": "processing"})
        return Response(404, {"detail": "not found"})

    with serving(answer) as url:
        received = connect(url, "replicate", f"me/{MODEL}").embed(["a"], "document")
    assert polls == 2
    np.testing.assert_array_equal(received, vector)


def openai(data: Any, status: int = 200, headers: dict[str, str] | None = None) -> Callable[[Request], Response]:
    def answer(request: Request) -> Response:
        if request.method == "GET":
            return Response(200, {"object": "list", "data": [{"id": "m", "owned_by": "someone", "prompt": "prefix"}]})
        return Response(status, data if isinstance(data, bytes | dict) else {"data": data}, headers or {})

    return answer


def rows(*vectors: Any) -> list[dict[str, Any]]:
    return [{"index": index, "embedding": vector} for index, vector in enumerate(vectors)]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"<html>", "not JSON: '<html>'.*check that the server has the API openai"),
        ({"embeddings": []}, "has no vectors"),
        (rows([1.0]), "1 vectors for 2 texts"),
        (rows([1.0], [1.0, 2.0]), "different lengths"),
        (rows([1.0, None], [1.0, 2.0]), "NaN or infinity"),
        (rows([1.0, float("nan")], [1.0, 2.0]), "NaN or infinity"),
        (rows([1.0, "x"], [1.0, 2.0]), "neither a list of numbers nor base64"),
        (rows(3, 4), "neither a list of numbers nor base64"),
        (rows([], []), "different lengths, or none"),
    ],
)
def test_an_unusable_answer_is_an_error(data: Any, message: str) -> None:
    with serving(openai(data)) as url:
        server = connect(url, "openai", "m")
        assert not server.adds_prompts
        assert server.ask(["a", "b"]).error
        with pytest.raises(ServerError, match=message):
            server.embed(["a", "b"])


def test_openai_s_index_gives_the_order_and_base64_is_read() -> None:
    second = base64.b64encode(np.array([3, 4], np.float32).tobytes()).decode()
    data = [{"index": 1, "embedding": second}, {"index": 0, "embedding": [1.0, 2.0]}]
    with serving(openai(data)) as url:
        assert connect(url, "openai", "m").embed(["a", "b"]).tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("status", "cure"), [(401, "set OPENAI_API_KEY"), (404, "name of the model"), (500, "see the server's log")]
)
def test_errors_have_cause_and_cure(status: int, cure: str) -> None:
    answer = openai({"error": {"message": "the cause"}}, status)
    message = rf"answered {status}: the cause: .*{cure}"
    with serving(answer) as url, pytest.raises(ServerError, match=message) as error:
        connect(url, "openai", "m").embed(["a"])
    assert error.value.status == status


def connection(url: str, waits: list[float]) -> Connection:
    return Connection(url, {}, sleep=waits.append)


def test_a_busy_server_is_asked_again_as_late_as_it_says() -> None:
    answers = [Response(429, {}, {"Retry-After": "7"}), Response(503, {}), None, Response(200, {"ok": True})]
    waits: list[float] = []
    with serving(lambda _: answers.pop(0)) as url:
        assert connection(url, waits).send("POST", "/", {}).json() == {"ok": True}
    assert len(waits) == 2 and waits[0] == 7 and 0.5 <= waits[1] <= 0.75  # the closed connection is opened at once


def test_a_server_that_stays_busy_or_wants_too_long_a_wait_is_an_answer() -> None:
    waits: list[float] = []
    with serving(lambda _: Response(503, {})) as url:
        assert connection(url, waits).send("GET", "/").status == 503
    assert len(waits) == 3
    with serving(lambda _: Response(429, {}, {"Retry-After": "31"})) as url:
        assert connection(url, waits).send("GET", "/").status == 429
    assert len(waits) == 3


def test_a_closed_port_and_a_silent_server() -> None:
    waits: list[float] = []
    with pytest.raises(ServerError, match=r"cannot be reached \(.*refused\): start the server, or correct") as error:
        connection(f"http://127.0.0.1:{free_port()}", waits).send("GET", "/")
    assert error.value.status is None and len(waits) == 3
    with serving(lambda _: None) as url, pytest.raises(ServerError, match="cannot be reached"):
        connection(url, waits).send("GET", "/")


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://host", "http://", "http://host:0", "http://host:port"])
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(ServerError, match="is not the address of a server"):
        connect(url, "tei", "m")


def test_sides_that_a_server_does_not_have(tei_url: str) -> None:
    with pytest.raises(ServerError, match="adds no prompts"):
        connect(tei_url, "tei", MODEL).embed(["a"], "query")
    with pytest.raises(ServerError, match="adds the prompts itself"):
        connect(tei_url, "cog", "e5-small").embed(["a"])
    with pytest.raises(ServerError, match="choose one of openai, tei, cog, replicate"):
        connect(tei_url, "vllm", MODEL)
    with pytest.raises(ServerError, match="pass at least one"):
        connect(tei_url, "tei", MODEL).embed([])


def test_names() -> None:
    assert catalog_name("intfloat/e5-small") == catalog_name("e5-small:query:NQ") == catalog_name("e5-small")
    assert catalog_name("me/e5-small:" + "f" * 64) == "e5-small"


def test_tei_s_answer_without_vectors() -> None:
    assert tei_answer(Reply(200, {}, b"[]"), 1).error == "the answer has 0 vectors for 1 texts"


def test_it_needs_no_torch() -> None:
    program = "import sys, evaluation.client.remote; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0
