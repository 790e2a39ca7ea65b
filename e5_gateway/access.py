"""Access control: the API key, or without one, requests from this machine only."""

import hmac
import ipaddress
import re
from collections.abc import Iterable
from urllib.parse import urlsplit

from e5_gateway.errors import GatewayError
from e5_gateway.settings import KEY_VARIABLE

OPEN_PATHS = re.compile(r"/|/health-check|/docs|/openapi\.json|/page/\w+\.(?:css|js|json|svg)", re.ASCII)
"""Need no key to be read (GET, HEAD): for load balancers, readers of the documentation, and the web page."""

Headers = dict[bytes, bytes]
_HOST = re.compile(rb"[A-Za-z0-9.:\[\]-]+")


def read_headers(pairs: Iterable[tuple[bytes, bytes]]) -> Headers:
    """The headers by name. What decides on access counts as empty if it comes twice: a proxy may read the other one."""
    headers: Headers = {}
    for name, value in pairs:
        headers[name] = b"" if name in headers and name in (b"authorization", b"host", b"origin") else value
    return headers


class Access:
    """Decides which requests are admitted."""

    def __init__(self, api_key: str | None) -> None:
        self._key = None if api_key is None else api_key.encode()

    def has_key(self, headers: Headers) -> bool:
        """Whether the request has the right key, or none is needed."""
        if self._key is None:
            return True
        scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
        return scheme.lower() in (b"bearer", b"token") and hmac.compare_digest(key.strip(), self._key)

    def refusal(self, path: str, headers: Headers, method: str = "GET") -> GatewayError | None:
        """The error for a request without access, else None."""
        if self._key is None:
            # Without a key the gateway listens on loopback, but web pages in a browser on this machine can reach it:
            # by DNS rebinding, with a Host of their own, or cross-origin, with an Origin of their own or `null`.
            origin = headers.get(b"origin")
            if _is_loopback(headers.get(b"host", b"")) and (origin is None or _is_loopback(origin)):
                return None
            cure = f"set {KEY_VARIABLE} to open it to other host names"
            return GatewayError(403, f"this gateway answers to localhost alone: {cure}")
        is_open = method in ("GET", "HEAD") and OPEN_PATHS.fullmatch(path)
        if is_open or self.has_key(headers):
            return None
        cause = "the API key is wrong" if headers.get(b"authorization") else "no API key was sent"
        cure = "send `Authorization: Bearer KEY` with the gateway's key"
        return GatewayError(401, f"{cause}: {cure}", "invalid_api_key")


def _is_loopback(address: bytes) -> bool:
    """Whether a Host header, or an Origin (which has a scheme), names this machine."""
    host = address.partition(b"://")[2] or address
    if not _HOST.fullmatch(host):
        return False
    try:
        name = urlsplit(b"http://" + host).hostname or b""
        return name == b"localhost" or ipaddress.ip_address(name.decode("latin-1")).is_loopback
    except ValueError:
        return False
