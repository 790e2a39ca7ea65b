"""The playground as a program: the gateway with the page at `/`, and a browser that opens it."""

import os
import shutil
import tempfile
import threading
import time
import urllib.error
import urllib.request
import webbrowser

from fastapi import FastAPI

from e5_gateway import main as gateway
from e5_gateway.settings import GatewaySettings

NO_BROWSER = "--no-browser"
BROWSER_SECONDS = 120
"""Time after which the browser opens even if the model is not ready; the page shows the state."""


def main(argv: list[str]) -> int:
    """Serve until a signal and return the exit status. The options are the gateway's and --no-browser."""
    open_browser = NO_BROWSER not in argv
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    # For downloads, readable by this user only. All users of the machine share Gradio's default folder.
    folder = os.environ["GRADIO_TEMP_DIR"] = tempfile.mkdtemp(prefix="e5-playground-")
    from e5_playground.page import mount  # gradio reads both variables at import

    def add_page(app: FastAPI, settings: GatewaySettings) -> None:
        address = local_address(settings)
        mount(app, address, key_required=settings.api_key is not None)
        if open_browser:
            threading.Thread(target=open_when_ready, args=(address,), daemon=True).start()

    try:
        return gateway.main([option for option in argv if option != NO_BROWSER], add_page)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def local_address(settings: GatewaySettings) -> str:
    """The gateway's address on this machine."""
    everywhere = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}
    host = f"[{settings.host}]" if ":" in settings.host and settings.host != "::" else settings.host
    return f"http://{everywhere.get(settings.host, host)}:{settings.port}"


def open_when_ready(address: str) -> None:
    """Open the user's browser once the model is ready, or after BROWSER_SECONDS."""
    end = time.monotonic() + BROWSER_SECONDS
    while time.monotonic() < end:
        try:
            with urllib.request.urlopen(f"{address}/health-check", timeout=5) as health:
                if b'"READY"' in health.read():
                    break
        except (urllib.error.URLError, OSError):
            pass  # not listening yet, or the model is not ready
        time.sleep(0.3)
    webbrowser.open(address)
