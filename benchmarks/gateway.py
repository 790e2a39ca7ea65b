"""What the gateway costs: requests/s and waiting times through each of its APIs, beside the Cog server without it.

All take turns in one run, on the same server, with the same pairs in base64. The client shares the machine's cores with
gateway, server and model: a gateway of its own machine costs less.
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

from benchmarks.report import Json, log, table
from benchmarks.texts import Pair, Texts
from e5_cog.server import running
from e5_gateway import process
from loadtesting.cog_client import Client, Reply, Spell, keep_busy, new_id, rate_and_waits

DIRECT = "the Cog server itself"
CLIENTS, QUICK_CLIENTS = (1, 8, 32), (1, 4)
SECONDS, QUICK_SECONDS = 4.0, 0.3
PAIRS = 1000


@dataclass(frozen=True)
class Way:
    """One API: where its requests go, what they hold, and the status of a good answer."""

    name: str
    path: str
    status: int
    headers: dict[str, str]

    def body(self, pair: Pair, model: str) -> bytes:
        base64 = {"encoding_format": "base64"}
        if self.path == "/v1/embeddings":  # all texts of a request are of one kind there: both are documents
            return json.dumps({"model": model, "input": [pair.query, pair.document]} | base64).encode()
        inputs = {"query": pair.query, "document": pair.document} | base64
        return json.dumps({"input": inputs} | ({} if "/v1/" in self.path else {"id": new_id()})).encode()


def ways(model: str) -> tuple[Way, ...]:
    return (
        Way(DIRECT, "/predictions", 200, {}),
        Way("gateway, Cog's API", "/predictions", 200, {}),
        Way("gateway, OpenAI's API", "/v1/embeddings", 200, {}),
        Way("gateway, Replicate's API", f"/v1/models/e5/{model}/predictions", 201, {"Prefer": "wait"}),
    )


def measure(model: str, texts: Texts, environment: dict[str, str], quick: bool, rounds: int) -> Json:
    """`environment`: the E5_* variables that make a server run the model."""
    pairs = texts.pairs(PAIRS if not quick else 50)
    clients, seconds = (QUICK_CLIENTS, QUICK_SECONDS) if quick else (CLIENTS, SECONDS)
    runs: dict[tuple[str, int], list[Spell]] = defaultdict(list)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        log("starting a server and a gateway …")
        server = stack.enter_context(running(environment))
        gateway = stack.enter_context(process.running(server.url, folder))
        for number in range(rounds):
            log(f"gateway: round {number + 1} of {rounds} …")
            for count, way in itertools.product(clients, ways(model)):
                url = server.url if way.name == DIRECT else gateway.url
                runs[way.name, count].append(asyncio.run(_load(url, way, pairs, model, count, seconds)))
    rows = [{"way": name, "clients": count, **rate_and_waits(found)} for (name, count), found in runs.items()]
    return {"pairs": len(pairs), "dtype": texts.embedder.dtype, "rounds": rounds, "seconds": seconds, "ways": rows} | {
        "against_direct": _against_direct(rows)
    }


def card(result: Json) -> str:
    rows = [
        [
            row["way"],
            str(row["clients"]),
            f"{row['requests_per_second']:,.0f}",
            f"{row['p50_milliseconds']:.2f}",
            f"{row['p99_milliseconds']:.1f}",
        ]
        for row in result["ways"]
    ]
    compared = [
        [row["way"], str(row["clients"]), f"{row['of_direct']:.2f}", f"{row['added_p50_milliseconds']:+.2f}"]
        for row in result["against_direct"]
    ]
    return "\n".join(
        [
            f"Gateway: one query of 30 tokens and one document of 80 to base64, {result['dtype']}; rounds of "
            f"{result['seconds']:g} s, interleaved: {result['rounds']}",
            table(["way", "clients", "req/s", "p50 ms", "p99 ms"], rows),
            "  against the Cog server itself, ratio of medians and difference of p50:",
            table(["way", "clients", "req/s", "p50 ms"], compared),
        ]
    )


async def _load(url: str, way: Way, pairs: Sequence[Pair], model: str, clients: int, seconds: float) -> Spell:
    turns = itertools.cycle(pairs)
    async with Client.connect(url) as client:

        async def ask() -> Reply:
            reply = await client.send("POST", way.path, way.body(next(turns), model), retry=True, **way.headers)
            if reply.http_status != way.status:
                raise RuntimeError(f"{way.name} answered {reply.http_status}: {reply.content[:300]!r}")
            return reply

        return await keep_busy(ask, clients, seconds)


def _against_direct(rows: Sequence[Json]) -> list[Json]:
    direct = {row["clients"]: row for row in rows if row["way"] == DIRECT}
    return [
        {
            "way": row["way"],
            "clients": row["clients"],
            "of_direct": row["requests_per_second"] / direct[row["clients"]]["requests_per_second"],
            "added_p50_milliseconds": row["p50_milliseconds"] - direct[row["clients"]]["p50_milliseconds"],
        }
        for row in rows
        if row["way"] != DIRECT
    ]
