"""Gradio's page without what concerns gradio.app: tags for link previews that name its site and an image on GitHub.

No browser loads them, but those who unfurl links do. Everything else passes through untouched.
"""

import re

from starlette.types import ASGIApp, Message, Receive, Scope, Send

_TAGS = re.compile(rb'\s*<meta\s+(?:property|name)="(?:og|twitter):[^>]*>')


class Head:
    """ASGI middleware around Gradio's application."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Rewrite HTML pages."""
        if scope["type"] != "http" or scope["method"] != "GET":
            await self.app(scope, receive, send)
            return
        start: Message | None = None
        body = b""

        async def rewrite(message: Message) -> None:
            nonlocal start, body
            if message["type"] == "http.response.start":
                if _is_html(message):
                    start = message
                else:
                    await send(message)
            elif start is None:
                await send(message)
            else:
                body += message.get("body", b"")
                if not message.get("more_body", False):
                    content = without_previews(body)
                    kept = [(name, value) for name, value in start["headers"] if name.lower() != b"content-length"]
                    start["headers"] = [*kept, (b"content-length", str(len(content)).encode())]
                    await send(start)
                    await send({"type": "http.response.body", "body": content})

        await self.app(scope, receive, rewrite)


def without_previews(page: bytes) -> bytes:
    """HTML without the tags that describe it to other sites."""
    return _TAGS.sub(b"", page)


def _is_html(message: Message) -> bool:
    headers = {name.lower(): value for name, value in message["headers"]}
    return headers.get(b"content-type", b"").startswith(b"text/html") and b"content-encoding" not in headers
