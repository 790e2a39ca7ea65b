"""What of Gradio's own HTTP interface is open: that which the page itself uses, with bodies of a person's size.

Gradio 6.31 mounted in another application has more: uploads without a limit, saved states, recordings, a proxy. Where
the gateway has a key, the page is open all the same – what it computes needs the key – so the rest is closed here.
And a text field takes a file there: `{"path": …}` in the place of a text would have it read from this machine's disk.
"""

import re

import orjson
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MOST_BYTES = 8 * 2**20
"""Of one request: 2,000 documents of 4 kB. More goes to the API, whose limits are larger."""
MOST_BYTES_TOGETHER = 128 * 2**20
_READ = re.compile(
    r"/|/config/?|/theme\.css|/favicon\.ico|/robots\.txt|/(?:assets|static|svelte)/.*"
    r"|/gradio_api/(?:startup-events|app_id/?|theme\.css|queue/data|heartbeat/\w{1,64}|file=.+)"
)
FIELDS = {"data", "event_data", "fn_index", "trigger_id", "session_hash", "event_id"}
"""Of the bodies that Gradio's script sends."""
MAX_QUERY = 1_000
MAX_CHOICE = 200
"""Characters of a value of a dropdown or a radio. Gradio logs a value that is none of the choices, and keeps session
hashes in memory."""
_ID = re.compile(r"\w{1,64}", re.ASCII)
_WRITE = re.compile(r"/gradio_api/(?:run/\w+/?|queue/join/?|cancel/?|reset/?)")


class Guard:
    """ASGI middleware around Gradio's application. `choices`: by function, which of its inputs are one of a list."""

    def __init__(self, app: ASGIApp, choices: dict[int, list[bool]]) -> None:
        self.app, self.choices = app, choices
        self.held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, or answer 404, 413, 422 or 429."""
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        path, method = scope["path"], scope.get("method", "")
        if method in ("GET", "HEAD") and _READ.fullmatch(path) and len(scope["query_string"]) <= MAX_QUERY:
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close"})
        if method != "POST" or not _WRITE.fullmatch(path):
            return await refusal(404, "the page has no such path")(scope, receive, send)
        taken, parts = 0, []
        try:
            while True:
                message = await receive()
                part = message.get("body", b"")
                if message["type"] == "http.disconnect":
                    return None
                taken += len(part)
                self.held += len(part)
                if taken > MOST_BYTES:
                    return await refusal(413, "too long for the page: send it to the API")(scope, receive, send)
                if self.held > MOST_BYTES_TOGETHER:
                    return await refusal(429, "too many people send long texts: try again")(scope, receive, send)
                parts.append(part)
                if not message.get("more_body", False):
                    break
            body = b"".join(parts)
            if not is_plain(body, self.choices):
                return await refusal(422, "the fields take texts alone")(scope, receive, send)
            await self.app(scope, replay(body, receive), send)
        finally:
            self.held -= taken


def is_plain(body: bytes, choices: dict[int, list[bool]]) -> bool:
    """Whether each value of `data` is a text, a number, true, false or null: no file, no component. Ids are short."""
    try:
        sent = orjson.loads(body)
    except ValueError:
        return False
    if not isinstance(sent, dict) or not sent.keys() <= FIELDS or type(sent.get("fn_index", 0)) is not int:
        return False
    if not all(_ID.fullmatch(str(sent[name])) for name in ("trigger_id", "session_hash", "event_id") if sent.get(name)):
        return False
    values = sent.get("data", [])
    if not isinstance(values, list):
        return False
    # `event_data` is the value that was typed, once more.
    if not all(value is None or isinstance(value, str | int | float) for value in [*values, sent.get("event_data")]):
        return False
    chosen = zip(values, choices.get(sent.get("fn_index", 0), []), strict=False)
    return all(len(str(value)) <= MAX_CHOICE for value, is_choice in chosen if is_choice)


def replay(body: bytes, receive: Receive) -> Receive:
    """What has been read, once more; then what comes after it."""
    read = False

    async def once() -> Message:
        nonlocal read
        if read:
            return await receive()
        read = True
        return {"type": "http.request", "body": body, "more_body": False}

    return once


def refusal(status: int, message: str) -> JSONResponse:
    """In the form that Gradio's script shows."""
    return JSONResponse({"detail": message, "error": message}, status)
