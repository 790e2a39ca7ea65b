"""GET /openapi.json and /docs: every route is in them, the examples work, and the answers are as described."""

import copy
import json
import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from fastapi.openapi.utils import get_openapi
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from e5_gateway.app import create
from e5_gateway.settings import GatewaySettings
from tests.gateways import Gateway

MODEL = "e5-mistral-tiny"
UNLISTED = {("POST", "/shutdown")}
"""A refusal."""
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
BEYOND_SCHEMA = re.compile(
    r"`task` goes with queries|say in `task` what|no such prediction|no such file|`cursor` is none|\A{}\Z"
)
"""Refusals of requests that fit the description."""
FUZZ = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)


@pytest.fixture(scope="module")
def document(client: httpx.Client) -> dict[str, Any]:
    served: dict[str, Any] = client.get("/openapi.json").raise_for_status().json()
    return served


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def test_every_route_is_described(document: dict[str, Any], tmp_path: Path) -> None:
    app = create(GatewaySettings(("http://127.0.0.1:1",), database=tmp_path / "predictions"))
    paths = get_openapi(title="", version="", routes=app.routes)["paths"]
    routes = {(method.upper(), path) for path, methods in paths.items() for method in methods if method != "head"}
    assert routes - UNLISTED == {(method, path) for method, path, _ in operations(document)}


def test_inputs_and_outputs_are_the_server_s(document: dict[str, Any], shared_gateway: Gateway) -> None:
    assert shared_gateway.server is not None
    served = httpx.get(f"{shared_gateway.server.url}/openapi.json").json()["components"]["schemas"]
    for name in ("Input", "Output", "encoding_format", "long_texts"):
        assert document["components"]["schemas"][name] == served[name]


def test_examples_work(document: dict[str, Any], client: httpx.Client) -> None:
    examples = 0
    for method, path, operation in operations(document):
        content = operation.get("requestBody", {}).get("content", {}).get("application/json")
        if content is None:
            continue
        examples += 1
        filled = path.replace("{prediction_id}", "example").replace("{owner}", "you").replace("{name}", MODEL)
        response = client.request(method, filled, json=content["example"], headers={"Prefer": "wait"})
        assert response.status_code in (200, 201), (path, response.text)
    assert examples >= 5


def test_page_has_all_routes_and_nothing_from_elsewhere(document: dict[str, Any], client: httpx.Client) -> None:
    response = client.get("/docs").raise_for_status()
    assert response.headers["content-type"].startswith("text/html")
    for _, path, operation in operations(document):
        assert f"<code>{path}</code>" in response.text and f'id="{operation["operationId"]}"' in response.text
    assert "<script" not in response.text and "src=" not in response.text
    assert "http" not in response.text.replace("http://127.0.0.1", "")
    assert "<model>" not in response.text and MODEL in response.text
    policy = response.headers.get_list("content-security-policy")
    assert len(policy) == 1 and "sha256-" in policy[0] and "script-src" not in policy[0]


def without_webhooks(document: dict[str, Any]) -> dict[str, Any]:
    """The document, without what would act outside of the gateway: webhooks, and files of other hosts."""
    schema = copy.deepcopy(document)
    schema["components"]["schemas"]["Input"]["properties"].pop("file")
    for _, path, operation in operations(schema):
        if path.startswith("/v1/") and "application/json" in operation.get("requestBody", {}).get("content", {}):
            operation["requestBody"]["content"]["application/json"]["schema"].get("properties", {}).pop("webhook", None)
    return schema


def narrowed(document: dict[str, Any]) -> dict[str, Any]:
    """The document, such that the gateway accepts every request that fits: with what JSON Schema cannot say."""
    schema = without_webhooks(document)
    schemas, parameters = schema["components"]["schemas"], schema["components"]["parameters"]
    schemas["Text"]["pattern"] = "[a-z]"  # Python's str.strip() takes more for white space than JSON Schema does
    schemas["ModelName"]["enum"] = [MODEL]
    schemas["PromptName"]["enum"] = ["query", "passage", "sts_query", "NQ"]
    parameters["CancelAfter"]["schema"]["enum"] = ["5s", "90", "1h30m"]
    for name, field in (
        ("RerankRequest", "max_tokens_per_doc"),
        ("RerankRequest", "top_n"),
        ("CohereEmbedRequest", "max_tokens"),
    ):
        schemas[name]["properties"][field]["maximum"] = 10**9  # beyond 64 bits a number is no whole one
    schemas["Input"]["additionalProperties"] = False  # Replicate's API refuses unknown inputs
    for field in schemas["Input"]["properties"].values():
        field.pop("nullable", None)  # Cog's server refuses null
    return schema


def with_nulls(schema: Any) -> Any:
    """The document, where a field that may be missing may be null, as its introduction says."""
    if isinstance(schema, list):
        return [with_nulls(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    copied = {name: with_nulls(value) for name, value in schema.items()}
    if schema.get("additionalProperties") is False:
        required = schema.get("required", ())
        copied["properties"] = {
            name: field if name in required else {"allOf": [field], "nullable": True}
            for name, field in copied["properties"].items()
        }
    return copied


@pytest.fixture(scope="module")
def apis(document: dict[str, Any]) -> dict[str, Any]:
    documents = {"positive": narrowed(document), "negative": with_nulls(without_webhooks(document))}
    load = schemathesis.openapi.from_dict
    return {mode: load(each, config=schemathesis.Config()) for mode, each in documents.items()}


TEMPLATE = json.loads(resources.files("e5_gateway").joinpath("openapi.json").read_text("utf-8"))
CASES = [
    (mode, method, path)
    for method, path, operation in operations(TEMPLATE)
    for mode in ("positive", "negative")
    if mode == "positive" or "application/json" in operation.get("requestBody", {}).get("content", {})
]


@pytest.mark.parametrize(("mode", "method", "path"), CASES)
def test_answers_are_as_described(
    apis: dict[str, Any], shared_gateway: Gateway, mode: str, method: str, path: str
) -> None:
    """Requests that fit the description, and requests that violate it."""
    checks = [*CHECKS, negative_data_rejection] if mode == "negative" else CHECKS
    strategy = apis[mode][path][method].as_strategy(generation_mode=schemathesis.GenerationMode(mode))

    @FUZZ
    @given(case=strategy)
    def check(case: Any) -> None:
        response = case.call(base_url=shared_gateway.url, headers={"Authorization": "Bearer test-key"}, timeout=60)
        case.validate_response(response, checks=checks)
        if mode == "positive":
            assert response.status_code < 300 or BEYOND_SCHEMA.search(response.text), response.text

    check()
