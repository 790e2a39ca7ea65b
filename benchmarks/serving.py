"""Serve: requests/s and latency of the real Cog server by number of clients, and the bounds on both.

Interleaves three servers in one run: this package's; the same one with one prediction at a time; and Cog's server
without a model, which returns vectors of the same size. Also times the engine itself on the same texts in one call. The
client is this process and shares the machine's cores with the servers.
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
from benchmarks.report import Json, Keep, cells, discard, log, median, percentile, table
from benchmarks.texts import Pair, RandomTexts
from e5 import DEFAULT_TASK
from e5.embedder import Embedder
from e5_cog.server import python_path, running
from loadtesting.cog_client import Client, LoadRun, Reply, rate_and_latency, sustain_load

SHARED, UNSHARED, NO_MODEL = "shared batches", "one at a time", "no model (the server's ceiling)"
CLIENTS, QUICK_CLIENTS = (1, 8, 32, 64), (1, 8)
SECONDS, QUICK_SECONDS = 4.0, 0.5
PAIRS = 1000
PHASES = ("tokenize_ms", "queued_ms", "model_ms", "encode_ms")


def measure(
    embedder: Embedder, texts: RandomTexts, environment: dict[str, str], quick: bool, rounds: int, keep: Keep = discard
) -> Json:
    """`environment`: the E5_* variables with which a server loads the same model as `embedder`."""
    pairs = texts.pairs(PAIRS if not quick else 50)
    clients, seconds = (QUICK_CLIENTS, QUICK_SECONDS) if quick else (CLIENTS, SECONDS)
    one_at_a_time = {"COG_PREDICT_TYPE_STUB": "benchmarks/serving_predictor.py:Predictor", "PYTHONPATH": python_path()}
    runs: dict[tuple[str, int], list[LoadRun]] = defaultdict(list)
    engine_rates: list[float] = []
    single_calls: list[float] = []

    def summary() -> Json:
        rows = [_row(name, count, load_runs) for (name, count), load_runs in runs.items()]
        return {
            "pairs": len(pairs),
            "dtype": embedder.dtype,
            "rounds": rounds,
            "seconds": seconds,
            "engine_requests_per_second": median(engine_rates),
            "single_call_p50_milliseconds": percentile(single_calls, 50) * 1e3,
            "servers": rows,
            "shares": _shares(rows, median(engine_rates)),
        }

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        log("starting three servers …")
        urls = {
            SHARED: stack.enter_context(running(environment)).url,
            UNSHARED: stack.enter_context(running(environment | one_at_a_time)).url,
            NO_MODEL: f"http://127.0.0.1:{stack.enter_context(serialization.running(folder))}",
        }
        inputs = {name: _inputs(name, pairs, embedder.dimensions) for name in urls}
        _engine_rate(embedder, pairs)
        for number in range(rounds):
            log(f"serve: round {number + 1} of {rounds} …")
            engine_rates.append(_engine_rate(embedder, pairs))
            single_calls += _time_single_calls(embedder, pairs[:100])
            for count in clients:
                for name, url in urls.items():
                    runs[name, count].append(asyncio.run(_load(url, inputs[name], count, seconds)))
                keep(summary())
    return summary()


def card(result: Json) -> str:
    head = ["server", "clients", "req/s", "p50 ms", "p99 ms", "batch", *(phase.replace("_ms", "") for phase in PHASES)]
    formats = "{server}|{clients}|{requests_per_second:,.0f}|{p50_milliseconds:.2f}|{p99_milliseconds:.1f}"
    servers = [
        [
            *cells([row], formats)[0],
            f"{row['batch_texts']:.0f}" if "batch_texts" in row else "–",
            *(f"{row[phase]:.2f}" if phase in row else "–" for phase in PHASES),
        ]
        for row in result["servers"]
    ]
    formats = "{clients}|{of_one_at_a_time:.2f}|{of_engine:.2f}|{of_ceiling:.2f}|{of_both:.2f}"
    shares = cells(result["shares"], formats)
    return "\n".join(
        [
            f"Serve: one query of 30 tokens and one document of 80 to base64, {result['dtype']}; rounds of "
            f"{result['seconds']:g} s, interleaved: {result['rounds']}",
            table(head, servers),
            "  batch: texts in the shared batch; the columns after it: medians of the predictions' own metrics in ms",
            f"  engine without a server, {result['pairs']:,} such pairs in one call: "
            f"{result['engine_requests_per_second']:,.0f} pairs/s; one pair per call in this process: p50 "
            f"{result['single_call_p50_milliseconds']:.2f} ms",
            "  shared batches, requests/s as a share of:",
            table(["clients", "one at a time", "engine", "ceiling", "1 / (1/engine + 1/ceiling)"], shares),
        ]
    )


def _inputs(name: str, pairs: Sequence[Pair], dimensions: int) -> list[Json]:
    if name == NO_MODEL:
        return [{"encoding": "base64", "dimensions": dimensions}]
    return [{"query": pair.query, "document": pair.document, "encoding_format": "base64"} for pair in pairs]


async def _load(url: str, inputs: Sequence[Json], clients: int, seconds: float) -> LoadRun:
    next_inputs = itertools.cycle(inputs)
    async with Client.connect(url) as client:

        async def send() -> Reply:
            reply = await client.predict(next(next_inputs))
            if reply.http_status != 200:
                raise RuntimeError(f"the server answered {reply.http_status}: {reply.content[:300]!r}")
            return reply

        return await sustain_load(send, clients, seconds)


def _row(name: str, clients: int, runs: Sequence[LoadRun]) -> Json:
    metrics = [reply.body["metrics"] for run in runs for reply in run.replies[::20]]
    names = [key for key in ("batch_texts", *PHASES) if metrics and key in metrics[0]]
    row = {"server": name, "clients": clients, **rate_and_latency(runs)}
    return row | {key: median([values[key] for values in metrics]) for key in names}


def _shares(rows: Sequence[Json], engine_rate: float) -> list[Json]:
    """Shared batches against each bound. `of_both`: engine and server take turns on the same cores."""
    rates = {(row["server"], row["clients"]): row["requests_per_second"] for row in rows}
    return [
        {
            "clients": clients,
            "of_one_at_a_time": rate / rates[UNSHARED, clients],
            "of_engine": rate / engine_rate,
            "of_ceiling": rate / rates[NO_MODEL, clients],
            "of_both": rate * (1 / engine_rate + 1 / rates[NO_MODEL, clients]),
        }
        for (name, clients), rate in rates.items()
        if name == SHARED
    ]


def _engine_rate(embedder: Embedder, pairs: Sequence[Pair]) -> float:
    """Pairs per second when all are embedded in one call, tokenizing included."""
    started = time.perf_counter()
    tokens = embedder.tokenize([pair.query for pair in pairs], [pair.document for pair in pairs], DEFAULT_TASK)
    embedder.embed_tokens(tokens)
    return len(pairs) / (time.perf_counter() - started)


def _time_single_calls(embedder: Embedder, pairs: Sequence[Pair]) -> list[float]:
    """Seconds of each pair, one pair per call."""
    seconds = []
    for pair in pairs:
        started = time.perf_counter()
        embedder.embed_tokens(embedder.tokenize([pair.query], [pair.document], DEFAULT_TASK))
        seconds.append(time.perf_counter() - started)
    return seconds
