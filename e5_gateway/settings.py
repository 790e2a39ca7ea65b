"""The gateway's configuration, validated once.

The key comes from the environment (GATEWAY_API_KEY), so that the process list does not show it. main.py has command
line options for `targets`, `database`, `host`, `port`, `model`, `concurrency`, `max_waiting`, `webhooks_to`,
`files_from` and `public_url`.
"""

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from e5.errors import SettingsError
from e5.limits import Limits
from e5_gateway.destinations import Inner

KEY_VARIABLE = "GATEWAY_API_KEY"
MIN_KEY_LENGTH = 16
"""Of a key beyond loopback, where anyone may try keys: thousands a second."""
OPTIONS = {"concurrency": "--concurrency", "max_waiting": "--queue"}


@dataclass(frozen=True)
class GatewaySettings:
    """Sizes are in bytes, times in seconds. Raises SettingsError.

    `targets`: addresses of the Cog servers. `targets_file`: the file that has them, read again on SIGHUP.
    `database`: the SQLite file of the predictions.
    `model`: the model's name, for a target that does not report it in its predictions' metrics.
    `concurrency`: predictions sent to a target at a time. It has more slots (`@cog.concurrent(max=…)` of its
    predict()), because coglet frees a slot a moment after its answer, and refuses a request that finds none.
    `max_waiting`, `max_waiting_bytes`: requests in the queue, and the bytes of all queued and running requests.
    `max_body_bytes`, `max_bodies_bytes`: one request body, and all bodies being read or answered.
    `max_answer_numbers`: JSON numbers in an answer of OpenAI's or Cohere's API, as E5_MAX_ANSWER_NUMBERS of the target.
    `timeout`: for one prediction.
    `webhooks_to`, `files_from`: inner hosts and networks that webhooks may reach, and that input files may come from.
    `public_url`: the gateway's address as its clients know it, without a slash at the end. None: as each request says.
    `keep_…`: age, number and bytes of finished predictions that GET /v1/predictions/{id} still finds.
    """

    targets: tuple[str, ...]
    database: Path
    targets_file: Path | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None
    model: str | None = None
    concurrency: int = 64
    max_waiting: int = 1_000
    max_waiting_bytes: int = 256 * 2**20
    max_body_bytes: int = 32 * 2**20
    max_bodies_bytes: int = 512 * 2**20
    max_answer_numbers: int = Limits.answer_numbers
    timeout: float = 1_800.0
    webhooks_to: Inner = field(default_factory=Inner)
    files_from: Inner = field(default_factory=Inner)
    public_url: str | None = None
    keep_seconds: float = 3_600.0
    keep_predictions: int = 10_000
    keep_bytes: int = 2**30

    def __post_init__(self) -> None:
        check_targets("--target", self.targets)
        if not 0 < self.port < 65536:
            raise SettingsError(f"--port {self.port}: pass a port from 1 to 65535")
        if self.public_url is not None:
            public = urlsplit(self.public_url)
            if public.scheme not in ("http", "https") or not public.hostname or public.query or public.fragment:
                raise SettingsError(f"--public-url {self.public_url}: pass an address such as https://e5.example.com")
        key = self.api_key
        if key is not None and (not key.isascii() or not key.isprintable() or key != key.strip() or not key):
            raise SettingsError(f"{KEY_VARIABLE}: use printable ASCII without spaces at the ends; it is an HTTP header")
        if self.api_key is None and not self.loopback:
            raise SettingsError(
                f"--host {self.host} opens the gateway to other machines: set {KEY_VARIABLE} to a secret, "
                "or omit --host to serve this machine only"
            )
        if key is not None and len(key) < MIN_KEY_LENGTH and not self.loopback:
            raise SettingsError(
                f"{KEY_VARIABLE} has {len(key)} characters, too few for an address that other machines reach: "
                f"use {MIN_KEY_LENGTH} or more, such as those of `openssl rand -hex 32`"
            )
        sizes = ("concurrency", "max_waiting", "max_waiting_bytes", "max_body_bytes", "max_bodies_bytes")
        for name in (*sizes, "max_answer_numbers", "timeout", "keep_predictions", "keep_bytes"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{OPTIONS.get(name, name)} {getattr(self, name)}: pass 1 or more")

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the gateway."""
        try:
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return self.host == "localhost"


def check_targets(source: str, urls: Iterable[str]) -> None:
    """Raise SettingsError if a URL is not a server's address or comes twice. `source`: the option or the file."""
    seen: set[str] = set()
    for url in urls:
        try:
            parts = urlsplit(url)
            valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:  # a port that is no number or too large, or a bracket without its pair
            valid = False
        if not valid or parts.query or parts.fragment:
            raise SettingsError(f"{source} {url}: pass the server's address, such as http://127.0.0.1:5000")
        if url.rstrip("/") in seen:
            raise SettingsError(f"{source} {url}: this server is there twice")
        seen.add(url.rstrip("/"))
    if not seen:
        raise SettingsError(f"{source}: there is no address of a server")


def read_targets(path: Path) -> tuple[str, ...]:
    """The servers' addresses in a file: one a line; empty lines and those that begin with # don't count.

    Raises SettingsError.
    """
    try:
        lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"--targets {path} cannot be read: {error}") from None
    urls = tuple(line.rstrip("/") for line in lines if line and not line.startswith("#"))
    check_targets(f"--targets {path}:", urls)
    return urls
