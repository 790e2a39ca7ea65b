"""Files of inputs: uploads of Replicate's API, and downloads for clients that pass a URL.

The gateway fetches a URL itself, from where webhooks may go too, and the server gets the content as a data URL. So no
client can make the server open an address or a path.
"""

import base64
import hashlib
import re
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from urllib.parse import urljoin, urlsplit

import aiohttp
import orjson

from e5_gateway.destinations import Destinations, is_web_address
from e5_gateway.errors import GatewayError, Json
from e5_gateway.store import Store, StoredFile, new_public_id
from e5_gateway.target import Identity

MAX_FILE_BYTES = 64 * 2**20
"""Cog's server reads requests of up to 100 MiB, and base64 is a third longer."""
MAX_STORED_BYTES = 4 * 2**30
LIFETIME_SECONDS, KEEP_SECONDS = 24 * 3600.0, 3600.0
"""A file expires as at Replicate, or after an hour if there is no room for another one."""
FETCH_SECONDS, MAX_REDIRECTS = 60.0, 5
REDIRECTS = (301, 302, 303, 307, 308)
BLOCK = 2**20
ANY_TYPE = "application/octet-stream"
_OWN_URL = re.compile(r"https?://[^?#]*/v1/files/([0-9a-z]{26})")


@dataclass(frozen=True)
class Inputs:
    """A prediction's inputs as JSON. `size`: with the content of their files."""

    content: bytes
    size: int


class Uploads:
    """The gateway's files, in the store of predictions."""

    def __init__(self, store: Store, destinations: Destinations) -> None:
        self.store, self.destinations = store, destinations

    async def add(self, content: bytes, name: str, content_type: str, metadata: Json | None = None) -> StoredFile:
        """Store a file. Raises GatewayError 429 if there is no room for it."""
        now = time.time()
        await self.store.prune_files(now, now - KEEP_SECONDS, MAX_STORED_BYTES - len(content))
        if await self.store.file_bytes() + len(content) > MAX_STORED_BYTES:
            held = f"the gateway holds {MAX_STORED_BYTES // 2**20:,} MiB of files"
            raise GatewayError(429, f"{held}: delete some, or try again later", "rate_limit_exceeded", retry_after=60)
        file = StoredFile(
            id=new_public_id(),
            name=name,
            content_type=content_type,
            size=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
            metadata=orjson.dumps(metadata or {}),
            created_at=now,
            expires_at=now + LIFETIME_SECONDS,
        )
        await self.store.insert_file(file, content)
        return file

    async def check(self, inputs: Json, identity: Identity, base: str) -> Inputs:
        """The inputs to keep of a prediction: files of other hosts are fetched and become the gateway's own.

        `base`: the gateway's address. Raises GatewayError 422 for a file that there is not, or that cannot be fetched.
        """
        size = 0
        for name in _file_inputs(inputs, identity):
            url = inputs[name]
            if url.startswith("data:"):
                continue
            if own := _OWN_URL.fullmatch(url):
                file = await self._file(name, own[1])
            else:
                content = await self._fetch(name, url)
                file = await self.add(content, urlsplit(url).path.rpartition("/")[2][:100], ANY_TYPE)
                inputs = inputs | {name: f"{base}/v1/files/{file.id}"}
            size += file.size * 4 // 3
        kept = orjson.dumps(inputs)
        return Inputs(kept, len(kept) + size)

    async def inline(self, content: bytes, identity: Identity) -> bytes:
        """The inputs to send: data URLs in the place of the gateway's own files. Raises GatewayError 422."""
        if b"/v1/files/" not in content:
            return content
        inputs: Json = orjson.loads(content)
        for name in _file_inputs(inputs, identity):
            if own := _OWN_URL.fullmatch(inputs[name]):
                inputs[name] = data_url(await self._content(name, own[1]))
        return orjson.dumps(inputs)

    async def with_data(self, inputs: Json, identity: Identity) -> Json:
        """The inputs to send at once, with data URLs in the place of all files. Raises GatewayError 422."""
        for name in _file_inputs(inputs, identity):
            url = inputs[name]
            if own := _OWN_URL.fullmatch(url):
                inputs = inputs | {name: data_url(await self._content(name, own[1]))}
            elif not url.startswith("data:"):
                inputs = inputs | {name: data_url(await self._fetch(name, url))}
        return inputs

    async def _file(self, name: str, file_id: str) -> StoredFile:
        file = await self.store.file(file_id)
        if file is None:
            raise _no_file(name)
        return file

    async def _content(self, name: str, file_id: str) -> bytes:
        content = await self.store.file_content(file_id)
        if content is None:
            raise _no_file(name)
        return content

    async def _fetch(self, name: str, url: str) -> bytes:
        """The content of a URL. Every address that it leads to must be allowed."""
        await self.destinations.resolve_targets()
        async with self.destinations.sessions(FETCH_SECONDS) as session_of:
            for _ in range(MAX_REDIRECTS):
                if not is_web_address(url):
                    raise _refused(name, "must be a URL, https://… or data:…;base64,…, or that of an uploaded file")
                if problem := self.destinations.problem(url):
                    raise _refused(name, problem)
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
        raise _refused(name, f"leads to more than {MAX_REDIRECTS} other URLs")


async def read_limited(parts: AsyncIterator[bytes]) -> bytes:
    """All bytes. Raises GatewayError 413 for more than a file may have."""
    content = bytearray()
    async for part in parts:
        content += part
        if len(content) > MAX_FILE_BYTES:
            cure = "split it, or run scripts/corpus.py"
            raise GatewayError(413, f"the file is larger than {MAX_FILE_BYTES // 2**20} MiB: {cure}")
    return bytes(content)


def data_url(content: bytes) -> str:
    return f"data:{ANY_TYPE};base64,{base64.b64encode(content).decode()}"


def _file_inputs(inputs: Json, identity: Identity) -> list[str]:
    """The names of the given inputs that are files by the model's schema."""
    properties = identity.schema["components"]["schemas"]["Input"]["properties"]
    return [
        name
        for name, value in inputs.items()
        if isinstance(value, str) and properties.get(name, {}).get("format") == "uri"
    ]


def _no_file(name: str) -> GatewayError:
    return _refused(name, "there is no such file here, or no longer: upload it again")


def _refused(name: str, problem: str) -> GatewayError:
    return GatewayError(422, "", invalid_fields=[{"type": "invalid", "field": f"input.{name}", "description": problem}])
