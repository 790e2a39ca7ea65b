"""What the gateway does when there is too much, when the server goes away, and when it is killed itself."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from scripts.local_server import ROOT, Server, free_port, running
from tests.gateways import Gateway, gateway
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
    answer = post(one, PREDICTIONS, {"input": {"document": text}} | more)
    assert answer.status_code == 201, answer.text
    created: Json = answer.json()
    return created


def get(one: Gateway, name: str) -> Json:
    found: Json = httpx.get(f"{one.url}/v1/predictions/{name}", timeout=30).json()
    return found


def until(condition: Callable[[], Any], seconds: float = 30.0) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError(f"not so within {seconds:.0f} s")


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
            assert all("too much is waiting (3 requests)" in answer.text for answer in refused)
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
                    assert post(one, path, body).status_code in (200, 201)
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
        names = [create(one, f"sleep 1 {'word ' * number}")["id"] for number in range(4)]
        until(lambda: get(one, names[0])["status"] == "processing")
        server.process.kill()
        server.process.wait()
        until(lambda: {get(one, name)["status"] for name in names} == {"starting"})
        assert post(one, PREDICTIONS, {"input": {"document": "late"}}).status_code == 503  # new ones are not accepted
        with running(RULE, port=port):
            assert [ended(one, name)["status"] for name in names] == ["succeeded"] * 4


def test_a_prediction_that_ends_the_server_each_time_fails_after_three_times(tmp_path: Path) -> None:
    port = free_port()
    with gateway(f"http://127.0.0.1:{port}", tmp_path, wait=False) as one:
        embeddings = bodies("text")["/v1/embeddings"]
        name = ""
        for _ in range(3):
            with running(RULE, port=port):
                name = name or create(one, "die")["id"]
                until(lambda: post(one, "/v1/embeddings", embeddings).status_code == 503)
        found = ended(one, name)
        assert found["status"] == "failed"
        assert found["error"].startswith("the server went away 3 times while it computed this")
        with running(RULE, port=port):
            until(lambda: post(one, "/v1/embeddings", embeddings).status_code == 200)


def test_webhooks_are_tried_again_until_they_are_taken(server: Server, tmp_path: Path) -> None:
    with Receiver(refuse=2) as receiver, gateway(server.url, tmp_path) as one:
        name = create(one, "text", webhook=receiver.url, webhook_events_filter=["completed"])["id"]
        until(lambda: receiver.seen == [(name, "succeeded")])
        assert len(receiver.requests) == 3
        assert len({body for _, body in receiver.requests}) == 1
        assert json.loads(receiver.requests[0][1]) == get(one, name)


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
