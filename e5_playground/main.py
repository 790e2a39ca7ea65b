"""The gateway (scripts/gateway.py, with all its options) and a web page for the model at `/`.

    python scripts/playground.py                  starts a Cog server too, and opens http://127.0.0.1:8000
    python scripts/playground.py --no-browser     only says where it is

The page calls the model by the gateway's HTTP API, as everyone does. Where GATEWAY_API_KEY is set it asks for the key.
"""

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
from e5_gateway.settings import Settings

NO_BROWSER = "--no-browser"
PATIENCE_SECONDS = 120


def main(argv: list[str]) -> int:
    """As scripts/gateway.py's, with the page."""
    opens = NO_BROWSER not in argv
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # nothing goes to other servers
    # Files to download, readable by this user only: Gradio's default folder is shared by all users of the machine.
    files = os.environ["GRADIO_TEMP_DIR"] = tempfile.mkdtemp(prefix="e5-playground-")
    from e5_playground.page import mount  # imports gradio, which reads both variables at import

    def add_page(app: FastAPI, settings: Settings) -> None:
        address = local_address(settings)
        mount(app, address, key_required=settings.api_key is not None)
        if opens:
            threading.Thread(target=open_when_ready, args=(address,), daemon=True).start()

    try:
        return gateway.main([option for option in argv if option != NO_BROWSER], add_page)
    finally:
        shutil.rmtree(files, ignore_errors=True)


def local_address(settings: Settings) -> str:
    """Where this machine reaches the gateway."""
    everywhere = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}
    host = f"[{settings.host}]" if ":" in settings.host and settings.host != "::" else settings.host
    return f"http://{everywhere.get(settings.host, host)}:{settings.port}"


def open_when_ready(address: str) -> None:
    """Open the person's browser once the model answers, or after a while in any case: the page says how it is."""
    end = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < end:
        try:
            with urllib.request.urlopen(f"{address}/health-check", timeout=5) as health:
                if b'"READY"' in health.read():
                    break
        except (urllib.error.URLError, OSError):
            pass  # not listening yet, or the server is loading
        time.sleep(0.3)
    webbrowser.open(address)
