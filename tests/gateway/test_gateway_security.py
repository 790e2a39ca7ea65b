"""What strangers, and careless or hostile holders of the key, meet: keys, ids, addresses in answers, hostile JSON."""

import asyncio
import json
import os
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from e5.errors import SettingsError
from e5_cog.server import Server, free_port
from e5_gateway import access, fleet
from e5_gateway.app import create
from e5_gateway.requests import MAX_VALUES, ValueCounter
from e5_gateway.settings import GatewaySettings
from tests.gateways import BEARER, KEY, Gateway, gateway, until
from tests.rule_predictor import MODEL

PREDICTIONS = f"/v1/models/e5/{MODEL}/predictions"
OPEN = {
    *(("GET", path) for path in ("/health-check", "/docs", "/openapi.json", "/", "/page/tasks.json")),
    *(("HEAD", path) for path in ("/health-check", "/docs", "/openapi.json", "/", "/page/tasks.json")),
}
"""The routes that need no key."""
Json = dict[str, Any]


@pytest.fixture(scope="module")
def client(keyed: Gateway) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=keyed.url, headers=BEARER, timeout=60) as connected:
        yield connected


# ---- the key


def application(folder: Path, key: str | None) -> FastAPI:
    return create(GatewaySettings(("http://127.0.0.1:9",), database=folder / "store.sqlite3", api_key=key))


def routes(routed: Any) -> Iterator[tuple[str, str]]:
    """Method and path of each route, those of included routers too."""
    for route in routed.routes:
        inner = getattr(route, "original_router", None)
        if inner is not None:
            yield from routes(inner)
        elif hasattr(route, "methods"):  # not the folder of the page's files
            yield from ((method, route.path) for method in route.methods)


def statuses(app: FastAPI, requests: list[tuple[str, str]], **headers: str) -> list[int]:
    async def send() -> list[int]:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://x", headers=headers) as asked:
            return [(await asked.request(method, path)).status_code for method, path in requests]

    return asyncio.run(send())


def test_every_route_but_the_open_ones_needs_the_key(tmp_path: Path) -> None:
    app = application(tmp_path, KEY)
    every = sorted(set(routes(app)))
    assert len(every) > 18
    assert set(every) >= OPEN
    closed = [(method, re.sub(r"\{\w+\}", "x", path)) for method, path in every if (method, path) not in OPEN]
    assert statuses(app, closed) == [401] * len(closed)
    assert statuses(app, closed, Authorization="Bearer wrong") == [401] * len(closed)


def test_page_is_open_to_read_and_its_folder_has_no_way_out(tmp_path: Path) -> None:
    app = application(tmp_path, KEY)
    inside = [("GET", "/"), ("HEAD", "/"), ("GET", "/page/app.js"), ("HEAD", "/page/style.css")]
    assert statuses(app, inside) == [200] * 4
    names = ("%2e%2e/web_page.py", "..%2fweb_page.py", "/etc/passwd", "%2fetc%2fpasswd", "%2e%2e")
    outside = [f"/page/{name}" for name in names]
    assert statuses(app, [("GET", path) for path in [*outside, "/config", "/page", "/page/"]]) == [401] * 8
    assert statuses(app, [("POST", "/"), ("POST", "/page/app.js"), ("POST", "/docs")]) == [401] * 3
    named = statuses(app, [("GET", path) for path in outside], Authorization=f"Bearer {KEY}")
    assert named == [404] * 5
    reached = statuses(app, [("POST", "/"), ("POST", "/embed")], Authorization=f"Bearer {KEY}")
    assert reached == [503, 503]  # the API: there is no Cog server


TRICKS = ("/%2e/", "//", "/./", "/x/../", "/%2f", "/v1%2f", "/V1/", "/;/", "/health-check/../", "/health-check/", "/*")


@pytest.mark.parametrize("path", [prefix + "v1/models" for prefix in TRICKS] + ["/docs/", "/redoc", "/metrics", "*"])
def test_no_spelling_of_a_path_avoids_the_key(keyed: Gateway, path: str) -> None:
    for method in ("GET", "HEAD", "OPTIONS", "TRACE", "POST"):
        request = httpx.Request(method, keyed.url, extensions={"target": path.encode()})
        with httpx.Client() as stranger:
            answer = stranger.send(request)
        assert answer.status_code in (400, 401)
        assert MODEL not in answer.text


@pytest.mark.parametrize(
    "headers",
    [
        [("Authorization", f"Bearer {KEY}"), ("Authorization", "Bearer wrong")],
        [("Authorization", "Bearer wrong"), ("Authorization", f"Bearer {KEY}")],
        [("Authorization", f"Bearer {KEY}"), ("Authorization", f"Bearer {KEY}")],
        [("X-Api-Key", KEY)],
        [("Cookie", f"key={KEY}")],
    ],
    ids=["right first", "right last", "twice", "another header", "cookie"],
)
def test_only_one_authorization_header_counts(keyed: Gateway, headers: list[tuple[str, str]]) -> None:
    """With two of them, a proxy in front may have read the other one."""
    assert httpx.get(f"{keyed.url}/v1/models", headers=headers).status_code == 401


@pytest.mark.parametrize("host", ["evil.com@127.0.0.1", "127.0.0.1#evil.com", "127.0.0.1/evil", "localhost\\@evil.com"])
def test_host_that_only_contains_loopback_is_refused_without_a_key(host: str) -> None:
    refusal = access.Access(None).refusal("/v1/models", {b"host": host.encode()})
    assert refusal is not None and refusal.status == 403
    assert access.Access(None).refusal("/v1/models", {b"host": b"[::1]:8000"}) is None


def test_two_hosts_are_none() -> None:
    headers = access.read_headers([(b"host", b"evil.com"), (b"host", b"localhost")])
    assert access.Access(None).refusal("/v1/models", headers) is not None


def test_short_keys_are_for_loopback_alone(tmp_path: Path) -> None:
    def settings(host: str, key: str) -> GatewaySettings:
        return GatewaySettings(("http://127.0.0.1:9",), tmp_path / "store.sqlite3", host=host, api_key=key)

    assert settings("127.0.0.1", "short").api_key == "short"
    assert settings("0.0.0.0", "x" * 16).api_key == "x" * 16
    with pytest.raises(SettingsError, match=r"GATEWAY_API_KEY has 15 characters.*openssl"):
        settings("0.0.0.0", "x" * 15)


def test_own_cog_server_does_not_get_the_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GATEWAY_API_KEY", KEY)
    process = fleet._start(f"http://127.0.0.1:{free_port()}", {})
    try:
        environment = until(Path(f"/proc/{process.pid}/environ").read_bytes)  # empty until the program is started
    finally:
        fleet._end(process)
    assert b"PATH=" in environment and KEY.encode() not in environment
    assert os.environ["GATEWAY_API_KEY"] == KEY


def test_browsers_are_told_what_they_may_not_do(client: httpx.Client) -> None:
    for answer in (client.get("/v1/models"), client.get("/none"), httpx.get(f"{client.base_url}/v1/models")):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"


# ---- predictions of other clients


def test_ids_are_random_and_clients_cannot_take_the_gateways(client: httpx.Client) -> None:
    created = [client.post("/predictions", json={"input": {"document": "text"}}).json()["id"] for _ in range(2)]
    first, second = (re.fullmatch("gw-([0-9a-f]{32})", name) for name in created)
    assert first and second and sum(a != b for a, b in zip(first[1], second[1], strict=True)) > 10
    for name in created:
        answer = client.put(f"/predictions/{name}", json={"input": {"document": "text"}})
        assert answer.status_code == 422 and "the gateway's own" in answer.json()["detail"]
        assert client.post("/predictions", json={"id": name, "input": {"document": "text"}}).status_code == 422


def test_addresses_in_answers_are_those_of_the_reader(client: httpx.Client) -> None:
    evil = {"Host": "evil.example"}
    made = client.post(PREDICTIONS, json={"input": {"document": "text"}}, headers=evil).json()
    assert made["urls"]["get"] == f"http://evil.example/v1/predictions/{made['id']}"  # who says so, gets it
    one = client.get(f"/v1/predictions/{made['id']}").json()
    page = client.get("/v1/predictions").json()
    assert one["urls"]["get"] == f"{client.base_url}/v1/predictions/{made['id']}"
    assert "evil" not in json.dumps([one, page])


def test_public_url_is_the_address_in_all_answers(server: Server, tmp_path: Path) -> None:
    public = "https://e5.example.com/api"
    with gateway(server.url, tmp_path, "--public-url", public + "/") as front:
        made = httpx.post(front.url + PREDICTIONS, json={"input": {"document": "text"}}).json()
    assert made["urls"]["get"] == f"{public}/v1/predictions/{made['id']}"
    for wrong in ("e5.example.com", "ftp://x", "https://x?y", "https://"):
        with pytest.raises(SettingsError, match="--public-url"):
            GatewaySettings(("http://127.0.0.1:9",), tmp_path, public_url=wrong)


# ---- hostile JSON


def count_by_hand(content: bytes) -> int:
    """Commas and brackets outside of strings, and one, read byte by byte."""
    count, in_string, escaped = 1, False, False
    for byte in content:
        character = chr(byte)
        if escaped:
            escaped = False
        elif in_string:
            escaped, in_string = character == "\\", character != '"'
        elif character == '"':
            in_string = True
        else:
            count += character in ",[{"
    return count


@pytest.mark.parametrize(
    "value",
    [
        [], {}, [1, 2, [3]], {"a": [1, {"b": 2}]}, ["[", ",", "{"], ['"', '\\"', "\\\\", '\\\\"', "\\"],
        {'"[': '\\",'}, ["\\" * 9, '"' * 9, '\\"' * 5 + "[,"], "日本語 [,", ["é" * 5, "\n\t[,\u2028"],
    ],
)  # fmt: skip
@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_values_are_counted_without_parsing_however_a_body_is_cut(value: Any, size: int) -> None:
    for content in (json.dumps(value).encode(), json.dumps(value, ensure_ascii=False, indent=1).encode()):
        counter = ValueCounter()
        for start in range(0, len(content), size):
            counter.feed(content[start : start + size])
        assert counter.values == count_by_hand(content)


def repeated(piece: bytes) -> bytes:
    """16 MiB of JSON."""
    return b'{"model":"x","input":[' + piece * (2**24 // len(piece)) + b"0]}"


BOMBS = {
    "brackets": repeated(b"[" * 28 + b"]" * 28 + b","),
    "lists": repeated(b"[],"),
    "objects": repeated(b"{},"),
    "numbers": repeated(b"1,"),
    "texts": repeated(b'"a",'),
    "texts of brackets": repeated(b'"[,",'),
    "keys": b"{" + b",".join(b'"%d":0' % number for number in range(2**20)) + b"}",
}


@pytest.mark.parametrize("path", ["/v1/embeddings", "/rerank", "/v2/embed", PREDICTIONS, "/predictions", "/embed"])
@pytest.mark.parametrize("bomb", BOMBS)
def test_bodies_of_too_many_values_are_refused(client: httpx.Client, path: str, bomb: str) -> None:
    answer = client.post(path, content=BOMBS[bomb])
    assert answer.status_code == 413
    assert f"more than {MAX_VALUES:,} values" in answer.text


@pytest.mark.parametrize("text", ["[{," * 10**6, '\\"' * 10**6, "\\" * 10**6, "ü日\n" * 10**6])
def test_texts_full_of_brackets_and_escapes_are_accepted(client: httpx.Client, text: str) -> None:
    for ascii_only in (True, False):
        content = json.dumps({"model": MODEL, "input": text}, ensure_ascii=ascii_only).encode()
        assert client.post("/v1/embeddings", content=content).status_code == 200


def test_token_ids_still_get_their_own_error_or_a_hint(client: httpx.Client) -> None:
    few = client.post("/v1/embeddings", json={"model": MODEL, "input": [[1, 2]] * 1000})
    assert few.status_code == 400 and "token ids" in few.text
    many = client.post("/v1/embeddings", json={"model": MODEL, "input": [list(range(500))] * 1000})
    assert many.status_code == 413 and "not token ids" in many.text


LONG = "x" * 3_000_000


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", {LONG: 1, "model": MODEL, "input": "text"}),
        ("/v1/embeddings", {"model": LONG, "input": "text"}),
        ("/v1/embeddings", {"model": f"{MODEL}:query:{LONG}", "input": "text"}),
        ("/v1/embeddings", {"model": MODEL, "input": "text", "encoding_format": LONG}),
        ("/v2/rerank", {LONG: 1, "query": "text", "documents": ["text"]}),
        ("/rerank", {"query": "text", "documents": ["text"], "top_n": LONG}),
        ("/v2/embed", {"texts": ["text"], "input_type": LONG}),
        ("/v1/embed", {"texts": ["text"], "input_type": "query", "embedding_types": [LONG]}),
        (PREDICTIONS, {LONG: 1, "input": {}}),
        (PREDICTIONS, {"input": {LONG: "text"}}),
        (PREDICTIONS, {"input": {"document": [LONG]}}),
        (PREDICTIONS, {"input": {"document": "text"}, "webhook": f"http://{LONG}/"}),
        ("/v1/predictions", {"version": LONG, "input": {}}),
        ("/predictions", {"input": {"document": [LONG]}}),
        ("/predictions", {"input": {"document": "text"}, "id": LONG}),
        ("/predictions", {"input": LONG}),
        ("/embed", {"inputs": "text", LONG: 1}),
        ("/embed", {"inputs": "text", "prompt_name": LONG}),
        ("/embed", {"inputs": "text", "truncation_direction": LONG}),
    ],
)
def test_errors_quote_little_of_what_came(client: httpx.Client, path: str, body: Json) -> None:
    answer = client.post(path, json=body)
    assert answer.status_code in (400, 404, 422)
    assert len(answer.content) < 3_000
    assert answer.json()


def test_event_loop_answers_others_while_the_largest_honest_body_arrives(client: httpx.Client, keyed: Gateway) -> None:
    """Structure, not seconds: other requests are answered between the parts of a large one. The benchmark has times."""
    done = threading.Event()

    def send() -> None:
        client.post("/v1/embeddings", json={"model": MODEL, "input": "word " * 6_000_000})
        done.set()

    thread = threading.Thread(target=send)
    thread.start()
    answered = 0
    while not done.is_set():
        answered += httpx.get(f"{keyed.url}/health-check").status_code == 200
        time.sleep(0.005)
    thread.join()
    assert answered > 3
