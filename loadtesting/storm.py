"""The load test's storm: thousands of predictions of every kind by many clients, every answer checked.

What comes back is compared with each text embedded alone by the same engine in this process: who shares a batch with
whom must not show. One in a hundred requests is invalid, one in a hundred is cancelled (by the API, or by hanging up),
one in fifty is a PUT that is sent twice.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import aiohttp
import numpy as np
import psutil

from benchmarks.texts import Texts
from e5.embedder import Embedder, scores
from e5.vectors import Vectors
from loadtesting.cog_client import Client, Json, Reply, new_id, vectors

MEDIAN_TOKENS, SIGMA, LONGEST_TOKENS = 50, 1.1, 4000
"""Lengths are log-normal, and go from 1 to 4,000 tokens."""
TEXTS_FOR_EACH = 3
"""So many predictions share a text, so that equal ones meet in the queue."""

Kind = Literal["good", "invalid", "cancel", "hang up", "twice"]
INVALID: tuple[tuple[Json, int, str], ...] = (
    ({}, 200, "there is no text"),
    ({"query": " "}, 200, "`query` is only white space"),
    ({"documents": ["fine", ""]}, 200, "`documents[1]` is empty"),
    ({"document": "x" * 1_000_001}, 200, "more than the 1,000,000 of E5_MAX_CHARACTERS"),
    ({"query": 5}, 422, 'not of type \\"string\\"'),
    ({"query": "a", "encoding_format": "hex"}, 422, "is not one of"),
)


@dataclass(frozen=True)
class Pool:
    """Texts, and what each gives when it is embedded alone: as a query and as a document, float32 [N, D] each."""

    texts: list[str]
    queries: Vectors
    documents: Vectors
    tolerance: float

    @classmethod
    def make(cls, embedder: Embedder, texts: Texts, count: int, tolerance: float) -> "Pool":
        """`count` texts of 1 to 4,000 tokens; the shortest and the longest are among them."""
        draw = np.random.default_rng(1)
        lengths = draw.lognormal(np.log(MEDIAN_TOKENS), SIGMA, count).round().clip(1, LONGEST_TOKENS).astype(int)
        lengths[:2] = 1, LONGEST_TOKENS
        words = texts.of_words(lengths.tolist())
        queries = np.concatenate([embedder.embed_queries([text]) for text in words])
        documents = np.concatenate([embedder.embed_documents([text]) for text in words])
        return cls(words, queries, documents, tolerance)


@dataclass(frozen=True)
class Request:
    """One prediction of the plan: rows of the pool, and what becomes of it."""

    kind: Kind
    queries: list[int]
    documents: list[int]
    inputs: Json
    wait: float
    http_status: int = 200
    message: str = ""


@dataclass
class Outcome:
    """Counts and worst figures of a storm."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    batch_texts: list[float] = field(default_factory=list)
    worst_relative_l2: float = 0.0
    least_cosine: float = 1.0
    seconds: float = 0.0
    warm_bytes: int = 0
    final_bytes: int = 0
    peak_bytes: int = 0


def plan(pool: Pool, count: int, seed: int) -> list[Request]:
    """`count` requests, the same for the same seed."""
    draw = random.Random(seed)
    return [_request(pool, draw, number) for number in range(count)]


async def warm_up(client: Client, pool: Pool, clients: int) -> None:
    """The longest texts, twice `clients` at once: what the server needs at most it has needed then."""
    longest = sorted(pool.texts, key=len)[-2 * clients :]
    await asyncio.gather(*(client.predict({"document": text}) for text in longest))


async def run(client: Client, pool: Pool, requests: Sequence[Request], clients: int, server: psutil.Process) -> Outcome:
    """Send all requests, `clients` at a time. The memory is that of the server's processes, from a fifth on."""
    outcome = Outcome()
    waiting = iter(requests)
    started = time.perf_counter()

    async def work() -> None:
        for request in waiting:
            outcome.counts["sent"] += 1
            try:
                await _send(client, pool, request, outcome)
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                outcome.counts["lost"] += 1
                outcome.wrong.append(f"{request.kind}: {error!r}")

    async def watch() -> None:
        while True:
            used = memory(server)
            if outcome.counts["sent"] >= len(requests) // 5:
                outcome.warm_bytes = outcome.warm_bytes or used
                outcome.peak_bytes = max(outcome.peak_bytes, used)
            await asyncio.sleep(0.25)

    watcher = asyncio.create_task(watch())
    try:
        await asyncio.gather(*(work() for _ in range(clients)))
    finally:
        watcher.cancel()
    outcome.seconds = time.perf_counter() - started
    outcome.final_bytes = memory(server)
    return outcome


def memory(server: psutil.Process) -> int:
    """Resident bytes of the server and its worker."""
    return sum(process.memory_info().rss for process in (server, *server.children(recursive=True)))


def check(pool: Pool, request: Request, reply: Reply, outcome: Outcome) -> str:
    """What is wrong with an answer; empty when nothing is."""
    if request.kind == "invalid":
        text = reply.content.decode()
        good = reply.http_status == request.http_status and request.message in text
        outcome.counts["refused as invalid"] += good
        return "" if good else f"invalid {request.inputs}: HTTP {reply.http_status} {text[:200]}"
    # Cog (coglet 0.23) says `failed` where the cancellation meets a prediction that is beginning or ending.
    if request.kind == "cancel" and (reply.status == "canceled" or b"CancelationException" in reply.content):
        outcome.counts["cancelled"] += 1
        return ""
    if reply.status != "succeeded":
        return f"{request.kind}: HTTP {reply.http_status} {reply.content[:300]!r}"
    output, metrics = reply.body["output"], reply.body["metrics"]
    left, right = pool.queries[request.queries], pool.documents[request.documents]
    got, want = vectors(output), np.concatenate([left, right])
    if got.shape != want.shape:
        return f"{got.shape} vectors instead of {want.shape}"
    distance = float((np.linalg.norm(got - want, axis=1) / np.linalg.norm(want, axis=1)).max())
    norms = np.linalg.norm(got, axis=1) * np.linalg.norm(want, axis=1)
    cosine = float(((got.astype(np.float64) * want).sum(axis=1) / norms).min())
    outcome.worst_relative_l2 = max(outcome.worst_relative_l2, distance)
    outcome.least_cosine = min(outcome.least_cosine, cosine)
    outcome.counts["verified"] += 1
    outcome.counts["vectors"] += len(got)
    outcome.batch_texts.append(metrics["batch_texts"])
    # Written so that NaN, which compares as false, is wrong.
    if not distance <= pool.tolerance or not cosine >= 1 - pool.tolerance:
        return f"vectors differ from those of the texts alone: relative L2 {distance:.1e}, cosine {cosine:.6f}"
    if len(left) and len(right):
        worst = np.abs(np.array(output["scores"], dtype=np.float32) - scores(left, right)).max()
        if not worst <= 100 * pool.tolerance:
            return f"a score is {worst} off"
    elif output["scores"] is not None:
        return "scores without two sides"
    return ""


async def _send(client: Client, pool: Pool, request: Request, outcome: Outcome) -> None:
    name = new_id()
    if request.kind == "hang up":
        sending = asyncio.create_task(client.predict(request.inputs, name))
        await asyncio.sleep(request.wait)
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        outcome.counts["hung up"] += 1
        return
    if request.kind == "twice":
        await _send_twice(client, pool, request, name, outcome)
        return
    cancelling = asyncio.create_task(_cancel(client, request, name, outcome)) if request.kind == "cancel" else None
    reply = await client.predict(request.inputs, name)
    if cancelling:
        await cancelling
    if problem := check(pool, request, reply, outcome):
        outcome.wrong.append(problem)
    outcome.counts["409 and sent again"] += reply.refused
    if request.kind == "good":
        outcome.latencies.append(reply.seconds)


async def _cancel(client: Client, request: Request, name: str, outcome: Outcome) -> None:
    await asyncio.sleep(request.wait)
    reply = await client.send("POST", f"/predictions/{name}/cancel")
    if reply.http_status not in (200, 404):  # 404: it is done already, or waits for a slot
        outcome.wrong.append(f"cancel: HTTP {reply.http_status} {reply.content[:200]!r}")


async def _send_twice(client: Client, pool: Pool, request: Request, name: str, outcome: Outcome) -> None:
    """The same PUT twice. Whichever comes first gets the answer; the other 202 while it runs, or an answer, too."""

    async def send(wait: float) -> Reply:
        await asyncio.sleep(wait)
        return await client.predict(request.inputs, name, put=True)

    replies = await asyncio.gather(send(0), send(request.wait))
    answers = [reply for reply in replies if reply.http_status == 200]
    outcome.counts["PUT twice"] += 1
    if not answers or any(reply.body.get("id") != name for reply in replies):
        outcome.wrong.append(f"PUT twice: {[(reply.http_status, reply.content[:200]) for reply in replies]}")
    outcome.wrong += [f"PUT twice: {problem}" for one in answers if (problem := check(pool, request, one, outcome))]


def _request(pool: Pool, draw: random.Random, number: int) -> Request:
    place = number % 100
    kinds: dict[int, Kind] = {
        17: "invalid",
        42: "cancel" if number % 200 < 100 else "hang up",
        60: "twice",
        90: "twice",
    }
    kind = kinds.get(place, "good")
    wait = draw.uniform(0, 0.1)
    if kind == "invalid":
        inputs, status, message = INVALID[number // 100 % len(INVALID)]
        return Request(kind, [], [], inputs, wait, status, message)
    counts = draw.choice(((1, 0), (0, 1), (1, 1), (1, 1), (0, 3), (1, 2)))
    queries, documents = ([draw.randrange(len(pool.texts)) for _ in range(count)] for count in counts)
    inputs = {"encoding_format": draw.choice(("float", "base64"))}
    inputs |= _texts("query", "queries", [pool.texts[row] for row in queries])
    inputs |= _texts("document", "documents", [pool.texts[row] for row in documents])
    return Request(kind, queries, documents, inputs, wait)


def _texts(one: str, many: str, texts: list[str]) -> Json:
    if not texts:
        return {}
    return {one: texts[0]} if len(texts) == 1 else {many: texts}
