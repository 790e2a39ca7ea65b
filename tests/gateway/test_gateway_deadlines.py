"""`Cancel-After` of Replicate's API: what a prediction becomes at its deadline, also after a restart."""

import asyncio
import contextlib
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic.v1 import ValidationError
from replicate.client import Client

from e5_cog.server import Server, free_port
from e5_gateway import replicate_api
from e5_gateway.destinations import Destinations
from e5_gateway.metrics import Metrics
from e5_gateway.predictions import Predictions
from e5_gateway.settings import GatewaySettings
from e5_gateway.store import Prediction, Store
from e5_gateway.targets import Targets
from e5_gateway.uploads import Uploads
from e5_gateway.webhooks import Webhooks
from tests.gateways import Gateway, gateway, until
from tests.rule_predictor import MODEL
from tests.webhook_receiver import TO_RECEIVER, Receiver

OWN = f"/v1/models/e5/{MODEL}/predictions"
LONG = {"document": "sleep 30"}
Json = dict[str, Any]


@pytest.fixture(scope="module")
def front(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    options = ("--concurrency", "2", *TO_RECEIVER)
    with gateway(server.url, tmp_path_factory.mktemp("deadlines"), *options) as started:
        yield started


def create(front: Gateway, inputs: Json, headers: dict[str, str], path: str = OWN, **fields: Any) -> httpx.Response:
    return httpx.post(front.url + path, json={"input": inputs, **fields}, headers=headers, timeout=60)


def get(front: Gateway, prediction_id: str) -> Json:
    prediction: Json = httpx.get(f"{front.url}/v1/predictions/{prediction_id}", timeout=30).json()
    return prediction


def ended(front: Gateway, prediction_id: str) -> Json:
    prediction: Json = until(lambda: (shown := get(front, prediction_id))["completed_at"] and shown)
    return prediction


def metrics(front: Gateway) -> str:
    return httpx.get(f"{front.url}/metrics").text


def seconds(prediction: Json, to: str) -> float:
    """From the creation of a prediction to another of its times."""
    return (datetime.fromisoformat(prediction[to]) - datetime.fromisoformat(prediction["created_at"])).total_seconds()


def test_deadline_cancels_running_predictions_and_aborts_waiting_ones(front: Gateway, server: Server) -> None:
    user = Client(api_token="none", base_url=front.url, headers={"Cancel-After": "7s"})
    user.poll_interval = 0.1
    cancelled_before = server.log.read_text().count("Prediction cancelled")
    with Receiver() as receiver:
        hook: Json = {"webhook": receiver.url, "webhook_events_filter": ["completed"]}
        running = create(front, LONG, {"Cancel-After": "7"}, **hook).json()
        by_client = user.models.predictions.create(f"e5/{MODEL}", input=LONG, wait=False)
        version = {"version": f"e5/{MODEL}"}
        answer = create(front, LONG, {"Cancel-After": "5s", "Prefer": "wait"}, "/v1/predictions", **hook, **version)
        waiting = answer.json()
        assert (answer.status_code, waiting["status"]) == (201, "aborted")
        assert (waiting["started_at"], waiting["output"], waiting["error"]) == (None, None, None)
        assert "e5_gateway_queue_waiting 0.0" in metrics(front)  # its place is free while the others still run
        running = ended(front, running["id"])
        assert (running["status"], running["output"], running["error"]) == ("canceled", None, None)
        assert running["started_at"]
        for prediction, lifetime in ((running, 7), (waiting, 5)):
            assert seconds(prediction, "deadline") == pytest.approx(lifetime, abs=0.002)
            assert lifetime - 0.1 < seconds(prediction, "completed_at") < lifetime + 10
        until(lambda: set(receiver.seen) == {(running["id"], "canceled"), (waiting["id"], "aborted")})
    by_client.wait()
    assert (by_client.status, by_client.output) == ("canceled", None)
    with pytest.raises(ValidationError):  # replicate 1.0.7 does not know the status `aborted`
        user.predictions.get(waiting["id"])
    until(lambda: server.log.read_text().count("Prediction cancelled") == cancelled_before + 2)
    listed = httpx.get(f"{front.url}/v1/predictions").json()["results"]
    assert {one["id"]: one["deadline"] for one in listed}[waiting["id"]] == waiting["deadline"]
    assert f'e5_gateway_queue_running{{target="{server.url}"}} 0.0' in metrics(front)
    assert 'e5_gateway_predictions_total{status="aborted"} 1.0' in metrics(front)


def test_deadline_changes_no_prediction_that_ends_before(front: Gateway) -> None:
    headers = {"Cancel-After": "1h30m", "Prefer": "wait"}
    done = create(front, {"document": "a"}, headers).json()
    assert done["status"] == "succeeded"
    assert seconds(done, "deadline") == pytest.approx(5400, abs=0.002)
    names = [create(front, LONG, {"Cancel-After": "1m"}).json()["id"] for _ in range(3)]
    cancels = [httpx.post(f"{front.url}/v1/predictions/{name}/cancel").json() for name in reversed(names)]
    assert [prediction["status"] for prediction in cancels] == ["canceled"] * 3  # also the one that had not started
    assert "deadline" not in create(front, {"document": "a"}, {"Prefer": "wait"}).json()


@pytest.mark.parametrize("value", ["", "4", "4s", "-5", "1.5m", "5 m", "30S", "1s1m", "1h30", "9999h", "1" * 5000, "५"])
@pytest.mark.parametrize("path", [OWN, "/v1/predictions"])
def test_invalid_cancel_after_is_refused(front: Gateway, path: str, value: str) -> None:
    version = {} if path == OWN else {"version": f"e5/{MODEL}"}
    headers = {"Cancel-After": value.encode()}
    answer = create(front, {"document": "a"}, headers, path, **version)  # type: ignore[arg-type]  # httpx takes bytes
    shown = answer.json()
    assert (answer.status_code, shown["title"], shown["status"]) == (422, "Input validation failed", 422)
    assert [invalid["field"] for invalid in shown["invalid_fields"]] == ["Cancel-After"]
    assert shown["detail"] == (
        "- Cancel-After: must be a duration of 5 s to 8,760 h, such as 30, 90s, 5m or 1h30m45s\n"
    )


def test_deadline_survives_sigkill_of_the_gateway(server: Server, tmp_path: Path) -> None:
    with gateway(server.url, tmp_path) as front:
        created = create(front, LONG, {"Cancel-After": "5"}).json()
        until(lambda: get(front, created["id"])["status"] == "processing")
        front.process.kill()
    with gateway(server.url, tmp_path) as front:
        until(lambda: get(front, created["id"])["status"] == "processing")
        prediction = ended(front, created["id"])
    assert (prediction["status"], prediction["deadline"]) == ("canceled", created["deadline"])
    assert 4.9 < seconds(prediction, "completed_at") < 20


def accepted(name: str, version: str, deadline: float, webhook: str | None = None) -> Prediction:
    """A prediction that an earlier process has accepted, with its deadline in so many seconds."""
    return Prediction(
        id=name,
        model=f"e5/{MODEL}",
        version=version,
        status="starting",
        created_at=time.time() - 100,
        deadline=time.time() + deadline,
        base="http://x",
        input=b'{"document": "sleep 30"}',
        size=24,
        webhook=webhook,
        webhook_events=("start", "completed") if webhook else (),
        webhook_due=webhook is not None,
    )


def test_prediction_that_waits_for_the_server_is_aborted_at_its_deadline(tmp_path: Path) -> None:
    async def prepare() -> None:
        async with Store(tmp_path / "predictions.sqlite3") as store:
            await store.insert(accepted("past", "v", -50))
            await store.insert(accepted("soon", "v", 4))

    asyncio.run(prepare())
    with gateway(f"http://127.0.0.1:{free_port()}", tmp_path, wait=False) as front:
        assert ended(front, "past")["status"] == "aborted"
        assert get(front, "soon")["status"] == "starting"
        assert ended(front, "soon")["status"] == "aborted"


def test_past_deadline_starts_nothing_on_a_ready_server(server: Server, tmp_path: Path) -> None:
    async def scenario(hook: str) -> Prediction:
        settings = GatewaySettings((server.url,), database=tmp_path / "store.sqlite3")
        counters, store = Metrics(), Store(settings.database)
        destinations = Destinations(lambda: settings.targets, settings.webhooks_to)
        hooks = Webhooks(store, counters, destinations, lambda prediction: replicate_api.render(prediction, ""))
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(store)
            cog = await stack.enter_async_context(Targets(settings))
            await stack.enter_async_context(hooks)
            identity = await cog.require_identity()
            await store.insert(accepted("past", identity.version, -50, hook))
            predictions = await stack.enter_async_context(
                Predictions(cog, store, Uploads(store, destinations), hooks, counters, settings)
            )
            while (stored := await store.get("past")) is None or not stored.final:
                await asyncio.sleep(0.02)
            assert (cog.queue.running, cog.queue.waiting, predictions.ended) == (0, 0, 1)
            return stored

    sent = server.log.read_text().count("Starting prediction")
    prediction = asyncio.run(asyncio.wait_for(scenario("http://127.0.0.1:9/hook"), 20))
    assert (prediction.status, prediction.started_at) == ("aborted", None)
    assert server.log.read_text().count("Starting prediction") == sent + 1  # the one that reads the identity
