"""The gateway (scripts/gateway.py, with all its options) and a web page for the model at `/`.

    python scripts/playground.py                  starts a Cog server too, and opens http://127.0.0.1:8000
    python scripts/playground.py --no-browser     only says where it is

The page calls the model by the gateway's HTTP API, as everyone does. Where GATEWAY_API_KEY is set it asks for the key.
"""

import os
import shutil
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
import webbrowser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # first in any case: in this file's own folder there is a module of the package's name

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported: nothing goes to other servers
FILES = os.environ["GRADIO_TEMP_DIR"] = tempfile.mkdtemp(prefix="e5-playground-")
"""The files to download, for this user's eyes: Gradio's own place is one for all users of the machine."""

from fastapi import FastAPI  # noqa: E402

import playground  # noqa: E402
from gateway.settings import Settings  # noqa: E402
from scripts import gateway  # noqa: E402

NO_BROWSER = "--no-browser"
PATIENCE_SECONDS = 120


def main(argv: list[str]) -> int:
    """As scripts/gateway.py's, with the page."""
    opens = NO_BROWSER not in argv

    def add_page(app: FastAPI, settings: Settings) -> None:
        address = local_address(settings)
        playground.mount(app, address, key_required=settings.api_key is not None)
        if opens:
            threading.Thread(target=open_when_ready, args=(address,), daemon=True).start()

    try:
        return gateway.main([option for option in argv if option != NO_BROWSER], add_page)
    finally:
        shutil.rmtree(FILES, ignore_errors=True)


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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
