"""Where webhooks may go: public addresses at the moment of connecting, and what --webhooks-to names."""

import asyncio
import http.server
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest

from e5.errors import SettingsError
from e5_cog.server import Server
from e5_gateway.destinations import Destinations, Inner, is_public, literal
from tests.gateways import gateway, until
from tests.rule_predictor import MODEL
from tests.webhook_receiver import Receiver

TARGET = "http://127.0.0.1:5000"
PREDICTIONS = f"/v1/models/e5/{MODEL}/predictions"
NONE = Inner()


def allowing(values: list[str]) -> Inner:
    return Inner.parse("--webhooks-to", values)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.8.8.8", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
        "192.0.2.1", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", "::1", "::", "fe80::1", "fc00::1",
        "fec0::1", "ff02::1", "2001:db8::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254",
        "64:ff9b::127.0.0.1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "2002:a00:1::1", "::127.0.0.1",
        "2001:0:53aa:64c:0:0:80ff:fffe",
    ],
)  # fmt: skip
def test_inner_addresses_are_not_public(address: str) -> None:
    """Loopback, private, link-local, shared, reserved, multicast, and IPv6 forms that contain one of these."""
    assert not is_public(ip_address(address))


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "93.184.216.34", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8"]
)
def test_public_addresses_are(address: str) -> None:
    assert is_public(ip_address(address))


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.1", "127.0.0.1"), ("0x7f.1", "127.0.0.1"), ("2130706433", "127.0.0.1"), ("017700000001", "127.0.0.1"),
        ("0", "0.0.0.0"), ("10.1", "10.0.0.1"), ("::1", "::1"), ("::ffff:127.0.0.1", "::ffff:127.0.0.1"),
    ],
)  # fmt: skip
def test_short_forms_of_an_address_are_read_as_the_resolver_reads_them(host: str, address: str) -> None:
    assert literal(host) == ip_address(address)
    if ":" not in host:
        assert socket.getaddrinfo(host, 80, type=socket.SOCK_STREAM)[0][4][0] == address


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/", "http://127.1:80/", "http://0x7f.1/", "http://2130706433/", "http://[::1]/",
        "http://[::ffff:127.0.0.1]/", "http://localhost/", "http://LOCALHOST/", "http://169.254.169.254/latest",
        "https://10.0.0.1/", "http://0/",
    ],
)  # fmt: skip
def test_inner_urls_are_refused_when_a_prediction_is_created(url: str) -> None:
    assert "not a public address" in str(Destinations(lambda: [TARGET], NONE).problem(url))


@pytest.mark.parametrize("url", ["http://user:pw@example.com/", "http://user@example.com/", "http://@example.com/"])
def test_user_and_password_are_refused(url: str) -> None:
    assert "user and password" in str(Destinations(lambda: [TARGET], allowing(["example.com"])).problem(url))


def test_option_allows_hosts_addresses_and_networks() -> None:
    destinations = Destinations(lambda: [TARGET], allowing(["Inner.example", "10.1.0.0/16", "::1", "localhost"]))
    for url in ("http://inner.example/", "http://10.1.2.3/", "http://[::1]/", "http://localhost/", "http://a.example/"):
        assert destinations.problem(url) is None
    assert destinations.problem("http://10.2.0.1/")
    for wrong in ("10.0.0.0/99", "10.0.0.1/8", "http://x", "host:80", ""):
        with pytest.raises(SettingsError, match="--webhooks-to"):
            allowing([wrong])


# ---- connecting


def outcome(url: str, target: str = TARGET, inner: Inner = NONE) -> int | str:
    """The status of a POST that follows the rules, or the error."""

    async def post() -> int | str:
        destinations = Destinations(lambda: [target], inner)
        async with destinations.sessions(5) as session:
            await destinations.resolve_targets()
            try:
                async with session(url).post(url, json={"id": "x", "status": "y"}, allow_redirects=False) as response:
                    return response.status
            except aiohttp.ClientError as error:
                return str(error)

    return asyncio.run(post())


def dns(monkeypatch: pytest.MonkeyPatch, answers: dict[str, list[str]]) -> None:
    """Let the resolver of this process answer with these addresses, by name."""
    real = socket.getaddrinfo

    def getaddrinfo(host: Any, port: Any, *arguments: Any, **options: Any) -> Any:
        if host not in answers:
            return real(host, port, *arguments, **options)
        return [item for address in answers[host] for item in real(address, port, *arguments, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1", "0x7f.1", "localhost", "0", "[::ffff:127.0.0.1]"])
def test_no_connection_to_loopback(host: str) -> None:
    with Receiver() as receiver:
        answer = str(outcome(receiver.url.replace("127.0.0.1", host)))
        # aiohttp itself refuses forms of addresses that it does not write.
        assert "not a public address" in answer or "not a canonical IPv4 address" in answer
        assert not receiver.requests


@pytest.mark.parametrize("answer", [["127.0.0.1"], ["::ffff:127.0.0.1"], ["192.0.2.1", "127.0.0.1"]])
def test_name_that_dns_sends_to_loopback_is_refused(monkeypatch: pytest.MonkeyPatch, answer: list[str]) -> None:
    """Also if its first answer, when the prediction was created, was another one: nothing is remembered."""
    dns(monkeypatch, {"rebinding.example": answer})
    with Receiver() as receiver:
        url = receiver.url.replace("127.0.0.1", "rebinding.example")
        assert Destinations(lambda: [TARGET], NONE).problem(url) is None
        assert "not a public address" in str(outcome(url))
        assert not receiver.requests
        assert outcome(url, inner=allowing(["rebinding.example"])) == 200  # the same way is open where it is meant
        assert len(receiver.requests) == 1


@pytest.mark.parametrize("allowed", ["127.0.0.0/8", "localhost", "alias.example"])
def test_option_never_opens_the_cog_server(monkeypatch: pytest.MonkeyPatch, allowed: str) -> None:
    dns(monkeypatch, {"alias.example": ["127.0.0.1"]})
    with Receiver() as server, Receiver() as receiver:
        host = "127.0.0.1" if "/" in allowed else allowed
        named = allowing([allowed])
        assert outcome(receiver.url.replace("127.0.0.1", host), server.url, named) == 200
        for name in (host, "127.0.0.2", "0"):
            outcome(server.url.replace("127.0.0.1", name), server.url, named)
        assert not server.requests


@contextmanager
def redirecting(status: int, location: str) -> Iterator[str]:
    """A web server that redirects every POST."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.send_header("Location", location)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.mark.parametrize("status", [302, 307])
def test_redirects_are_not_followed(server: Server, tmp_path: Path, status: int) -> None:
    with (
        Receiver() as receiver,
        redirecting(status, receiver.url) as url,
        gateway(server.url, tmp_path, "--webhooks-to", "127.0.0.1") as front,
    ):
        body = {"input": {"document": "text"}, "webhook": url, "webhook_events_filter": ["completed"]}
        assert httpx.post(front.url + PREDICTIONS, json=body).status_code == 201
        until(lambda: 'outcome="failed"' in httpx.get(f"{front.url}/metrics").text)
        assert not receiver.requests


def test_webhook_to_the_cog_server_is_refused_and_it_stays_up(server: Server, tmp_path: Path) -> None:
    """The finding: a webhook to http://127.0.0.1:PORT/shutdown ended the server."""
    shutdown = f"{server.url}/shutdown"
    with gateway(server.url, tmp_path) as front:
        body = {"input": {"document": "text"}, "webhook": shutdown, "webhook_events_filter": ["completed"]}
        answer = httpx.post(front.url + PREDICTIONS, json=body)
        assert answer.status_code == 422
        assert "--webhooks-to" in answer.json()["detail"]
        assert httpx.post(f"{front.url}/predictions", json=body).status_code == 422
    (tmp_path / "open").mkdir()
    with gateway(server.url, tmp_path / "open", "--webhooks-to", "127.0.0.0/8") as front:
        assert httpx.post(front.url + PREDICTIONS, json=body).status_code == 201
        until(lambda: 'outcome="failed"' in httpx.get(f"{front.url}/metrics").text)
        assert httpx.get(f"{server.url}/health-check").json()["status"] == "READY"
