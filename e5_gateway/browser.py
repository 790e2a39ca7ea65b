"""Open the web page in the user's browser when the model is ready."""

import http.client
import threading
import time
import urllib.request
import webbrowser

from e5_gateway.settings import GatewaySettings

MAX_WAIT_SECONDS = 120
"""After this time the browser opens without a model; the page says that it is not ready."""


def open_when_ready(settings: GatewaySettings) -> None:
    """Start a thread that waits for the model, then opens the browser."""
    threading.Thread(target=_open, args=(local_address(settings),), daemon=True).start()


def local_address(settings: GatewaySettings) -> str:
    """The gateway's address on this machine."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.port}"


def _open(address: str) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy between this machine and itself
    end = time.monotonic() + MAX_WAIT_SECONDS
    while time.monotonic() < end:
        try:
            with opener.open(f"{address}/health-check", timeout=5) as health:
                if b'"READY"' in health.read():
                    break
        except (OSError, http.client.HTTPException):
            pass  # not listening yet, or the model is not ready
        time.sleep(0.3)
    webbrowser.open(address)
