"""The load test of several servers behind a gateway, which break at random: no accepted request may be lost.

The gateway starts the servers (--copies). Half of the predictions go through Cog's API, half through
Replicate's with a webhook. Meanwhile servers are killed, stopped for a while (SIGSTOP), slowed and restarted; at least
one is always left alone.
"""

import asyncio
import json
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import psutil

from e5_gateway.process import Gateway, running
from loadtesting.cog_client import Client, Json, Reply
from loadtesting.receiver import receiver
from loadtesting.storm import StormResult, verify
from loadtesting.workload import Pool, StormRequest

START_SECONDS = 120.0
PAUSE_SECONDS = (0.5, 4.0)
"""Between two breakdowns."""
STOP_SECONDS = (1.0, 25.0)
"""A server that is stopped for longer than 15 seconds is started again by the gateway's program."""
SLOW_SECONDS = 6.0
ACTIONS = ("killed", "worker killed", "stopped", "slowed", "restarted")


@dataclass
class FleetResult:
    """The storm's result, the breakdowns by kind, and the webhooks of an end by prediction and status."""

    storm: StormResult = field(default_factory=StormResult)
    breakdowns: Counter[str] = field(default_factory=Counter)
    ends: Counter[tuple[str, str]] = field(default_factory=Counter)
    created: set[str] = field(default_factory=set)
    tried_elsewhere: int = 0
    started_again: int = 0


def run(pool: Pool, requests: Sequence[StormRequest], clients: int, servers: int, dtype: str) -> FleetResult:
    """Send all requests, `clients` at a time, while servers break."""
    result = FleetResult()
    options = ("--copies", str(servers), "--webhooks-to", "127.0.0.1", "--log-level", "WARNING")
    with tempfile.TemporaryDirectory() as folder:
        with running((), Path(folder), *options, wait=False, environment={"E5_DTYPE": dtype}) as gateway:
            asyncio.run(_storm(gateway, pool, requests, clients, result))
        text = gateway.log.read_text(errors="replace")
        result.tried_elsewhere = text.count('"event": "tried elsewhere"')
        result.started_again = text.count('"event": "server started again"')
    return result


async def _storm(
    gateway: Gateway, pool: Pool, requests: Sequence[StormRequest], clients: int, result: FleetResult
) -> None:
    storm, queue = result.storm, iter(requests)

    def receive(prediction: Json) -> None:
        result.ends[prediction["id"], prediction["status"]] += 1

    async with Client.connect(gateway.url) as client, receiver(receive) as hook:
        model = await _model(client)
        started = time.perf_counter()

        async def send_from_queue() -> None:
            for request in queue:
                storm.counts["sent"] += 1
                try:
                    if storm.counts["sent"] % 2:
                        reply = await client.predict(request.inputs)
                    else:
                        reply = await _replicate(client, model, request.inputs, hook, result)
                except (aiohttp.ClientError, TimeoutError, OSError) as error:
                    storm.counts["lost"] += 1
                    storm.problems.append(repr(error))
                    continue
                if problem := verify(pool, request, reply, storm):
                    storm.problems.append(problem)
                storm.latencies.append(reply.seconds)

        breaking = asyncio.create_task(_break_servers(client, psutil.Process(gateway.process.pid), result))
        try:
            await asyncio.gather(*(send_from_queue() for _ in range(clients)))
        finally:
            breaking.cancel()
            await asyncio.gather(breaking, return_exceptions=True)
        storm.seconds = time.perf_counter() - started
        with suppress(TimeoutError):
            async with asyncio.timeout(20):
                while {name for name, _ in result.ends} != result.created:
                    await asyncio.sleep(0.1)
    if set(result.ends) != {(name, "succeeded") for name in result.created} or any(n > 1 for n in result.ends.values()):
        storm.problems.append("not every prediction had one webhook of its success")


async def _model(client: Client) -> str:
    """The model's name, once all servers are ready."""
    async with asyncio.timeout(START_SECONDS):
        while True:
            with suppress(aiohttp.ClientError, KeyError):
                states = await _states(client)
                if states and set(states.values()) == {"READY"}:
                    models = (await client.send("GET", "/v1/models")).body
                    return str(models["data"][0]["id"])
            await asyncio.sleep(0.2)


async def _states(client: Client) -> dict[str, str]:
    body = (await client.send("GET", "/health-check")).body
    return {target["url"]: target["status"] for target in body["targets"]}


async def _replicate(client: Client, model: str, inputs: Json, hook: str, result: FleetResult) -> Reply:
    """A prediction of Replicate's API, as Cog would reply."""
    started = time.perf_counter()
    body = json.dumps({"input": inputs, "webhook": hook, "webhook_events_filter": ["completed"]}).encode()
    path = f"/v1/models/e5/{model}/predictions"
    reply = await client.send("POST", path, body, Prefer="wait")
    if reply.http_status not in (201, 202):
        return reply
    result.created.add(reply.body["id"])
    while reply.body["status"] in ("starting", "processing"):
        await asyncio.sleep(0.1)
        reply = await client.send("GET", f"/v1/predictions/{reply.body['id']}")
    return Reply(200, reply.content, time.perf_counter() - started, 0)


async def _break_servers(client: Client, gateway: psutil.Process, result: FleetResult) -> None:
    """Break a server that is ready, again and again; never the last one that is ready and unbroken."""
    generator = random.Random(0)
    broken: dict[str, asyncio.Task[None]] = {}
    actions = list(ACTIONS)
    try:
        while True:
            await asyncio.sleep(generator.uniform(*PAUSE_SECONDS))
            broken = {url: task for url, task in broken.items() if not task.done()}
            states = await _states(client)
            sound = [url for url, state in states.items() if state == "READY" and url not in broken]
            if len(sound) < 2:
                continue
            url = generator.choice(sound)
            if not actions:
                actions = list(ACTIONS)
            action = actions.pop(generator.randrange(len(actions)))
            result.breakdowns[action] += 1
            broken[url] = asyncio.create_task(_break(_process(gateway, url), action, generator))
    finally:
        for task in broken.values():
            task.cancel()
        await asyncio.gather(*broken.values(), return_exceptions=True)


def _process(gateway: psutil.Process, url: str) -> psutil.Process:
    port = url.rpartition(":")[2]
    return next(child for child in gateway.children() if child.environ().get("PORT") == port)


async def _break(server: psutil.Process, action: str, generator: random.Random) -> None:
    workers = server.children(recursive=True)
    if action == "killed":
        _signal([server, *workers], signal.SIGKILL)
    elif action == "worker killed":
        _signal(workers, signal.SIGKILL)
    elif action == "restarted":
        _signal([server], signal.SIGTERM)
    elif action == "stopped":
        await _pause([server, *workers], generator.uniform(*STOP_SECONDS))
    else:
        end = time.monotonic() + SLOW_SECONDS
        while time.monotonic() < end:
            await _pause([server, *workers], 0.2)
            await asyncio.sleep(0.05)


async def _pause(processes: Sequence[psutil.Process], seconds: float) -> None:
    _signal(processes, signal.SIGSTOP)
    try:
        await asyncio.sleep(seconds)
    finally:
        _signal(processes, signal.SIGCONT)


def _signal(processes: Sequence[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)
