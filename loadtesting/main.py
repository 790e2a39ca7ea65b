"""Load and faults on the real server, every answer checked: a card for people, then one line of JSON.

    python scripts/loadtest.py            10,000 predictions by 64 clients, then the faults: some minutes
    python scripts/loadtest.py --quick    300 predictions: what the suite runs

The servers are scripts/serve.py on the embedded model (or that of E5_MODEL), in float32, so that every vector can be
compared tightly with that of its text alone. Exit status: 0 all is good; 1 something is not.
"""

import argparse
import asyncio
import json
from collections.abc import Sequence
from dataclasses import asdict

import psutil

from benchmarks.report import Json, log, machine, machine_card, median, megabytes, percentile
from benchmarks.texts import Texts
from e5 import catalog
from e5.embedder import Embedder
from e5.settings import Settings
from e5.weights.locate import locate
from e5_cog.server import Server, running
from loadtesting import faults as faults
from loadtesting import storm
from loadtesting.cog_client import Client
from loadtesting.faults import Seen
from loadtesting.storm import Outcome, Pool, Request

PREDICTIONS, QUICK_PREDICTIONS = 10_000, 300
CLIENTS = 64
TOLERANCES = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 5e-3}
"""Relative L2, and 1 − cosine, between a vector of a shared batch and that of its text alone."""
GROWTH_BYTES = 50_000_000
QUEUED_TOKENS = 60_000
"""The bound of the queue in the scenario that overflows it."""


def main(argv: list[str]) -> int:
    """Run the storm and the faults, print the card and the JSON line, and return the exit status."""
    arguments = _arguments(argv)
    result: Json = {"loadtest": "e5-cog", "machine": machine()}
    print(machine_card(result["machine"]), flush=True)
    log("embedding the texts one by one …")
    pool = _pool(arguments.dtype, max(50, arguments.predictions // storm.TEXTS_FOR_EACH))
    requests = storm.plan(pool, arguments.predictions, seed=0)
    environment = {"E5_DTYPE": arguments.dtype}
    with running(environment) as server:
        log(f"{len(requests):,} predictions …")
        outcome = asyncio.run(_storm(server, pool, requests, arguments.clients))
        result["storm"] = _figures(outcome, len(pool.texts), arguments)
        print(f"\n{_storm_card(result['storm'], outcome)}", flush=True)
        log("faults …")
        seen = asyncio.run(_faults(server))
    with running(environment | {"E5_MAX_QUEUED_TOKENS": str(QUEUED_TOKENS)}) as server:
        seen += asyncio.run(_worse_faults(server))
    result["faults"] = [asdict(one) for one in seen]
    print(f"\n{_faults_card(seen)}\n", flush=True)
    result["good"] = result["storm"]["good"] and all(one.good for one in seen)
    print(json.dumps(result), flush=True)
    return 0 if result["good"] else 1


def _pool(dtype: str, count: int) -> Pool:
    settings = Settings.from_environment()
    embedder = Embedder.load(dtype=dtype)
    found = locate(catalog.get(settings.model), settings.weights, settings.source)
    return Pool.make(embedder, Texts(embedder, found.tokenizer), count, TOLERANCES[dtype])


async def _storm(server: Server, pool: Pool, requests: Sequence[Request], clients: int) -> Outcome:
    async with Client.connect(server.url) as client:
        await storm.warm_up(client, pool, clients)
        outcome = await storm.run(client, pool, requests, clients, psutil.Process(server.process.pid))
        if (health := await client.health()) != "READY":
            outcome.wrong.append(f"/health-check says {health} afterwards")
        return outcome


async def _faults(server: Server) -> list[Seen]:
    async with Client.connect(server.url) as client:
        seen = [await scenario(client) for scenario in (faults.beyond_the_slots, faults.webhooks, faults.slow_reader)]
        return [*seen, await faults.terminated(client, server)]


async def _worse_faults(server: Server) -> list[Seen]:
    async with Client.connect(server.url) as client:
        return [await faults.overload(client, QUEUED_TOKENS), await faults.worker_killed(client, server)]


def _figures(outcome: Outcome, texts: int, arguments: argparse.Namespace) -> Json:
    growth = outcome.final_bytes - outcome.warm_bytes
    grows = arguments.predictions >= PREDICTIONS and growth >= GROWTH_BYTES  # a short run is all warm-up
    return {
        "predictions": arguments.predictions,
        "clients": arguments.clients,
        "texts": texts,
        "dtype": arguments.dtype,
        "counts": dict(outcome.counts),
        "wrong": outcome.wrong[:20],
        "max_relative_l2": outcome.worst_relative_l2,
        "min_cosine": outcome.least_cosine,
        "seconds": outcome.seconds,
        "requests_per_second": arguments.predictions / outcome.seconds,
        "p50_milliseconds": percentile(outcome.latencies, 50) * 1e3,
        "p99_milliseconds": percentile(outcome.latencies, 99) * 1e3,
        "median_batch_texts": median(outcome.batch_texts),
        "warm_bytes": outcome.warm_bytes,
        "growth_bytes": growth,
        "peak_growth_bytes": outcome.peak_bytes - outcome.warm_bytes,
        "good": not outcome.wrong and not outcome.counts["lost"] and not grows,
    }


def _storm_card(figures: Json, outcome: Outcome) -> str:
    counts = ", ".join(f"{number:,} {name}" for name, number in figures["counts"].items() if name != "sent")
    lines = [
        f"Storm: {figures['predictions']:,} predictions, {figures['clients']} clients, {figures['texts']:,} texts of "
        f"1 to {storm.LONGEST_TOKENS:,} tokens, {figures['dtype']}: {figures['seconds']:.1f} s",
        f"  {counts}",
        f"  wrong: {len(outcome.wrong)}; lost: {figures['counts'].get('lost', 0)}; against each text alone: "
        f"relative L2 at most {figures['max_relative_l2']:.1e}, cosine at least {figures['min_cosine']:.7f}",
        f"  {figures['requests_per_second']:.0f} requests/s, p50 {figures['p50_milliseconds']:.0f} ms, "
        f"p99 {figures['p99_milliseconds']:.0f} ms; median batch: {figures['median_batch_texts']:.0f} texts",
        f"  memory of the server after a warm-up and a fifth: {megabytes(figures['warm_bytes'])}; since then "
        f"{figures['growth_bytes'] / 1e6:+.1f} MB, {figures['peak_growth_bytes'] / 1e6:+.1f} MB at the peak",
        *(f"  WRONG: {problem}" for problem in figures["wrong"]),
    ]
    return "\n".join(lines)


def _faults_card(seen: Sequence[Seen]) -> str:
    return "\n".join(["Faults", *(f"  {'good' if one.good else 'WRONG'}: {one.name}: {one.what}" for one in seen)])


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="loadtest.py", description="Load and faults on the real server.")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_PREDICTIONS} predictions instead of many")
    parser.add_argument("--predictions", type=int, metavar="N", help=f"default: {PREDICTIONS:,}")
    parser.add_argument("--clients", type=int, default=CLIENTS, metavar="N", help=f"default: {CLIENTS}")
    parser.add_argument("--dtype", default="float32", choices=list(TOLERANCES))
    arguments = parser.parse_args(argv)
    arguments.predictions = arguments.predictions or (QUICK_PREDICTIONS if arguments.quick else PREDICTIONS)
    return arguments
