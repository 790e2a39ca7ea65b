"""An OpenAPI document as a page to read: HTML without scripts, and nothing from other hosts."""

import base64
import hashlib
from html import escape
from importlib import resources

import orjson

from e5_gateway.errors import Json

METHODS = ("get", "post", "put", "delete")
STYLE = resources.files("e5_gateway").joinpath("docs.css").read_text("utf-8")
_HASH = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
PAGE_POLICY = f"default-src 'none'; style-src 'sha256-{_HASH}'; frame-ancestors 'none'; base-uri 'none'"
"""The Content-Security-Policy of the page."""


def page(whole: Json) -> str:
    """The document as HTML, without scripts."""
    groups = {tag["name"]: (tag["description"], list[str]()) for tag in whole["tags"]}
    for path, operations in whole["paths"].items():
        for method in METHODS:
            if method in operations:
                groups[operations[method]["tags"][0]][1].append(_operation(path, method, operations[method], whole))
    title = escape(whole["info"]["title"])
    contents = "".join(f'<a href="#{_anchor(name)}">{escape(name)}</a>' for name in groups)
    sections = "".join(
        f'<section id="{_anchor(name)}"><h2>{escape(name)}</h2><p>{_text(text)}</p>{"".join(operations)}</section>'
        for name, (text, operations) in groups.items()
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}</style></head><body><main><h1>{title}</h1>"
        f'<p>{_text(whole["info"]["description"])} For programs: <a href="openapi.json">openapi.json</a>.</p>'
        f"<nav>{contents}</nav>{sections}</main></body></html>"
    )


def _operation(path: str, method: str, operation: Json, whole: Json) -> str:
    parts = [
        f'<h3><span class="method">{method.upper()}</span> <code>{escape(path)}</code></h3>',
        f"<p>{_text(operation['summary'])}. {_text(operation.get('description', ''))}</p>",
    ]
    parameters = [_resolved(parameter, whole) for parameter in operation.get("parameters", [])]
    rows = [
        _row(each["name"], each["schema"], each.get("required"), whole, each.get("description")) for each in parameters
    ]
    content = next(iter(operation.get("requestBody", {}).get("content", {}).values()), None)
    if content:
        schema = _resolved(content["schema"], whole)
        required = schema.get("required", ())
        for name, field in schema.get("properties", {}).items():
            rows.append(_row(name, field, name in required, whole))
    if rows:
        parts.append(f"<table><tr><th>field</th><th>type</th><th>meaning</th></tr>{''.join(rows)}</table>")
    if content and "example" in content:
        body = orjson.dumps(content["example"]).decode()
        command = f"curl -s localhost:8000{path} -H 'content-type: application/json' -d '{body}'"
        parts.append(f"<pre>{escape(command)}</pre>")
    success = next(_resolved(value, whole) for status, value in operation["responses"].items() if status != "default")
    answer = _resolved(next(iter(success.get("content", {}).values()), {"schema": {}})["schema"], whole)
    fields = ", ".join(f"<code>{escape(name)}</code>" for name in answer.get("properties", {}))
    parts.append(f"<p>Answer: {_text(success['description'])}{f' Fields: {fields}.' if fields else ''}</p>")
    return f'<article id="{escape(operation["operationId"])}">{"".join(parts)}</article>'


def _row(name: str, schema: Json, required: object, whole: Json, description: str | None = None) -> str:
    resolved = _resolved(schema, whole)
    meaning = description or schema.get("description") or resolved.get("description", "")
    default = resolved.get("default", schema.get("default"))
    shown = "" if default is None else f" Default: <code>{escape(orjson.dumps(default).decode())}</code>."
    star = " <em>required</em>" if required else ""
    return (
        f"<tr><td><code>{escape(name)}</code>{star}</td><td>{_type(resolved, whole)}</td>"
        f"<td>{_text(meaning)}{shown}</td></tr>"
    )


def _type(schema: Json, whole: Json) -> str:
    if "enum" in schema:
        return " ".join(f"<code>{escape(str(value))}</code>" for value in schema["enum"])
    if "oneOf" in schema:
        return " or ".join(_type(_resolved(option, whole), whole) for option in schema["oneOf"])
    if schema.get("type") == "array":
        return f"list of {_type(_resolved(schema['items'], whole), whole)}"
    return "file" if schema.get("format") == "binary" else escape(schema.get("type", "any"))


def _resolved(schema: Json, whole: Json) -> Json:
    """The object itself, or the component that it refers to."""
    if "allOf" in schema:  # Cog's way to refer to a component and add a default
        return {**_resolved(schema["allOf"][0], whole), **{k: v for k, v in schema.items() if k != "allOf"}}
    if "$ref" not in schema:
        return schema
    found = whole
    for name in schema["$ref"].split("/")[1:]:
        found = found[name]
    return found


def _text(text: str) -> str:
    """Escaped, with `code` as code."""
    pieces = escape(text).split("`")
    return "".join(f"<code>{piece}</code>" if index % 2 else piece for index, piece in enumerate(pieces))


def _anchor(name: str) -> str:
    return escape(name.lower().replace(" ", "-"))
