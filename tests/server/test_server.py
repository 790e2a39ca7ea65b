"""predict.py behind Cog's real server: valid, concurrent, invalid and cancelled requests."""

import itertools
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from e5 import DEFAULT_TASK, Embedder, Settings, normalize, scores
from e5_cog import openapi, static_schema
from e5_cog import serve as serve_script
from e5_cog.repository import ROOT
from e5_cog.server import Server, free_port, running, stop
from loadtesting import cog_client

Answer = dict[str, Any]

QUERY, DOCUMENT = "how tall is the tower?", "The tower is 300 m high."
MANY = [f"text number {index}" for index in range(3000)]
# With one thread, MANY takes seconds on any machine, so later requests have to wait. Batches are large for the same
# reason: a short request waits at least for the batch that is being computed.
SETTINGS = {"E5_DTYPE": "float32", "E5_DEVICE": "cpu", "OMP_NUM_THREADS": "1"}
SETTINGS |= {"E5_MAX_TEXTS": "12000", "E5_MAX_BATCH_TOKENS": "16384"}
METRICS = ("texts", "input_tokens", "truncated", "batch_texts", "queued_ms", "tokenize_ms", "model_ms", "encode_ms")
_ids = itertools.count()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running(SETTINGS) as server:
        assert server.health["status"] == "READY", server.health
        yield server


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=120, limits=httpx.Limits(max_connections=None)) as client:
        yield client


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder.load(dtype="float32", device="cpu")


def post(client: httpx.Client, **inputs: object) -> httpx.Response:
    # Send an id: the server's own ids come from the clock, and two of the same tick collide with 409.
    return client.post("/predictions", json={"id": f"test-{next(_ids)}", "input": inputs})


def ask(client: httpx.Client, **inputs: object) -> Answer:
    end = time.monotonic() + 10
    # coglet 0.23 frees a slot a moment after it has answered, on a busy machine later.
    while (response := post(client, **inputs)).status_code == 409 and time.monotonic() < end:
        time.sleep(0.05)
    answer: Answer = response.json()
    assert answer["status"] == "succeeded", answer
    return answer


def vectors(answer: Answer) -> NDArray[np.float32]:
    output = answer["output"]
    assert output["embeddings_base64"] is None or output["embeddings"] is None
    return cog_client.vectors(output)


def assert_close(received: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    np.testing.assert_allclose(received, expected, rtol=1e-4, atol=1e-4)


def assert_good(client: httpx.Client, embedder: Embedder) -> None:
    assert_close(vectors(ask(client, query=QUERY)), embedder.embed_queries([QUERY]))


# Valid requests


def test_pair_gets_its_vectors_and_a_score(client: httpx.Client, embedder: Embedder) -> None:
    answer = ask(client, query=QUERY, document=DOCUMENT)
    left, right = embedder.embed_queries([QUERY]), embedder.embed_documents([DOCUMENT])
    assert_close(vectors(answer), np.concatenate([left, right]))
    assert answer["output"]["score"] == pytest.approx(float(scores(left, right)[0, 0]), abs=1e-3)
    assert answer["output"]["scores"] == [[answer["output"]["score"]]]
    assert answer["logs"] == ""


def test_queries_precede_documents_and_single_texts_precede_lists(client: httpx.Client, embedder: Embedder) -> None:
    answer = ask(client, documents=["d1", "d2"], queries=["q1"], document="d0", query="q0")
    left, right = embedder.embed_queries(["q0", "q1"]), embedder.embed_documents(["d0", "d1", "d2"])
    assert_close(vectors(answer), np.concatenate([left, right]))
    assert_close(np.array(answer["output"]["scores"], dtype=np.float32), scores(left, right))
    assert answer["output"]["score"] is None


@pytest.mark.parametrize("inputs", [{"query": "a"}, {"document": "a"}, {"queries": ["a", "b"]}, {"documents": ["a"]}])
def test_only_queries_or_only_documents_have_no_scores(client: httpx.Client, inputs: dict[str, object]) -> None:
    output = ask(client, **inputs)["output"]
    assert output["score"] is None
    assert output["scores"] is None


def test_lists_of_one_text_score_like_a_pair(client: httpx.Client) -> None:
    pair = ask(client, query=QUERY, document=DOCUMENT)["output"]
    assert ask(client, queries=[QUERY], documents=[DOCUMENT])["output"] == pair


def test_normalize_changes_lengths_and_not_scores(client: httpx.Client) -> None:
    plain = ask(client, query=QUERY, documents=[DOCUMENT, "b"])
    unit = ask(client, query=QUERY, documents=[DOCUMENT, "b"], normalize=True)
    assert not np.allclose(np.linalg.norm(vectors(plain), axis=1), 1, atol=1e-2)
    np.testing.assert_allclose(np.linalg.norm(vectors(unit), axis=1), 1, atol=1e-5)
    assert_close(vectors(unit), normalize(vectors(plain)))
    assert unit["output"]["scores"] == plain["output"]["scores"]


def test_base64_and_float_are_the_same_bits(client: httpx.Client) -> None:
    inputs = {"query": QUERY, "documents": [DOCUMENT, "b"]}
    as_float = ask(client, **inputs, encoding_format="float")
    as_base64 = ask(client, **inputs, encoding_format="base64")
    assert as_float["output"]["embeddings_base64"] is None
    assert vectors(as_float).tobytes() == vectors(as_base64).tobytes()
    assert as_float["output"]["scores"] == as_base64["output"]["scores"]


def test_default_task_is_the_web_search_task(client: httpx.Client) -> None:
    assert vectors(ask(client, query=QUERY, task=DEFAULT_TASK)).tobytes() == vectors(ask(client, query=QUERY)).tobytes()


def test_task_changes_queries_and_not_documents(client: httpx.Client) -> None:
    default = vectors(ask(client, query="a b", document="a b"))
    other = vectors(ask(client, query="a b", document="a b", task="Classify the sentiment"))
    assert not np.allclose(default[0], other[0], atol=1e-3)
    assert_close(default[1:], other[1:])


def test_empty_task_embeds_the_query_bare_and_warns(client: httpx.Client, embedder: Embedder) -> None:
    answer = ask(client, query=QUERY, task="")
    assert_close(vectors(answer), embedder.embed_documents([QUERY]))
    assert "`task` is empty" in answer["logs"]
    assert ask(client, document=QUERY, task="")["logs"] == ""


def test_metrics_count_and_time_the_work(client: httpx.Client, embedder: Embedder) -> None:
    metrics = ask(client, query=QUERY, documents=["a", "word " * 5000])["metrics"]
    assert set(METRICS) < set(metrics)
    assert metrics["model"] == "e5-mistral-tiny"
    assert metrics["texts"] == 3
    assert metrics["truncated"] == 1
    assert metrics["input_tokens"] == embedder.tokenize([QUERY], ["a", "word " * 5000], DEFAULT_TASK).total
    times = [metrics[name] for name in METRICS if name.endswith("_ms")]
    assert all(value >= 0 for value in times)
    assert metrics["model_ms"] > 1
    assert sum(times) < 1000 * metrics["predict_time"]


@pytest.mark.parametrize("text", ["nul \0 inside", "\u200b", "𝄞 é 漢字", "</s>", "@file"])
def test_unusual_texts_are_embedded(client: httpx.Client, embedder: Embedder, text: str) -> None:
    assert_close(vectors(ask(client, document=text)), embedder.embed_documents([text]))


def test_million_characters_are_truncated_to_the_model_s_limit(client: httpx.Client) -> None:
    answer = ask(client, document="some word " * 100_000, encoding_format="base64")
    assert answer["metrics"]["truncated"] == 1
    assert answer["metrics"]["input_tokens"] == 4096
    assert "1 of 1 texts were cut to 4096 tokens" in answer["logs"]


# Invalid requests: the prediction fails, the server keeps running

NO_TEXT = "there is no text: pass at least one of `query`, `document`, `queries`, `documents`, `file`"
CURE = "pass the text to embed, or leave it out"


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, NO_TEXT),
        ({"queries": [], "documents": []}, NO_TEXT),
        ({"qurey": "an unknown name is dropped by the server"}, NO_TEXT),
        ({"query": ""}, f"`query` is empty: {CURE}"),
        ({"query": "fine", "document": ""}, f"`document` is empty: {CURE}"),
        ({"document": " \n\t"}, f"`document` is only white space: {CURE}"),
        ({"queries": ["a", "b", ""]}, f"`queries[2]` is empty: {CURE}"),
        ({"documents": [" ", "b"]}, f"`documents[0]` is only white space: {CURE}"),
    ],
)
def test_invalid_text_fails_with_its_name_cause_and_cure(
    client: httpx.Client, inputs: dict[str, object], message: str
) -> None:
    response = post(client, **inputs)
    answer = response.json()
    assert response.status_code == 200
    assert answer["status"] == "failed"
    assert answer["error"] == f"Prediction failed: Async prediction failed: InputError: {message}"
    assert "output" not in answer


def test_task_counts_once_for_each_query(client: httpx.Client, embedder: Embedder) -> None:
    answer = post(client, task="find " * 20_000, queries=["a"] * 5_000).json()
    assert "the texts and the task of each query have 500,005,000 characters together" in answer["error"]
    answer = post(client, task="find " * 20_000, queries=["a"] * 50).json()
    assert answer["status"] == "failed"
    assert "InputError: `task` takes 4096 tokens or more of the 4096 that it shares with the query" in answer["error"]
    assert_good(client, embedder)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (
            {"documents": ["a"] * 12_001},
            "the request has 12,001 texts, more than the 12,000 of E5_MAX_TEXTS: send them",
        ),
        (
            {"query": "a", "documents": ["b", "c" * 1_000_001]},
            "`documents[1]` has 1,000,001 characters, more than the 1,000,000 of E5_MAX_CHARACTERS: split it",
        ),
        (
            {"documents": ["c" * 999_999] * 21},
            "the texts have 20,999,979 characters together, more than the 20,000,000 th",
        ),
        (
            {"documents": ["a b " * 4000] * 256},
            "the texts have 1,048,576 tokens together, more than the 1,000,000 of E5_M",
        ),
        (
            {"documents": ["a"] * 8_000},
            "the answer would have 2,048,000 numbers (2,048,000 of vectors, 0 scores), more",
        ),
        (
            {"queries": ["a"] * 2000, "documents": ["a"] * 2000, "encoding_format": "base64"},
            "the answer would have 4,000,000 numbers (0 of vectors, 4,000,000 scores), more than the 2,000,000",
        ),
    ],
    ids=["texts", "characters", "all characters", "tokens", "numbers", "scores"],
)
def test_request_over_a_limit_fails_with_the_limit_and_the_value(
    client: httpx.Client, inputs: dict[str, object], message: str
) -> None:
    answer = post(client, **inputs).json()
    assert answer["status"] == "failed"
    assert f"InputError: {message}" in answer["error"]


@pytest.mark.parametrize(
    ("inputs", "place", "message"),
    [
        ({"query": 5}, "query", '5 is not of type "string"'),
        ({"query": None}, "query", 'null is not of type "string"'),
        ({"query": "a", "task": None}, "task", 'null is not of type "string"'),
        ({"query": ["a"]}, "query", '["a"] is not of type "string"'),
        ({"queries": "a"}, "queries", '"a" is not of type "array"'),
        ({"queries": ["a", 1]}, "queries/1", '1 is not of type "string"'),
        ({"documents": [None]}, "documents/0", 'null is not of type "string"'),
        ({"query": "a", "normalize": "yes"}, "normalize", '"yes" is not of type "boolean"'),
        ({"query": "a", "normalize": 1}, "normalize", '1 is not of type "boolean"'),
        (
            {"query": "a", "encoding_format": "hex"},
            "encoding_format",
            '"hex" is not one of ["float","base64","float16","int8","ubinary","tokens"]',
        ),
    ],
)
def test_schema_rejects_wrong_types_and_choices(
    client: httpx.Client, inputs: dict[str, object], place: str, message: str
) -> None:
    response = post(client, **inputs)
    assert response.status_code == 422
    assert response.json() == {"detail": [{"loc": ["body", "input", place], "msg": message, "type": "value_error"}]}


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b'{"input": {"query": "a"', 400, "EOF while parsing an object"),
        (b'{"input": {"query": "\\ud800"}}', 400, "unexpected end of hex escape"),
        (b'{"input": {"query": "\xff"}}', 400, "invalid unicode code point"),
        (b"", 400, "EOF while parsing a value"),
        (b"[]", 422, "expected struct PredictionRequest"),
        (b'{"input": "a"}', 422, 'not of type \\"object\\"'),
    ],
)
def test_broken_body_is_rejected(client: httpx.Client, body: bytes, status: int, message: str) -> None:
    response = client.post("/predictions", content=body, headers={"content-type": "application/json"})
    assert response.status_code == status
    assert message in response.text


def test_failure_does_not_affect_other_requests(client: httpx.Client, embedder: Embedder) -> None:
    with ThreadPoolExecutor(8) as pool:
        requests = [pool.submit(post, client, query=QUERY if index % 2 else " ") for index in range(16)]
    answers = [request.result().json() for request in requests]
    assert [answer["status"] for answer in answers] == ["failed", "succeeded"] * 8
    for answer in answers[1::2]:
        assert_close(vectors(answer), embedder.embed_queries([QUERY]))
    assert_good(client, embedder)


# The server itself


def test_health_and_schema(server: Server, client: httpx.Client) -> None:
    health = client.get("/health-check").json()
    assert health["status"] == "READY"
    ready = next(line for line in server.log.read_text().splitlines() if "Ready: e5-mistral-tiny" in line)
    for phase in ("import", "locate", "load", "merge", "warm-up"):
        assert f"{phase} " in ready
    assert client.get("/openapi.json").json() == openapi.openapi(static_schema.read(ROOT / "predict.py"))
    assert client.get("/").status_code == 200


def test_concurrent_requests_get_their_own_vectors(client: httpx.Client, embedder: Embedder) -> None:
    texts = [f"{'word ' * (index % 7)}number {index}" for index in range(32)]
    expected = embedder.embed_queries(texts)
    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(lambda text: ask(client, query=text), texts))
    assert_close(np.concatenate([vectors(answer) for answer in answers]), expected)


def test_busy_server_answers_health_checks_and_rejects_the_129th_prediction(
    server: Server, client: httpx.Client, embedder: Embedder
) -> None:
    documents = MANY * 4  # seconds of work: all other requests must arrive before it is done
    name = f"long-{next(_ids)}"
    body = {"id": name, "input": {"documents": documents, "encoding_format": "base64"}}
    with ThreadPoolExecutor(144) as pool:
        long = pool.submit(lambda: client.post("/predictions", json=body).json())
        end = time.monotonic() + 20
        while not any("Starting" in line and name in line for line in server.log.read_text().splitlines()):
            assert time.monotonic() < end, "the long request has not started"
            time.sleep(0.02)
        time.sleep(1)  # tokenizing runs in a thread of its own, while other requests may use the model
        asked = time.monotonic()
        assert client.get("/health-check").json()["status"] == "READY"
        waited = time.monotonic() - asked
        short = [pool.submit(post, client, query=f"number {index}") for index in range(143)]
        statuses = [request.result().status_code for request in short]
    assert statuses.count(200) == 127
    assert statuses.count(409) == 16
    assert waited < long.result()["metrics"]["model_ms"] / 2000  # the event loop does not compute
    assert len(long.result()["output"]["embeddings_base64"]) == len(documents)
    assert_good(client, embedder)


@pytest.mark.parametrize("which", ["waiting", "running"])
def test_cancelled_prediction_does_not_affect_others(client: httpx.Client, embedder: Embedder, which: str) -> None:
    names = {"running": f"running-{next(_ids)}", "waiting": f"waiting-{next(_ids)}"}
    inputs = {"running": {"documents": MANY, "encoding_format": "base64"}, "waiting": {"query": QUERY}}

    def put(name: str) -> Answer:
        answer: Answer = client.put(f"/predictions/{names[name]}", json={"input": inputs[name]}).json()
        return answer

    with ThreadPoolExecutor(2) as pool:
        running_ = pool.submit(put, "running")
        time.sleep(0.2)
        waiting = pool.submit(put, "waiting")
        time.sleep(0.2)
        assert client.post(f"/predictions/{names[which]}/cancel").status_code == 200
    statuses = {"running": running_.result()["status"], "waiting": waiting.result()["status"]}
    assert statuses == {"running": "succeeded", "waiting": "succeeded", which: "canceled"}
    assert_good(client, embedder)


def serve(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "scripts/serve.py", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        ((), {"E5_MODEL": "e5-tiny"}, "E5_MODEL=e5-tiny is not one of the possible values"),
        ((), {"E5_MODLE": "e5-large"}, "E5_MODLE: no such setting"),
        (("--port", "70000"), {}, "--port 70000: pass a port from 1 to 65535"),
        (("--host", "192.0.2.1"), {}, "cannot listen on 192.0.2.1:5000"),
    ],
)
def test_server_with_wrong_settings_does_not_start(
    arguments: tuple[str, ...], environment: dict[str, str], message: str
) -> None:
    done = serve(*arguments, **environment)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"serve.py: {message}")


def test_port_in_use_is_reported_before_the_start(server: Server) -> None:
    done = serve("--port", server.url.rpartition(":")[2])
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "Address already in use" in done.stderr


def test_host_name_becomes_a_numeric_address() -> None:
    assert serve_script.listening_host("localhost", free_port()) in ("127.0.0.1", "[::1]")
    assert serve_script.listening_host("0.0.0.0", free_port()) == "0.0.0.0"


def test_weights_path_is_relative_to_the_caller_s_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    environment = serve_script.prepare(5000, Settings(weights=Path("mine")))
    assert environment["E5_WEIGHTS"] == str(tmp_path / "mine")
    assert environment["PATH"].split(":")[0] == str(Path(sys.executable).parent)


def test_missing_weights_show_in_health_check_and_log(tmp_path: Path) -> None:
    with running({"E5_WEIGHTS": str(tmp_path)}) as broken:
        assert broken.health["status"] == "SETUP_FAILED"
        assert "WeightsError" in json.dumps(broken.health)
        assert str(tmp_path) in broken.log.read_text()
        assert httpx.post(f"{broken.url}/predictions", json={"input": {"query": "a"}}).status_code == 503
        assert stop(broken.process) == 0
