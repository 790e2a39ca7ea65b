"""Files of inputs: uploads of Replicate's API, and downloads for clients that pass a URL.

A prediction keeps the URL. When its turn comes, the gateway reads or fetches the content, and sends it to the server as
a data URL. So no client can make the server open an address or a path.
"""

import asyncio
import base64
import hashlib
import mimetypes
import re
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import PurePosixPath
from urllib.parse import unquote_to_bytes, urljoin, urlsplit

import aiohttp
import orjson

from e5_gateway.destinations import Destinations, is_web_address
from e5_gateway.errors import GatewayError, Json, QueueFull, invalid_field
from e5_gateway.store import Store, StoredFile, new_public_id
from e5_gateway.target import Identity

MAX_FILE_BYTES = 64 * 2**20
"""Cog's server reads requests of up to 100 MiB, and base64 is a third longer."""
MAX_STORED_BYTES = 4 * 2**30
LIFETIME_SECONDS, KEEP_SECONDS = 24 * 3600.0, 3600.0
"""A file expires as at Replicate, or after an hour if there is no room for another one."""
MAX_INLINE = 256 * 2**10
"""Characters of a data URL that a prediction keeps. A longer one becomes a file, so that polls do not repeat it."""
MAX_IN_MEMORY = 4
"""Contents at a time, from their reading to the server's answer: 64 MiB are 250 MiB with their base64 and JSON."""
FETCH_SECONDS, MAX_REDIRECTS = 60.0, 5
REDIRECTS = (301, 302, 303, 307, 308)
BLOCK = 2**20
ANY_TYPE = "application/octet-stream"
TYPES = {".csv": "text/csv", ".tsv": "text/tab-separated-values", ".txt": "text/plain"}
"""Types of which Cog's server makes the same ending again. Others are recognized by their content."""
_OWN_URL = re.compile(r"https?://[^?#]*/v1/files/([0-9a-z]{26})")


class Uploads:
    """The gateway's files, in the store of predictions, and those of other hosts."""

    def __init__(self, store: Store, destinations: Destinations) -> None:
        self.store, self.destinations = store, destinations
        self._turns = asyncio.Semaphore(MAX_IN_MEMORY)

    async def add(self, content: bytes, name: str, content_type: str, metadata: Json | None = None) -> StoredFile:
        """Store a file. Raises GatewayError 429 if there is no room for it, and 503."""
        now = time.time()
        file = StoredFile(
            id=new_public_id(),
            name=name,
            content_type=content_type,
            size=len(content),
            sha256=await asyncio.to_thread(lambda: hashlib.sha256(content).hexdigest()),
            metadata=orjson.dumps(metadata or {}),
            created_at=now,
            expires_at=now + LIFETIME_SECONDS,
        )
        try:
            if await self.store.add_file(file, content, now - KEEP_SECONDS, MAX_STORED_BYTES):
                return file
        except sqlite3.Error as error:
            raise GatewayError(503, f"the file could not be stored: {error}", retry_after=10) from None
        cure = "delete some, or try again later"
        raise GatewayError(429, f"the gateway holds too many files: {cure}", "rate_limit_exceeded", retry_after=60)

    async def check(self, inputs: Json, identity: Identity, base: str) -> Json:
        """The inputs to keep of a prediction. `base`: the gateway's address.

        Raises GatewayError 422 for a file that does not exist, or a URL that is not allowed.
        """
        for name in _file_inputs(inputs, identity):
            url = inputs[name]
            if url.startswith("data:"):
                if len(url) > MAX_INLINE:
                    kind, content = await asyncio.to_thread(_parse_data_url, name, url)
                    file = await self.add(content, name, kind)
                    inputs = inputs | {name: f"{base}/v1/files/{file.id}"}
            elif own := _OWN_URL.fullmatch(url):
                await self._file(name, own[1])
            else:
                self._check_url(name, url)
        return inputs

    def has_files(self, inputs: Json, identity: Identity) -> bool:
        """Whether there are files whose content the gateway has to send, which needs a turn."""
        return any(not inputs[name].startswith("data:") for name in _file_inputs(inputs, identity))

    @asynccontextmanager
    async def turn(self, *, wait: bool) -> AsyncIterator[None]:
        """The right to have contents in memory. Raises QueueFull if it is not to `wait`."""
        if not wait and self._turns.locked():
            raise QueueFull(f"{MAX_IN_MEMORY} predictions with files", 10)
        async with self._turns:
            yield

    async def inlined(self, inputs: Json, identity: Identity) -> Json:
        """The inputs to send: data URLs in the place of all other files. Raises GatewayError 422 and 413."""
        for name in _file_inputs(inputs, identity):
            if not inputs[name].startswith("data:"):
                inputs = inputs | {name: await self._data_url(name, inputs[name])}
        return inputs

    async def _data_url(self, name: str, url: str) -> str:
        if own := _OWN_URL.fullmatch(url):
            file = await self._file(name, own[1])
            content = await self.store.file_content(file.id)
            if content is None:
                raise _no_file(name)
            return await asyncio.to_thread(_data_url, content, file.name, file.content_type)
        return await asyncio.to_thread(_data_url, await self._fetch(name, url), urlsplit(url).path, ANY_TYPE)

    async def _file(self, name: str, file_id: str) -> StoredFile:
        file = await self.store.file(file_id, time.time())
        if file is None:
            raise _no_file(name)
        return file

    def _check_url(self, name: str, url: str) -> None:
        if not is_web_address(url):
            raise _refused(name, "must be a URL, https://… or data:…;base64,…, or that of an uploaded file")
        if problem := self.destinations.problem(url):
            raise _refused(name, problem)

    async def _fetch(self, name: str, url: str) -> bytes:
        """The content of a URL. Every address that it leads to must be allowed."""
        await self.destinations.resolve_targets()
        async with self.destinations.sessions(FETCH_SECONDS) as session_of:
            for _ in range(MAX_REDIRECTS + 1):
                self._check_url(name, url)
                try:
                    async with session_of(url).get(url, allow_redirects=False) as response:
                        if response.status in REDIRECTS and "location" in response.headers:
                            url = urljoin(url, response.headers["location"])
                            continue
                        if response.status != 200:
                            raise _refused(name, f"its host answers HTTP {response.status}")
                        return await read_limited(response.content.iter_chunked(BLOCK))
                except (aiohttp.ClientError, OSError, ValueError) as error:  # ValueError: of a malformed address
                    raise _refused(name, f"cannot be fetched: {str(error) or type(error).__name__}") from None
        raise _refused(name, f"is redirected more than {MAX_REDIRECTS} times")


async def read_limited(parts: AsyncIterator[bytes]) -> bytes:
    """All bytes. Raises GatewayError 413 for more than a file may have."""
    content = bytearray()
    async for part in parts:
        content += part
        if len(content) > MAX_FILE_BYTES:
            cure = "split it, or run scripts/corpus.py"
            raise GatewayError(413, f"the file is larger than {MAX_FILE_BYTES // 2**20} MiB: {cure}")
    return bytes(content)


def _data_url(content: bytes, name: str, content_type: str) -> str:
    kind = TYPES.get(PurePosixPath(name).suffix.lower())
    if kind is None:
        kind = content_type if mimetypes.guess_extension(content_type) in TYPES else ANY_TYPE
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _parse_data_url(name: str, url: str) -> tuple[str, bytes]:
    """Type and content. Raises GatewayError 422."""
    head, comma, body = url.removeprefix("data:").partition(",")
    kind, *parameters = head.split(";")
    try:
        if not comma:
            raise ValueError
        content = unquote_to_bytes(body)
        return kind or "text/plain", base64.b64decode(content, validate=True) if "base64" in parameters else content
    except ValueError:
        raise _refused(name, "is no valid data URL: pass data:…;base64,…") from None


def _file_inputs(inputs: Json, identity: Identity) -> list[str]:
    """The names of the given inputs that are files by the model's schema."""
    properties = identity.schema["components"]["schemas"]["Input"]["properties"]
    return [
        name
        for name, value in inputs.items()
        if isinstance(value, str) and properties.get(name, {}).get("format") == "uri"
    ]


def _no_file(name: str) -> GatewayError:
    return _refused(name, "this file does not exist here, or no longer: upload it again")


def _refused(name: str, problem: str) -> GatewayError:
    return invalid_field(f"input.{name}", problem)
