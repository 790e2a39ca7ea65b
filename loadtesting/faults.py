"""The load test's faults: what may befall a server that works, and what its clients then see.

Each scenario returns what was seen in words, and whether that is what should be.
"""

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
from aiohttp import web

from e5_cog.server import Server
from loadtesting.cog_client import Client, Json, Reply, new_id, vectors

GRACE_SECONDS = 10
"""What `docker stop` and many schedulers give a process between SIGTERM and SIGKILL."""
SLOTS = 64


@dataclass(frozen=True)
class Seen:
    """A scenario, what was seen, and whether it is as it should be."""

    name: str
    what: str
    good: bool


def work(number: int, texts: int) -> Json:
    """Inputs of `texts` documents that no other number has."""
    documents = [f"document {index} of request {number}, with some words more" for index in range(texts)]
    return {"documents": documents, "encoding_format": "base64"}


async def beyond_the_slots(client: Client) -> Seen:
    """A hundred requests at once, none sent again; then one that must be taken."""
    requests = [client.predict(work(number, 40), retry=False) for number in range(100)]
    replies = await asyncio.gather(*requests)
    statuses = Counter(reply.http_status for reply in replies)
    started = time.perf_counter()
    after = await client.predict({"query": "after"})
    waited = time.perf_counter() - started
    good = statuses == {200: SLOTS, 409: 100 - SLOTS} and after.status == "succeeded"
    what = f"100 at once: {statuses[200]} answered, {statuses[409]} refused (409); the next one after {waited:.3f} s"
    return Seen("beyond the concurrency limit", what, good)


async def webhooks(client: Client) -> Seen:
    """Prefer: respond-async, with a receiver: one good and one invalid prediction."""
    events: list[Json] = []
    done = asyncio.Event()

    async def receive(request: web.Request) -> web.Response:
        events.append(await request.json())
        if sum(event["status"] in ("succeeded", "failed") for event in events) == 2:
            done.set()
        return web.Response()

    app = web.Application(client_max_size=2**26)
    app.router.add_post("/hook", receive)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        hook = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
        replies = []
        for inputs in ({"documents": ["one", "two"]}, {"query": " "}):
            body = json.dumps({"id": new_id(), "input": inputs, "webhook": hook}).encode()
            replies.append(await client.send("POST", "/predictions", body, Prefer="respond-async"))
        async with asyncio.timeout(30):
            await done.wait()
    finally:
        await runner.cleanup()
    good_id, bad_id = (reply.body["id"] for reply in replies)
    last = {event["id"]: event for event in events}
    good = (
        [reply.http_status for reply in replies] == [202, 202]
        and last[good_id]["status"] == "succeeded"
        and vectors(last[good_id]["output"]).shape[0] == 2
        and last[bad_id]["status"] == "failed"
        and "`query` is only white space" in last[bad_id]["error"]
    )
    seen = [f"{event['status']}" for event in events]
    return Seen("respond-async with a webhook", f"202 at once; the receiver got {', '.join(seen)}", good)


async def slow_reader(client: Client, texts: int = 1500) -> Seen:
    """A client that takes its answer of megabytes in drops, while others ask."""
    host, port = client.url.removeprefix("http://").split(":")
    body = json.dumps({"id": new_id(), "input": {"documents": work(0, texts)["documents"]}}).encode()
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"POST /predictions HTTP/1.0\r\nContent-Type: application/json\r\n")
    writer.write(b"Content-Length: %d\r\n\r\n" % len(body) + body)
    await writer.drain()
    got = await reader.read(1000)  # the answer has begun
    others: list[float] = []
    for _ in range(20):
        reply = await client.predict({"query": "meanwhile"})
        assert reply.status == "succeeded", reply.content[:300]
        others.append(reply.seconds)
        got += await reader.read(1000)
        await asyncio.sleep(0.05)
    got += await reader.read()
    writer.close()
    answer = json.loads(got.partition(b"\r\n\r\n")[2])
    whole = answer["status"] == "succeeded" and len(answer["output"]["embeddings"]) == texts
    what = f"{len(got) / 1e6:.1f} MB arrived whole; meanwhile others had a median of {_ms(others)}"
    return Seen("a client that reads slowly", what, whole)


async def overload(client: Client, queued_tokens: int) -> Seen:
    """More tokens than the queue may hold: some are refused in words, all others answered."""
    replies = await asyncio.gather(*(client.predict(work(number, 100)) for number in range(SLOTS)))
    statuses = Counter(reply.status for reply in replies)
    refused = [reply.body["error"] for reply in replies if reply.status == "failed"]
    named = all(f"the {queued_tokens:,} of E5_MAX_QUEUED_TOKENS: try again later" in error for error in refused)
    after = await client.predict({"query": "after"})
    good = named and bool(refused) and set(statuses) == {"succeeded", "failed"} and after.status == "succeeded"
    what = f"{statuses['succeeded']} answered, {statuses['failed']} told that the queue is full; then it takes again"
    return Seen(f"a queue of {queued_tokens:,} tokens at most", what, good)


async def terminated(client: Client, server: Server) -> Seen:
    """SIGTERM with requests in flight. A 409 in the beginning, as Cog gives one in some runs, is sent again."""
    inputs = [work(number, 100) for number in range(30)]
    requests = [asyncio.create_task(client.predict(one)) for one in inputs]
    await asyncio.sleep(0.5)
    open_ = sum(not request.done() for request in requests)
    started = time.perf_counter()
    server.process.send_signal(signal.SIGTERM)
    replies = await asyncio.gather(*requests, return_exceptions=True)
    while server.process.poll() is None and time.perf_counter() - started < 3 * GRACE_SECONDS:
        await asyncio.sleep(0.02)
    seconds = time.perf_counter() - started
    told = Counter(_told(reply) for reply in replies)
    good = set(told) <= {"succeeded", "failed"} and server.process.poll() == 0 and seconds < GRACE_SECONDS and open_ > 0
    what = f"{open_} of 30 in flight: {_counts(told)}; exit status {server.process.poll()} after {seconds:.1f} s"
    return Seen("SIGTERM", what, good)


async def worker_killed(client: Client, server: Server) -> Seen:
    """SIGKILL of the process that has the model."""
    requests = [asyncio.create_task(client.predict(work(number, 100), retry=False)) for number in range(30)]
    await asyncio.sleep(0.5)
    open_ = sum(not request.done() for request in requests)
    (worker,) = psutil.Process(server.process.pid).children(recursive=True)
    started = time.perf_counter()
    worker.kill()
    health = await client.health()
    while health != "UNHEALTHY" and time.perf_counter() - started < GRACE_SECONDS:
        await asyncio.sleep(0.02)
        health = await client.health()
    unhealthy = time.perf_counter() - started
    told = Counter(_told(reply) for reply in await asyncio.gather(*requests, return_exceptions=True))
    answered = time.perf_counter() - started
    later = await client.predict({"query": "later"}, retry=False)
    still = await client.health()
    good = (
        health == still == "UNHEALTHY"
        and set(told) <= {"succeeded", "failed", "HTTP 409"}
        and told["failed"] > 0
        and _told(later) in ("failed", "HTTP 409", "HTTP 503")
    )
    what = (
        f"{open_} of 30 in flight: {_counts(told)}, the last after {answered:.2f} s; /health-check says {health} after "
        f"{unhealthy:.2f} s and stays so; a later request: {_told(later)}"
    )
    return Seen("SIGKILL of the worker", what, good)


def _told(reply: Reply | BaseException) -> str:
    if isinstance(reply, aiohttp.ClientError | OSError):
        return "connection lost"
    if isinstance(reply, BaseException):
        return repr(reply)
    return reply.status or f"HTTP {reply.http_status}"


def _counts(counts: Counter[str]) -> str:
    return ", ".join(f"{number} {name}" for name, number in counts.most_common())


def _ms(seconds: Sequence[float]) -> str:
    return f"{statistics.median(seconds) * 1e3:.0f} ms"
