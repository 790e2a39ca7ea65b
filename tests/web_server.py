"""A web server on this machine with a few answers."""

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

Answers = dict[str, tuple[int, dict[str, str], bytes]]
"""Path, without a query → status, headers and content. Other paths get 404."""


@contextmanager
def web_server(answers: Answers) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, content = answers.get(self.path.partition("?")[0], (404, {}, b"no such file"))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            with suppress(OSError):  # the client has read enough
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{listening.server_port}"
        listening.shutdown()
