"""The gateway's middleware and its APIs over HTTP, in front of the real Cog server with tests/rule_predictor.py."""

import base64
import json
import re
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from e5_cog.server import Server
from tests.gateways import BEARER, KEY, Gateway, gateway, until
from tests.rule_predictor import MODEL, vector

OWN = f"/v1/models/you/{MODEL}/predictions"


@pytest.fixture(scope="module")
def local(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with gateway(server.url, tmp_path_factory.mktemp("local"), "--concurrency", "2") as started:
        yield started


@pytest.fixture(scope="module")
def client(local: Gateway) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=local.url, timeout=60) as connected:
        yield connected


def ended(client: httpx.Client, prediction_id: str) -> dict[str, Any]:
    """Wait until the prediction has ended, and return it."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        prediction: dict[str, Any] = client.get(f"/v1/predictions/{prediction_id}").json()
        if prediction["completed_at"]:
            return prediction
        time.sleep(0.02)
    raise AssertionError("the prediction has not ended")


# ---- middleware


@pytest.mark.parametrize(
    "path", ["/v1/models", "/rerank", "/v1/predictions/x", "/predictions", "/info", "/metrics", "/v1/none"]
)
@pytest.mark.parametrize("header", [None, "Bearer", "Bearer wrong", f"Basic {KEY}", f"Bearer {KEY}x", KEY, "Bearer ü"])
def test_wrong_or_missing_key_is_refused_on_every_api_path(keyed: Gateway, path: str, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header.encode()}
    answer = httpx.get(keyed.url + path, headers=headers)  # type: ignore[arg-type]  # httpx takes bytes
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert "Authorization: Bearer KEY" in answer.text


def test_key_is_accepted_as_bearer_and_as_token(keyed: Gateway) -> None:
    for scheme in ("Bearer", "bearer", "Token"):
        answer = httpx.get(f"{keyed.url}/v1/models", headers={"Authorization": f"{scheme} {KEY}"})
        assert answer.json()["data"][0]["id"] == MODEL
    # Load balancers have no key, so the state is public.
    assert httpx.get(f"{keyed.url}/health-check").json() == {"status": "READY"}
    assert "setup" in httpx.get(f"{keyed.url}/health-check", headers=BEARER).json()


def test_without_a_key_only_this_machine_is_served(local: Gateway, server: Server, tmp_path: Path) -> None:
    def status(**headers: str) -> int:
        return httpx.get(f"{local.url}/v1/models", headers=headers).status_code

    assert status(Host="localhost:8000") == status(Host="[::1]:8000") == status(Host="127.0.0.1") == 200
    assert status(Origin=local.url) == 200
    assert status(Host="attacker.example:8000") == status(Host="localhost.attacker.example") == 403
    assert status(Origin="null") == status(Origin="file://") == status(Host="") == 403
    assert status(Origin="https://attacker.example") == status(Origin="http://localhost.attacker.example:80") == 403
    words = "opens the gateway to other machines: set GATEWAY_API_KEY"
    with pytest.raises(RuntimeError, match=words), gateway(server.url, tmp_path, "--host", "0.0.0.0"):
        pass


def test_every_answer_has_a_request_id_and_a_valid_one_of_the_client_is_kept(client: httpx.Client) -> None:
    def sent(value: str) -> str:
        return client.get("/v1/models", headers={"X-Request-ID": value}).headers["x-request-id"]

    assert sent("mine-1.2_3") == "mine-1.2_3"
    assert re.fullmatch(r"[0-9a-f]{16}", sent("not mine; <script>"))
    assert client.get("/none").headers["x-request-id"] != client.get("/none").headers["x-request-id"]


def test_log_has_one_json_object_per_request_and_no_user_text(local: Gateway, client: httpx.Client) -> None:
    word = "Geheimnis"
    client.post("/v1/embeddings", json={"model": MODEL, "input": word})
    client.post("/v1/embeddings", json={"model": word, "input": word, word: word})
    client.post("/v1/embeddings", content=f'{{"input": {word}')
    client.post("/predictions", json={"input": {"document": f"{word} fail"}})
    client.post("/predictions", json={"input": {"document": f"{word} break"}})
    client.post(OWN, json={"input": {"document": word, word: 1}}, headers={"Prefer": "wait"})
    client.post(OWN, json={"input": {"document": f"{word} break"}}, headers={"Prefer": "wait"})
    client.get(f"/{word}", params={word: word}, headers={word: word})
    client.get(f"/v1/predictions/{word}", headers={"X-Request-ID": "the-last"})
    until(lambda: "the-last" in local.log.read_text())  # the log line follows the answer
    log = local.log.read_text()
    assert word not in log
    lines = [json.loads(line) for line in log.splitlines()[1:]]
    assert all({"time", "level", "event"} <= set(line) for line in lines)
    last = lines[-1]
    assert (last["route"], last["method"], last["status"]) == ("/v1/predictions/{prediction_id}", "GET", 404)
    assert last["ms"] > 0
    assert not [line for line in lines if line["event"] == "bug"]


def test_metrics_count_requests_texts_and_tokens(server: Server, client: httpx.Client) -> None:
    def read() -> dict[tuple[str, ...], float]:
        families = text_string_to_metric_families(client.get("/metrics").text)
        return {
            (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
            for family in families
            for sample in family.samples
        }

    before = read()
    for _ in range(3):
        client.post("/v1/embeddings", json={"model": MODEL, "input": ["one two", "three"]})
    after = read()

    def increase(*name: str) -> float:
        return after[name] - before.get(name, 0)

    assert increase("e5_gateway_requests_total", "POST", "/v1/embeddings", "200") == 3
    assert increase("e5_gateway_texts_total", "openai") == 6
    assert increase("e5_gateway_input_tokens_total", "openai") == 9
    assert increase("e5_gateway_request_seconds_count", "/v1/embeddings") == 3
    assert after["e5_gateway_target_ready", server.url] == 1
    assert after["e5_gateway_queue_running", server.url] == after["e5_gateway_queue_waiting",] == 0


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v2/rerank", "/v1/predictions", "/predictions"])
@pytest.mark.parametrize(
    ("content", "words"),
    [(b"{", "not JSON at character 1"), (b"[1]", "not a JSON object"), (b'"\xff"', "not JSON"), (b"", "not JSON")],
)
def test_body_that_is_not_a_json_object_gets_400(client: httpx.Client, path: str, content: bytes, words: str) -> None:
    answer = client.post(path, content=content)
    assert answer.status_code == 400
    assert words in answer.text


@pytest.mark.parametrize("path", ["/v1/embeddings", OWN, "/predictions"])
@pytest.mark.parametrize("depth", [40, 300, 900])
def test_deeply_nested_body_gets_400(client: httpx.Client, path: str, depth: int) -> None:
    content = '{"input": ' + "[" * depth + "]" * depth + "}"
    answer = client.post(path, content=content)
    assert answer.status_code == 400
    assert "nested deeper than 32 levels" in answer.text


def test_many_invalid_items_get_one_short_error(client: httpx.Client) -> None:
    answer = client.post(OWN, json={"input": {"queries": [101] * 90_000, "documents": [{}] * 10}})
    assert answer.status_code == 422
    fields = [invalid["field"] for invalid in answer.json()["invalid_fields"]]
    assert fields == ["input.queries[0]", "input.documents[0]"]
    assert len(answer.content) < 1000


def test_body_over_the_limit_gets_413(client: httpx.Client) -> None:
    answer = client.post("/v1/embeddings", content=b" " * (64 * 2**20 + 1))
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")
    chunked = client.post("/v1/predictions", content=iter([b" " * 2**20] * 65))
    assert (chunked.status_code, chunked.json()["status"]) == (413, 413)


def test_unknown_paths_and_methods_get_the_error_format_of_their_api(client: httpx.Client) -> None:
    assert client.get("/v1/embeddings").json()["error"]["message"] == "GET is not a method of this path"
    assert client.get("/v1/none").json() == {"title": "Not found", "detail": "no such path", "status": 404}
    for path in ("/v2/none", "/rerank", "/v1/rerank", "/v1/embed"):  # Cohere's and Jina's
        assert set(client.get(path).json()) == {"message", "detail"}
    assert client.get("/none").json() == {"detail": "no such path"}
    assert client.get("/").headers["content-type"].startswith("text/html")
    assert client.get("/v1/embeddings").headers["Allow"] == "POST"
    assert client.head("/health-check").status_code == client.head("/metrics").status_code == 200


# ---- Cog's own


def test_cogs_endpoints_answer_like_the_server(client: httpx.Client, server: Server) -> None:
    for inputs in ({"document": "text"}, {"queries": ["a b", "c"], "encoding_format": "base64"}, {}, {"document": 5}):
        ours = client.post("/predictions", json={"input": inputs})
        direct = httpx.post(f"{server.url}/predictions", json={"input": inputs})
        assert ours.status_code == direct.status_code
        assert ours.json().get("output") == direct.json().get("output")
        assert ours.json().get("detail") == direct.json().get("detail")
    failing = client.post("/predictions", json={"input": {"document": "fail"}}).json()
    assert failing["status"] == "failed"
    assert "InputError: `documents[0]` is refused" in failing["error"]
    described, own = (httpx.get(f"{url}/openapi.json").json() for url in (client.base_url, server.url))
    assert described["components"]["schemas"]["Input"] == own["components"]["schemas"]["Input"]
    assert client.get("/health-check").json()["setup"] == httpx.get(f"{server.url}/health-check").json()["setup"]
    assert client.put("/predictions/mine-1", json={"input": {"document": "text"}}).json()["id"] == "mine-1"
    assert client.post("/predictions", json={"id": "mine-2", "input": {"document": "x"}}).json()["id"] == "mine-2"


@pytest.mark.parametrize("name", ["../../tmp/x", "a/b", "", ".", "-a", "a" * 129, "ü", 5, ["a"]])
def test_invalid_prediction_ids_are_refused(client: httpx.Client, name: object) -> None:
    answer = client.post("/predictions", json={"id": name, "input": {"document": "text"}})
    assert answer.status_code == 422
    assert "the id must be 1 to 128 letters" in answer.json()["detail"]


def test_shutdown_is_refused(client: httpx.Client, server: Server) -> None:
    assert client.post("/shutdown").status_code == 403
    assert server.process.poll() is None


def test_cancel_ends_waiting_and_running_predictions(local: Gateway, client: httpx.Client) -> None:
    with ThreadPoolExecutor(4) as pool:

        def ask(name: str) -> dict[str, Any]:
            body = {"input": {"document": "sleep 1.5"}}
            answer: dict[str, Any] = httpx.put(f"{local.url}/predictions/{name}", json=body, timeout=60).json()
            return answer

        answers = {name: pool.submit(ask, name) for name in ("run-1", "run-2")}
        time.sleep(0.3)
        answers["wait-1"] = pool.submit(ask, "wait-1")
        time.sleep(0.3)
        for name in ("wait-1", "run-1"):
            assert client.post(f"/predictions/{name}/cancel").status_code == 200
        assert answers["wait-1"].result(0.5)["status"] == "canceled"
        assert answers["run-1"].result(0.5)["status"] == "canceled"
        assert answers["run-2"].result(5)["status"] == "succeeded"
        assert client.post("/predictions/unknown/cancel").status_code == 404


def test_disconnect_frees_the_slot_at_once(local: Gateway, client: httpx.Client) -> None:
    host, _, port = local.url.removeprefix("http://").partition(":")
    body = json.dumps({"model": MODEL, "input": "sleep 20"}).encode()
    head = f"POST /v1/embeddings HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    connections = [socket.create_connection((host, int(port))) for _ in range(4)]  # two run, two wait
    for connection in connections:
        connection.sendall(head + body)
    time.sleep(0.5)
    for connection in connections:
        connection.close()
    started = time.monotonic()
    assert client.post("/v1/embeddings", json={"model": MODEL, "input": "text"}).status_code == 200
    assert time.monotonic() - started < 5  # the cancelled predictions would take 20 s


def test_respond_async_passes_through(client: httpx.Client) -> None:
    answer = client.put(
        "/predictions/async-1", json={"input": {"document": "text"}}, headers={"Prefer": "respond-async"}
    )
    assert (answer.status_code, answer.json()["status"]) == (202, "starting")


@pytest.mark.parametrize("path", ["/predictions", "/predictions/hook-1"])
def test_webhooks_of_cogs_api_are_refused(client: httpx.Client, path: str) -> None:
    """coglet would send them to any address, and follow redirects: POST /shutdown would end it."""
    body = {"input": {"document": "text"}, "webhook": "https://example.com/hook"}
    answer = client.request("PUT" if "hook-1" in path else "POST", path, json=body)
    assert answer.status_code == 422
    assert "POST /v1/predictions" in answer.json()["detail"]


# ---- Replicate's


def test_prediction_has_replicates_fields_and_ordered_times(client: httpx.Client) -> None:
    answer = client.post(OWN, json={"input": {"queries": ["a b"], "query": None}}, headers={"Prefer": "wait"})
    prediction = answer.json()
    assert answer.status_code == 201
    assert re.fullmatch(r"[0-9a-hjkmnp-tv-z]{26}", prediction["id"])
    assert prediction["model"] == f"you/{MODEL}"
    assert re.fullmatch(r"[0-9a-f]{64}", prediction["version"])
    assert prediction["input"] == {"queries": ["a b"]}
    assert prediction["output"]["embeddings"] == [vector("a b")]
    assert (prediction["status"], prediction["error"], prediction["logs"], prediction["data_removed"]) == (
        "succeeded",
        None,
        "",
        False,
    )
    assert prediction["urls"]["get"] == f"{client.base_url}/v1/predictions/{prediction['id']}"
    assert prediction["urls"]["cancel"] == prediction["urls"]["get"] + "/cancel"
    assert (prediction["urls"]["web"], prediction["source"]) == (prediction["urls"]["get"], "api")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", prediction["created_at"])
    for name in ("started_at", "completed_at"):
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", prediction[name])
    assert prediction["created_at"][:-1] <= prediction["started_at"] < prediction["completed_at"]
    assert 0 < prediction["metrics"]["predict_time"] <= prediction["metrics"]["total_time"]
    assert client.get(f"/v1/predictions/{prediction['id']}").json() == prediction
    assert client.post(f"/v1/predictions/{prediction['id']}/cancel").json() == prediction  # it had ended before


def test_prediction_without_wait_passes_through_its_states(client: httpx.Client) -> None:
    started = time.monotonic()
    created = client.post(OWN, json={"input": {"document": "sleep 0.5"}})
    assert time.monotonic() - started < 0.4
    shown = created.json()
    assert (created.status_code, shown["status"], shown["output"]) == (201, "starting", None)
    assert (shown["started_at"], shown["completed_at"], shown["metrics"]) == (None, None, {})
    time.sleep(0.2)
    assert client.get(f"/v1/predictions/{shown['id']}").json()["status"] == "processing"
    assert ended(client, shown["id"])["status"] == "succeeded"


def test_wait_shorter_than_the_prediction_returns_starting(client: httpx.Client) -> None:
    answer = client.post(OWN, json={"input": {"document": "sleep 1.5"}}, headers={"Prefer": "wait=1"})
    assert (answer.status_code, answer.json()["status"]) == (202, "starting")
    assert ended(client, answer.json()["id"])["status"] == "succeeded"


def test_failed_prediction_has_the_models_message(client: httpx.Client) -> None:
    failing = client.post(OWN, json={"input": {"document": "fail"}}, headers={"Prefer": "wait"}).json()
    assert (failing["status"], failing["output"]) == ("failed", None)
    assert failing["error"] == "`documents[0]` is refused: pass another"
    broken = client.post(OWN, json={"input": {"document": "break"}}, headers={"Prefer": "wait"}).json()
    assert (broken["status"], broken["error"]) == ("failed", "broken")


def test_replicate_cancel_ends_waiting_and_running_predictions(client: httpx.Client) -> None:
    names = [client.post(OWN, json={"input": {"document": "sleep 20"}}).json()["id"] for _ in range(3)]
    time.sleep(0.3)
    states = [client.get(f"/v1/predictions/{name}").json()["status"] for name in names]
    assert states == ["processing", "processing", "starting"]
    for name in reversed(names):
        shown = client.post(f"/v1/predictions/{name}/cancel").json()
        assert (shown["status"], shown["output"]) == ("canceled", None)
        assert shown["completed_at"]
    started = time.monotonic()
    assert client.post(OWN, json={"input": {"document": "x"}}, headers={"Prefer": "wait"}).json()["output"]
    assert time.monotonic() - started < 5  # their slots are free
    assert client.get(f"/v1/predictions/{names[0]}").json()["status"] == "canceled"
    assert client.post("/v1/predictions/none/cancel").status_code == 404


@pytest.mark.parametrize(
    ("inputs", "field", "words"),
    [
        ({"query": 5}, "input.query", "not of type"),
        ({"queries": ["a", 5]}, "input.queries[1]", "5 is not of type"),
        ({"encoding_format": "hex"}, "input.encoding_format", "choose one of float, base64, float16, int8"),
        ({"normalise": True}, "input", "the inputs are document, documents"),
        ([], "input", "must be an object"),
        ({"query": ["x" * 10_000]}, "input.query", "violates `type`"),
    ],
)
def test_invalid_inputs_are_refused_at_creation(client: httpx.Client, inputs: object, field: str, words: str) -> None:
    answer = client.post(OWN, json={"input": inputs})
    shown = answer.json()
    assert (answer.status_code, shown["title"], shown["status"]) == (422, "Input validation failed", 422)
    assert shown["invalid_fields"][0]["field"] == field
    assert words in shown["detail"]
    assert len(answer.text) < 1000


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"version": "0" * 64}, "the version does not exist here"),
        ({}, "the version does not exist here"),
        ({"version": 5}, "the version does not exist here"),
        ({"version": f"e5/{MODEL}", "webhook": "ftp://x"}, "webhook: must be the URL of a web server"),
        ({"version": f"e5/{MODEL}", "webhook": "http://:80"}, "webhook: must be the URL of a web server"),
        ({"version": f"e5/{MODEL}", "webhook": "http://["}, "webhook: must be the URL of a web server"),
        ({"version": f"e5/{MODEL}", "webhook": "http://x y/"}, "webhook: must be the URL of a web server"),
        ({"version": f"e5/{MODEL}", "webhook": "http://a℀b/"}, "webhook: must be the URL of a web server"),
        ({"version": f"e5/{MODEL}", "webhook": "http://x:99999"}, "webhook: must be the URL of a web server"),
        (
            {"version": f"e5/{MODEL}", "webhook": "http://x", "webhook_events_filter": ["end"]},
            "webhook_events_filter: must",
        ),
        ({"version": f"e5/{MODEL}", "webhok": "http://x"}, "webhok: unknown field"),
    ],
)
def test_invalid_fields_of_a_creation_are_named(client: httpx.Client, body: dict[str, Any], words: str) -> None:
    answer = client.post("/v1/predictions", json=body | {"input": {"document": "x"}})
    assert answer.status_code == 422
    assert words in answer.json()["detail"]


def test_model_and_version_exist_under_any_owner(client: httpx.Client, server: Server) -> None:
    model = client.get(f"/v1/models/anyone/{MODEL}").json()
    assert (model["owner"], model["name"]) == ("anyone", MODEL)
    versions = client.get(f"/v1/models/anyone/{MODEL}/versions").json()["results"]
    assert versions == [model["latest_version"]]
    assert versions[0]["openapi_schema"] == httpx.get(f"{server.url}/openapi.json").json()
    name = versions[0]["id"]
    assert client.get(f"/v1/models/anyone/{MODEL}/versions/{name}").json() == versions[0]
    assert client.get(f"/v1/models/anyone/{MODEL}/versions/{'0' * 64}").status_code == 404
    assert client.get("/v1/models/anyone/other").status_code == 404
    for version in (name, f"e5/{MODEL}", f"e5/{MODEL}:{name}"):
        answer = client.post("/v1/predictions", json={"version": version, "input": {"document": "x"}})
        assert answer.json()["version"] == name
    listed = client.get("/v1/models").json()
    assert (listed["data"][0]["id"], listed["results"][0]["name"]) == (MODEL, MODEL)


def test_pages_of_predictions_have_each_one_once_newest_first(client: httpx.Client) -> None:
    made = [client.post(OWN, json={"input": {"document": f"{n}"}}).json()["id"] for n in range(60)]
    seen, url = [], "/v1/predictions"
    while url:
        page = client.get(url).json()
        seen += [prediction["id"] for prediction in page["results"]]
        url = page["next"]
    assert [name for name in seen if name in made] == made[::-1]
    assert len(seen) == len(set(seen))
    assert client.get("/v1/predictions", params={"cursor": "x"}).status_code == 400


def test_base64_output_is_unchanged(client: httpx.Client) -> None:
    body = {"input": {"documents": ["a", "b c"], "encoding_format": "base64"}}
    prediction = client.post(OWN, json=body, headers={"Prefer": "wait"}).json()
    assert base64.b64decode(prediction["output"]["embeddings_base64"][1])[4:8] == b"\x00\x00\x00\x40"  # 2.0: two words


def test_database_file_is_private(local: Gateway) -> None:
    assert Path(local.database).stat().st_mode & 0o077 == 0
