"""Where vectors come from: this package's `Embedder`, or a server that speaks one of three APIs.

A backend works in two steps: a thread prepares the next texts while the device computes vectors.
"""

import hashlib
import typing
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
from mteb.abstasks.task_metadata import TaskMetadata

from e5 import catalog
from e5.embedder import Embedder
from e5.tokens import Tokenizer, Tokens
from e5.vectors import Vectors
from evaluation import protocols
from evaluation.client.remote import Server, ServerError
from evaluation.errors import EvaluationError, StoppedError
from evaluation.protocols import Prompt, Protocol

FINGERPRINT_TEXT = "A fixed sentence, whose vector tells one model from another."
REFUSALS = (400, 413, 422)
"""HTTP statuses of a server that will not embed these texts."""
CHARACTERS_PER_TOKEN = 4.3
"""Of English text, to estimate tokens where there is no tokenizer."""


@dataclass(frozen=True)
class Prepared:
    """Texts with their prompts, ready to be computed. `content`: for the backend. `tokens`: those that it will read."""

    content: Any
    tokens: int
    truncated: int


class Backend(typing.Protocol):
    """`max_tokens`: the limit in force, which a protocol may have lowered. `place`: the device, or the server's URL.

    `revision` changes with the model's weights and settings. `adds_prompts`: texts cannot be embedded without one.
    `unit_length`: vectors have length 1 in any case.
    """

    model: catalog.Model
    revision: str
    dtype: str
    place: str
    dimensions: int
    max_tokens: int
    adds_prompts: bool
    unit_length: bool

    def prepare(self, texts: Sequence[str], prompt: Prompt) -> Prepared: ...

    def compute(self, prepared: Prepared) -> Vectors:
        """Vectors of the prepared texts: float32 [N, D], in their order. Raises EvaluationError."""


class Local:
    """The model in this process."""

    def __init__(self, embedder: Embedder, max_tokens: int | None) -> None:
        self.embedder, self.model = embedder, embedder.model
        self.dtype, self.place, self.dimensions = embedder.dtype, embedder.device, embedder.dimensions
        self.tokenizer = copy(embedder.tokenizer)  # the embedder keeps its own limit
        self.max_tokens = min(self.tokenizer.max_tokens, max_tokens or self.tokenizer.max_tokens)
        self.tokenizer.max_tokens = self.max_tokens
        self.adds_prompts = self.unit_length = False
        self.revision = _digest(self.compute(self.prepare([FINGERPRINT_TEXT], short_prompt(self))))

    def prepare(self, texts: Sequence[str], prompt: Prompt) -> Prepared:
        """Unlike `Embedder.embed_texts` this accepts an empty text, which some data sets have."""
        tokens = self.tokenizer.encode(prompt.apply(text) for text in texts)
        return Prepared(tokens, tokens.total, len(tokens.truncated))

    def compute(self, prepared: Prepared) -> Vectors:
        tokens: Tokens = prepared.content
        try:
            return self.embedder.embed_tokens(tokens)
        except FloatingPointError as error:
            raise StoppedError(str(error)) from error


class Remote:
    """A server. With a tokenizer, texts are cut here if the protocol's limit is lower than the model's."""

    def __init__(
        self, server: Server, model: catalog.Model, max_tokens: int | None, tokenizer: Tokenizer | None
    ) -> None:
        self.server, self.model, self.tokenizer = server, model, tokenizer
        self.dtype, self.place = "as served", server.url
        self.max_tokens = min(model.max_tokens, max_tokens or model.max_tokens)
        self.cuts = self.max_tokens < model.max_tokens
        if self.cuts and tokenizer is None:
            raise EvaluationError(
                f"the protocol cuts texts at {max_tokens} tokens and {model.name} reads {model.max_tokens}: pass "
                "--weights with a folder that has its tokenizer.json, or use --protocol mteb"
            )
        self.adds_prompts = server.adds_prompts
        vectors = self._embed([FINGERPRINT_TEXT], short_prompt(self))
        self.dimensions, self.revision = vectors.shape[1], _digest(vectors)
        self.unit_length = bool(abs(np.linalg.norm(vectors) - 1) < 1e-3)

    def prepare(self, texts: Sequence[str], prompt: Prompt) -> Prepared:
        tokens, truncated = sum(map(len, texts)) / CHARACTERS_PER_TOKEN, 0
        if self.tokenizer is not None:
            texts, tokens, truncated = self._cut(texts, prompt)
        return Prepared((texts, prompt), int(tokens), truncated)

    def compute(self, prepared: Prepared) -> Vectors:
        texts, prompt = prepared.content
        return self._embed(texts, prompt)

    def _embed(self, texts: Sequence[str], prompt: Prompt) -> Vectors:
        try:
            if self.server.adds_prompts:
                return self.server.embed(texts, prompt.side, prompt.task)
            return self.server.embed([prompt.apply(text) for text in texts])
        except ServerError as error:
            # Refused texts, for example empty ones, are the task's: others may have none.
            raise (EvaluationError if error.status in REFUSALS else StoppedError)(str(error)) from error

    def _cut(self, texts: Sequence[str], prompt: Prompt) -> tuple[list[str], int, int]:
        """The texts, cut where the protocol cuts them, with the number of tokens and of texts that were cut."""
        assert self.tokenizer is not None
        prompted = [prompt.apply(text) for text in texts]
        tokens = self.tokenizer.encode(prompted)
        if not self.cuts or not tokens.truncated:
            return list(texts), tokens.total, len(tokens.truncated)
        kept = []
        for text, whole, ids in zip(texts, prompted, tokens.ids, strict=True):
            full = len(ids) == self.tokenizer.max_tokens
            kept.append(self.tokenizer.cut(whole)[len(whole) - len(text) :] if full else text)
        return kept, tokens.total, len(tokens.truncated)


def short_prompt(backend: Backend) -> Prompt:
    """As little as the backend can put in front of a text."""
    kind = backend.model.prompt
    return Prompt(kind, "query" if backend.adds_prompts and kind == "prefix" else "raw", "")


def check(backend: Backend, protocol: Protocol, task: TaskMetadata) -> None:
    """Raise EvaluationError if the backend cannot embed the task's texts as the protocol says."""
    prompt = protocols.main_prompt(protocol, backend.model.prompt, task)
    if backend.adds_prompts and prompt.side == "raw":
        raise EvaluationError(
            f"the protocol {protocol.name} embeds {task.name} without prompts, and {backend.place} adds one "
            f"to every text of {backend.model.name}: use --protocol unilm, or leave out --against"
        )
    if backend.unit_length and not protocols.normalized(protocol, task):
        raise EvaluationError(
            f"the protocol {protocol.name} evaluates {task.name} on vectors of any length, and {backend.place} "
            "gives vectors of length 1: use --protocol mteb, or leave out --against"
        )


def _digest(vectors: Vectors) -> str:
    """Twelve hexadecimal digits that change with the model's weights, dtype and arithmetic."""
    return hashlib.sha256(vectors.tobytes()).hexdigest()[:12]
