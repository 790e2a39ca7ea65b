"""GET /openapi.json and GET /docs: the description of all routes (openapi.json in this folder), as JSON and as a page.

The server's own schema has the inputs and outputs of a prediction, and is merged in.
"""

from functools import lru_cache
from importlib import resources

import orjson
from fastapi import APIRouter
from starlette.responses import Response

from e5_gateway.docs_page import PAGE_POLICY, page
from e5_gateway.errors import Json
from e5_gateway.target import Identity, Target


def router(target: Target) -> APIRouter:
    routes = APIRouter()

    @routes.get("/openapi.json")
    async def openapi() -> Response:
        identity = await target.require_identity()
        return Response(orjson.dumps(document(identity)), media_type="application/json")

    @routes.get("/docs")
    async def docs() -> Response:
        identity = await target.require_identity()
        headers = {"Content-Security-Policy": PAGE_POLICY}
        return Response(page(document(identity)), media_type="text/html", headers=headers)

    return routes


def document(identity: Identity) -> Json:
    """The OpenAPI document, with the served model's name, dimensions and schema."""
    text = _template()
    for name, value in (("model", identity.model), ("version", identity.version)):
        text = text.replace(f"<{name}>", value)
    for name, number in (("dimensions", identity.dimensions), ("max_tokens", identity.max_tokens)):
        text = text.replace(f'"<{name}>"', str(number))
    whole: Json = orjson.loads(text)
    schemas = identity.schema["components"]["schemas"]
    used = ("Input", "Output", *(name for name, schema in schemas.items() if "enum" in schema))
    whole["components"]["schemas"] |= {name: schemas[name] for name in used}
    return whole


@lru_cache
def _template() -> str:
    return resources.files("e5_gateway").joinpath("openapi.json").read_text("utf-8")
