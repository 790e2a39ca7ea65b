"""The service behind predict.py: one call checks limits, embeds texts in shared batches and encodes the output.

Importing this module does not load torch; `Service.start` does.
"""

import asyncio
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Self

import e5
from e5.limits import Limits
from e5.network import openmp
from e5.prompts import DEFAULT_TASK
from e5.serving import serialize
from e5.serving.request import EmbedRequest
from e5.serving.tokenizing import TokenizerPool
from e5.settings import Settings
from e5.vectors import Vectors

if TYPE_CHECKING:
    from e5.serving.batcher import Batcher

Metrics = dict[str, str | int | float]

INLINE_CHARACTERS, INLINE_FLOATS = 4_096, 65_536
"""The event loop itself tokenizes and encodes up to these sizes, which takes milliseconds. Larger requests use worker
threads, so that health checks and cancellations don't wait."""


@dataclass(frozen=True)
class EncodedOutput:
    """Vectors of all queries, then of all documents, in one of the two formats; scores are 100 × cosine.

    `score` needs exactly one query and one document, `scores` [queries, documents] at least one of each.
    """

    embeddings: serialize.JsonRows | None
    embeddings_base64: list[str] | None
    score: float | None
    scores: serialize.JsonRows | None


@dataclass(frozen=True)
class EmbedResult:
    """A request's output, the metrics to record with it, and warnings for its log."""

    output: EncodedOutput
    metrics: Metrics
    warnings: list[str]


class Service:
    """A loaded model that concurrent requests share. `phases`: the seconds that each step of `start` took."""

    def __init__(self, batcher: "Batcher", limits: Limits) -> None:
        self.batcher = batcher
        self.embedder = batcher.embedder
        self.limits = limits
        self.tokenizers = TokenizerPool(self.embedder.tokenize)
        self.phases: dict[str, float] = {}

    @classmethod
    async def start(cls, settings: Settings) -> Self:
        """Load the model and warm it up with a query and a document. Raises SettingsError, WeightsError."""
        started = time.perf_counter()
        openmp.spin_shortly()
        from e5.serving.batcher import Batcher  # imports torch, which reads the variable that spin_shortly sets

        imported = time.perf_counter()
        load = partial(e5.Embedder.from_settings, settings)
        service = cls(await Batcher.start(load, settings.limits.queued_tokens), settings.limits)
        loaded = time.perf_counter()
        await service.embed(EmbedRequest(["warm"], ["up"], DEFAULT_TASK))
        warm_up = time.perf_counter() - loaded
        service.phases = {"import": imported - started, **service.embedder.phases, "warm-up": warm_up}
        return service

    def __str__(self) -> str:
        embedder = self.embedder
        seconds = ", ".join(f"{name} {value:.1f} s" for name, value in self.phases.items())
        model = f"{embedder.model.name} ({embedder.source}), {embedder.dtype} on {embedder.device}"
        return f"{model}: {sum(self.phases.values()):.1f} s = {seconds}"

    async def healthcheck(self) -> bool:
        """Health probe. Raises ModelError if the pass fails."""
        return await self.batcher.healthcheck()

    async def embed(self, request: EmbedRequest) -> EmbedResult:
        """Embed a request's texts and score queries against documents. A cancelled call leaves the queue at once.

        Raises InputError for a request over a limit, OverloadError if the queue is full, and ModelError or
        FloatingPointError for a text that cannot be computed.
        """
        queries, documents, task = request.queries, request.documents, request.task
        self.limits.check_answer(len(queries), len(documents), self.embedder.dimensions, request.base64)
        warnings = []
        if queries and not task and self.embedder.uses_task:
            warnings += ["`task` is empty: queries are embedded without the instruction that this model is made for"]
        started = time.perf_counter()
        if request.characters > INLINE_CHARACTERS:
            tokens = await self.tokenizers.tokenize(request)
        else:
            tokens = self.embedder.tokenize(queries, documents, task)
        self.limits.check_tokens(tokens.total)
        if tokens.truncated:
            max_tokens = self.embedder.tokenizer.max_tokens
            warnings += [f"{tokens.truncated} of {len(tokens)} texts were cut to {max_tokens} tokens"]
        tokenized = time.perf_counter()
        embedded = await self.batcher.embed(tokens)
        done = time.perf_counter()
        if embedded.vectors.size > INLINE_FLOATS:
            output = await asyncio.to_thread(encode, embedded.vectors, request)
        else:
            output = encode(embedded.vectors, request)
        metrics: Metrics = {
            "model": self.embedder.model.name,
            "texts": len(tokens),
            "input_tokens": tokens.total,
            "truncated": tokens.truncated,
            "batch_texts": embedded.batch_texts,
            "tokenize_ms": _milliseconds(tokenized - started),
            "queued_ms": _milliseconds(embedded.queued_seconds),
            "model_ms": _milliseconds(embedded.model_seconds),
            "encode_ms": _milliseconds(time.perf_counter() - done),
        }
        return EmbedResult(output, metrics, warnings)


def encode(vectors: Vectors, request: EmbedRequest) -> EncodedOutput:
    """float32 [N, D], all queries and then all documents → output. Raises FloatingPointError for NaN or infinity."""
    queries = len(request.queries)
    returned = e5.normalize(vectors) if request.normalize else vectors
    # Before the scores, so that an error for NaN names the text's place in the whole request.
    embeddings = None if request.base64 else serialize.json_rows(returned)
    embeddings_base64 = serialize.base64_rows(returned) if request.base64 else None
    paired = 0 < queries < len(vectors)
    scores = serialize.json_rows(e5.scores(vectors[:queries], vectors[queries:])) if paired else None
    score = float(scores[0, 0]) if scores is not None and scores.size == 1 else None
    return EncodedOutput(embeddings, embeddings_base64, score, scores)


def _milliseconds(seconds: float) -> float:
    """Rounded to microseconds."""
    return round(seconds * 1e3, 3)
