"""The gateway's configuration, checked once: what it stands before, where it listens, and what it lets wait.

The key comes from the environment (GATEWAY_API_KEY), where it does not show up in the list of processes; scripts/
gateway.py has options for what operators choose, and the rest is set here.
"""

import ipaddress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from e5_gateway.errors import SettingsError

KEY_VARIABLE = "GATEWAY_API_KEY"


@dataclass(frozen=True)
class Settings:
    """Sizes are in bytes, times in seconds.

    `concurrency`: predictions that the target computes at a time, `@cog.concurrent(max=…)` of its predict().
    `queue`, `queue_bytes`: requests beyond that which may wait, and the size of them all.
    `model`: the model's name where the target does not tell it (it does, in each prediction's metrics).
    `bodies_bytes`: the bodies of all requests that are being read or answered.
    `keep_*`: how long, how many and how much of finished predictions GET /v1/predictions/{id} still finds.
    """

    target: str
    database: Path
    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None
    model: str | None = None
    concurrency: int = 64
    queue: int = 1_000
    queue_bytes: int = 256 * 2**20
    body_bytes: int = 64 * 2**20
    bodies_bytes: int = 512 * 2**20
    timeout: float = 600.0
    keep_seconds: float = 3_600.0
    keep_predictions: int = 10_000
    keep_bytes: int = 2**30

    def __post_init__(self) -> None:
        parts = urlsplit(self.target)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise SettingsError(f"--target {self.target}: pass the server's address, such as http://127.0.0.1:5000")
        if not 0 < self.port < 65536:
            raise SettingsError(f"--port {self.port}: pass a port from 1 to 65535")
        key = self.api_key
        if key is not None and (not key.isascii() or not key.isprintable() or key != key.strip() or not key):
            raise SettingsError(
                f"{KEY_VARIABLE}: use printable ASCII without blanks at its ends, as an HTTP header can"
            )
        if self.api_key is None and not self.loopback:
            raise SettingsError(
                f"--host {self.host} opens the gateway to other machines: set {KEY_VARIABLE} to a secret of yours, "
                "or leave --host out for this machine alone"
            )
        for name in ("concurrency", "queue", "queue_bytes", "body_bytes", "timeout", "keep_predictions", "keep_bytes"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} is {getattr(self, name)}: it must be 1 or more")

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the gateway."""
        try:
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return self.host == "localhost"
