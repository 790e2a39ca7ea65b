"""The load test: its short form runs here, and what it would have to notice it notices."""

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
from loadtesting.storm import INVALID, Outcome, Pool, Request, check, plan

DRAW = np.random.default_rng(0)
POOL = Pool(
    ["a", "b", "c"],
    DRAW.standard_normal((3, 8), dtype=np.float32),
    DRAW.standard_normal((3, 8), dtype=np.float32),
    1e-4,
)
PAIR = Request("good", [0], [1], {}, 0.0)


def test_the_short_form_finds_nothing_wrong() -> None:
    command = [sys.executable, "scripts/loadtest.py", "--quick"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=170, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    counts = result["storm"]["counts"]
    assert counts["sent"] == 300 and counts["verified"] >= 290 and counts["refused as invalid"] == 3
    assert result["storm"]["wrong"] == [] and result["storm"]["max_relative_l2"] < 1e-4
    assert result["storm"]["median_batch_texts"] > 4, "predictions share batches"
    assert len(result["faults"]) == 6 and all(one["good"] for one in result["faults"])


def answer(left: list[int], right: list[int]) -> dict[str, object]:
    queries, documents = POOL.queries[left], POOL.documents[right]
    matrix = scores(queries, documents).tolist() if left and right else None
    return {
        "embeddings": None,
        "embeddings_base64": serialize.base64_rows(np.concatenate([queries, documents])),
        "scores": matrix,
    }


def reply(output: dict[str, object], status: str = "succeeded") -> Reply:
    body = {"status": status, "output": output, "metrics": {"batch_texts": 3}}
    return Reply(200, json.dumps(body).encode(), 0.1, 0)


def test_right_answers_pass() -> None:
    outcome = Outcome()
    assert check(POOL, PAIR, reply(answer([0], [1])), outcome) == ""
    assert outcome.counts["verified"] == 1 and outcome.worst_relative_l2 < 1e-6


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (reply(answer([0], [2])), "vectors differ"),
        (reply(answer([0], [])), "(1, 8) vectors instead of (2, 8)"),
        (reply(answer([0], [1]) | {"scores": [[50.0]]}), "a score is"),
        (reply(answer([0], [1]), status="failed"), "good: HTTP 200"),
        (reply(answer([0], [1]), status="canceled"), "good: HTTP 200"),
        (Reply(503, b"{}", 0.1, 0), "good: HTTP 503"),
    ],
)
def test_wrong_answers_are_noticed(given: Reply, problem: str) -> None:
    assert problem in check(POOL, PAIR, given, Outcome())


def test_nan_and_small_differences_are_noticed() -> None:
    for value in (float("nan"), 0.1):
        broken = replace(POOL, documents=POOL.documents + np.float32(value))
        assert "vectors differ" in check(broken, PAIR, reply(answer([0], [1])), Outcome())


def test_an_invalid_request_must_be_refused_with_its_reason() -> None:
    inputs, status, message = INVALID[1]
    request = Request("invalid", [], [], inputs, 0.0, status, message)
    assert check(POOL, request, Reply(200, f'{{"error": "InputError: {message}"}}'.encode(), 0.1, 0), Outcome()) == ""
    assert "invalid" in check(POOL, request, reply(answer([0], [1])), Outcome())


def test_the_plan_has_every_kind_and_is_the_same_each_time() -> None:
    requests = plan(POOL, 400, seed=0)
    kinds = [request.kind for request in requests]
    assert {kind: kinds.count(kind) for kind in sorted(set(kinds))} == {
        "cancel": 2,
        "good": 384,
        "hang up": 2,
        "invalid": 4,
        "twice": 8,
    }
    assert requests == plan(POOL, 400, seed=0)


def test_a_client_that_gives_up_raises() -> None:
    async def main() -> None:
        async with Client.connect("http://127.0.0.1:1", timeout=5) as client:
            await client.health()

    with pytest.raises(aiohttp.ClientError):
        asyncio.run(main())
