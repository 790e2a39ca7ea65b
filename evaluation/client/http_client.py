"""A keep-alive HTTP connection with time limits and retries, on the standard library."""

import http.client
import json
import random
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from e5 import __version__

CONNECT_SECONDS, READ_SECONDS = 10.0, 300.0
ATTEMPTS = 4
BACKOFF_SECONDS, MAX_RETRY_AFTER_SECONDS = 0.25, 30.0
"""Wait 0.25, 0.5 and 1 s between attempts, plus up to half as much again, or as long as Retry-After says."""
BUSY = (429, 503)
QUOTE = 500
"""Characters that a message quotes of what a server answered."""


class ServerError(Exception):
    """A server that cannot be asked, or whose answer cannot be used. The message says the cause and the cure.

    `status`: the HTTP status of the answer, None if there was no answer.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Reply:
    """One HTTP answer. `headers`: names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The parsed body, None if it is not JSON. NaN and Infinity, which some servers write, are accepted."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            return None

    @property
    def text(self) -> str:
        """The beginning of the body, for a message."""
        return self.body[: 4 * QUOTE].decode("utf-8", "replace")[:QUOTE]


class Connection:
    """A connection to one server, opened when it is needed. Not thread-safe."""

    def __init__(
        self,
        url: str,
        headers: Mapping[str, str],
        *,
        read_seconds: float = READ_SECONDS,
        attempts: int = ATTEMPTS,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        """`url`: http:// or https://, with an optional path, to which `send` appends. Raises ServerError."""
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError:
            port = 0
        if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
            raise ServerError(f"{url!r} is not the address of a server: give one such as http://127.0.0.1:8000")
        self.url, self.read_seconds = url.rstrip("/"), read_seconds
        self._path, self._attempts, self._sleep = parts.path.rstrip("/"), attempts, sleep
        self._headers = {"User-Agent": f"e5-cog/{__version__}", "Accept": "application/json", **headers}
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._http = kind(parts.hostname, port, timeout=CONNECT_SECONDS)

    def close(self) -> None:
        self._http.close()

    def send(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Reply:
        """Send `body` as JSON and return the answer, whatever its status.

        Tries again after a failed connection and while the server is busy (429, 503). Raises ServerError if there is
        no answer. A redirect is not followed: the API key is for this server only.
        """
        content = None if body is None else json.dumps(body).encode()
        all_headers = {**self._headers, **({"Content-Type": "application/json"} if content else {}), **(headers or {})}
        for attempt in range(1, self._attempts + 1):
            wait = BACKOFF_SECONDS * 2 ** (attempt - 1) * random.uniform(1, 1.5)
            try:
                reply = self._exchange(method, self._path + path, content, all_headers)
            except TimeoutError as error:
                raise self._timed_out(error) from error
            except (OSError, http.client.HTTPException) as error:
                self.close()
                if attempt == self._attempts:
                    raise self._unreachable(error) from error
            else:
                if reply.status not in BUSY or attempt == self._attempts:
                    return reply
                wait = max(wait, _retry_after(reply))
                if wait > MAX_RETRY_AFTER_SECONDS:
                    return reply
            self._sleep(wait)
        raise AssertionError("a bug: every attempt returns, raises or is followed by another")

    def _exchange(self, method: str, path: str, content: bytes | None, headers: Mapping[str, str]) -> Reply:
        kept = self._http.sock is not None
        try:
            return self._exchange_once(method, path, content, headers)
        except (ConnectionError, http.client.RemoteDisconnected):
            # The server may close a connection that it kept open just when the next request is sent.
            self.close()
            if not kept:
                raise
            return self._exchange_once(method, path, content, headers)

    def _exchange_once(self, method: str, path: str, content: bytes | None, headers: Mapping[str, str]) -> Reply:
        if self._http.sock is None:
            self._http.timeout = CONNECT_SECONDS
            self._http.connect()
        sock: socket.socket = self._http.sock
        sock.settimeout(self.read_seconds)
        self._http.request(method, path, content, dict(headers))
        response = self._http.getresponse()
        body = response.read()
        return Reply(response.status, {name.lower(): value for name, value in response.getheaders()}, body)

    def _timed_out(self, error: TimeoutError) -> ServerError:
        connected = self._http.sock is not None
        self.close()
        if not connected:
            return self._unreachable(error)
        return ServerError(
            f"{self.url} gave no answer in {self.read_seconds:.0f} s: see its log, or send shorter texts"
        )

    def _unreachable(self, error: Exception) -> ServerError:
        return ServerError(f"{self.url} cannot be reached ({error}): start the server, or correct the address")


def _retry_after(reply: Reply) -> float:
    """Seconds of the header Retry-After; 0 without one, or if it is a date."""
    value = reply.headers.get("retry-after", "")
    return float(value) if value.isdecimal() else 0.0
