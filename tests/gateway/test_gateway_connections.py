"""Clients that have no key, or are slow: the head, the body, the response and the number of connections are bounded.

The gateway's own server and application run in this process, with short limits; there is no Cog server behind them.
"""

import contextlib
import itertools
import json
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from starlette.responses import Response

from e5_cog.server import free_port
from e5_gateway import connection, main
from e5_gateway.app import create
from e5_gateway.settings import GatewaySettings
from tests.gateways import until

HEAD = b"GET / HTTP/1.1\r\nHost: localhost\r\n"
POST = b"POST /predictions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n"
LARGE = 64 * 2**20


@contextlib.contextmanager
def listening(folder: Path) -> Iterator[main.Server]:
    settings = GatewaySettings(("http://127.0.0.1:9",), database=folder / "store.sqlite3", port=free_port())
    application = create(settings)
    application.add_api_route("/large", lambda: Response(bytes(LARGE)))
    server = main.listener(application, settings, grace=1)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started)
        yield server
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[main.Server]:
    with listening(tmp_path_factory.mktemp("gateway")) as started:
        yield started


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slow clients are cut off after less than a second, and the next check."""
    monkeypatch.setattr(connection, "HEAD_SECONDS", 0.4)
    for name in ("BODY_SECONDS", "CLOSE_SECONDS"):
        monkeypatch.setattr(connection, name, 0.4)
    monkeypatch.setattr(connection, "UNREAD_SECONDS", 0.8)


def connect(server: main.Server, *parts: bytes) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", server.config.port), timeout=10)
    for part in parts:
        client.sendall(part)
    return client


def rest(client: socket.socket) -> bytes:
    """What the server still sends until it closes."""
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := client.recv(2**16):
            parts.append(part)
    client.close()
    return b"".join(parts)


def flood(client: socket.socket, piece: bytes) -> tuple[int, bytes]:
    """Send a piece again and again until the server closes. The bytes that went out, and the response."""
    sent = 0
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        while sent < LARGE:
            client.sendall(piece)
            sent += len(piece)
    return sent, rest(client)


def is_alive(server: main.Server) -> bool:
    return httpx.get(f"http://127.0.0.1:{server.config.port}/").status_code == 200


@pytest.mark.parametrize(
    ("first", "piece"),
    [
        (HEAD + b"x: ", b"a" * 2**16),
        (HEAD, b"a" * 2**16),
        (b"GET /", b"a" * 2**16),
        (HEAD, b"name: value\r\n" * 1000),
        (b"", b"\r\n" * 2**15),
        (POST.replace(b"Content-Length: 1000", b"Transfer-Encoding: chunked") + b"1\r\n{\r\n0\r\n", b"a: b\r\n" * 1000),
        (POST.replace(b"Content-Length: 1000", b"Transfer-Encoding: chunked") + b"1;", b"a" * 2**16),
    ],
    ids=["header value", "header name", "URL", "short headers", "blank lines", "trailers", "chunk extension"],
)
def test_endless_head_gets_431(server: main.Server, first: bytes, piece: bytes) -> None:
    sent, answer = flood(connect(server, first), piece)
    assert sent < 16 * 2**20  # the buffers of the sockets, at most 6 MB each on Linux
    assert not answer or answer.startswith(b"HTTP/1.1 431 ")  # a reset may overtake it
    assert is_alive(server)


@pytest.mark.parametrize(("size", "status"), [(60_000, b"200"), (70_000, b"431")])
@pytest.mark.parametrize("place", ["header", "URL"])
def test_head_may_have_64_kib_also_in_one_piece(server: main.Server, place: str, size: int, status: bytes) -> None:
    long = b"a" * size
    head = HEAD + b"x: " + long + b"\r\n" if place == "header" else HEAD.replace(b"/ ", b"/?" + long + b" ")
    answer = rest(connect(server, head + b"Connection: close\r\n\r\n"))
    assert answer.split()[1] == status
    if status == b"431":
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["detail"].startswith("the request line and the headers")


@pytest.mark.usefixtures("quick")
def test_slow_head_gets_408_and_idle_connections_are_closed(server: main.Server) -> None:
    idle, slow = connect(server), connect(server, HEAD)
    started = time.monotonic()
    with contextlib.suppress(ConnectionError):
        for _ in range(100):
            slow.sendall(b"a: b\r\n")
            time.sleep(0.1)
    assert time.monotonic() - started < 8
    assert rest(slow).startswith(b"HTTP/1.1 408 ")
    assert rest(idle) == b""


@pytest.mark.usefixtures("quick")
def test_blank_lines_do_not_keep_a_connection_open(server: main.Server) -> None:
    client = connect(server, HEAD + b"\r\n")
    assert client.recv(2**16)
    with pytest.raises(ConnectionError):
        for _ in range(100):
            client.sendall(b"\r\n")
            time.sleep(0.1)


@pytest.mark.usefixtures("quick")
def test_stalled_body_gets_408_and_one_that_arrives_does_not(
    server: main.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "BODY_BYTES", 10)
    monkeypatch.setattr(connection, "BODY_SECONDS", 1.0)
    stalled, arriving = connect(server, POST, b"{"), connect(server, POST)
    for _ in range(100):  # in about four times BODY_SECONDS and the interval of the checks
        arriving.sendall(b" " * 10)
        time.sleep(0.05)
    assert rest(stalled).startswith(b"HTTP/1.1 408 ")
    assert arriving.recv(2**16).startswith(b"HTTP/1.1 400 ")  # blanks are no JSON


@pytest.mark.usefixtures("quick")
def test_client_that_does_not_read_its_answer_is_cut_off(server: main.Server) -> None:
    request = b"GET /large HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    reading, silent = connect(server, request), connect(server, request)
    received = 0
    while part := reading.recv(2**20):  # for longer than UNREAD_SECONDS and the interval of the checks
        received += len(part)
        time.sleep(0.05)
    assert received > LARGE
    until(lambda: not server.connections.open)
    assert len(rest(silent)) < LARGE


@pytest.mark.usefixtures("quick")
def test_rest_of_a_body_is_not_read_for_ever_after_the_answer(server: main.Server) -> None:
    client = connect(server, POST.replace(b"/predictions", b"/none").replace(b"1000", b"1000000000000"))
    with pytest.raises(ConnectionError):
        for _ in itertools.repeat(None):
            client.sendall(b"a" * 1000)
            time.sleep(0.01)


def test_client_that_closes_after_one_request_gets_an_early_answer(server: main.Server) -> None:
    """uvicorn closes then, and a client that still sends its body gets a reset instead of the answer."""
    request = urllib.request.Request(f"http://127.0.0.1:{server.config.port}/none", bytes(2**25))  # Connection: close
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(request)


def test_connection_closes_after_the_answer_if_the_client_asks_so(server: main.Server) -> None:
    for head in (HEAD + b"Connection: close\r\n\r\n", b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n"):
        started = time.monotonic()
        assert rest(connect(server, head)).startswith(b"HTTP/1.1 200 ")
        assert time.monotonic() - started < 4  # an idle connection has five seconds


def test_pipelined_requests_are_answered_up_to_a_number(server: main.Server) -> None:
    few, many = connect(server, (HEAD + b"\r\n") * 10), connect(server, (HEAD + b"\r\n") * 1000)
    assert rest(many).count(b"HTTP/1.1 ") < 1000
    received = b""
    while received.count(b"HTTP/1.1 200 ") < 10:
        received += few.recv(2**16)
    few.close()


def test_connections_are_bounded_and_the_longest_idle_one_gives_way(server: main.Server) -> None:
    connections = server.connections
    until(lambda: not connections.open)
    limit, connections.limit = connections.limit, 5
    try:
        idle = [connect(server) for _ in range(5)]
        until(lambda: len(connections.open) == 5)
        newest = connect(server, HEAD + b"\r\n")
        assert newest.recv(2**16).startswith(b"HTTP/1.1 200 ")
        assert rest(idle[0]) == b""
        for client in [*idle[1:], newest]:
            client.close()
        until(lambda: not connections.open)
        # Requests in progress are not given up for new connections.
        busy = [connect(server, POST) for _ in range(5)]
        until(lambda: len(connections.open) == 5 and not connections.waiting)
        assert rest(connect(server, HEAD + b"\r\n")) == b""
        for client in busy:
            client.sendall(b" " * 1000)
            assert client.recv(2**16).startswith(b"HTTP/1.1 400 ")
            client.close()
    finally:
        connections.limit = limit


def test_limit_of_connections_leaves_files_for_the_target() -> None:
    assert connection.max_connections(1_024) == 448
    assert connection.max_connections(100) == 1
    assert connection.max_connections(10**6) == connection.MAX_CONNECTIONS


def test_several_large_bodies_of_one_connection_are_served(server: main.Server) -> None:
    with httpx.Client(base_url=f"http://127.0.0.1:{server.config.port}") as client:
        for _ in range(3):
            answer = client.post("/predictions", json={"input": {"document": "a" * 3_000_000}})
            assert answer.status_code == 503  # it was read; the target is down


def test_upgrade_to_a_websocket_is_an_ordinary_request(server: main.Server) -> None:
    upgrade = (
        b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAA\r\n\r\n"
    )
    client = connect(server, HEAD.replace(b"/ ", b"/none ") + upgrade)
    assert client.recv(2**16).startswith(b"HTTP/1.1 404 ")
    client.close()


def test_what_was_cut_off_is_counted(server: main.Server) -> None:
    rest(connect(server, HEAD + b"x: " + b"a" * 2**17))
    rest(connect(server, b"nonsense\r\n\r\n"))
    text = httpx.get(f"http://127.0.0.1:{server.config.port}/metrics").text
    for reason in ("large_head", "malformed"):
        assert f'e5_gateway_connections_cut_off_total{{reason="{reason}"}}' in text
