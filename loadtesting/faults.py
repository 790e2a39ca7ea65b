"""The load test's faults: overload, webhooks, slow clients and killed processes, as seen by the server's clients."""

import asyncio
import json
import signal
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import aiohttp
import psutil

from e5_cog.server import Server
from loadtesting.cog_client import Client, Json, Reply, new_id, vectors
from loadtesting.receiver import receiver

GRACE_SECONDS = 10
"""Time that `docker stop` and many schedulers leave a process between SIGTERM and SIGKILL."""
SLOTS = 128
"""Predictions that the server runs at a time (predict.py)."""
MANY = 200


@dataclass(frozen=True)
class FaultResult:
    """A scenario, a description of what happened, and whether it was correct."""

    name: str
    description: str
    passed: bool


def unique_documents(number: int, texts: int) -> Json:
    """Inputs of `texts` documents that no other number gets."""
    documents = [f"document {index} of request {number}, with some words more" for index in range(texts)]
    return {"documents": documents, "encoding_format": "base64"}


async def beyond_the_slots(client: Client) -> FaultResult:
    """Send MANY requests at once without retries; the next request must be accepted."""
    statuses: Counter[int] = Counter()
    early = 0  # answers before the last refusal: their slots may have served a second request

    async def send(number: int) -> None:
        nonlocal early
        reply = await client.predict(unique_documents(number, 40), retry=False)
        statuses[reply.http_status] += 1
        if reply.http_status == 409:
            early = statuses[200]

    await asyncio.gather(*(send(number) for number in range(MANY)))
    started = time.perf_counter()
    after = await client.predict({"query": "after"})
    waited = time.perf_counter() - started
    right = set(statuses) == {200, 409} and SLOTS <= statuses[200] <= SLOTS + early
    passed = right and after.status == "succeeded"
    description = (
        f"{MANY} at once: {statuses[200]} answered, {statuses[409]} refused (409); the next one after {waited:.3f} s"
    )
    return FaultResult("beyond the concurrency limit", description, passed)


async def webhooks(client: Client) -> FaultResult:
    """Send one valid and one invalid prediction with Prefer: respond-async, and receive their webhooks."""
    events: list[Json] = []
    done = asyncio.Event()

    def receive(event: Json) -> None:
        events.append(event)
        if sum(event["status"] in ("succeeded", "failed") for event in events) == 2:
            done.set()

    async with receiver(receive) as hook:
        replies = []
        for inputs in ({"documents": ["one", "two"]}, {"query": " "}):
            body = json.dumps({"id": new_id(), "input": inputs, "webhook": hook}).encode()
            replies.append(await client.send("POST", "/predictions", body, Prefer="respond-async"))
        async with asyncio.timeout(30):
            await done.wait()
    valid_id, invalid_id = (reply.body["id"] for reply in replies)
    last_event = {event["id"]: event for event in events}
    passed = (
        [reply.http_status for reply in replies] == [202, 202]
        and last_event[valid_id]["status"] == "succeeded"
        and vectors(last_event[valid_id]["output"]).shape[0] == 2
        and last_event[invalid_id]["status"] == "failed"
        and "`query` is only white space" in last_event[invalid_id]["error"]
    )
    statuses = ", ".join(event["status"] for event in events)
    return FaultResult("respond-async with a webhook", f"202 at once; the receiver got {statuses}", passed)


async def slow_reader(client: Client, texts: int = 1500) -> FaultResult:
    """Read a response of megabytes in small pieces while other clients send requests."""
    host, port = client.url.removeprefix("http://").split(":")
    body = json.dumps({"id": new_id(), "input": {"documents": unique_documents(0, texts)["documents"]}}).encode()
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"POST /predictions HTTP/1.0\r\nContent-Type: application/json\r\n")
    writer.write(b"Content-Length: %d\r\n\r\n" % len(body) + body)
    await writer.drain()
    received = await reader.read(1000)  # the response has begun
    latencies: list[float] = []
    for _ in range(20):
        reply = await client.predict({"query": "meanwhile"})
        assert reply.status == "succeeded", reply.content[:300]
        latencies.append(reply.seconds)
        received += await reader.read(1000)
        await asyncio.sleep(0.05)
    received += await reader.read()
    writer.close()
    prediction = json.loads(received.partition(b"\r\n\r\n")[2])
    complete = prediction["status"] == "succeeded" and len(prediction["output"]["embeddings"]) == texts
    description = (
        f"{len(received) / 1e6:.1f} MB arrived complete; meanwhile other clients had a median of {_ms(latencies)}"
    )
    return FaultResult("a client that reads slowly", description, complete)


async def overload(client: Client, queued_tokens: int) -> FaultResult:
    """Send more tokens than the queue may hold: it refuses some requests with an error and answers all others."""
    replies = await asyncio.gather(*(client.predict(unique_documents(number, 100)) for number in range(SLOTS)))
    statuses = Counter(reply.status for reply in replies)
    errors = [reply.body["error"] for reply in replies if reply.status == "failed"]
    explained = all(f"the {queued_tokens:,} of E5_MAX_QUEUED_TOKENS: try again later" in error for error in errors)
    after = await client.predict({"query": "after"})
    passed = explained and bool(errors) and set(statuses) == {"succeeded", "failed"} and after.status == "succeeded"
    description = (
        f"{statuses['succeeded']} answered, {statuses['failed']} refused because the queue is full; "
        "the next one answered"
    )
    return FaultResult(f"a queue of at most {queued_tokens:,} tokens", description, passed)


async def terminated(client: Client, server: Server) -> FaultResult:
    """Send SIGTERM with requests in flight. Retries a 409 at the beginning, which Cog sends in some runs."""
    requests = [asyncio.create_task(client.predict(unique_documents(number, 100))) for number in range(30)]
    await asyncio.sleep(0.5)
    in_flight = sum(not request.done() for request in requests)
    started = time.perf_counter()
    server.process.send_signal(signal.SIGTERM)
    replies = await asyncio.gather(*requests, return_exceptions=True)
    while server.process.poll() is None and time.perf_counter() - started < 3 * GRACE_SECONDS:
        await asyncio.sleep(0.02)
    seconds = time.perf_counter() - started
    endings = Counter(_ending(reply) for reply in replies)
    exit_status = server.process.poll()
    passed = set(endings) <= {"succeeded", "failed"} and exit_status == 0 and seconds < GRACE_SECONDS and in_flight > 0
    description = f"{in_flight} of 30 in flight: {_counts(endings)}; exit status {exit_status} after {seconds:.1f} s"
    return FaultResult("SIGTERM", description, passed)


async def worker_killed(client: Client, server: Server) -> FaultResult:
    """Send SIGKILL to the process that holds the model."""
    requests = [asyncio.create_task(client.predict(unique_documents(number, 100), retry=False)) for number in range(30)]
    await asyncio.sleep(0.5)
    in_flight = sum(not request.done() for request in requests)
    (worker,) = psutil.Process(server.process.pid).children(recursive=True)
    started = time.perf_counter()
    worker.kill()
    health = await client.health()
    while health != "UNHEALTHY" and time.perf_counter() - started < GRACE_SECONDS:
        await asyncio.sleep(0.02)
        health = await client.health()
    unhealthy = time.perf_counter() - started
    endings = Counter(_ending(reply) for reply in await asyncio.gather(*requests, return_exceptions=True))
    answered = time.perf_counter() - started
    later = await client.predict({"query": "later"}, retry=False)
    final_health = await client.health()
    passed = (
        health == final_health == "UNHEALTHY"
        and set(endings) <= {"succeeded", "failed", "HTTP 409"}
        and endings["failed"] > 0
        and _ending(later) in ("failed", "HTTP 409", "HTTP 503")
    )
    description = (
        f"{in_flight} of 30 in flight: {_counts(endings)}, the last after {answered:.2f} s; "
        f"/health-check says {health} after {unhealthy:.2f} s and stays so; a later request: {_ending(later)}"
    )
    return FaultResult("SIGKILL of the worker", description, passed)


def _ending(reply: Reply | BaseException) -> str:
    if isinstance(reply, aiohttp.ClientError | OSError):
        return "connection lost"
    if isinstance(reply, BaseException):
        return repr(reply)
    return reply.status or f"HTTP {reply.http_status}"


def _counts(counts: Counter[str]) -> str:
    return ", ".join(f"{number} {name}" for name, number in counts.most_common())


def _ms(seconds: Sequence[float]) -> str:
    return f"{statistics.median(seconds) * 1e3:.0f} ms"
