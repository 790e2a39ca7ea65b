"""Gateway: requests/s and latency through each of its APIs, compared with the Cog server without a gateway.

All APIs are interleaved in one run on the same server, with the same pairs, in base64. Client, gateway, server and
model share the machine's cores; a gateway on its own machine costs less.
"""

import asyncio
import itertools
import json
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks.report import Json, cells, log, table
from benchmarks.texts import Pair, RandomTexts
from e5_cog.server import running
from e5_gateway import process
from loadtesting.cog_client import Client, LoadRun, Reply, new_id, rate_and_latency, sustain_load

DIRECT = "the Cog server itself"
CLIENTS, QUICK_CLIENTS = (1, 8, 32), (1, 4)
SECONDS, QUICK_SECONDS = 4.0, 0.3
PAIRS = 1000


@dataclass(frozen=True)
class Api:
    """Where requests of one API go, their headers, and the HTTP status of success."""

    name: str
    path: str
    status: int
    headers: dict[str, str]

    def body(self, pair: Pair, model: str) -> bytes:
        base64 = {"encoding_format": "base64"}
        if self.path == "/v1/embeddings":  # this API has one kind of text per request: both are documents
            return json.dumps({"model": model, "input": [pair.query, pair.document]} | base64).encode()
        inputs = {"query": pair.query, "document": pair.document} | base64
        return json.dumps({"input": inputs} | ({} if "/v1/" in self.path else {"id": new_id()})).encode()


def apis(model: str) -> tuple[Api, ...]:
    return (
        Api(DIRECT, "/predictions", 200, {}),
        Api("gateway, Cog's API", "/predictions", 200, {}),
        Api("gateway, OpenAI's API", "/v1/embeddings", 200, {}),
        Api("gateway, Replicate's API", f"/v1/models/e5/{model}/predictions", 201, {"Prefer": "wait"}),
    )


def measure(model: str, texts: RandomTexts, environment: dict[str, str], quick: bool, rounds: int) -> Json:
    """`environment`: the E5_* variables with which a server loads the model."""
    pairs = texts.pairs(PAIRS if not quick else 50)
    clients, seconds = (QUICK_CLIENTS, QUICK_SECONDS) if quick else (CLIENTS, SECONDS)
    runs: dict[tuple[str, int], list[LoadRun]] = defaultdict(list)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        log("starting a server and a gateway …")
        server = stack.enter_context(running(environment))
        gateway = stack.enter_context(process.running(server.url, folder))
        for number in range(rounds):
            log(f"gateway: round {number + 1} of {rounds} …")
            for count, api in itertools.product(clients, apis(model)):
                url = server.url if api.name == DIRECT else gateway.url
                runs[api.name, count].append(asyncio.run(_load(url, api, pairs, model, count, seconds)))
    rows = [{"api": name, "clients": count, **rate_and_latency(load_runs)} for (name, count), load_runs in runs.items()]
    return {
        "pairs": len(pairs),
        "dtype": texts.embedder.dtype,
        "rounds": rounds,
        "seconds": seconds,
        "apis": rows,
        "against_direct": _against_direct(rows),
    }


def card(result: Json) -> str:
    formats = "{api}|{clients}|{requests_per_second:,.0f}|{p50_milliseconds:.2f}|{p99_milliseconds:.1f}"
    rows = cells(result["apis"], formats)
    compared = cells(result["against_direct"], "{api}|{clients}|{of_direct:.2f}|{added_p50_milliseconds:+.2f}")
    return "\n".join(
        [
            f"Gateway: one query of 30 tokens and one document of 80 to base64, {result['dtype']}; rounds of "
            f"{result['seconds']:g} s, interleaved: {result['rounds']}",
            table(["API", "clients", "req/s", "p50 ms", "p99 ms"], rows),
            "  against the Cog server itself, ratio of medians and difference of p50:",
            table(["API", "clients", "req/s", "p50 ms"], compared),
        ]
    )


async def _load(url: str, api: Api, pairs: Sequence[Pair], model: str, clients: int, seconds: float) -> LoadRun:
    next_pair = itertools.cycle(pairs)
    async with Client.connect(url) as client:

        async def send() -> Reply:
            reply = await client.send("POST", api.path, api.body(next(next_pair), model), retry=True, **api.headers)
            if reply.http_status != api.status:
                raise RuntimeError(f"{api.name} answered {reply.http_status}: {reply.content[:300]!r}")
            return reply

        return await sustain_load(send, clients, seconds)


def _against_direct(rows: Sequence[Json]) -> list[Json]:
    direct = {row["clients"]: row for row in rows if row["api"] == DIRECT}
    return [
        {
            "api": row["api"],
            "clients": row["clients"],
            "of_direct": row["requests_per_second"] / direct[row["clients"]]["requests_per_second"],
            "added_p50_milliseconds": row["p50_milliseconds"] - direct[row["clients"]]["p50_milliseconds"],
        }
        for row in rows
        if row["api"] != DIRECT
    ]
