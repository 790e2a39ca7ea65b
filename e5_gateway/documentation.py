"""GET /openapi.json and GET /docs: the description of all routes (openapi.json in this folder), as JSON and as a page.

The server's own schema has the inputs and outputs of a prediction, and is merged in.
"""

from importlib import resources

import orjson
from fastapi import APIRouter
from starlette.responses import Response

from e5_gateway.docs_page import PAGE_POLICY, page
from e5_gateway.errors import Json
from e5_gateway.openai_api import describe
from e5_gateway.settings import GatewaySettings
from e5_gateway.target import Identity
from e5_gateway.targets import Targets

MODEL_FACTS = ("id", "dimensions", "max_tokens", "prompt", "languages")
"""Of the model's entry in GET /v1/models."""


def router(targets: Targets, settings: GatewaySettings) -> APIRouter:
    routes = APIRouter()
    rendered: tuple[Identity, bytes, str] | None = None

    async def render() -> tuple[bytes, str]:
        """The document as JSON and as a page, made once for each identity: strangers may ask for both."""
        nonlocal rendered
        identity = await targets.require_identity()
        if rendered is None or rendered[0] is not identity:
            whole = document(identity, key_required=settings.api_key is not None)
            rendered = identity, orjson.dumps(whole), page(whole)
        return rendered[1:]

    @routes.api_route("/openapi.json", methods=["GET", "HEAD"])
    async def openapi() -> Response:
        content, _ = await render()
        return Response(content, media_type="application/json")

    @routes.api_route("/docs", methods=["GET", "HEAD"])
    async def docs() -> Response:
        _, content = await render()
        return Response(content, media_type="text/html", headers={"Content-Security-Policy": PAGE_POLICY})

    return routes


def document(identity: Identity, *, key_required: bool) -> Json:
    """The OpenAPI document, with the served model's schema and, for the web page, its facts (`info.x-model`)."""
    text = resources.files("e5_gateway").joinpath("openapi.json").read_text("utf-8")
    for name, value in (("model", identity.model), ("version", identity.version)):
        text = text.replace(f"<{name}>", value)
    for name, number in (("dimensions", identity.dimensions), ("max_tokens", identity.max_tokens)):
        text = text.replace(f'"<{name}>"', str(number))
    whole: Json = orjson.loads(text)
    schemas = identity.schema["components"]["schemas"]
    used = ("Input", "Output", *(name for name, schema in schemas.items() if "enum" in schema))
    model = describe(identity)
    whole["info"]["x-model"] = {name: model[name] for name in MODEL_FACTS if name in model}
    whole["security"] = [{"key": []}] if key_required else []
    whole["components"]["schemas"] |= {name: schemas[name] for name in used}
    return whole
