"""The load test's storm: thousands of predictions by many clients, with every reply checked.

Vectors are compared with those of each text embedded on its own by the same engine in this process: sharing a batch
must not change them.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import aiohttp
import numpy as np
import psutil

from e5.embedder import scores
from loadtesting.cog_client import Client, Reply, new_id, vectors
from loadtesting.workload import TOO_LONG, Pool, StormRequest


@dataclass
class StormResult:
    """Counts, problems, latencies in seconds and the largest deviations of a storm."""

    counts: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    batch_texts: list[float] = field(default_factory=list)
    max_relative_l2: float = 0.0
    min_cosine: float = 1.0
    seconds: float = 0.0
    warm_bytes: int = 0
    final_bytes: int = 0
    peak_bytes: int = 0


async def warm_up(client: Client, pool: Pool, clients: int) -> None:
    """Send the longest texts, then the longest invalid ones, so that the server's memory nears its maximum.

    Cog's process keeps up to 220 MB after many requests of 1 MB at once, and then no more.
    """
    longest = sorted(pool.texts, key=len)[-2 * clients :]
    await asyncio.gather(*(client.predict({"document": text}) for text in longest))
    await asyncio.gather(*(client.predict(TOO_LONG) for _ in range(clients)))


async def run(
    client: Client, pool: Pool, requests: Sequence[StormRequest], clients: int, server: psutil.Process
) -> StormResult:
    """Send all requests, `clients` at a time. Watches the server's memory during the second half of them."""
    result = StormResult()
    queue = iter(requests)
    started = time.perf_counter()

    async def send_from_queue() -> None:
        for request in queue:
            result.counts["sent"] += 1
            try:
                await _send(client, pool, request, result)
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                result.counts["lost"] += 1
                result.problems.append(f"{request.kind}: {error!r}")

    async def watch_memory() -> None:
        while True:
            used = _resident_bytes(server)
            if result.counts["sent"] >= len(requests) // 2:
                result.warm_bytes = result.warm_bytes or used
                result.peak_bytes = max(result.peak_bytes, used)
            await asyncio.sleep(0.25)

    watcher = asyncio.create_task(watch_memory())
    try:
        await asyncio.gather(*(send_from_queue() for _ in range(clients)))
    finally:
        watcher.cancel()
    result.seconds = time.perf_counter() - started
    result.final_bytes = _resident_bytes(server)
    return result


def _resident_bytes(server: psutil.Process) -> int:
    """Resident memory of the server and its worker."""
    return sum(process.memory_info().rss for process in (server, *server.children(recursive=True)))


def verify(pool: Pool, request: StormRequest, reply: Reply, result: StormResult) -> str:
    """Describe the problem with a reply, or return "". Counts the reply in `result`."""
    if request.kind == "invalid":
        text = reply.content.decode()
        refused = reply.http_status == request.http_status and request.message in text
        result.counts["refused as invalid"] += refused
        return "" if refused else f"invalid {request.inputs}: HTTP {reply.http_status} {text[:200]}"
    # Cog (coglet 0.23) reports `failed` if the cancellation meets a prediction that is just starting or ending.
    if request.kind == "cancel" and (reply.status == "canceled" or b"CancelationException" in reply.content):
        result.counts["cancelled"] += 1
        return ""
    if reply.status != "succeeded":
        return f"{request.kind}: HTTP {reply.http_status} {reply.content[:300]!r}"
    output, metrics = reply.body["output"], reply.body["metrics"]
    queries, documents = pool.queries[request.queries], pool.documents[request.documents]
    actual, expected = vectors(output), np.concatenate([queries, documents])
    if actual.shape != expected.shape:
        return f"{actual.shape} vectors instead of {expected.shape}"
    relative_l2 = float((np.linalg.norm(actual - expected, axis=1) / np.linalg.norm(expected, axis=1)).max())
    norms = np.linalg.norm(actual, axis=1) * np.linalg.norm(expected, axis=1)
    cosine = float(((actual.astype(np.float64) * expected).sum(axis=1) / norms).min())
    result.max_relative_l2 = max(result.max_relative_l2, relative_l2)
    result.min_cosine = min(result.min_cosine, cosine)
    result.counts["verified"] += 1
    result.counts["vectors"] += len(actual)
    result.batch_texts.append(metrics["batch_texts"])
    # `not <=` instead of `>`: a comparison with NaN is false, and NaN is a problem.
    if not relative_l2 <= pool.tolerance or not cosine >= 1 - pool.tolerance:
        return f"vectors differ from those of separate texts: relative L2 {relative_l2:.1e}, cosine {cosine:.6f}"
    if len(queries) and len(documents):
        error = np.abs(np.array(output["scores"], dtype=np.float32) - scores(queries, documents)).max()
        if not error <= 100 * pool.tolerance:
            return f"a score is off by {error}"
    elif output["scores"] is not None:
        return "scores without both queries and documents"
    return ""


async def _send(client: Client, pool: Pool, request: StormRequest, result: StormResult) -> None:
    name = new_id()
    if request.kind == "hang up":
        sending = asyncio.create_task(client.predict(request.inputs, name))
        await asyncio.sleep(request.wait)
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        result.counts["hung up"] += 1
        return
    if request.kind == "twice":
        await _send_twice(client, pool, request, name, result)
        return
    cancelling = asyncio.create_task(_cancel(client, request, name, result)) if request.kind == "cancel" else None
    reply = await client.predict(request.inputs, name)
    if cancelling:
        await cancelling
    if problem := verify(pool, request, reply, result):
        result.problems.append(problem)
    result.counts["409 and sent again"] += reply.refused
    if request.kind == "valid":
        result.latencies.append(reply.seconds)


async def _cancel(client: Client, request: StormRequest, name: str, result: StormResult) -> None:
    await asyncio.sleep(request.wait)
    reply = await client.send("POST", f"/predictions/{name}/cancel")
    if reply.http_status not in (200, 404):  # 404: already finished, or still waiting for a slot
        result.problems.append(f"cancel: HTTP {reply.http_status} {reply.content[:200]!r}")


async def _send_twice(client: Client, pool: Pool, request: StormRequest, name: str, result: StormResult) -> None:
    """Send the same PUT twice. The first gets the prediction; the other gets 202 while it runs, or the prediction."""

    async def send(wait: float) -> Reply:
        await asyncio.sleep(wait)
        return await client.predict(request.inputs, name, put=True)

    replies = await asyncio.gather(send(0), send(request.wait))
    predictions = [reply for reply in replies if reply.http_status == 200]
    result.counts["PUT twice"] += 1
    if not predictions or any(reply.body.get("id") != name for reply in replies):
        result.problems.append(f"PUT twice: {[(reply.http_status, reply.content[:200]) for reply in replies]}")
    for reply in predictions:
        if problem := verify(pool, request, reply, result):
            result.problems.append(f"PUT twice: {problem}")
