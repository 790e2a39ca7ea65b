"""The load test passes in its short form, and detects wrong responses."""

import asyncio
import json
import subprocess
import sys
from dataclasses import replace

import aiohttp
import numpy as np
import pytest

from e5 import scores
from e5.serving import serialize
from e5_cog.repository import ROOT
from loadtesting.cog_client import Client, Reply
from loadtesting.storm import StormResult, verify
from loadtesting.workload import INVALID, Pool, StormRequest, draw_requests

GENERATOR = np.random.default_rng(0)
POOL = Pool(
    ["a", "b", "c"],
    GENERATOR.standard_normal((3, 8), dtype=np.float32),
    GENERATOR.standard_normal((3, 8), dtype=np.float32),
    1e-4,
)
PAIR = StormRequest("valid", [0], [1], {}, 0.0)


def test_short_load_test_passes() -> None:
    command = [sys.executable, "scripts/loadtest.py", "--quick"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=170, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    counts = result["storm"]["counts"]
    assert counts["sent"] == 300 and counts["verified"] >= 290 and counts["refused as invalid"] == 3
    assert (
        result["storm"]["problems"] == []
        and result["storm"]["wrong"] == 0
        and result["storm"]["max_relative_l2"] < 1e-4
    )
    assert result["storm"]["median_batch_texts"] > 4, "predictions share batches"
    assert len(result["faults"]) == 6 and all(fault["passed"] for fault in result["faults"])


def test_servers_that_break_lose_no_prediction() -> None:
    command = [sys.executable, "scripts/loadtest.py", "--servers", "3", "--predictions", "400"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=170, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    storm = json.loads(done.stdout.splitlines()[-1])["storm"]
    assert (storm["verified"], storm["wrong"], storm["lost"], storm["twice"]) == (400, 0, 0, 0)
    assert sum(storm["breakdowns"].values()) >= 2


def output(query_rows: list[int], document_rows: list[int]) -> dict[str, object]:
    queries, documents = POOL.queries[query_rows], POOL.documents[document_rows]
    matrix = scores(queries, documents).tolist() if query_rows and document_rows else None
    return {
        "embeddings": None,
        "embeddings_base64": serialize.base64_rows(np.concatenate([queries, documents])),
        "scores": matrix,
    }


def reply(prediction: dict[str, object], status: str = "succeeded") -> Reply:
    body = {"status": status, "output": prediction, "metrics": {"batch_texts": 3}}
    return Reply(200, json.dumps(body).encode(), 0.1, 0)


def test_correct_reply_passes() -> None:
    result = StormResult()
    assert verify(POOL, PAIR, reply(output([0], [1])), result) == ""
    assert result.counts["verified"] == 1 and result.max_relative_l2 < 1e-6


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        (reply(output([0], [2])), "vectors differ"),
        (reply(output([0], [])), "(1, 8) vectors instead of (2, 8)"),
        (reply(output([0], [1]) | {"scores": [[50.0]]}), "a score is off by"),
        (reply(output([0], [1]), status="failed"), "valid: HTTP 200"),
        (reply(output([0], [1]), status="canceled"), "valid: HTTP 200"),
        (Reply(503, b"{}", 0.1, 0), "valid: HTTP 503"),
    ],
)
def test_wrong_reply_is_detected(wrong: Reply, problem: str) -> None:
    assert problem in verify(POOL, PAIR, wrong, StormResult())


def test_nan_and_small_differences_are_detected() -> None:
    for value in (float("nan"), 0.1):
        broken = replace(POOL, documents=POOL.documents + np.float32(value))
        assert "vectors differ" in verify(broken, PAIR, reply(output([0], [1])), StormResult())


def test_invalid_request_must_get_its_error_message() -> None:
    inputs, status, message = INVALID[1]
    request = StormRequest("invalid", [], [], inputs, 0.0, status, message)
    assert (
        verify(POOL, request, Reply(200, f'{{"error": "InputError: {message}"}}'.encode(), 0.1, 0), StormResult()) == ""
    )
    assert "invalid" in verify(POOL, request, reply(output([0], [1])), StormResult())


def test_requests_have_every_kind_and_are_reproducible() -> None:
    requests = draw_requests(POOL, 400, seed=0)
    kinds = [request.kind for request in requests]
    assert {kind: kinds.count(kind) for kind in sorted(set(kinds))} == {
        "cancel": 2,
        "hang up": 2,
        "invalid": 4,
        "twice": 8,
        "valid": 384,
    }
    assert requests == draw_requests(POOL, 400, seed=0)


def test_client_raises_if_the_server_is_unreachable() -> None:
    async def main() -> None:
        async with Client.connect("http://127.0.0.1:1", timeout=5) as client:
            await client.health()

    with pytest.raises(aiohttp.ClientError):
        asyncio.run(main())
