"""The servers behind `evaluation.client.remote.connect`: one class for each API."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self
from urllib.parse import quote

import numpy as np

from e5 import catalog
from e5.catalog import PromptKind
from e5.errors import SettingsError
from e5.vectors import Vectors
from evaluation.client import apis
from evaluation.client.apis import Answer, Side
from evaluation.client.http_client import Connection, Reply, ServerError

POLL_SECONDS, MAX_PREDICTION_SECONDS = 0.5, 900.0


def catalog_name(model: str) -> str:
    """The model's name without owner, version and suffix: intfloat/e5-small → e5-small, e5-small:query → e5-small."""
    return model.rpartition("/")[2].partition(":")[0]


class HttpServer(ABC):
    """What the four servers share. A subclass has its API's path, request and answer."""

    api: apis.Api
    adds_prompts = False
    takes_normalize = True
    endpoint = ""

    def __init__(self, connection: Connection, model: str, batch: int) -> None:
        self.url, self.model, self.batch, self._connection = connection.url, model, batch, connection

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._connection.close()

    def embed(self, texts: Sequence[str], side: Side = "raw", task: str = "", normalize: bool = False) -> Vectors:
        parts: list[Vectors] = []
        for first in range(0, len(texts), self.batch):
            answer = self.ask(texts[first : first + self.batch], side, task, normalize)
            if answer.error is not None or answer.vectors is None:
                raise self.failure(answer)
            with np.errstate(over="ignore"):
                parts.append(answer.vectors.astype(np.float32))
            if not np.isfinite(parts[-1]).all():
                raise ServerError(f"{self.url} gave numbers that float32 cannot hold: see its log", answer.status)
            if parts[-1].shape[1] != parts[0].shape[1]:
                dimensions = f"{parts[0].shape[1]} and then {parts[-1].shape[1]}"
                raise ServerError(f"{self.url} gave vectors of {dimensions} numbers: is it one model?", answer.status)
        if not parts:
            raise ServerError("there are no texts to embed: pass at least one")
        vectors = np.concatenate(parts)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-12) if normalize else vectors

    @abstractmethod
    def ask(self, texts: Sequence[str], side: Side = "raw", task: str = "", normalize: bool = False) -> Answer:
        """See `evaluation.client.remote.Server`."""

    def _send(self, body: Any, headers: Mapping[str, str] | None = None) -> Reply:
        return self._connection.send("POST", self.endpoint, body, headers)

    def failure(self, answer: Answer) -> ServerError:
        key = apis.KEYS.get(self.api)
        cures: dict[int, str] = {
            401: f"set {key} to its key" if key else "it wants a key, which this API has no variable for",
            403: f"the key in {key} may not use it" if key else "it wants a key, which this API has no variable for",
            404: f"check the address, the API ({self.api}) and the name of the model ({self.model})",
            405: f"check the address and the API ({self.api})",
            413: "send fewer or shorter texts",
            422: "send what its message asks for",
            429: "it is busy: try again later",
            503: "it is busy or starting: try again later",
        }
        cure = cures.get(answer.status, "see the server's log" if answer.status >= 500 else "")
        if answer.status < 300 and not answer.refused:
            cure = f"check that the server has the API {self.api}, and see its log"
        cause = (answer.error or "the answer has no vectors").strip()
        return ServerError(
            f"{self.url} answered {answer.status}: {cause}" + (f": {cure}" if cure else ""), answer.status
        )


class OpenAI(HttpServer):
    """OpenAI's API. This project's gateway is recognized by GET /v1/models, and gets the extra fields that it has."""

    api = "openai"

    def __init__(self, connection: Connection, model: str, batch: int) -> None:
        super().__init__(connection, model, batch)
        base = "" if connection.url.endswith("/v1") else "/v1"
        self.endpoint = f"{base}/embeddings"
        self.prompt = _gateway_prompt(connection.send("GET", f"{base}/models").json(), model)
        self.adds_prompts = self.takes_normalize = self.prompt is not None

    def ask(self, texts: Sequence[str], side: Side = "raw", task: str = "", normalize: bool = False) -> Answer:
        extra: dict[str, Any] = {}
        if self.adds_prompts:
            side = _contract_side(self, side, self.prompt)
            extra = {"input_type": side, "normalize": normalize} | ({"task": task} if side == "query" else {})
        else:
            _require_raw(self, side)
        return apis.openai_answer(self._send(apis.openai_body(self.model, texts, extra)), len(texts))


class Tei(HttpServer):
    """text-embeddings-inference's own API."""

    api = "tei"
    endpoint = "/embed"

    def ask(self, texts: Sequence[str], side: Side = "raw", task: str = "", normalize: bool = False) -> Answer:
        _require_raw(self, side)
        return apis.tei_answer(self._send(apis.tei_body(texts, normalize)), len(texts))


class Cog(HttpServer):
    """Cog's API, with the inputs of this project's predict.py."""

    api = "cog"
    adds_prompts = True
    endpoint = "/predictions"

    def ask(self, texts: Sequence[str], side: Side = "raw", task: str = "", normalize: bool = False) -> Answer:
        side = _contract_side(self, side, _catalog_prompt(self.model))
        return apis.prediction_answer(self._send(apis.cog_body(texts, side, task, normalize)), len(texts))


class Replicate(HttpServer):
    """Replicate's predictions: a model by owner/name, or a version by its id."""

    api = "replicate"
    adds_prompts = True

    def __init__(
        self, connection: Connection, model: str, batch: int, sleep: Callable[[float], object] = time.sleep
    ) -> None:
        super().__init__(connection, model, batch)
        self._base, self._sleep = "" if connection.url.endswith("/v1") else "/v1", sleep
        name, _, version = model.rpartition(":") if ":" in model else (model, "", "")
        self._version = version or (None if "/" in name else name)
        self.endpoint = (
            f"{self._base}/predictions" if self._version else f"{self._base}/models/{quote(name)}/predictions"
        )

    def ask(self, texts: Sequence[str], side: Side = "raw", task: str = "", normalize: bool = False) -> Answer:
        side = _contract_side(self, side, _catalog_prompt(self.model))
        body = {"input": apis.cog_body(texts, side, task, normalize)["input"]}
        reply = self._create(body)
        if reply.status == 404 and not self._version and self._use_latest_version():
            reply = self._create(body)
        return apis.prediction_answer(self._ended(reply), len(texts))

    def _create(self, body: dict[str, Any]) -> Reply:
        return self._send(body | ({"version": self._version} if self._version else {}), {"Prefer": "wait"})

    def _use_latest_version(self) -> bool:
        """Only official models have a path of their own: others are run by the id of a version."""
        described = self._connection.send("GET", self.endpoint.removesuffix("/predictions")).json()
        latest = described.get("latest_version") if isinstance(described, dict) else None
        if not isinstance(latest, dict) or not latest.get("id"):
            return False
        self._version, self.endpoint = str(latest["id"]), f"{self._base}/predictions"
        return True

    def _ended(self, reply: Reply) -> Reply:
        """Poll until the prediction has ended."""
        waited = 0.0
        while isinstance(body := reply.json(), dict) and body.get("status") in ("starting", "processing"):
            if waited > MAX_PREDICTION_SECONDS:
                raise ServerError(
                    f"{self.url}: the prediction {body.get('id')} did not end in {waited:.0f} s: see its log"
                )
            self._sleep(POLL_SECONDS)
            waited += POLL_SECONDS
            reply = self._connection.send("GET", f"{self._base}/predictions/{quote(str(body.get('id')))}")
        return reply


def _gateway_prompt(models: Any, name: str) -> PromptKind | None:
    """The kind of prompt that this project's gateway adds for its model; None for any other server."""
    entries = models.get("data") if isinstance(models, dict) else None
    for entry in entries if isinstance(entries, list) else []:
        match entry:
            case {"owned_by": "e5", "id": str(id_), "prompt": "instruct" | "prefix" as prompt}:
                if id_ == name.partition(":")[0]:
                    return prompt  # type: ignore[no-any-return]
    return None


def _catalog_prompt(model: str) -> PromptKind | None:
    try:
        return catalog.get(catalog_name(model)).prompt
    except SettingsError:
        return None


def _contract_side(server: HttpServer, side: Side, prompt: PromptKind | None) -> Side:
    """The side to ask a server for that adds prompts. A document of an instruct model is a text without a prompt."""
    if side == "raw" and prompt != "instruct":
        raise ServerError(f"{server.url} adds the prompts itself: embed texts as queries or documents, not as they are")
    return "document" if side == "raw" else side


def _require_raw(server: HttpServer, side: Side) -> None:
    if side != "raw":
        raise ServerError(
            f"{server.url} adds no prompts: put the prompt in front of the texts, and embed them as they are"
        )
