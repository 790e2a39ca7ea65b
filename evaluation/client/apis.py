"""The requests and answers of four APIs that embed texts: OpenAI's, TEI's, Cog's and Replicate's.

Each function pair builds a request and reads the parts of an answer. Nothing is sent here.
"""

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from evaluation.client.http_client import QUOTE, Reply

Api = Literal["openai", "tei", "cog", "replicate"]
Side = Literal["raw", "query", "document"]
"""The prompt of a text: none, a query's, or a document's."""
Numbers = NDArray[np.float64]
APIS: tuple[Api, ...] = ("openai", "tei", "cog", "replicate")
KEYS: Mapping[str, str] = {"openai": "OPENAI_API_KEY", "replicate": "REPLICATE_API_TOKEN"}
"""Environment variables with the key, by API."""
_INPUT_FAULT = re.compile(r"\A.*\bInputError: |\A(?=`(?:queries|documents|task)\b)")
"""In the error of a failed prediction, which has no status of its own: this project's error of an input."""


@dataclass(frozen=True)
class Answer:
    """One answer of a server, good or bad.

    `status`: HTTP's. `body`: the parsed JSON, None if it is none. `vectors`: float64 [N, D], the numbers as they came,
    NaN where the server wrote null; None if there are none. `tokens`: how many the server counted. `truncated`: how
    many texts it says it cut. `error`: the message of a refusal or failure, or what is wrong with the answer.
    `refused`: the server says that the input is at fault, with a 4xx or a failed prediction that names it.
    """

    status: int
    headers: Mapping[str, str]
    body: Any
    vectors: Numbers | None = None
    tokens: int | None = None
    truncated: int | None = None
    error: str | None = None
    refused: bool = False


def openai_body(model: str, texts: Sequence[str], extra: Mapping[str, Any]) -> dict[str, Any]:
    return {"model": model, "input": list(texts), "encoding_format": "float", **extra}


def tei_body(texts: Sequence[str], normalize: bool) -> dict[str, Any]:
    return {"inputs": list(texts), "normalize": normalize, "truncate": True}


def cog_body(texts: Sequence[str], side: Side, task: str, normalize: bool) -> dict[str, Any]:
    """The request of a prediction. It has an id, because Cog makes ids from the clock, and two can collide (409)."""
    inputs: dict[str, Any] = {"queries" if side == "query" else "documents": list(texts), "normalize": normalize}
    if side == "query":
        inputs["task"] = task
    return {"id": uuid4().hex, "input": inputs | {"encoding_format": "base64"}}


def openai_answer(reply: Reply, count: int) -> Answer:
    body = reply.json()
    rows = body.get("data") if isinstance(body, dict) else None
    usage = body.get("usage") if isinstance(body, dict) else None
    tokens = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    ordered = _by_index(rows) if isinstance(rows, list) else None
    return _answer(reply, body, ordered, count, tokens=tokens if isinstance(tokens, int) else None)


def tei_answer(reply: Reply, count: int) -> Answer:
    body, tokens = reply.json(), reply.headers.get("x-compute-tokens", "")
    rows = body if isinstance(body, list) else None
    return _answer(reply, body, rows, count, tokens=int(tokens) if tokens.isdecimal() else None)


def prediction_answer(reply: Reply, count: int) -> Answer:
    """An ended prediction of Cog's or Replicate's API. A failed one is an error in an answer with status 200."""
    body = reply.json()
    if not isinstance(body, dict):
        return _answer(reply, body, None, count)
    output, metrics = (value if isinstance(value, dict) else {} for value in (body.get("output"), body.get("metrics")))
    tokens, truncated = metrics.get("input_tokens"), metrics.get("truncated")
    if body.get("status") in ("failed", "canceled"):
        message = str(body.get("error") or f"the prediction was {body['status']}")
        fault = _INPUT_FAULT.search(message)
        message = message[fault.end() :] if fault else message
        return Answer(reply.status, reply.headers, body, error=message[:QUOTE], refused=fault is not None)
    rows = output.get("embeddings_base64") or output.get("embeddings")
    return _answer(
        reply,
        body,
        rows if isinstance(rows, list) else None,
        count,
        tokens=tokens if isinstance(tokens, int) else None,
        truncated=truncated if isinstance(truncated, int) else None,
    )


def _answer(
    reply: Reply,
    body: Any,
    rows: list[Any] | None,
    count: int,
    *,
    tokens: int | None = None,
    truncated: int | None = None,
) -> Answer:
    """Check status and shape. A wrong answer gets an `error`, and keeps its vectors if they form a matrix."""
    if not 200 <= reply.status < 300:
        refused = 400 <= reply.status < 500
        return Answer(reply.status, reply.headers, body, error=_message(reply, body), refused=refused)
    vectors, error = (None, None) if rows is None else _matrix(rows)
    if body is None:
        error = f"the answer is not JSON: {reply.text!r}"
    elif rows is None:
        error = f"the answer has no vectors: {reply.text!r}"
    elif vectors is not None and len(vectors) != count:
        error = f"the answer has {len(vectors)} vectors for {count} texts"
    elif vectors is not None and not np.isfinite(vectors).all():
        error = "the answer has NaN or infinity in a vector"
    return Answer(reply.status, reply.headers, body, vectors, tokens, truncated, error)


def _message(reply: Reply, body: Any) -> str:
    """The message of an error, wherever the API puts it."""
    if isinstance(body, dict):
        for name in ("error", "detail", "message", "title"):
            value = body.get(name)
            if isinstance(value, dict):
                value = value.get("message")
            if value:
                return (value if isinstance(value, str) else str(value))[:QUOTE]
    return reply.text


def _by_index(rows: list[Any]) -> list[Any]:
    """The embeddings of OpenAI's `data`, in the order of their `index` if they all have one."""
    entries = [row if isinstance(row, dict) else {} for row in rows]
    if sorted(index for row in entries if isinstance(index := row.get("index"), int)) == list(range(len(entries))):
        entries.sort(key=lambda row: int(row["index"]))
    return [row.get("embedding") for row in entries]


def _matrix(rows: list[Any]) -> tuple[Numbers | None, str | None]:
    """Lists of numbers, or base64 of float32 → float64 [N, D], or the reason that there is none."""
    try:
        vectors = [_vector(row) for row in rows]
    except (TypeError, ValueError, binascii.Error):
        return None, "the answer has a vector that is neither a list of numbers nor base64"
    if len({len(vector) for vector in vectors}) > 1 or any(vector.ndim != 1 or not len(vector) for vector in vectors):
        return None, "the answer's vectors have different lengths, or none"
    return (np.stack(vectors) if vectors else np.empty((0, 0))), None


def _vector(row: Any) -> Numbers:
    if isinstance(row, str):
        return np.frombuffer(base64.b64decode(row, validate=True), "<f4").astype(np.float64)
    if not isinstance(row, list):
        raise TypeError
    return np.array([np.nan if value is None else value for value in row], dtype=np.float64)
