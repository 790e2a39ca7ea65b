"""Runs the storm and the faults of scripts/loadtest.py, and prints the card and the JSON line."""

import argparse
import asyncio
import json
from collections.abc import Sequence
from dataclasses import asdict

import psutil

from benchmarks.report import Json, log, machine, machine_card, median, megabytes, percentile
from benchmarks.texts import RandomTexts
from e5.embedder import Embedder
from e5.settings import Settings
from e5.weights.locate import locate
from e5_cog.server import Server, running
from loadtesting import faults, fleet, storm, workload
from loadtesting.cog_client import Client
from loadtesting.faults import FaultResult
from loadtesting.storm import StormResult
from loadtesting.workload import Pool, StormRequest

PREDICTIONS, QUICK_PREDICTIONS = 20_000, 300
SERVERS_PREDICTIONS = 10_000
CLIENTS = 64
"""As many as the documentation promises slots. If each waits for its answer, none may get a 409."""
TOLERANCES = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 5e-3}
"""Largest relative L2, and 1 − cosine, between vectors from a shared batch and from separate calls."""
MAX_GROWTH_BYTES = 80_000_000
"""Growth in the second half: 8 kB a prediction. 53 MB were seen, because oneDNN keeps memory for each new shape: in one
process, 20,000 texts added 110 MB to 554, and the same texts again 4 MB.
"""
QUEUED_TOKENS = 60_000
"""E5_MAX_QUEUED_TOKENS in the scenario that overflows the queue."""


def main(argv: list[str]) -> int:
    """Exit status: 0 if everything passed, else 1."""
    arguments = _arguments(argv)
    result: Json = {"loadtest": "e5-cog", "machine": machine()}
    print(machine_card(result["machine"]), flush=True)
    log("embedding the texts one by one …")
    pool = _pool(arguments.dtype, max(50, arguments.predictions // workload.PREDICTIONS_PER_TEXT))
    requests = workload.draw_requests(pool, arguments.predictions, seed=0)
    environment = {"E5_DTYPE": arguments.dtype}
    if arguments.servers:
        return _with_fleet(arguments, pool, result)
    with running(environment) as server:
        log(f"{len(requests):,} predictions …")
        storm_result = asyncio.run(_storm(server, pool, requests, arguments.clients))
        result["storm"] = _figures(storm_result, len(pool.texts), arguments)
        print(f"\n{_storm_card(result['storm'])}", flush=True)
        log("faults …")
        fault_results = asyncio.run(_faults(server))
    with running(environment | {"E5_MAX_QUEUED_TOKENS": str(QUEUED_TOKENS)}) as server:
        fault_results += asyncio.run(_faults_with_small_queue(server))
    result["faults"] = [asdict(fault) for fault in fault_results]
    print(f"\n{_faults_card(fault_results)}\n", flush=True)
    result["passed"] = result["storm"]["passed"] and all(fault.passed for fault in fault_results)
    print(json.dumps(result), flush=True)
    return 0 if result["passed"] else 1


def _with_fleet(arguments: argparse.Namespace, pool: Pool, result: Json) -> int:
    requests = [
        request
        for request in workload.draw_requests(pool, 2 * arguments.predictions, seed=0)
        if request.kind == "valid"
    ][: arguments.predictions]
    log(f"{len(requests):,} predictions to {arguments.servers} servers that break …")
    outcome = fleet.run(pool, requests, arguments.clients, arguments.servers, arguments.dtype)
    storm_result = outcome.storm
    result["storm"] = {
        "servers": arguments.servers,
        "predictions": arguments.predictions,
        "verified": storm_result.counts["verified"],
        "lost": storm_result.counts["lost"],
        "wrong": len(storm_result.problems),
        "problems": storm_result.problems[:20],
        "twice": sum(count > 1 for count in outcome.ends.values()),
        "breakdowns": dict(outcome.breakdowns),
        "tried_elsewhere": outcome.tried_elsewhere,
        "started_again": outcome.started_again,
        "seconds": storm_result.seconds,
        "p50_milliseconds": percentile(storm_result.latencies, 50) * 1e3,
        "p99_milliseconds": percentile(storm_result.latencies, 99) * 1e3,
    }
    figures = result["storm"]
    breakdowns = ", ".join(f"{count} {name}" for name, count in outcome.breakdowns.items())
    lines = [
        f"{figures['predictions']:,} predictions, {arguments.clients} clients, {arguments.servers} servers that break, "
        f"{arguments.dtype}: {figures['seconds']:.1f} s",
        f"  servers: {breakdowns}; {figures['started_again']} started again; "
        f"{figures['tried_elsewhere']} requests tried elsewhere",
        f"  verified: {figures['verified']:,}; wrong: {figures['wrong']}; lost: {figures['lost']}; "
        f"succeeded twice: {figures['twice']}; p50 {figures['p50_milliseconds']:.0f} ms, "
        f"p99 {figures['p99_milliseconds']:.0f} ms",
        *(f"  WRONG: {problem}" for problem in figures["problems"]),
    ]
    print("\n" + "\n".join(lines) + "\n", flush=True)
    result["passed"] = not storm_result.problems and figures["verified"] == arguments.predictions
    print(json.dumps(result), flush=True)
    return 0 if result["passed"] else 1


def _pool(dtype: str, count: int) -> Pool:
    settings = Settings.from_environment()
    embedder = Embedder.load(dtype=dtype)
    weights = locate(settings.resolve(), settings.weights, settings.source)
    return Pool.make(embedder, RandomTexts(embedder, weights.tokenizer), count, TOLERANCES[dtype])


async def _storm(server: Server, pool: Pool, requests: Sequence[StormRequest], clients: int) -> StormResult:
    async with Client.connect(server.url) as client:
        await storm.warm_up(client, pool, clients)
        result = await storm.run(client, pool, requests, clients, psutil.Process(server.process.pid))
        if (health := await client.health()) != "READY":
            result.problems.append(f"/health-check says {health} afterwards")
        return result


async def _faults(server: Server) -> list[FaultResult]:
    async with Client.connect(server.url) as client:
        return [
            await faults.beyond_the_slots(client),
            await faults.webhooks(client),
            await faults.slow_reader(client),
            await faults.terminated(client, server),
        ]


async def _faults_with_small_queue(server: Server) -> list[FaultResult]:
    async with Client.connect(server.url) as client:
        return [await faults.overload(client, QUEUED_TOKENS), await faults.worker_killed(client, server)]


def _figures(result: StormResult, texts: int, arguments: argparse.Namespace) -> Json:
    growth = result.final_bytes - result.warm_bytes
    refused = arguments.clients <= CLIENTS and result.counts["409 and sent again"] > 0
    leaks = arguments.predictions >= PREDICTIONS and growth >= MAX_GROWTH_BYTES  # a short run is all warm-up
    return {
        "predictions": arguments.predictions,
        "clients": arguments.clients,
        "texts": texts,
        "dtype": arguments.dtype,
        "counts": dict(result.counts),
        "wrong": len(result.problems),
        "problems": result.problems[:20],
        "max_relative_l2": result.max_relative_l2,
        "min_cosine": result.min_cosine,
        "seconds": result.seconds,
        "requests_per_second": arguments.predictions / result.seconds,
        "p50_milliseconds": percentile(result.latencies, 50) * 1e3,
        "p99_milliseconds": percentile(result.latencies, 99) * 1e3,
        "median_batch_texts": median(result.batch_texts),
        "warm_bytes": result.warm_bytes,
        "growth_bytes": growth,
        "peak_growth_bytes": result.peak_bytes - result.warm_bytes,
        "passed": not result.problems and not result.counts["lost"] and not refused and not leaks,
    }


def _storm_card(figures: Json) -> str:
    counts = ", ".join(f"{number:,} {name}" for name, number in figures["counts"].items() if name != "sent")
    lines = [
        f"Storm: {figures['predictions']:,} predictions, {figures['clients']} clients, {figures['texts']:,} texts of "
        f"1 to {workload.LONGEST_TOKENS:,} tokens, {figures['dtype']}: {figures['seconds']:.1f} s",
        f"  {counts}",
        f"  wrong: {figures['wrong']}; lost: {figures['counts'].get('lost', 0)}; against separate calls: "
        f"relative L2 at most {figures['max_relative_l2']:.1e}, cosine at least {figures['min_cosine']:.7f}",
        f"  {figures['requests_per_second']:.0f} requests/s, p50 {figures['p50_milliseconds']:.0f} ms, "
        f"p99 {figures['p99_milliseconds']:.0f} ms; median batch: {figures['median_batch_texts']:.0f} texts",
        f"  memory of the server after warm-up and half of the run: {megabytes(figures['warm_bytes'])}; since then "
        f"{figures['growth_bytes'] / 1e6:+.1f} MB, {figures['peak_growth_bytes'] / 1e6:+.1f} MB at the peak",
        *(f"  WRONG: {problem}" for problem in figures["problems"]),
    ]
    return "\n".join(lines)


def _faults_card(results: Sequence[FaultResult]) -> str:
    return "\n".join(
        [
            "Faults",
            *(f"  {'passed' if fault.passed else 'FAILED'}: {fault.name}: {fault.description}" for fault in results),
        ]
    )


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="loadtest.py", description="Load and faults on the real server.")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_PREDICTIONS} predictions instead of many")
    parser.add_argument(
        "--predictions", type=int, metavar="N", help=f"default: {PREDICTIONS:,}; with --servers {SERVERS_PREDICTIONS:,}"
    )
    parser.add_argument("--clients", type=int, default=CLIENTS, metavar="N", help=f"default: {CLIENTS}")
    parser.add_argument(
        "--servers", type=int, metavar="N", help="instead: N servers behind a gateway, which are killed and stopped"
    )
    parser.add_argument("--dtype", default="float32", choices=list(TOLERANCES))
    arguments = parser.parse_args(argv)
    predictions = SERVERS_PREDICTIONS if arguments.servers else PREDICTIONS
    arguments.predictions = arguments.predictions or (QUICK_PREDICTIONS if arguments.quick else predictions)
    return arguments
