"""When the device fails, clients of the real server with the failing text get an error in words; others get vectors."""

import asyncio
from collections.abc import Iterator

import httpx
import numpy as np
import pytest

from e5 import Embedder
from e5_cog.repository import ROOT
from e5_cog.server import Server, running
from loadtesting.cog_client import Client, Json, Reply, vectors
from tests.reference import relative_l2


@pytest.fixture
def server() -> Iterator[Server]:
    settings = {"E5_DTYPE": "float32", "E5_DEVICE": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with running({"COG_PREDICT_TYPE_STUB": "tests/faulty_predictor.py:Predictor", **settings}) as server:
        yield server


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder.load(dtype="float32", device="cpu")


def ask(server: Server, *requests: Json) -> list[Reply]:
    """Send all requests at once while another one keeps the device busy, so that they share batches."""

    async def main() -> list[Reply]:
        async with Client.connect(server.url, timeout=60) as client:
            blocking = {"documents": [f"text {index} " + "word " * 300 for index in range(30)]}
            first = asyncio.create_task(client.predict(blocking | {"encoding_format": "base64"}))
            await asyncio.sleep(0.3)
            replies = await asyncio.gather(*map(client.predict, requests))
            await first
            return replies

    return asyncio.run(main())


def health(server: Server) -> str:
    return str(httpx.get(f"{server.url}/health-check", timeout=30).json()["status"])


def assert_vectors(reply: Reply, embedder: Embedder, *documents: str) -> None:
    assert reply.status == "succeeded", reply.content[:500]
    want = np.concatenate([embedder.embed_documents([document]) for document in documents])
    assert relative_l2(vectors(reply.body["output"]), want) < 1e-4


def test_failing_text_fails_only_its_own_prediction(server: Server, embedder: Embedder) -> None:
    assert server.health["status"] == "READY", server.log.read_text()[-2000:]
    good = [f"good text {index}" for index in range(12)]
    requests: list[Json] = [{"document": text} for text in good]
    failing = {
        "nan and more": "FloatingPointError: the model gave NaN or infinity for text 2 of 2",
        "huge text": "ModelError: text 2 of 2 (4 tokens) does not fit into the device's memory, even alone",
        "kernel that fails": "ModelError: the model failed on text 2 of 2 (5 tokens): RuntimeError: CUDA error: an ill",
    }
    requests += [{"documents": [good[0], text]} for text in failing]
    replies = ask(server, *requests)
    for text, reply in zip(good, replies, strict=False):
        assert_vectors(reply, embedder, text)
    for message, reply in zip(failing.values(), replies[len(good) :], strict=True):
        assert reply.status == "failed"
        assert message in reply.body["error"]
        assert "output" not in reply.body
    assert health(server) == "READY"
    # Out of memory in a shared batch: the batcher halves it until it fits, and every request succeeds.
    replies = ask(server, *requests[:12], {"document": "memory is short"})
    for text, reply in zip([*good, "memory is short"], replies, strict=True):
        assert_vectors(reply, embedder, text)


def test_dead_model_thread_fails_all_predictions_and_the_health_check(server: Server) -> None:
    assert health(server) == "READY"
    replies = ask(server, *({"document": f"waits {index}"} for index in range(10)), {"document": "death"})
    message = "ModelError: the model's thread has ended (SystemExit: the device has gone): restart the server"
    assert {reply.status for reply in replies} == {"failed"}
    assert all(message in reply.body["error"] for reply in replies)
    assert health(server) == "UNHEALTHY"
    later = httpx.post(f"{server.url}/predictions", json={"id": "later", "input": {"query": "a"}}, timeout=30)
    assert later.status_code == 503 or message in later.json()["error"]
    assert "the device has gone" in server.log.read_text()
