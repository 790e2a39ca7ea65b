"""The web page: the static files of page/, at `/` and `/page`. They need no key; what the page computes does.

The page calls the public HTTP API only. page/README.md describes its modules.
"""

from importlib import resources
from pathlib import Path

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

FOLDER = Path(str(resources.files("e5_gateway").joinpath("page")))
LIBRARY = Path(str(resources.files("e5")))
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
"""Content-Security-Policy. Without a Trusted Types policy the browser refuses to make HTML from a string."""


class _Files(StaticFiles):
    """Browsers ask each time whether a file has changed (ETag), so that an update never mixes old and new modules."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers["Cache-Control"] = "no-cache"
        return response


def add(app: FastAPI) -> None:
    """Add the page's routes, and the trained tasks that it offers."""
    files, library = _Files(directory=FOLDER), _Files(directory=LIBRARY)

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def page(request: Request) -> Response:
        response = await files.get_response("index.html", request.scope)
        response.headers["Content-Security-Policy"] = POLICY
        return response

    @app.api_route("/page/tasks.json", methods=["GET", "HEAD"], include_in_schema=False)
    async def tasks(request: Request) -> Response:
        return await library.get_response("tasks.json", request.scope)

    app.mount("/page", files)
