"""Serving: requests/s and waiting times of the real Cog server at several numbers of clients, and what bounds them.

Compared in one run, taking turns: this package's server; the same server with one prediction at a time; the server
alone, answering vectors of the same size that no model has computed. And the engine alone, fed with the same texts in
one call. The client, which shares the machine's cores with all of them, is this process.
"""

import asyncio
import itertools
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks import serialization
from benchmarks.report import Json, Keep, discard, log, median, percentile, table
from benchmarks.texts import Pair, Texts
from e5 import DEFAULT_TASK
from e5.embedder import Embedder
from e5_cog.server import python_path, running
from loadtesting.cog_client import Client, Reply, Spell, keep_busy, rate_and_waits

OURS, ALONE, CEILING = "shared batches", "one at a time", "no model (the server's ceiling)"
CLIENTS, QUICK_CLIENTS = (1, 8, 32, 64), (1, 8)
SECONDS, QUICK_SECONDS = 4.0, 0.5
PAIRS = 1000
PHASES = ("tokenize_ms", "queued_ms", "model_ms", "encode_ms")


def measure(
    embedder: Embedder, texts: Texts, environment: dict[str, str], quick: bool, rounds: int, keep: Keep = discard
) -> Json:
    """`environment`: the E5_* variables that make a server run what `embedder` is."""
    pairs = texts.pairs(PAIRS if not quick else 50)
    clients, seconds = (QUICK_CLIENTS, QUICK_SECONDS) if quick else (CLIENTS, SECONDS)
    one_at_a_time = {"COG_PREDICT_TYPE_STUB": "benchmarks/serving_predictor.py:Predictor", "PYTHONPATH": python_path()}
    runs: dict[tuple[str, int], list[Spell]] = defaultdict(list)
    engine: list[float] = []
    lone: list[float] = []

    def summary() -> Json:
        rows = [_row(name, count, found) for (name, count), found in runs.items()]
        return {
            "pairs": len(pairs),
            "dtype": embedder.dtype,
            "rounds": rounds,
            "seconds": seconds,
            "engine_requests_per_second": median(engine),
            "lone_call_p50_milliseconds": percentile(lone, 50) * 1e3,
            "servers": rows,
            "shares": _shares(rows, median(engine)),
        }

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        log("starting three servers …")
        urls = {
            OURS: stack.enter_context(running(environment)).url,
            ALONE: stack.enter_context(running(environment | one_at_a_time)).url,
            CEILING: f"http://127.0.0.1:{stack.enter_context(serialization.running(folder))}",
        }
        bodies = {name: _bodies(name, pairs, embedder.dimensions) for name in urls}
        _engine(embedder, pairs)
        for number in range(rounds):
            log(f"serving: round {number + 1} of {rounds} …")
            engine.append(_engine(embedder, pairs))
            lone += _lone(embedder, pairs[:100])
            for count in clients:
                for name, url in urls.items():
                    runs[name, count].append(asyncio.run(_load(url, bodies[name], count, seconds)))
                keep(summary())
    return summary()


def card(result: Json) -> str:
    head = ["server", "clients", "req/s", "p50 ms", "p99 ms", "batch", *(phase.replace("_ms", "") for phase in PHASES)]
    lines = [
        [
            row["server"],
            str(row["clients"]),
            f"{row['requests_per_second']:,.0f}",
            f"{row['p50_milliseconds']:.2f}",
            f"{row['p99_milliseconds']:.1f}",
            f"{row['batch_texts']:.0f}" if "batch_texts" in row else "–",
            *(f"{row[phase]:.2f}" if phase in row else "–" for phase in PHASES),
        ]
        for row in result["servers"]
    ]
    shares = [
        [
            str(row["clients"]),
            f"{row['of_one_at_a_time']:.2f}",
            f"{row['of_engine']:.2f}",
            f"{row['of_ceiling']:.2f}",
            f"{row['of_both']:.2f}",
        ]
        for row in result["shares"]
    ]
    return "\n".join(
        [
            f"Serve: one query of 30 tokens and one document of 80 to base64, {result['dtype']}; rounds of "
            f"{result['seconds']:g} s, interleaved: {result['rounds']}",
            table(head, lines),
            "  batch: texts that shared one; the columns after it: median milliseconds of the answers' own metrics",
            f"  the engine alone, {result['pairs']:,} such pairs in one call: "
            f"{result['engine_requests_per_second']:,.0f} pairs/s; a lone call in this process: p50 "
            f"{result['lone_call_p50_milliseconds']:.2f} ms",
            "  shared batches, requests/s as a share of:",
            table(["clients", "one at a time", "engine", "ceiling", "1 / (1/engine + 1/ceiling)"], shares),
        ]
    )


def _bodies(name: str, pairs: Sequence[Pair], dimensions: int) -> list[Json]:
    if name == CEILING:
        return [{"way": "base64", "dimensions": dimensions}]
    return [{"query": pair.query, "document": pair.document, "encoding_format": "base64"} for pair in pairs]


async def _load(url: str, inputs: Sequence[Json], clients: int, seconds: float) -> Spell:
    turns = itertools.cycle(inputs)
    async with Client.connect(url) as client:

        async def ask() -> Reply:
            reply = await client.predict(next(turns))
            if reply.http_status != 200:
                raise RuntimeError(f"the server answered {reply.http_status}: {reply.content[:300]!r}")
            return reply

        return await keep_busy(ask, clients, seconds)


def _row(name: str, clients: int, found: Sequence[Spell]) -> Json:
    metrics = [reply.body["metrics"] for spell in found for reply in spell.replies[::20]]
    names = [key for key in ("batch_texts", *PHASES) if metrics and key in metrics[0]]
    row = {"server": name, "clients": clients, **rate_and_waits(found)}
    return row | {key: median([one[key] for one in metrics]) for key in names}


def _shares(rows: Sequence[Json], engine: float) -> list[Json]:
    """What shares two cores at best: the time of a request is that of the engine and that of the server together."""
    rates = {(row["server"], row["clients"]): row["requests_per_second"] for row in rows}
    return [
        {
            "clients": clients,
            "of_one_at_a_time": rate / rates[ALONE, clients],
            "of_engine": rate / engine,
            "of_ceiling": rate / rates[CEILING, clients],
            "of_both": rate * (1 / engine + 1 / rates[CEILING, clients]),
        }
        for (name, clients), rate in rates.items()
        if name == OURS
    ]


def _engine(embedder: Embedder, pairs: Sequence[Pair]) -> float:
    """Pairs a second, all in one call, tokenising included."""
    started = time.perf_counter()
    tokens = embedder.tokenize([pair.query for pair in pairs], [pair.document for pair in pairs], DEFAULT_TASK)
    embedder.embed_tokens(tokens)
    return len(pairs) / (time.perf_counter() - started)


def _lone(embedder: Embedder, pairs: Sequence[Pair]) -> list[float]:
    """Seconds of a pair in a call of its own."""
    seconds = []
    for pair in pairs:
        started = time.perf_counter()
        embedder.embed_tokens(embedder.tokenize([pair.query], [pair.document], DEFAULT_TASK))
        seconds.append(time.perf_counter() - started)
    return seconds
