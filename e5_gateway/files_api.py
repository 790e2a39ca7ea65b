"""Replicate's /v1/files: uploads that predictions take as inputs. Everybody with the key sees all files."""

import time
from collections.abc import AsyncGenerator

import orjson
from fastapi import APIRouter
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request
from starlette.responses import Response

from e5_gateway.errors import GatewayError, Json
from e5_gateway.replicate_api import own_address, timestamp
from e5_gateway.settings import GatewaySettings
from e5_gateway.store import StoredFile
from e5_gateway.uploads import ANY_TYPE, MAX_FILE_BYTES, Uploads, read_limited

MAX_FILES_LISTED = 100
MAX_NAME, MAX_METADATA = 200, 10_000
"""Characters and bytes."""
OVERHEAD_BYTES = 64 * 2**10
"""Of a form around the file's content."""


def router(uploads: Uploads, settings: GatewaySettings) -> APIRouter:
    routes = APIRouter()

    @routes.post("/v1/files")
    async def create(request: Request) -> Response:
        """A form with the file as `content`, as Replicate's clients send it, and `metadata`, a JSON object."""
        content_type = request.headers.get("content-type", "").lower()
        if not content_type.startswith("multipart/form-data"):
            raise GatewayError(400, "send a form (multipart/form-data) with the file as `content`")
        if "charset" in content_type:  # it would choose any codec of Python for the names, slow ones included
            raise GatewayError(400, "send the form without `charset`: its names are UTF-8")
        try:
            # The Node client sends the metadata as a file, too.
            body = _limited(request)
            form = await MultiPartParser(
                request.headers, body, max_files=2, max_fields=1, max_part_size=MAX_METADATA
            ).parse()
        except (MultiPartException, KeyError) as error:  # KeyError: a form without a boundary
            raise GatewayError(400, f"the form cannot be read: {error}") from None
        try:
            file = form.get("content")
            if not isinstance(file, UploadFile):
                raise GatewayError(400, "the form has no file called `content`")
            name, kind = (file.filename or "file")[:MAX_NAME], (file.content_type or ANY_TYPE)[:MAX_NAME]
            content = await read_limited(_blocks(file))
            metadata = await _metadata(form.get("metadata"))
            if set(form) - {"content", "metadata"} or len(form.getlist("content")) > 1:
                raise GatewayError(400, "the form has more than one file as `content`, and `metadata`")
        finally:
            await form.close()
        stored = await uploads.add(content, name, kind, metadata)
        return _json(file_object(stored, own_address(request, settings)), 201)

    @routes.get("/v1/files")
    async def newest(request: Request) -> Response:
        base = own_address(request, settings)
        results = [file_object(file, base) for file in await uploads.store.files(MAX_FILES_LISTED, time.time())]
        return _json({"previous": None, "next": None, "results": results})

    @routes.get("/v1/files/{file_id}")
    async def get(request: Request, file_id: str) -> Response:
        return _json(file_object(await _existing(file_id), own_address(request, settings)))

    @routes.delete("/v1/files/{file_id}")
    async def delete(file_id: str) -> Response:
        file = await _existing(file_id)
        await uploads.store.delete_file(file.id)
        return Response(status_code=204)

    async def _existing(file_id: str) -> StoredFile:
        file = await uploads.store.file(file_id, time.time())
        if file is None:
            raise GatewayError(404, "no such file: it does not exist, has been deleted, or has expired")
        return file

    return routes


def file_object(file: StoredFile, base: str) -> Json:
    """Replicate's file object (https://api.replicate.com/openapi.json, as of April 2026). `base`: our address."""
    return {
        "id": file.id,
        "name": file.name,
        "content_type": file.content_type,
        "size": file.size,
        "etag": file.sha256,
        "checksums": {"sha256": file.sha256},
        "metadata": orjson.loads(file.metadata),
        "created_at": timestamp(file.created_at, "milliseconds"),
        "expires_at": timestamp(file.expires_at, "milliseconds"),
        "urls": {"get": f"{base}/v1/files/{file.id}"},
    }


async def _limited(request: Request) -> AsyncGenerator[bytes, None]:
    """The request's body. Raises GatewayError 413 and 429."""
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > MAX_FILE_BYTES + OVERHEAD_BYTES:
            raise GatewayError(413, f"the file is larger than {MAX_FILE_BYTES // 2**20} MiB: split it")
        request.state.acquire_body(len(part))
        yield part


async def _blocks(file: UploadFile) -> AsyncGenerator[bytes, None]:
    while block := await file.read(2**20):
        yield block


async def _metadata(field: UploadFile | str | None) -> Json:
    if field is None:
        return {}
    text = await field.read(MAX_METADATA + 1) if isinstance(field, UploadFile) else field
    try:
        if len(text) <= MAX_METADATA and isinstance(found := orjson.loads(text), dict):
            return found
    except ValueError:
        pass
    raise GatewayError(400, f"`metadata` must be a JSON object of at most {MAX_METADATA:,} bytes")


def _json(body: Json, status: int = 200) -> Response:
    return Response(orjson.dumps(body), status, media_type="application/json")
