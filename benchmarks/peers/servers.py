"""Servers: requests/s and latency of this package's gateway and Cog server, compared with Infinity.

Both serve OpenAI's API from the same weights in float32; one text a request, answered in base64. The client is the same
process for both and shares the machine's cores with them.
"""

import asyncio
import base64
import itertools
import json
import os
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.peers.comparison import min_cosine
from benchmarks.peers.engines import CHECKPOINT
from benchmarks.report import Json, cells, interleaved, log, ratio_lines, ratios, table
from e5.vectors import Vectors
from e5_cog.server import free_port, running, stop
from e5_gateway import process
from loadtesting.cog_client import Client, LoadRun, Reply, rate_and_latency, sustain_load

OURS, INFINITY = "gateway + Cog server", "Infinity, torch"
CLIENTS, QUICK_CLIENTS = (1, 8, 32), (1, 4)
SECONDS, QUICK_SECONDS = 6.0, 0.5
START_SECONDS = 120
COMPARED_TEXTS = 16


@dataclass(frozen=True)
class Api:
    """Where a server's embeddings are, and the bodies of the requests."""

    url: str
    path: str
    bodies: list[bytes]


def measure(model: str, folder: Path, texts: Sequence[str], infinity: Path, quick: bool, rounds: int) -> Json:
    """`folder`: has the checkpoint; gets the logs and the gateway's database. `infinity`: the program infinity_emb."""
    checkpoint = folder / CHECKPOINT
    clients, seconds = (QUICK_CLIENTS, QUICK_SECONDS) if quick else (CLIENTS, SECONDS)
    settings = {"E5_MODEL": model, "E5_WEIGHTS": str(checkpoint), "E5_DTYPE": "float32", "E5_DEVICE": "cpu"}
    with ExitStack() as stack:
        log("starting the servers …")
        server = stack.enter_context(running(settings))
        gateway = stack.enter_context(process.running(server.url, folder))
        other = stack.enter_context(_infinity(infinity, model, checkpoint, folder / "infinity.log"))
        apis = {
            INFINITY: Api(other, "/embeddings", _bodies(model, [f"passage: {text}" for text in texts])),
            OURS: Api(gateway.url, "/v1/embeddings", _bodies(model, texts)),
        }
        vectors = {name: asyncio.run(_vectors(api)) for name, api in apis.items()}
        log(f"servers: {rounds} rounds …")
        actions = {(name, count): _loading(apis[name], count, seconds) for count in clients for name in apis}
        samples = interleaved(actions, rounds, warm_up=0)
    rows = [
        {"server": name, "clients": count, **rate_and_latency([sample.value for sample in runs])}
        for (name, count), runs in samples.items()
    ]
    rates = {f"{row['server']}, {row['clients']}": row["requests_per_second"] for row in rows}
    return {
        "texts": len(texts),
        "rounds": rounds,
        "seconds": seconds,
        "min_cosine": min_cosine(vectors[OURS], vectors[INFINITY]),
        "servers": rows,
        "ratios": ratios(rates, [(f"{OURS}, {count}", f"{INFINITY}, {count}") for count in clients]),
    }


def card(result: Json) -> str:
    formats = "{server}|{clients}|{requests_per_second:.1f}|{p50_milliseconds:.0f}|{p99_milliseconds:.0f}"
    return "\n".join(
        [
            "Servers: OpenAI's API, one text of 20 to 90 words a request, base64, float32; rounds of "
            f"{result['seconds']:g} s, interleaved: {result['rounds']}",
            table(["server", "clients", "req/s", "p50 ms", "p99 ms"], cells(result["servers"], formats)),
            "  ratio of requests/s, by clients:",
            *ratio_lines(result["ratios"]),
            f"  Lowest cosine between both servers' vectors: {result['min_cosine']:.6f}",
        ]
    )


def _bodies(model: str, texts: Sequence[str]) -> list[bytes]:
    return [json.dumps({"model": model, "input": text, "encoding_format": "base64"}).encode() for text in texts]


@contextmanager
def _infinity(program: Path, model: str, checkpoint: Path, log_file: Path) -> Iterator[str]:
    """Run Infinity with its defaults, but for the dtype. Yields its URL; stops it at the end."""
    port = free_port()
    options = {
        "--model-id": str(checkpoint),
        "--served-model-name": model,
        "--engine": "torch",
        "--device": "cpu",
        "--dtype": "float32",
        "--host": "127.0.0.1",
        "--port": str(port),
    }
    command = [str(program), "v2", *itertools.chain.from_iterable(options.items())]
    with log_file.open("wb") as output:
        # DO_NOT_TRACK: without it, Infinity sends usage statistics.
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}
        child = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_until_ready(f"{url}/health", child, log_file)
        yield url
    finally:
        stop(child)


def _wait_until_ready(url: str, child: subprocess.Popen[bytes], log_file: Path) -> None:
    """Raise RuntimeError with the end of the log if the server exits or does not answer in time."""
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and child.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:  # not listening yet
            time.sleep(0.2)
    raise RuntimeError(f"Infinity did not start; its log ends with:\n{log_file.read_text(errors='replace')[-2000:]}")


def _loading(api: Api, clients: int, seconds: float) -> Callable[[int], LoadRun]:
    return lambda _: asyncio.run(_load(api, clients, seconds))


async def _load(api: Api, clients: int, seconds: float) -> LoadRun:
    bodies = itertools.cycle(api.bodies)
    async with Client.connect(api.url) as client:
        return await sustain_load(lambda: _send(client, api, next(bodies)), clients, seconds)


async def _send(client: Client, api: Api, body: bytes) -> Reply:
    reply = await client.send("POST", api.path, body)
    if reply.http_status != 200:
        raise RuntimeError(f"{api.url} answered {reply.http_status}: {reply.content[:300]!r}")
    return reply


async def _vectors(api: Api) -> Vectors:
    """The server's vectors of the first texts: float32 [N, D]."""
    async with Client.connect(api.url) as client:
        replies = [await _send(client, api, body) for body in api.bodies[:COMPARED_TEXTS]]
    encoded = [reply.body["data"][0]["embedding"] for reply in replies]
    return np.stack([np.frombuffer(base64.b64decode(text), "<f4") for text in encoded])
