"""Test helpers: a gateway in front of a Cog server, both as subprocesses."""

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from e5_cog.server import running
from e5_gateway.process import Gateway as Gateway
from e5_gateway.process import running as gateway

KEY = "a key of more than 16 characters"
BEARER = {"Authorization": f"Bearer {KEY}"}
SETTINGS = {"E5_DTYPE": "float32", "E5_DEVICE": "cpu"}
__all__ = ["BEARER", "KEY", "Gateway", "cog_and_gateway", "gateway", "until"]


@contextmanager
def cog_and_gateway(
    environment: Mapping[str, str] | None = None, *options: str, key: str | None = None
) -> Iterator[Gateway]:
    """Start a Cog server with SETTINGS and `environment`, and a gateway with `options` in front of it."""
    with tempfile.TemporaryDirectory() as folder, running({**SETTINGS, **(environment or {})}) as server:
        if server.health["status"] != "READY":
            raise RuntimeError(f"the Cog server is not ready: {server.health}")
        with gateway(server.url, Path(folder), *options, key=key) as front:
            yield replace(front, server=server)


def until(condition: Callable[[], Any], seconds: float = 30.0) -> Any:
    """Poll `condition` and return its first true result. Raises AssertionError after `seconds`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if result := condition():
            return result
        time.sleep(0.05)
    raise AssertionError(f"the condition was not met within {seconds:.0f} s")
