"""Where webhooks may go and input files come from: public addresses, and inner ones that the operator names.

A client of the gateway chooses these URLs. Without a limit it could make the gateway send requests to
services that only the gateway can reach: the Cog server (POST /shutdown ends it), a database, a cloud's metadata.
"""

import asyncio
import contextlib
import errno
import ipaddress
import socket
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import urlsplit

import aiohttp

from e5.errors import SettingsError
from e5_gateway.errors import shorten

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
AddressInfo = tuple[Any, ...]
"""family, type, protocol, name, (address, port, …): an item of socket.getaddrinfo()"""
GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")  # RFC 4291
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052: the last 32 bits are an IPv4 address


class Refused(OSError):
    """The address is not allowed."""


@dataclass(frozen=True)
class Inner:
    """The inner hosts and networks of the option --webhooks-to or --files-from."""

    hosts: frozenset[str] = frozenset()
    networks: tuple[Network, ...] = ()

    @classmethod
    def parse(cls, option: str, values: Iterable[str]) -> Self:
        """Host names, addresses and networks such as 10.0.0.0/8 of an option. Raises SettingsError."""
        hosts, networks = set(), []
        for value in values:
            try:
                networks.append(ipaddress.ip_network(value))
            except ValueError:
                if "/" in value or ":" in value or not value:
                    raise SettingsError(
                        f"{option} {value}: pass a host name, an address, or a network such as 10.0.0.0/8"
                    ) from None
                hosts.add(value.lower())
        return cls(frozenset(hosts), tuple(networks))


def is_public(address: Address) -> bool:
    """Whether everybody can reach the address. One that contains an IPv4 address is public if both are."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public(address.ipv4_mapped)
        if address in NAT64:
            return is_public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        inside = [address.sixtofour, *(address.teredo or ())]
        if address not in GLOBAL_UNICAST or not all(is_public(inner) for inner in inside if inner is not None):
            return False
    return address.is_global and not address.is_multicast


def literal(host: str) -> Address | None:
    """The address that a URL's host spells out, also in the old forms 127.1, 0x7f.1 and 2130706433; None for a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        pass
    try:
        return ipaddress.IPv4Address(socket.inet_aton(host))
    except (OSError, ValueError):
        return None


def is_web_address(url: str) -> bool:
    """Whether it is http(s)://HOST…"""
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # of a bad port or IPv6 address
        return False


class Destinations:
    """Decides about each address at the moment of connecting to it, so it does not matter what DNS answered before.

    `targets`: returns the Cog servers' URLs. No request reaches their addresses, or their ports on any inner address.
    """

    def __init__(self, targets: Callable[[], Iterable[str]], inner: Inner, option: str = "--webhooks-to") -> None:
        """`option`: of the gateway, that names the inner ones."""
        self.inner, self.option = inner, option
        self._targets = targets
        self._addresses: dict[tuple[str, int], set[Address]] = {}  # of targets, by host and port

    def problem(self, url: str) -> str | None:
        """Why a URL is refused without asking DNS; None if its host may be allowed."""
        parts = urlsplit(url)
        host = str(parts.hostname)
        if parts.username is not None or parts.password is not None:
            return "must not have a user and password: put a token into the path or query"
        address = literal(host)
        name_may_be_public = address is None and host != "localhost"
        if name_may_be_public or host in self.inner.hosts or (address is not None and self._is_allowed(address)):
            return None
        return f"{shorten(host)} is not a public address: the gateway's option {self.option} allows inner ones"

    @contextlib.asynccontextmanager
    async def sessions(self, timeout: float) -> AsyncIterator[Callable[[str], aiohttp.ClientSession]]:
        """Yields a function from a URL to the session for it, which connects to allowed addresses only."""

        def session(socket_factory: Callable[[Any], socket.socket]) -> aiohttp.ClientSession:
            return aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(socket_factory=socket_factory, limit=0),
                timeout=aiohttp.ClientTimeout(total=timeout),
                cookie_jar=aiohttp.DummyCookieJar(),
            )

        async with session(self._connect) as public, session(self._connect_inner_host) as inner_hosts:
            yield lambda url: inner_hosts if urlsplit(url).hostname in self.inner.hosts else public

    async def resolve_targets(self) -> None:
        """Look up the targets' addresses. To be called before each delivery."""
        names = {_host_and_port(url) for url in self._targets()}
        self._addresses = {name: self._addresses.get(name, set()) for name in names}
        await asyncio.gather(*map(self._resolve, names))

    async def _resolve(self, name: tuple[str, int]) -> None:
        with contextlib.suppress(OSError):  # then the last addresses count
            found = await asyncio.get_running_loop().getaddrinfo(*name, type=socket.SOCK_STREAM)
            self._addresses[name] = {ipaddress.ip_address(address[0]) for *_, address in found}

    def _connect(self, info: AddressInfo) -> socket.socket:
        address = ipaddress.ip_address(info[4][0])
        if not self._is_allowed(address):
            raise Refused(errno.EACCES, f"{address} is not a public address")
        return self._connect_inner_host(info)

    def _connect_inner_host(self, info: AddressInfo) -> socket.socket:
        """The socket for a connection to an address of any kind, but not to a Cog server."""
        family, kind, protocol, _, (host, port, *_) = info
        address = ipaddress.ip_address(host)
        for (_, target_port), addresses in self._addresses.items():
            if port == target_port and (address in addresses or not is_public(address)):
                raise Refused(errno.EACCES, f"{address}:{port} is a Cog server, or has its port")
        return socket.socket(family, kind, protocol)

    def _is_allowed(self, address: Address) -> bool:
        plain = getattr(address, "ipv4_mapped", None) or address
        return is_public(address) or any(plain in network for network in self.inner.networks)


def _host_and_port(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return str(parts.hostname), parts.port or (443 if parts.scheme == "https" else 80)
