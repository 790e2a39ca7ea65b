"""Servers that embed texts over HTTP, behind one interface: OpenAI's API, TEI's, Cog's and Replicate's.

>>> from evaluation.client.remote import connect
>>> server = connect("http://127.0.0.1:8080", "tei", "multilingual-e5-small")
>>> server.embed(["query: how tall is it?", "passage: It is 300 m high."])

OpenAI's and TEI's APIs take whole texts: the client puts the prompt in front of them (side "raw"). Cog's and
Replicate's put it there themselves (sides "query" and "document"), and so does this project's gateway in all its APIs.
"""

import os
from collections.abc import Sequence
from typing import Protocol

from e5.vectors import Vectors
from evaluation.client import apis, servers
from evaluation.client.apis import APIS as APIS
from evaluation.client.apis import Answer as Answer
from evaluation.client.apis import Side as Side
from evaluation.client.http_client import READ_SECONDS, Connection
from evaluation.client.http_client import ServerError as ServerError
from evaluation.client.servers import catalog_name as catalog_name

BATCH = 32
"""Texts of one request: TEI's default limit."""


class Server(Protocol):
    """A server of one of the APIs. Not thread-safe.

    `adds_prompts`: True if the server puts the prompt in front of queries and documents; False if the client sends the
    whole text, with side "raw". `takes_normalize`: whether a request can say that vectors get length 1.
    """

    api: apis.Api
    url: str
    model: str
    adds_prompts: bool
    takes_normalize: bool

    def embed(self, texts: Sequence[str], side: Side = "raw", task: str = "", normalize: bool = False) -> Vectors:
        """Embed texts → float32 [N, D], in their order, in requests of at most `batch` texts.

        `normalize` True gives vectors of length 1 whatever the server does. False gives them as the server does, which
        for OpenAI's API is usually length 1. Raises ServerError.
        """

    def ask(self, texts: Sequence[str], side: Side = "raw", task: str = "", normalize: bool = False) -> Answer:
        """Send one request → the answer, good or bad. Raises ServerError only if there is no answer at all."""

    def failure(self, answer: Answer) -> ServerError:
        """The error for an answer without usable vectors, with cause and cure."""

    def close(self) -> None: ...


def connect(url: str, api: str, model: str, *, batch: int = BATCH, read_seconds: float = READ_SECONDS) -> Server:
    """The server at `url`. Sends no text yet; asks an `openai` server which models it has.

    `model`: the name that the server has for it; for Replicate owner/name, owner/name:version or version. `batch`:
    the most texts of a request. Keys come from OPENAI_API_KEY and REPLICATE_API_TOKEN. Raises ServerError for an
    unknown API, or a server that does not answer.
    """
    classes: dict[str, type[servers.HttpServer]] = {
        "openai": servers.OpenAI,
        "tei": servers.Tei,
        "cog": servers.Cog,
        "replicate": servers.Replicate,
    }
    if api not in classes:
        raise ServerError(f"no API is called {api!r}: choose one of {', '.join(APIS)}")
    key = os.environ.get(apis.KEYS.get(api, ""), "").strip()
    connection = Connection(url, {"Authorization": f"Bearer {key}"} if key else {}, read_seconds=read_seconds)
    return classes[api](connection, model, batch)
