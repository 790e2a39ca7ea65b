"""The web page: the static files of page/, at `/` and `/page`. They need no key; what the page computes does.

The page calls the public HTTP API only. page/README.md describes its modules.
"""

from importlib import resources
from pathlib import Path

from fastapi import FastAPI
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles

FOLDER = Path(str(resources.files("e5_gateway").joinpath("page")))
TASKS = Path(str(resources.files("e5").joinpath("tasks.json")))
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
"""Content-Security-Policy. Without a Trusted Types policy the browser refuses to make HTML from a string."""
HEADERS = {"Cache-Control": "no-cache"}
"""Browsers ask each time whether a file has changed (ETag), so an update never mixes old and new modules."""


class _Files(StaticFiles):
    def file_response(self, *arguments: object, **options: object) -> Response:
        response = super().file_response(*arguments, **options)  # type: ignore[arg-type]
        response.headers.update(HEADERS)
        return response


def add(app: FastAPI) -> None:
    """Add the page's routes, and the trained tasks that it offers."""

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def page() -> Response:
        return FileResponse(FOLDER / "index.html", headers={**HEADERS, "Content-Security-Policy": POLICY})

    @app.api_route("/page/tasks.json", methods=["GET", "HEAD"], include_in_schema=False)
    async def tasks() -> Response:
        return FileResponse(TASKS, headers=HEADERS)

    app.mount("/page", _Files(directory=FOLDER))
