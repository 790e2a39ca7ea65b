"""Several servers behind one gateway: who gets requests, and what happens when a server breaks."""

import asyncio
import contextlib
import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from e5.errors import SettingsError
from e5_cog.repository import ROOT
from e5_cog.server import Server, free_port, running, stop
from e5_gateway import fleet
from e5_gateway.settings import GatewaySettings, read_targets
from e5_gateway.target import Identity
from e5_gateway.targets import Targets
from tests.gateways import BEARER, KEY, Gateway, gateway, until
from tests.rule_predictor import MODEL, RULE, vector
from tests.webhook_receiver import TO_RECEIVER, Receiver

OPENAI, COG, REPLICATE = "/v1/embeddings", "/predictions", f"/v1/models/e5/{MODEL}/predictions"
Json = dict[str, Any]


def send(front: Gateway, path: str, text: str) -> httpx.Response:
    inputs = {"input": {"document": text}}
    body = {"model": MODEL, "input": text} if path == OPENAI else inputs
    return httpx.post(front.url + path, json=body, headers={"Prefer": "wait"}, timeout=60)


def vector_of(answer: httpx.Response) -> list[float]:
    """The vector in an answer of any of the three APIs."""
    assert answer.status_code in (200, 201), answer.text
    body = answer.json()
    assert body.get("status", "succeeded") == "succeeded", body
    values: list[float] = body["data"][0]["embedding"] if "data" in body else body["output"]["embeddings"][0]
    return values


def metrics(front: Gateway, name: str) -> dict[str, float]:
    """A gauge's values by target."""
    families = text_string_to_metric_families(httpx.get(f"{front.url}/metrics").text)
    samples = [sample for family in families for sample in family.samples if sample.name == f"e5_gateway_{name}"]
    return {sample.labels["target"]: sample.value for sample in samples}


def states(front: Gateway, **headers: str) -> dict[str, Json]:
    health = httpx.get(f"{front.url}/health-check", headers=headers).json()
    return {target["url"]: target for target in health["targets"]}


def all_ready(front: Gateway) -> bool:
    return {target["status"] for target in states(front).values()} == {"READY"}


def kill(server: Server, number: signal.Signals, *, worker_only: bool = False) -> None:
    """Signal a server and its worker."""
    root = psutil.Process(server.process.pid)
    for process in ([] if worker_only else [root]) + root.children(recursive=True):
        process.send_signal(number)


@pytest.fixture(scope="module")
def pair() -> Iterator[list[Server]]:
    """Two servers that no test breaks."""
    with running(RULE) as one, running(RULE) as other:
        yield [one, other]


@contextlib.contextmanager
def three(folder: Path, *options: str, environments: tuple[Json, ...] = ({}, {}, {})) -> Iterator[Any]:
    """A gateway in front of a server for each environment; all are known to the gateway."""
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(running(RULE | environment)) for environment in environments]
        front = stack.enter_context(gateway([server.url for server in servers], folder, *options))
        until(lambda: all_ready(front))
        yield front, servers


# ---- dispatch


def test_requests_spread_over_servers_and_small_ones_pass_a_large_one(pair: list[Server], tmp_path: Path) -> None:
    urls = [server.url for server in pair]
    with gateway(urls, tmp_path, "--concurrency", "1") as front, ThreadPoolExecutor(8) as pool:
        until(lambda: all_ready(front))
        large = pool.submit(send, front, OPENAI, f"sleep 3 {'word ' * 1000}")
        until(lambda: sum(metrics(front, "queue_running").values()) == 1)
        started = time.monotonic()
        for path in (OPENAI, COG, REPLICATE):
            for number in range(5):
                assert vector_of(send(front, path, f"small {number}")) == vector(f"small {number}")
        assert time.monotonic() - started < 2.5 and not large.done()
        running_bytes = metrics(front, "queue_running_bytes")
        assert sorted(value > 5000 for value in running_bytes.values()) == [False, True]
        assert large.result().status_code == 200
        assert metrics(front, "queue_running") == dict.fromkeys(urls, 0.0)


def test_server_that_differs_gets_no_requests_and_is_named(tmp_path: Path) -> None:
    wrong: tuple[tuple[Json, str], ...] = (
        ({"RULE_MODEL": "other"}, f"model other instead of {MODEL}"),
        ({"RULE_DTYPE": "bfloat16"}, "dtype bfloat16 instead of float32"),
        ({"RULE_LAST": "9"}, "other weights: vectors of the same text have the cosine 0.99"),
    )
    environments = (*(environment for environment, _ in wrong), {}, {})
    with three(tmp_path, environments=environments) as (front, servers):  # the wrong ones come first in the list
        different, right = [server.url for server in servers[:3]], [server.url for server in servers[3:]]
        known = until(
            lambda: len([1 for state in states(front).values() if "difference" in state]) == 3 and states(front)
        )
        for url, (_, difference) in zip(different, wrong, strict=True):
            assert known[url]["difference"].startswith(difference)
            assert difference in front.log.read_text()
        assert all("difference" not in known[url] for url in right)
        assert metrics(front, "target_different") == dict.fromkeys(different, 1.0)
        before = [server.log.read_text().count("Prediction started") for server in servers[:3]]
        with ThreadPoolExecutor(8) as pool:
            texts = [f"sleep 0.05 {number}" for number in range(30)]
            answers = list(pool.map(lambda text: send(front, OPENAI, text), texts))
        assert [vector_of(answer) for answer in answers] == [vector(text) for text in texts]
        assert [server.log.read_text().count("Prediction started") for server in servers[:3]] == before
        # The right ones are down, but the others still must not answer for them.
        for server in servers[3:]:
            server.process.kill()
        answer = until(lambda: (got := send(front, OPENAI, "text")).status_code == 503 and got)
        assert "the model is DOWN" in answer.text
        assert metrics(front, "target_different") == dict.fromkeys(different, 1.0)


def identity(*numbers: float, **fields: Any) -> Identity:
    values: Json = {"model": "m", "schema": {}, "coglet": "", "catalog_entry": None, "version": "v", "first_seen": 0.0}
    values |= {"setup_started_at": "", "dtype": "float32", "max_tokens": 8}
    return Identity(vector=np.array(numbers, np.float32), **values | fields)


def test_difference_of_servers() -> None:
    one = identity(1, 0)
    assert one.difference(identity(2, 0.01)) == ""  # cosine .99999
    assert "cosine 0.9950" in one.difference(identity(1, 0.1))
    assert one.difference(identity(1, 0, 0)) == "dimensions 3 instead of 2"
    assert one.difference(identity(1, 0, max_tokens=9)) == "max_tokens 9 instead of 8"
    assert one.difference(identity(1, 0, version="w")) == "another schema: another version of predict.py"


def test_largest_group_serves_and_a_tie_changes_nothing() -> None:
    async def main() -> None:
        urls = tuple(f"http://127.0.0.1:{port}" for port in range(1, 5))
        targets = Targets(GatewaySettings(urls, database=Path("unused")))
        for target in targets:
            target.state, target.identity = "READY", identity(1, model="b")
            targets._update()  # the first to answer does not decide alone
            assert (targets.identity is not None) == targets.ready == (target.url == urls[-1])
        targets.identity = None

        def served(*names: str) -> str:
            for target, name in zip(targets, names, strict=True):
                target.identity = None if name == "-" else identity(1, model=name)
            targets._update()
            assert targets.identity is not None
            return targets.identity.model

        assert served("-", "b", "-", "-") == "b"
        assert served("a", "b", "-", "-") == "b"
        assert served("a", "b", "a", "-") == "a"
        assert served("a", "b", "a", "b") == "a"
        assert [bool(target.difference) for target in targets] == [False, True, False, True]
        assert served("b", "b", "a", "b") == "b"
        assert served("-", "b", "-", "a") == "b"

    asyncio.run(main())


# ---- failure


@pytest.mark.parametrize("worker_only", [False, True])
def test_killed_server_loses_no_request(tmp_path: Path, worker_only: bool) -> None:
    with contextlib.ExitStack() as stack:
        front, servers = stack.enter_context(three(tmp_path, *TO_RECEIVER))
        receiver, pool = stack.enter_context(Receiver()), stack.enter_context(ThreadPoolExecutor(40))
        texts = [f"sleep 1.5 number {number}" for number in range(10)]
        answers = [pool.submit(send, front, path, text) for text in texts for path in (OPENAI, COG, REPLICATE)]
        inputs = {"input": {"document": "sleep 1.5 hook"}, "webhook": receiver.url}
        hooked = [httpx.post(front.url + REPLICATE, json=inputs).json()["id"] for _ in range(6)]
        until(lambda: min(metrics(front, "queue_running").values()) >= 8)  # each has its share
        kill(servers[1], signal.SIGKILL, worker_only=worker_only)
        received = [vector_of(answer.result()) for answer in answers]
        assert received == [vector(text) for text in texts for _ in range(3)]
        assert front.log.read_text().count('"tried elsewhere"') >= 4
        until(lambda: {name for name, status in receiver.seen if status == "succeeded"} == set(hooked))
        assert sorted(receiver.seen) == sorted({(name, status) for name, status in receiver.seen})  # each once
        assert states(front)[servers[1].url]["status"] == ("UNHEALTHY" if worker_only else "DOWN")
        assert metrics(front, "target_ready")[servers[1].url] == 0


def test_hung_server_is_noticed_in_seconds_and_takes_part_again(tmp_path: Path) -> None:
    with three(tmp_path, environments=({}, {})) as (front, servers), ThreadPoolExecutor(20) as pool:
        texts = [f"sleep 1 number {number}" for number in range(12)]
        answers = [pool.submit(send, front, OPENAI, text) for text in texts]
        until(lambda: min(metrics(front, "queue_running").values()) >= 5)
        kill(servers[0], signal.SIGSTOP)
        try:
            stopped = time.monotonic()
            assert [vector_of(answer.result()) for answer in answers] == [vector(text) for text in texts]
            assert time.monotonic() - stopped < 20
            assert states(front)[servers[0].url]["status"] == "UNRESPONSIVE"
            assert vector_of(send(front, COG, "one")) == vector("one")
        finally:
            kill(servers[0], signal.SIGCONT)
        until(lambda: all_ready(front))
        answers = [pool.submit(send, front, OPENAI, text) for text in texts]
        until(lambda: min(metrics(front, "queue_running").values()) >= 5)
        assert [vector_of(answer.result()) for answer in answers] == [vector(text) for text in texts]


def test_request_that_kills_servers_ends_after_three(tmp_path: Path) -> None:
    with three(tmp_path, environments=({}, {}, {}, {})) as (front, _):
        answer = send(front, OPENAI, "die")
        assert answer.status_code == 503
        left = until(lambda: (ready := [s for s in states(front).values() if s["status"] == "READY"]) and ready, 10)
        assert len(left) == 1
        assert vector_of(send(front, OPENAI, "text")) == vector("text")


@contextlib.contextmanager
def proxy(server: Server, status: int, seen: list[str] | None = None) -> Iterator[str]:
    """A reverse proxy that answers POST /predictions with `status`, except for the gateway's first question.

    `seen`: gets the path of each other one.
    """
    asked = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.answer(httpx.get(server.url + self.path))

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if asked.is_set():
                if seen is not None:
                    seen.append(self.path)
                self.answer(httpx.Response(status, content=b"broken"))
            else:
                self.answer(
                    httpx.post(server.url + self.path, content=body, headers={"Content-Type": "application/json"})
                )
            asked.set()

        do_PUT = do_POST

        def answer(self, response: httpx.Response) -> None:
            self.send_response(response.status_code)
            self.send_header("Content-Length", str(len(response.content)))
            self.end_headers()
            self.wfile.write(response.content)

        def log_message(self, *_: object) -> None:
            pass

    front = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=front.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{front.server_port}"
    finally:
        front.shutdown()
        front.server_close()


@pytest.mark.parametrize("status", [500, 503])
def test_request_is_tried_elsewhere_after_5xx(pair: list[Server], tmp_path: Path, status: int) -> None:
    with proxy(pair[0], status) as broken, gateway([broken, pair[1].url], tmp_path) as front:
        until(lambda: all_ready(front))
        for path in (OPENAI, COG, REPLICATE):
            assert vector_of(send(front, path, f"a text for {path}")) == vector(f"a text for {path}")
        name = "client-chosen"
        put = httpx.put(f"{front.url}/predictions/{name}", json={"input": {"document": "text"}})
        assert (put.json()["id"], vector_of(put)) == (name, vector("text"))
        assert '"tried elsewhere"' in front.log.read_text()
    with proxy(pair[0], status) as broken, gateway(broken, tmp_path) as front:  # with one target as ever
        assert send(front, OPENAI, "text").status_code == (503 if status == 503 else 502)
        assert send(front, COG, "text").status_code == status


@pytest.mark.parametrize("status", [429, 502, 503])
def test_prediction_that_no_server_takes_is_tried_with_pauses(pair: list[Server], tmp_path: Path, status: int) -> None:
    seen: list[str] = []
    with (
        proxy(pair[0], status, seen) as one,
        proxy(pair[1], status, seen) as other,
        gateway([one, other], tmp_path) as front,
    ):
        until(lambda: all_ready(front))
        name = httpx.post(front.url + REPLICATE, json={"input": {"document": "text"}}).json()["id"]
        time.sleep(2)
        prediction = httpx.get(f"{front.url}/v1/predictions/{name}").json()
        assert prediction["status"] in (["failed"] if status == 502 else ["starting", "processing"])
        assert len(seen) == 3 if status == 502 else 3 <= len(seen) <= 9
        httpx.post(f"{front.url}/v1/predictions/{name}/cancel")


def test_model_error_is_no_reason_to_try_elsewhere(pair: list[Server], tmp_path: Path) -> None:
    with gateway([server.url for server in pair], tmp_path) as front:
        until(lambda: all_ready(front))
        assert send(front, OPENAI, "break").status_code == 500
        assert send(front, OPENAI, "fail").status_code == 400
        assert send(front, COG, "break").json()["status"] == "failed"
        assert "tried elsewhere" not in front.log.read_text()


def test_gateway_restart_and_no_server_left(tmp_path: Path) -> None:
    """Accepted predictions survive the gateway and both servers; they end once."""
    ports = [free_port(), free_port()]
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    with contextlib.ExitStack() as stack:
        receiver = stack.enter_context(Receiver())
        with contextlib.ExitStack() as first:
            servers = [first.enter_context(running(RULE, port=port)) for port in ports]
            front = first.enter_context(gateway(urls, tmp_path, *TO_RECEIVER))
            until(lambda: all_ready(front))
            inputs = [{"document": f"sleep 2 {number}"} for number in range(6)]
            names = [
                httpx.post(front.url + REPLICATE, json={"input": each, "webhook": receiver.url}).json()["id"]
                for each in inputs
            ]
            until(lambda: sum(metrics(front, "queue_running").values()) == 6)
            for server in servers:
                kill(server, signal.SIGKILL)
            assert until(lambda: (got := send(front, OPENAI, "x")).status_code == 503 and got).headers["Retry-After"]
            assert {httpx.get(f"{front.url}/v1/predictions/{name}").json()["status"] for name in names} == {"starting"}
            front.process.kill()
        front = stack.enter_context(
            gateway(urls, tmp_path, *TO_RECEIVER, port=int(front.url.rpartition(":")[2]), wait=False)
        )
        stack.enter_context(running(RULE, port=ports[1]))  # one is enough
        until(lambda: {name for name, status in receiver.seen if status == "succeeded"} == set(names))
        assert len([1 for _, status in receiver.seen if status == "succeeded"]) == 6


# ---- Cog's own API: ids belong to one server


def test_same_put_and_cancel_reach_the_server_that_runs_it(pair: list[Server], tmp_path: Path) -> None:
    urls = [server.url for server in pair]
    with gateway(urls, tmp_path, "--concurrency", "1") as front, ThreadPoolExecutor(4) as pool:
        until(lambda: all_ready(front))

        def put(name: str) -> httpx.Response:
            body = {"input": {"document": "sleep 3 text"}}
            return httpx.put(f"{front.url}/predictions/{name}", json=body, timeout=30)

        for name in ("a-name", "another", "third"):
            first = pool.submit(put, name)
            until(lambda: sum(metrics(front, "queue_running").values()) == 1)
            for _ in range(3):
                assert (put(name).status_code, first.done()) == (202, False)  # it runs already: not a second time
            cancelled = httpx.post(f"{front.url}/predictions/{name}/cancel")
            assert cancelled.status_code == 200
            assert first.result().json()["status"] == "canceled"
        assert httpx.post(f"{front.url}/predictions/unknown/cancel").status_code == 404


# ---- list of targets


def test_file_of_targets_is_read_again_on_sighup(pair: list[Server], tmp_path: Path) -> None:
    one, other = [server.url for server in pair]
    file = tmp_path / "targets.txt"
    file.write_text(f"# the servers\n\n{one}/\n")
    with gateway((), tmp_path, "--targets", str(file)) as front:
        with ThreadPoolExecutor(4) as pool:
            last = pool.submit(send, front, OPENAI, "sleep 2 the last one")
            until(lambda: metrics(front, "queue_running") == {one: 1.0})
            file.write_text(f"{other}\n")
            front.process.send_signal(signal.SIGHUP)
            until(lambda: metrics(front, "target_ready") == {other: 1.0})
            assert vector_of(send(front, COG, "text")) == vector("text")
            assert not last.done()
            assert vector_of(last.result()) == vector("sleep 2 the last one")
        for wrong in ("not a URL\n", "", f"{one}\n{one}/\n"):
            file.write_text(wrong)
            front.process.send_signal(signal.SIGHUP)
            until(lambda: front.log.read_text().count("targets not read") > 0)
            assert metrics(front, "target_ready") == {other: 1.0}
        file.write_text(f"{one}\n{other}\n")
        front.process.send_signal(signal.SIGHUP)
        until(lambda: metrics(front, "target_ready") == {one: 1.0, other: 1.0})
    assert front.process.returncode == 0
    assert "Traceback" not in front.log.read_text()


def _answers(front: Gateway) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return send(front, OPENAI, "text").status_code == 200
    return False


def test_wrong_targets_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        read_targets(tmp_path / "missing")
    for urls in (
        (),
        ("ftp://x",),
        ("http://a:1", "http://a:1/"),
        ("http://a:99999",),
        ("http://a:1x",),
        ("http://[::1",),
    ):
        with pytest.raises(SettingsError, match="--target"):
            GatewaySettings(urls, database=tmp_path / "db")
    for options in (["--copies", "0"], ["--gpus", "0,0"], ["--gpus", "x"], ["--gpus", "0", "--target", "http://a"]):
        command = [sys.executable, str(ROOT / "scripts" / "serve.py"), *options]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert (done.returncode, "--gpus" in done.stderr or "--copies" in done.stderr) == (2, True), done.stderr


def test_health_without_the_key_shows_one_state(pair: list[Server], tmp_path: Path) -> None:
    with gateway([server.url for server in pair], tmp_path, key=KEY) as front:
        assert httpx.get(f"{front.url}/health-check").json() == {"status": "READY"}
        assert set(states(front, **BEARER)) == {server.url for server in pair}


# ---- the servers of this machine


def test_serve_starts_servers_restarts_the_dead_and_ends_all(tmp_path: Path) -> None:
    port, log = free_port(), tmp_path / "log"
    command = [sys.executable, str(ROOT / "scripts" / "serve.py"), "--copies", "2", "--port", str(port)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--database", str(tmp_path / "db")],
            env=os.environ | RULE | {"OMP_NUM_THREADS": "1"},
            stdout=output,
            stderr=output,
        )
    front = Gateway(f"http://127.0.0.1:{port}", None, process, log, tmp_path / "db")
    try:
        until(lambda: _answers(front))
        until(lambda: all_ready(front))
        servers = psutil.Process(process.pid).children()
        family = psutil.Process(process.pid).children(recursive=True)
        assert len(servers) == 2
        servers[0].kill()
        assert vector_of(send(front, OPENAI, "text")) == vector("text")
        until(lambda: '"server started again"' in log.read_text())
        until(lambda: all_ready(front))
        broken = next(server for server in psutil.Process(process.pid).children() if server.pid == servers[1].pid)
        for worker in broken.children(recursive=True):
            worker.kill()
        until(lambda: '"state": "UNHEALTHY"' in log.read_text(), 40)  # its server lives, but cannot compute
        until(lambda: all_ready(front), 40)
        family += psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        assert not [each for each in family if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]
    finally:
        stop(process)
    starts = [json.loads(line) for line in log.read_text().splitlines() if '"server started again"' in line]
    assert [start.get("exit_status", start.get("state")) for start in starts] == [-signal.SIGKILL, "UNHEALTHY"]


def test_gpus_and_copies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert fleet.on_gpus("0,3") == [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "3"}]
    assert fleet.copies(1) == [{}]
    cores = len(os.sched_getaffinity(0))
    assert fleet.copies(2) == [{"OMP_NUM_THREADS": str(max(1, cores // 2))}] * 2
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    driver = tmp_path / "nvidia-smi"
    driver.write_text("#!/bin/sh\nprintf '0\\n1\\n'\n")
    driver.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert fleet.on_gpus("all") == fleet.on_gpus("0,1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert fleet.on_gpus("all") == fleet.on_gpus("1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    driver.write_text("#!/bin/sh\nexit 9\n")
    with pytest.raises(SettingsError, match="name them, as 0,1"):
        fleet.on_gpus("all")
