"""What the gateway does when there is too much, when the server goes away, and when it is killed itself."""

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
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from e5_cog.repository import ROOT
from e5_cog.server import Server, free_port, running, stop
from e5_gateway import replicate_api, target
from e5_gateway.errors import GatewayError, Unavailable
from e5_gateway.metrics import Metrics
from e5_gateway.predictions import Prediction, Predictions
from e5_gateway.settings import Settings
from e5_gateway.store import Store
from e5_gateway.webhooks import Webhooks
from tests.gateways import Gateway, gateway, until
from tests.rule_predictor import MODEL, RULE, vector
from tests.webhook_receiver import Receiver

PREDICTIONS = f"/v1/models/e5/{MODEL}/predictions"
Json = dict[str, Any]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running(RULE) as one:
        assert one.health["status"] == "READY", one.log.read_text()[-2000:]
        yield one


def bodies(text: str) -> dict[str, Json]:
    """The same text for each of the three APIs."""
    inputs = {"input": {"document": text}}
    return {"/v1/embeddings": {"model": MODEL, "input": text}, PREDICTIONS: inputs, "/predictions": inputs}


def post(one: Gateway, path: str, body: Json, **headers: str) -> httpx.Response:
    return httpx.post(one.url + path, json=body, headers=headers, timeout=60)


def create(one: Gateway, text: str, **more: Any) -> Json:
    def asked() -> httpx.Response | None:
        """A server that was not ready a moment ago is asked for its state again after .2 s."""
        answer = post(one, PREDICTIONS, {"input": {"document": text}} | more)
        return answer if answer.status_code != 503 else None

    answer = until(asked, 5)
    assert answer.status_code == 201, answer.text
    created: Json = answer.json()
    return created


def answers(one: Gateway, path: str, body: Json) -> bool:
    return post(one, path, body).status_code in (200, 201)


def is_unhealthy(server: Server) -> bool:
    return str(httpx.get(f"{server.url}/health-check").json()["status"]) == "UNHEALTHY"


def get(one: Gateway, name: str) -> Json:
    found: Json = httpx.get(f"{one.url}/v1/predictions/{name}", timeout=30).json()
    return found


def ended(one: Gateway, name: str) -> Json:
    def final() -> Json | None:
        found = get(one, name)
        return found if found["status"] in ("succeeded", "failed", "canceled") else None

    found: Json = until(final)
    return found


def test_requests_beyond_the_servers_concurrency_wait_and_beyond_the_queue_get_429(
    server: Server, tmp_path: Path
) -> None:
    with gateway(server.url, tmp_path, "--concurrency", "2", "--queue", "3") as one, ThreadPoolExecutor(20) as pool:
        for path, body in bodies("sleep 0.5").items():
            headers = {"Prefer": "wait"}
            answers = list(pool.map(lambda _, p=path, b=body, h=headers: post(one, p, b, **h), range(9)))
            statuses = sorted(answer.status_code for answer in answers)
            assert statuses == [201 if path == PREDICTIONS else 200] * 5 + [429] * 4, path
            refused = [answer for answer in answers if answer.status_code == 429]
            assert all(1 <= int(answer.headers["Retry-After"]) <= 60 for answer in refused)
            assert all("too much is waiting (" in answer.text for answer in refused)
        assert post(one, "/v1/embeddings", bodies("text")["/v1/embeddings"]).status_code == 200


def test_a_server_that_is_down_or_starting_gives_503_with_its_state_until_it_is_back(tmp_path: Path) -> None:
    port = free_port()
    with gateway(f"http://127.0.0.1:{port}", tmp_path, wait=False) as one:

        def states() -> set[str]:
            found = set()
            for path, body in bodies("text").items():
                answer = post(one, path, body)
                assert answer.status_code == 503, (path, answer.text)
                assert int(answer.headers["Retry-After"]) >= 1
                shown = answer.json()
                words = shown["error"]["message"] if "embeddings" in path else shown["detail"]
                found.add(words.partition(":")[0])
            return found

        assert states() == {"the model is DOWN"}
        assert httpx.get(f"{one.url}/health-check").status_code == 503
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(lambda: until(lambda: states() == {"the model is STARTING"}, 10))
            with running(RULE | {"RULE_SETUP_SECONDS": "2"}, port=port):
                asked.result()
                for path, body in bodies("text").items():
                    until(functools.partial(answers, one, path, body), 5)
                assert httpx.get(f"{one.url}/health-check").json()["status"] == "READY"
        until(lambda: states() == {"the model is DOWN"})


def test_no_accepted_prediction_is_lost_when_the_gateway_is_killed(server: Server, tmp_path: Path) -> None:
    with Receiver() as receiver:
        with gateway(server.url, tmp_path, "--concurrency", "2") as one:
            texts = [f"sleep 0.3 {'word ' * number}" for number in range(8)]
            names = [create(one, text, webhook=receiver.url)["id"] for text in texts]
            first = ended(one, names[0])
            one.process.send_signal(signal.SIGKILL)
            one.process.wait()
        with gateway(server.url, tmp_path, port=int(one.url.rpartition(":")[2])) as one:
            found = [ended(one, name) for name in names]
            assert [each["status"] for each in found] == ["succeeded"] * 8
            assert [each["output"]["embeddings"] for each in found] == [[vector(text)] for text in texts]
            assert [each["input"] for each in found] == [{"document": text} for text in texts]
            assert found[0] == first  # what had ended is as it was
            told = until(
                lambda: [name for name in names if (name, "succeeded") in receiver.seen] == names and receiver.seen
            )
            assert {status for _, status in told} == {"processing", "succeeded"}


def test_accepted_predictions_wait_for_a_server_that_went_away(tmp_path: Path) -> None:
    port = free_port()
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(running(RULE, port=port))
        one = stack.enter_context(gateway(server.url, tmp_path, "--concurrency", "2"))
        receiver = stack.enter_context(Receiver())
        hook = {"webhook": receiver.url}
        names = [create(one, f"sleep 1 {'word ' * number}", **hook)["id"] for number in range(4)]
        until(lambda: get(one, names[0])["status"] == "processing")
        server.process.kill()
        server.process.wait()
        until(lambda: {get(one, name)["status"] for name in names} == {"starting"})
        assert post(one, PREDICTIONS, {"input": {"document": "late"}}).status_code == 503  # new ones are not accepted
        with running(RULE, port=port):
            assert [ended(one, name)["status"] for name in names] == ["succeeded"] * 4
            until(lambda: len(receiver.seen) == 8)
            assert len(set(receiver.seen)) == 8  # each one's start and end, once
        stop(one.process)
        with contextlib.closing(sqlite3.connect(one.database)) as database:
            attempts = dict(database.execute("SELECT id, attempts FROM predictions"))
        assert [attempts[name] for name in names] == [1, 1, 0, 0]  # what only waited has not been tried


def test_restarts_of_the_gateway_without_a_server_cost_no_accepted_prediction(tmp_path: Path) -> None:
    port = free_port()
    with running(RULE, port=port) as server, gateway(server.url, tmp_path) as one:
        names = [create(one, f"sleep 3 {'word ' * number}")["id"] for number in range(3)]
        one.process.kill()
    for _ in range(4):
        with gateway(f"http://127.0.0.1:{port}", tmp_path, wait=False) as one:
            time.sleep(0.5)
            assert {get(one, name)["status"] for name in names} == {"starting"}
    with gateway(f"http://127.0.0.1:{port}", tmp_path, wait=False) as one, running(RULE, port=port):
        assert [ended(one, name)["status"] for name in names] == ["succeeded"] * 3


def test_only_tries_that_reached_the_server_count(tmp_path: Path) -> None:
    async def main() -> None:
        settings = Settings(target="http://127.0.0.1:9", database=tmp_path / "store.sqlite3")
        metrics, store = Metrics(), Store(settings.database)
        hooks = Webhooks(store, metrics, replicate_api.render)
        predictions = Predictions(target.Target(settings), store, hooks, metrics, settings)
        row = {"id": "x", "attempts": 0, "created_at": 0.0, "input": b"{}", "webhook_due": 0, "status": "processing"}
        one = Prediction(row)
        async with store:
            tries = [await predictions._again(one, "down", reached=False) for _ in range(10)]
            assert tries == [False] * 10
            assert [await predictions._again(one, "gone", reached=True) for _ in range(3)] == [False, False, True]
        assert one.row["error"].endswith("the last time: gone")

    asyncio.run(asyncio.wait_for(main(), 20))


def test_another_model_behind_the_same_address_is_noticed_and_computes_nothing_under_the_old_name(
    tmp_path: Path,
) -> None:
    port = free_port()
    embeddings = bodies("text")["/v1/embeddings"]
    with contextlib.ExitStack() as stack:
        one = stack.enter_context(gateway(f"http://127.0.0.1:{port}", tmp_path, wait=False))
        with running(RULE, port=port) as server:
            until(lambda: post(one, "/v1/embeddings", embeddings).status_code == 200)
            name = create(one, "sleep 30")["id"]
            until(lambda: get(one, name)["status"] == "processing")
            server.process.kill()
        stack.enter_context(running(RULE | {"RULE_MODEL": "other"}, port=port))
        found = ended(one, name)
        assert (found["status"], found["output"]) == ("failed", None)
        assert "is no longer served" in found["error"]
        assert post(one, "/v1/embeddings", embeddings).status_code == 404
        assert post(one, "/v1/embeddings", embeddings | {"model": "other"}).status_code == 200


def test_what_answers_but_is_no_cog_server_is_named_and_does_not_keep_the_real_one_out(tmp_path: Path) -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"[]")

        def log_message(self, *_: object) -> None:
            pass

    stranger = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=stranger.serve_forever, daemon=True).start()
    embeddings = bodies("text")["/v1/embeddings"]
    with gateway(f"http://127.0.0.1:{stranger.server_port}", tmp_path, wait=False) as one:
        answer = post(one, "/v1/embeddings", embeddings)
        stranger.shutdown()
        stranger.server_close()
        assert (answer.status_code, "the model is FOREIGN" in answer.text) == (503, True)
        with running(RULE, port=stranger.server_port):
            until(lambda: post(one, "/v1/embeddings", embeddings).status_code == 200, 10)


def test_a_machine_that_takes_no_connections_costs_no_accepted_prediction(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target, "CONNECT_SECONDS", 0.3)
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=1))
        address = full.getsockname()
        for _ in range(4):  # nobody accepts them: the next connection gets no answer
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(address)

        async def main() -> None:
            settings = Settings(target=f"http://127.0.0.1:{address[1]}", database=Path("unused"))
            async with target.Target(settings) as one:
                with pytest.raises(Unavailable) as refused:
                    await one.compute(b"{}")
                assert (refused.value.state, refused.value.reached) == ("DOWN", False)

        asyncio.run(main())


def test_a_gateway_with_no_more_files_to_open_does_not_take_the_server_for_down(server: Server, tmp_path: Path) -> None:
    program = f"""
import asyncio, os, resource, sys
from pathlib import Path
from e5_gateway.errors import Unavailable
from e5_gateway.settings import Settings
from e5_gateway.target import Target

async def main():
    async with Target(Settings(target={server.url!r}, database=Path("unused"))) as one:
        identity = await one.known()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 2, hard))
        body = b'{{"input": {{"document": "sleep 0.5", "encoding_format": "base64"}}}}'
        found = await asyncio.gather(*(one.predict(body, identity.model) for _ in range(20)), return_exceptions=True)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        refused = {{error.state for error in found if isinstance(error, Unavailable)}}
        answered = [answer for answer in found if isinstance(answer, dict)]
        assert refused == {{"OUT OF FILES"}} and answered and one.state == "READY", (found, one.state)
        assert (await one.predict(body, identity.model))["status"] == "succeeded"

asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_prediction_that_ends_the_server_each_time_fails_after_three_times(tmp_path: Path) -> None:
    port = free_port()
    with gateway(f"http://127.0.0.1:{port}", tmp_path, wait=False) as one:
        embeddings = bodies("text")["/v1/embeddings"]
        name = ""
        for _ in range(3):
            with running(RULE, port=port) as server:
                name = name or create(one, "die")["id"]
                until(functools.partial(is_unhealthy, server))  # the prediction has ended it
                assert post(one, "/v1/embeddings", embeddings).status_code == 503
        found = ended(one, name)
        assert found["status"] == "failed"
        assert found["error"].startswith("the server gave no usable answer 3 times")
        with running(RULE, port=port):
            until(lambda: post(one, "/v1/embeddings", embeddings).status_code == 200)


def test_webhooks_are_tried_again_until_they_are_taken(server: Server, tmp_path: Path) -> None:
    with Receiver(refuse=2) as receiver, gateway(server.url, tmp_path) as one:
        name = create(one, "text", webhook=receiver.url, webhook_events_filter=["completed"])["id"]
        until(lambda: receiver.seen == [(name, "succeeded")])
        assert len(receiver.requests) == 3
        assert len({body for _, body in receiver.requests}) == 1
        assert json.loads(receiver.requests[0][1]) == get(one, name)


def test_a_receiver_that_never_answers_holds_up_no_other(server: Server, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=200) as silent, Receiver() as receiver:
        hook = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        with gateway(server.url, tmp_path) as one:
            for number in range(50):
                create(one, f"{number}", webhook=hook)
            name = create(one, "text", webhook=receiver.url)["id"]
            until(lambda: receiver.seen == [(name, "processing"), (name, "succeeded")], 8)
            one.process.kill()


def test_a_full_disk_loses_no_result_and_a_creation_that_cannot_be_stored_is_not_computed(
    server: Server, tmp_path: Path
) -> None:
    async def main() -> None:
        settings = Settings(target=server.url, database=tmp_path / "store.sqlite3")
        metrics, store = Metrics(), Store(settings.database)
        hooks = Webhooks(store, metrics, replicate_api.render)
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(store)
            one = await stack.enter_async_context(target.Target(settings))
            await stack.enter_async_context(hooks)
            predictions = await stack.enter_async_context(Predictions(one, store, hooks, metrics, settings))
            identity = await one.known()

            async def new(*texts: str) -> dict[str, Any]:
                inputs = json.dumps({"documents": texts}).encode()
                model = f"e5/{identity.model}"
                return await predictions.create(model, identity.version, inputs, "http://x", None, None)

            async def limit(pages: int) -> None:
                await store._run(lambda: store._database.execute(f"PRAGMA max_page_count = {pages}").fetchall())

            name = (await new("sleep 1", *["word"] * 5000))["id"]
            await limit(1)  # no page more than there are: what SQLite calls a full disk
            with pytest.raises(GatewayError, match="could not be stored: database or disk is full"):
                await new("word " * 20_000)
            assert (one.queue.running, one.queue.waiting) == (1, 0)  # of the first one alone
            await asyncio.sleep(1.5)
            found = await predictions.get(name)
            assert found is not None
            assert found["status"] == "succeeded"
            await limit(10**6)
            for _ in range(100):
                stored = await store.get(name)
                if stored and stored["status"] == "succeeded":
                    break
                await asyncio.sleep(0.1)
            assert stored is not None
            assert stored["output"] == found["output"]

    asyncio.run(asyncio.wait_for(main(), 60))


def test_requests_that_take_longer_than_the_end_of_the_gateway_are_told(server: Server, tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        with gateway(server.url, tmp_path, "--grace", "1") as one:
            paths = bodies("sleep 8")
            cut = {path: pool.submit(post, one, path, body, Prefer="wait") for path, body in paths.items()}
            time.sleep(0.5)
            one.process.send_signal(signal.SIGTERM)
            for path in ("/v1/embeddings", "/predictions"):
                answer = cut[path].result()
                assert (answer.status_code, "is being stopped" in answer.text) == (503, True)
                assert answer.headers["Retry-After"] == "5"
            accepted = cut[PREDICTIONS].result()
            assert (accepted.status_code, accepted.json()["status"]) == (202, "starting")
            assert one.process.wait(10) == 0
            assert "Traceback" not in one.log.read_text()
        with gateway(server.url, tmp_path) as one:
            assert ended(one, accepted.json()["id"])["status"] == "succeeded"


def test_the_programs_start_whatever_is_on_the_path() -> None:
    for name in ("gateway", "playground"):
        command = [sys.executable, str(ROOT / "scripts" / f"{name}.py"), "--help"]
        done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "--target" in done.stdout


def test_a_second_gateway_on_the_same_database_is_refused(server: Server, tmp_path: Path) -> None:
    with gateway(server.url, tmp_path) as one:
        with pytest.raises(RuntimeError, match="exit status: 2"), gateway(server.url, tmp_path):
            pass
        assert "another gateway uses it" in one.log.read_text()
        assert post(one, "/v1/embeddings", bodies("text")["/v1/embeddings"]).status_code == 200


def test_sigterm_lets_requests_finish_and_leaves_accepted_predictions_for_the_next_start(
    server: Server, tmp_path: Path
) -> None:
    with ThreadPoolExecutor(4) as pool:
        with gateway(server.url, tmp_path, "--concurrency", "4") as one:
            waiting = [pool.submit(post, one, path, body) for path, body in bodies("sleep 1").items()]
            name = create(one, "sleep 5")["id"]
            time.sleep(0.3)
            one.process.send_signal(signal.SIGTERM)
            assert [answer.result().status_code for answer in waiting] == [200, 201, 200]
            assert one.process.wait(10) == 0
        with gateway(server.url, tmp_path) as one:
            assert ended(one, name)["status"] == "succeeded"
