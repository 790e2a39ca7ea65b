"""Several servers behind one gateway: requests/s by their number, and with a slow one among them.

The servers are Cog's own, but their predictor sleeps, so that they don't compete for this machine's cores.
"""

import asyncio
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.report import Json, cells, log, median, table
from e5_cog.server import running
from e5_gateway import process
from loadtesting.cog_client import Client, Reply, new_id, sustain_load

SERVERS, QUICK_SERVERS = (1, 2, 4, 8), (1, 2)
CONCURRENCY, SLEEP_SECONDS = 4, 0.04
"""Of each server: so it does 100 requests a second."""
SLOW_SECONDS = 0.8
CLIENTS = 128
FEW_CLIENTS = 6
"""Fewer than the fast servers' slots: the choice of the server decides."""
SECONDS, QUICK_SECONDS = 6.0, 0.5
LIMIT = "without a limit of slots"
FAST, WITH_SLOW = "two fast servers", "and one 20 × slower"


def measure(rounds: int, quick: bool) -> Json:
    counts, seconds = (QUICK_SERVERS, QUICK_SECONDS) if quick else (SERVERS, SECONDS)
    with ExitStack() as stack:
        log(f"dispatch: starting {max(counts) + 1} servers …")
        urls = [stack.enter_context(_server(SLEEP_SECONDS)) for _ in range(max(counts))]
        slow = stack.enter_context(_server(SLOW_SECONDS))
        rates: dict[str, list[float]] = {}
        for number in range(rounds):
            log(f"dispatch: round {number + 1} of {rounds} …")
            for count in counts:
                rates.setdefault(f"{count} servers", []).append(_rate(urls[:count], CLIENTS, seconds))
            rates.setdefault(LIMIT, []).append(_rate(urls, CLIENTS, seconds, concurrency=CLIENTS))
            for clients in (FEW_CLIENTS, CLIENTS):
                for name, servers in ((FAST, urls[:2]), (WITH_SLOW, [*urls[:2], slow])):
                    rates.setdefault(f"{name}, {clients} clients", []).append(_rate(servers, clients, seconds))
    medians = {name: median(values) for name, values in rates.items()}
    return {
        "seconds": seconds,
        "rounds": rounds,
        "servers": [
            {"servers": count, "requests_per_second": medians[f"{count} servers"], "ideal": count * _ideal()}
            for count in counts
        ],
        "limit_requests_per_second": medians[LIMIT],
        "with_a_slow_one": [
            {
                "clients": clients,
                "fast": medians[f"{FAST}, {clients} clients"],
                "with_slow": medians[f"{WITH_SLOW}, {clients} clients"],
                "ratio": medians[f"{WITH_SLOW}, {clients} clients"] / medians[f"{FAST}, {clients} clients"],
            }
            for clients in (FEW_CLIENTS, CLIENTS)
        ],
    }


def card(result: Json) -> str:
    rows = cells(result["servers"], "{servers}|{requests_per_second:,.0f}|{ideal:,.0f}")
    slow = cells(result["with_a_slow_one"], "{clients}|{fast:,.0f}|{with_slow:,.0f}|{ratio:.2f}")
    return "\n".join(
        [
            f"Dispatch: servers that sleep {SLEEP_SECONDS * 1e3:.0f} ms, {CONCURRENCY} predictions at a time each, "
            f"{CLIENTS} clients; rounds of {result['seconds']:g} s: {result['rounds']}",
            table(["servers", "req/s", "ideal"], rows),
            f"  {max(row['servers'] for row in result['servers'])} servers {LIMIT}: "
            f"{result['limit_requests_per_second']:,.0f} requests/s, with clients and servers on the same cores",
            f"  {FAST}, {WITH_SLOW}:",
            table(["clients", "two", "three", "ratio"], slow),
        ]
    )


def _ideal() -> float:
    return CONCURRENCY / SLEEP_SECONDS


@contextmanager
def _server(seconds: float) -> Iterator[str]:
    stub = "benchmarks/sleeping_predictor.py:Predictor"
    with running({"COG_PREDICT_TYPE_STUB": stub, "SLEEP_SECONDS": str(seconds)}) as server:
        yield server.url


def _rate(servers: Sequence[str], clients: int, seconds: float, concurrency: int = CONCURRENCY) -> float:
    """Requests/s through a gateway in front of the servers."""
    options = ("--concurrency", str(concurrency), "--log-level", "ERROR")
    with tempfile.TemporaryDirectory() as folder, process.running(servers, Path(folder), *options) as gateway:
        return asyncio.run(_load(gateway.url, clients, seconds))


async def _load(url: str, clients: int, seconds: float) -> float:
    async with Client.connect(url) as client:

        async def send() -> Reply:
            body = json.dumps({"id": new_id(), "input": {"document": "one text"}}).encode()
            reply = await client.send("POST", "/predictions", body)
            if reply.status != "succeeded":
                raise RuntimeError(f"the gateway answered {reply.http_status}: {reply.content[:300]!r}")
            return reply

        await sustain_load(send, clients, 1.0)  # the gateway learns who is slow
        # Not sustain_load() again: it counts until the last reply, which a slow server delays.
        end, finished = time.perf_counter() + seconds, 0

        async def keep_sending() -> None:
            nonlocal finished
            while time.perf_counter() < end:
                await send()
                finished += time.perf_counter() < end

        await asyncio.gather(*(keep_sending() for _ in range(clients)))
        return finished / seconds
