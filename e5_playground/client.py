"""The page's calls of the model's public HTTP API, and what went wrong in words for the person who looks.

Neither texts nor keys are logged, and nothing is kept between calls.
"""

import asyncio
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass

import aiohttp

from e5 import catalog
from e5.errors import SettingsError
from e5_cog.failures import parse_failure
from e5_playground.form import SIDES, Field, Json, field_of

TIMEOUT = aiohttp.ClientTimeout(total=300, sock_connect=5)
"""A request of a million tokens takes minutes on a CPU; a server that is there takes a connection at once."""
GLANCE = aiohttp.ClientTimeout(total=5)

_NAMED = re.compile(r"`(\w+)(?:\[\d+\])?`")
_INDEXED = re.compile(r"`(queries|documents)\[(\d+)\]`")
_ONE: dict[str, str] = {many: one for one, many in SIDES}


@dataclass(frozen=True)
class Failure:
    """Why there is no answer, in words, and the field that it is about ("" for none of them)."""

    message: str
    field: Field = ""


@dataclass(frozen=True)
class Reply:
    """The API's answer, or why there is none; `seconds` is the round trip as this side saw it, `body` what came."""

    result: Json | Failure
    seconds: float
    body: bytes = b""


@dataclass(frozen=True)
class Served:
    """The model behind the API as /v1/models lists it; what it does not say is None."""

    name: str
    dimensions: int | None = None
    max_tokens: int | None = None

    @property
    def model(self) -> catalog.Model | None:
        """What the catalogue knows of it, if it does."""
        try:
            return catalog.get(self.name)
        except SettingsError:
            return None

    @property
    def multilingual(self) -> bool:
        return self.model is not None and "languages" in self.model.languages


async def predict(api: str, sent: Json, key: str = "") -> Reply:
    """POST one prediction. Raises nothing: whatever goes wrong is a Failure."""
    started = time.perf_counter()
    result, body = await _exchange("POST", f"{api}/predictions", TIMEOUT, key, {"input": sent})
    return Reply(result, time.perf_counter() - started, body)


async def served(api: str, key: str = "") -> Served | Failure:
    """Which model answers."""
    listed, _ = await _exchange("GET", f"{api}/v1/models", GLANCE, key, None)
    return listed if isinstance(listed, Failure) else first_model(listed)


def first_model(listed: Json) -> Served | Failure:
    """The first entry of OpenAI's list of models."""
    try:
        first = listed["data"][0]
        return Served(str(first["id"]), *(_count(first.get(name)) for name in ("dimensions", "max_tokens")))
    except (KeyError, IndexError, TypeError, AttributeError):
        return Failure("The API does not say which model it serves.")


def read(status: int, headers: Mapping[str, str], body: bytes) -> Json | Failure:
    """An HTTP answer → its JSON if it is a good one, else the reason that it is not."""
    try:
        value = json.loads(body)
    except ValueError:
        value = None
    answer: Json = value if isinstance(value, dict) else {}
    if status < 300 and answer and answer.get("status", "succeeded") == "succeeded":
        return answer
    if status < 300:
        return failed(str(answer.get("error") or "")) if answer else Failure("The answer is not the API's JSON.")
    detail = answer.get("detail")
    if status == 422 and isinstance(detail, list) and detail:
        return _invalid(detail)
    said = _said(answer)
    if status == 401:
        return Failure("The API key is missing or wrong: type the key of this server.", "key")
    if status == 429:
        wait = headers.get("Retry-After", "")
        when = f"in {wait} second{'' if wait == '1' else 's'}" if wait.isdigit() else "in a moment"
        return Failure(f"Too many requests are waiting: try again {when}.")
    if status == 409:
        return Failure("The model is busy with as many requests as it takes at a time: try again in a moment.")
    if status == 503:
        state = str(answer.get("status", ""))
        if state == "STARTING" or "STARTING" in said:
            return Failure("The model is still starting: try again in a moment.")
        return failed(said) if said else Failure(f"The model is not available{f' ({state})' if state else ''}.")
    if status == 404:
        return Failure("The API has no such address: is it the server of this page?")
    if status == 413:
        return Failure("The request is larger than the server accepts: send fewer or shorter texts.")
    return failed(said) if said else Failure(f"The API answered with status {status}.")


def failed(error: str) -> Failure:
    """A failed prediction's error without the names of classes, and the field that it names."""
    message = parse_failure(error, "The prediction failed, and the server did not say why.").message[:1_000]
    named = _NAMED.search(message)
    # A person counts the lines of a box from one.
    message = _INDEXED.sub(lambda found: f"{_ONE[found[1]]} {int(found[2]) + 1}", message)
    return Failure(message[:1].upper() + message[1:], field_of(named[1]) if named else "")


async def _exchange(
    method: str, url: str, timeout: aiohttp.ClientTimeout, key: str, body: Json | None
) -> tuple[Json | Failure, bytes]:
    if not (key.isascii() and key.isprintable()):
        return Failure("The API key has characters that no key can have.", "key"), b""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.request(method, url, json=body, headers=headers) as response,
        ):
            content = await response.read()
            return await asyncio.to_thread(read, response.status, response.headers, content), content
    except TimeoutError:
        failure = Failure(f"The API did not answer within {timeout.total:.0f} seconds.")
    except aiohttp.ClientConnectorError:
        failure = Failure("The API cannot be reached: the server behind this page is down, or not up yet.")
    except aiohttp.ClientError:
        failure = Failure("The connection to the API broke off before the answer was there: try again.")
    return failure, b""


def _invalid(detail: list[object]) -> Failure:
    """FastAPI's list of what is wrong → one sentence, and the field of the first."""
    parts: list[str] = []
    field: Field = ""
    for entry in detail[:3]:
        one = entry if isinstance(entry, dict) else {}
        path = [str(part) for part in one.get("loc", ()) if part not in ("body", "input")]
        parts.append(": ".join([".".join(path), str(one.get("msg", entry))] if path else [str(one.get("msg", entry))]))
        field = field or (field_of(path[0]) if path else "")
    return Failure(f"The API does not accept this: {'; '.join(parts)[:1_000]}.", field)


def _said(answer: Json) -> str:
    """What an error's body says, in FastAPI's or in OpenAI's form."""
    error = answer.get("error")
    said = error.get("message") if isinstance(error, dict) else error or answer.get("detail")
    return said[:1_000] if isinstance(said, str) else ""


def _count(value: object) -> int | None:
    return value if isinstance(value, int) else None
