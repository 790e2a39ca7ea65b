"""The gateway under overload, without its server, and after its own crash."""

import asyncio
import contextlib
import functools
import http.server
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from e5_cog.repository import ROOT
from e5_cog.server import Server, free_port, running, stop
from e5_gateway import main, replicate_api, target
from e5_gateway.destinations import Destinations
from e5_gateway.errors import GatewayError, Unavailable
from e5_gateway.metrics import Metrics
from e5_gateway.predictions import ActivePrediction, Predictions
from e5_gateway.settings import GatewaySettings
from e5_gateway.store import Prediction, Store
from e5_gateway.targets import Targets
from e5_gateway.uploads import Uploads
from e5_gateway.webhooks import Webhooks
from tests.gateways import Gateway, gateway, until
from tests.rule_predictor import MODEL, RULE, vector
from tests.webhook_receiver import TO_RECEIVER, Receiver

PREDICTIONS = f"/v1/models/e5/{MODEL}/predictions"
Json = dict[str, Any]


def bodies(text: str) -> dict[str, Json]:
    """A request with `text` for each API, by path."""
    inputs = {"input": {"document": text}}
    return {"/v1/embeddings": {"model": MODEL, "input": text}, PREDICTIONS: inputs, "/predictions": inputs}


def webhooks(settings: GatewaySettings, metrics: Metrics, store: Store) -> Webhooks:
    destinations = Destinations(lambda: settings.targets, settings.webhooks_to)
    return Webhooks(store, metrics, destinations, lambda prediction: replicate_api.render(prediction, ""))


def post(front: Gateway, path: str, body: Json, **headers: str) -> httpx.Response:
    return httpx.post(front.url + path, json=body, headers=headers, timeout=60)


def create(front: Gateway, text: str, **more: Any) -> Json:
    def accepted() -> httpx.Response | None:
        """The gateway refreshes the state of a server that was not ready only after 0.2 s."""
        answer = post(front, PREDICTIONS, {"input": {"document": text}} | more)
        return answer if answer.status_code != 503 else None

    answer = until(accepted, 5)
    assert answer.status_code == 201, answer.text
    created: Json = answer.json()
    return created


def answers(front: Gateway, path: str, body: Json) -> bool:
    return post(front, path, body).status_code in (200, 201)


def is_unhealthy(server: Server) -> bool:
    return str(httpx.get(f"{server.url}/health-check").json()["status"]) == "UNHEALTHY"


def get(front: Gateway, prediction_id: str) -> Json:
    prediction: Json = httpx.get(f"{front.url}/v1/predictions/{prediction_id}", timeout=30).json()
    return prediction


def ended(front: Gateway, prediction_id: str) -> Json:
    """Wait until the prediction has ended, and return it."""

    def final() -> Json | None:
        prediction = get(front, prediction_id)
        return prediction if prediction["status"] in ("succeeded", "failed", "canceled") else None

    prediction: Json = until(final)
    return prediction


def test_requests_wait_beyond_the_concurrency_and_get_429_beyond_the_queue(server: Server, tmp_path: Path) -> None:
    with gateway(server.url, tmp_path, "--concurrency", "2", "--queue", "3") as front, ThreadPoolExecutor(20) as pool:
        for path, body in bodies("sleep 0.5").items():
            headers = {"Prefer": "wait"}
            answers = list(pool.map(lambda _, p=path, b=body, h=headers: post(front, p, b, **h), range(9)))
            statuses = sorted(answer.status_code for answer in answers)
            assert statuses == [201 if path == PREDICTIONS else 200] * 5 + [429] * 4, path
            refused = [answer for answer in answers if answer.status_code == 429]
            assert all(1 <= int(answer.headers["Retry-After"]) <= 60 for answer in refused)
            assert all("too much is waiting (" in answer.text for answer in refused)
        assert post(front, "/v1/embeddings", bodies("text")["/v1/embeddings"]).status_code == 200


def test_unready_server_gives_503_with_its_state_until_it_is_back(tmp_path: Path) -> None:
    port = free_port()
    with gateway(f"http://127.0.0.1:{port}", tmp_path, wait=False) as front:

        def states() -> set[str]:
            seen = set()
            for path, body in bodies("text").items():
                answer = post(front, path, body)
                assert answer.status_code == 503, (path, answer.text)
                assert int(answer.headers["Retry-After"]) >= 1
                body = answer.json()
                message = body["error"]["message"] if "embeddings" in path else body["detail"]
                seen.add(message.partition(":")[0])
            return seen

        assert states() == {"the model is DOWN"}
        assert httpx.get(f"{front.url}/health-check").status_code == 503
        with ThreadPoolExecutor(1) as pool:
            starting = pool.submit(lambda: until(lambda: states() == {"the model is STARTING"}, 10))
            with running(RULE | {"RULE_SETUP_SECONDS": "2"}, port=port):
                starting.result()
                for path, body in bodies("text").items():
                    until(functools.partial(answers, front, path, body), 5)
                assert httpx.get(f"{front.url}/health-check").json()["status"] == "READY"
        until(lambda: states() == {"the model is DOWN"})


def test_accepted_predictions_survive_sigkill_of_the_gateway(server: Server, tmp_path: Path) -> None:
    with Receiver() as receiver:
        with gateway(server.url, tmp_path, "--concurrency", "2", *TO_RECEIVER) as front:
            texts = [f"sleep 0.3 {'word ' * number}" for number in range(8)]
            names = [create(front, text, webhook=receiver.url)["id"] for text in texts]
            first = ended(front, names[0])
            front.process.send_signal(signal.SIGKILL)
            front.process.wait()
        with gateway(server.url, tmp_path, *TO_RECEIVER, port=int(front.url.rpartition(":")[2])) as front:
            predictions = [ended(front, name) for name in names]
            assert [prediction["status"] for prediction in predictions] == ["succeeded"] * 8
            assert [prediction["output"]["embeddings"] for prediction in predictions] == [
                [vector(text)] for text in texts
            ]
            assert [prediction["input"] for prediction in predictions] == [{"document": text} for text in texts]
            assert predictions[0] == first  # it had ended before, and is unchanged
            received = until(
                lambda: [name for name in names if (name, "succeeded") in receiver.seen] == names and receiver.seen
            )
            assert {status for _, status in received} == {"processing", "succeeded"}


def test_accepted_predictions_wait_until_the_server_is_back(tmp_path: Path) -> None:
    port = free_port()
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(running(RULE, port=port))
        front = stack.enter_context(gateway(server.url, tmp_path, "--concurrency", "2", *TO_RECEIVER))
        receiver = stack.enter_context(Receiver())
        hook = {"webhook": receiver.url}
        names = [create(front, f"sleep 1 {'word ' * number}", **hook)["id"] for number in range(4)]
        until(lambda: get(front, names[0])["status"] == "processing")
        server.process.kill()
        server.process.wait()
        until(lambda: {get(front, name)["status"] for name in names} == {"starting"})
        assert post(front, PREDICTIONS, {"input": {"document": "late"}}).status_code == 503  # new ones are not accepted
        with running(RULE, port=port):
            assert [ended(front, name)["status"] for name in names] == ["succeeded"] * 4
            until(lambda: len(receiver.seen) == 8)
            assert len(set(receiver.seen)) == 8  # start and end of each, once
        stop(front.process)
        with contextlib.closing(sqlite3.connect(front.database)) as database:
            attempts = dict(database.execute("SELECT id, attempts FROM predictions"))
        assert [attempts[name] for name in names] == [1, 1, 0, 0]  # the last two were still waiting


def test_accepted_predictions_survive_gateway_restarts_without_a_server(tmp_path: Path) -> None:
    port = free_port()
    with running(RULE, port=port) as server, gateway(server.url, tmp_path) as front:
        names = [create(front, f"sleep 3 {'word ' * number}")["id"] for number in range(3)]
        front.process.kill()
    for _ in range(4):
        with gateway(f"http://127.0.0.1:{port}", tmp_path, wait=False) as front:
            time.sleep(0.5)
            assert {get(front, name)["status"] for name in names} == {"starting"}
    with gateway(f"http://127.0.0.1:{port}", tmp_path, wait=False) as front, running(RULE, port=port):
        assert [ended(front, name)["status"] for name in names] == ["succeeded"] * 3


def test_only_attempts_that_reached_the_server_count(tmp_path: Path) -> None:
    async def scenario() -> None:
        settings = GatewaySettings(("http://127.0.0.1:9",), database=tmp_path / "store.sqlite3")
        metrics, store = Metrics(), Store(settings.database)
        hooks = webhooks(settings, metrics, store)
        predictions = Predictions(
            Targets(settings), store, Uploads(store, hooks.destinations), hooks, metrics, settings
        )
        active = ActivePrediction(
            Prediction(
                id="x", model="a/b", version="v", status="processing", created_at=0.0, base="", input=b"{}", size=2
            )
        )
        async with store:
            unreached = [await predictions._retry(active, "down", reached=False) for _ in range(10)]
            assert unreached == [False] * 10
            reached = [await predictions._retry(active, "gone", reached=True) for _ in range(3)]
            assert reached == [False, False, True]
        assert str(active.prediction.error).endswith("the last time: gone")

    asyncio.run(asyncio.wait_for(scenario(), 20))


def test_replaced_model_runs_no_prediction_of_the_old_one(
    tmp_path: Path,
) -> None:
    port = free_port()
    embeddings = bodies("text")["/v1/embeddings"]
    with contextlib.ExitStack() as stack:
        front = stack.enter_context(gateway(f"http://127.0.0.1:{port}", tmp_path, wait=False))
        with running(RULE, port=port) as server:
            until(lambda: post(front, "/v1/embeddings", embeddings).status_code == 200)
            name = create(front, "sleep 30")["id"]
            until(lambda: get(front, name)["status"] == "processing")
            server.process.kill()
        stack.enter_context(running(RULE | {"RULE_MODEL": "other"}, port=port))
        prediction = ended(front, name)
        assert (prediction["status"], prediction["output"]) == ("failed", None)
        assert "is no longer served" in prediction["error"]
        assert post(front, "/v1/embeddings", embeddings).status_code == 404
        assert post(front, "/v1/embeddings", embeddings | {"model": "other"}).status_code == 200


def test_foreign_server_is_reported_and_a_cog_server_can_replace_it(tmp_path: Path) -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"[]")

        def log_message(self, *_: object) -> None:
            pass

    foreign_server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=foreign_server.serve_forever, daemon=True).start()
    embeddings = bodies("text")["/v1/embeddings"]
    with gateway(f"http://127.0.0.1:{foreign_server.server_port}", tmp_path, wait=False) as front:
        answer = post(front, "/v1/embeddings", embeddings)
        foreign_server.shutdown()
        foreign_server.server_close()
        assert (answer.status_code, "the model is FOREIGN" in answer.text) == (503, True)
        with running(RULE, port=foreign_server.server_port):
            until(lambda: post(front, "/v1/embeddings", embeddings).status_code == 200, 10)


def test_connection_timeout_counts_as_not_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target, "CONNECT_SECONDS", 0.3)
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=1))
        address = full.getsockname()
        for _ in range(4):  # they fill the backlog, so the next one times out
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(address)

        async def scenario() -> None:
            url = f"http://127.0.0.1:{address[1]}"
            settings = GatewaySettings((url,), database=Path("unused"))
            async with target.Target(url, settings, lambda: None) as cog:
                with pytest.raises(Unavailable) as refused:
                    await cog.compute(b"{}")
                assert (refused.value.state, refused.value.reached) == ("DOWN", False)

        asyncio.run(scenario())


def test_file_limit_of_the_gateway_does_not_mark_the_server_down(server: Server, tmp_path: Path) -> None:
    program = f"""
import asyncio, os, resource, sys
from pathlib import Path
from e5_gateway.errors import Unavailable
from e5_gateway.settings import GatewaySettings
from e5_gateway.targets import Targets

async def main():
    async with Targets(GatewaySettings(({server.url!r},), database=Path("unused"))) as targets:
        identity = await targets.require_identity()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 2, hard))
        body = b'{{"input": {{"document": "sleep 0.5", "encoding_format": "base64"}}}}'
        requests = [targets.predict(body, identity.model) for _ in range(20)]
        results = await asyncio.gather(*requests, return_exceptions=True)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        refused = {{error.state for error in results if isinstance(error, Unavailable)}}
        answered = [result for result in results if isinstance(result, dict)]
        assert refused == {{"OUT OF FILES"}} and answered and targets.state == "READY", (results, targets.state)
        assert (await targets.predict(body, identity.model))["status"] == "succeeded"

asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_prediction_that_kills_the_server_fails_after_three_attempts(tmp_path: Path) -> None:
    port = free_port()
    with gateway(f"http://127.0.0.1:{port}", tmp_path, wait=False) as front:
        embeddings = bodies("text")["/v1/embeddings"]
        name = ""
        for _ in range(3):
            with running(RULE, port=port) as server:
                name = name or create(front, "die")["id"]
                until(functools.partial(is_unhealthy, server))  # the prediction has killed it
                assert post(front, "/v1/embeddings", embeddings).status_code == 503
        prediction = ended(front, name)
        assert prediction["status"] == "failed"
        assert prediction["error"].startswith("the server gave no usable answer 3 times")
        with running(RULE, port=port):
            until(lambda: post(front, "/v1/embeddings", embeddings).status_code == 200)


def test_webhook_is_sent_again_until_the_receiver_accepts_it(server: Server, tmp_path: Path) -> None:
    with Receiver(refuse=2) as receiver, gateway(server.url, tmp_path, *TO_RECEIVER) as front:
        name = create(front, "text", webhook=receiver.url, webhook_events_filter=["completed"])["id"]
        until(lambda: receiver.seen == [(name, "succeeded")])
        assert len(receiver.requests) == 3
        assert len({body for _, body in receiver.requests}) == 1
        assert json.loads(receiver.requests[0][1]) == get(front, name)


def test_unresponsive_receiver_delays_no_other_webhooks(server: Server, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=200) as silent, Receiver() as receiver:
        hook = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        with gateway(server.url, tmp_path, *TO_RECEIVER) as front:
            for number in range(50):
                create(front, f"{number}", webhook=hook)
            name = create(front, "text", webhook=receiver.url)["id"]
            until(lambda: receiver.seen == [(name, "processing"), (name, "succeeded")], 8)
            front.process.kill()


def test_full_disk_loses_no_result_and_refuses_new_predictions(server: Server, tmp_path: Path) -> None:
    async def scenario() -> None:
        settings = GatewaySettings((server.url,), database=tmp_path / "store.sqlite3")
        metrics, store = Metrics(), Store(settings.database)
        hooks = webhooks(settings, metrics, store)
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(store)
            cog = await stack.enter_async_context(Targets(settings))
            await stack.enter_async_context(hooks)
            predictions = await stack.enter_async_context(
                Predictions(cog, store, Uploads(store, hooks.destinations), hooks, metrics, settings)
            )
            identity = await cog.require_identity()

            async def new(*texts: str) -> Prediction:
                inputs = json.dumps({"documents": texts}).encode()
                model = f"e5/{identity.model}"
                return await predictions.create(model, identity.version, inputs, "http://x", None, None)

            async def limit(pages: int) -> None:
                await store._run(lambda: store._database.execute(f"PRAGMA max_page_count = {pages}").fetchall())

            name = (await new("sleep 1", *["word"] * 5000)).id
            await limit(1)  # no more pages: SQLite reports a full disk
            with pytest.raises(GatewayError, match="could not be stored: database or disk is full"):
                await new("word " * 20_000)
            assert (cog.queue.running, cog.queue.waiting) == (1, 0)  # the first prediction
            for _ in range(100):
                in_memory = await predictions.get(name)
                if in_memory and in_memory.status == "succeeded":
                    break
                await asyncio.sleep(0.1)
            assert in_memory is not None and in_memory.status == "succeeded"
            predictions._expire(predictions._active[name])  # a deadline after the end changes nothing
            await limit(10**6)
            for _ in range(100):
                stored = await store.get(name)
                if stored and stored.status == "succeeded":
                    break
                await asyncio.sleep(0.1)
            assert stored is not None
            assert stored.output == in_memory.output

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_requests_longer_than_the_grace_period_get_503(server: Server, tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        with gateway(server.url, tmp_path, "--grace", "1") as front:
            paths = bodies("sleep 8")
            cut = {path: pool.submit(post, front, path, body, Prefer="wait") for path, body in paths.items()}
            time.sleep(0.5)
            front.process.send_signal(signal.SIGTERM)
            for path in ("/v1/embeddings", "/predictions"):
                answer = cut[path].result()
                assert (answer.status_code, "is being stopped" in answer.text) == (503, True)
                assert answer.headers["Retry-After"] == "5"
            accepted = cut[PREDICTIONS].result()
            assert (accepted.status_code, accepted.json()["status"]) == (202, "starting")
            assert front.process.wait(10) == 0
            assert "Traceback" not in front.log.read_text()
        with gateway(server.url, tmp_path) as front:
            assert ended(front, accepted.json()["id"])["status"] == "succeeded"


def test_program_shows_its_options() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "gateway.py"), "--help"]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--target" in done.stdout


def test_open_waits_for_the_model(server: Server, tmp_path: Path) -> None:
    """BROWSER names the program that Python's webbrowser starts."""
    program = tmp_path / "browser"
    program.write_text(f'#!/bin/sh\necho "$1" > {tmp_path}/opened\n')
    program.chmod(0o700)
    with gateway(server.url, tmp_path, "--open", environment={"BROWSER": str(program)}) as front:
        assert until((tmp_path / "opened").is_file)
        assert (tmp_path / "opened").read_text() == f"{front.url}\n"


def test_module_shows_its_name_in_messages() -> None:
    command = [sys.executable, "-m", "e5_gateway", "--port", "0"]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "python -m e5_gateway: --port 0: pass a port from 1 to 65535\n")


@pytest.mark.parametrize(("value", "limit"), [("", 2_000_000), ("1000", 1000)])
def test_limit_of_answer_numbers_comes_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, value: str, limit: int
) -> None:
    monkeypatch.setenv("E5_MAX_ANSWER_NUMBERS", value)
    monkeypatch.setenv("E5_DTYPE", "not a dtype")  # of no concern in front of a remote server
    arguments = main.argument_parser("gateway").parse_args(["--target", "http://10.0.0.5:5000"])
    assert main.read_settings(arguments, None).max_answer_numbers == limit


def test_second_gateway_on_the_same_database_is_refused(server: Server, tmp_path: Path) -> None:
    with gateway(server.url, tmp_path) as front:
        with pytest.raises(RuntimeError, match="exit status: 2"), gateway(server.url, tmp_path):
            pass
        assert "another gateway uses it" in front.log.read_text()
        assert post(front, "/v1/embeddings", bodies("text")["/v1/embeddings"]).status_code == 200


def test_sigterm_lets_requests_finish_and_accepted_predictions_continue_after_restart(
    server: Server, tmp_path: Path
) -> None:
    with ThreadPoolExecutor(4) as pool:
        with gateway(server.url, tmp_path, "--concurrency", "4") as front:
            waiting = [pool.submit(post, front, path, body) for path, body in bodies("sleep 1").items()]
            name = create(front, "sleep 5")["id"]
            time.sleep(0.3)
            front.process.send_signal(signal.SIGTERM)
            assert [answer.result().status_code for answer in waiting] == [200, 201, 200]
            assert front.process.wait(10) == 0
        with gateway(server.url, tmp_path) as front:
            assert ended(front, name)["status"] == "succeeded"
