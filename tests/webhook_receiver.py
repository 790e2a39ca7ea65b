"""Test helper: a web server that receives webhooks."""

import http.server
import json
import queue
import threading
from typing import Self

TO_RECEIVER = ("--webhooks-to", "127.0.0.1")
"""The gateway's option for a receiver on this machine."""


class Receiver:
    """Records the webhooks it receives. The first `refuse` of them get a 500.

    `requests`: headers and body of each. `seen`: id and status of each accepted prediction.
    """

    def __init__(self, refuse: int = 0) -> None:
        self.seen: list[tuple[str, str]] = []
        self.requests: list[tuple[dict[str, str], bytes]] = []
        self._received: queue.Queue[tuple[str, dict[str, str], bytes]] = queue.Queue()
        self.refuse = refuse

    def __enter__(self) -> Self:
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.requests.append((dict(self.headers.items()), body))
                receiver._received.put((self.path, *receiver.requests[-1]))
                refused = receiver.refuse > 0
                receiver.refuse -= refused
                if not refused:
                    prediction = json.loads(body)
                    receiver.seen.append((prediction["id"], prediction["status"]))
                self.send_response(500 if refused else 200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/hook"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def next(self) -> tuple[str, dict[str, str], bytes]:
        """Wait for the next webhook and return its path, headers and body."""
        return self._received.get(timeout=20)

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
