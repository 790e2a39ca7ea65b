"""The front for Cog: its inputs in, the engine's call, its outputs back. What is computed, and how, is in `e5`.

Cog's build reads this file without running it, so inputs and outputs are plain literals (e5_cog/static_schema.py
refuses the rest). Predictions that run at the same time share batches (e5/serving/batcher.py); the event loop answers
health checks and cancellations meanwhile.
"""

import asyncio
import time
from functools import partial
from pathlib import Path

import cog
from cog import BaseModel, BasePredictor, Input

import e5  # its parts load when first used: torch in setup(), so that a tool may import this file at no cost
from e5.inputs import check_task, gather
from e5.limits import Limits
from e5.network import openmp
from e5.serving import serialize
from e5.vectors import Vectors
from e5_cog.housekeeping import sweep

TASK = "Given a web search query, retrieve relevant passages that answer the query"
TASK_HELP = "What the queries look for, in one sentence: goes with each query, never with documents. May be empty."
QUERY_HELP = "A query to embed, with the task's instruction."
DOCUMENT_HELP = "A document or passage to embed, without an instruction. One query and one document give a score."
NORMALIZE_HELP = "Scale each returned vector to length 1, so that a dot product is a cosine. Scores stay the same."
QUERIES_HELP = "More queries, as a list: their vectors follow the single query's."
DOCUMENTS_HELP = "More documents, as a list: their vectors follow the single document's."
FORMAT_HELP = "float: lists of numbers. base64: little-endian float32 bytes, smaller and faster for large batches."

# Cog (coglet 0.23) leaves two empty folders behind for each prediction: 12 kB and three inodes, for ever.
COG_FOLDERS = Path("/tmp/coglet/predictions")
SWEEP_SECONDS, SWEEP_AGE = 60, 900  # how often old ones are removed, and how old: no prediction takes that long

INLINE_CHARACTERS, INLINE_FLOATS = 4_096, 65_536  # what the event loop does by itself, in milliseconds; more: a thread


class Output(BaseModel):  # type: ignore[misc]  # mypy is told not to read cog
    """Vectors of all queries, then of all documents; scores are 100 × cosine, queries × documents."""

    embeddings: list[list[float]] | None
    embeddings_base64: list[str] | None
    score: float | None
    scores: list[list[float]] | None


class Predictor(BasePredictor):  # type: ignore[misc]
    """One loaded model, and the queue in front of it."""

    async def setup(self) -> None:
        """Load the model and warm it up through predict(). Raises SettingsError, WeightsError."""
        started = time.perf_counter()
        settings = e5.Settings.from_environment()
        openmp.spin_shortly()
        from e5.serving.batcher import Batcher  # loads torch, which must find the environment as it is now

        self.limits = settings.limits
        self.next_sweep = 0.0
        phases = {"import": time.perf_counter() - started}
        load = partial(e5.Embedder.from_settings, settings)
        self.batcher = await Batcher.start(load, settings.limits.queued_tokens)
        self.embedder = self.batcher.embedder
        loaded = time.perf_counter()
        await self.predict(TASK, "warm", "up", False, None, None, "float")
        phases |= self.embedder.phases | {"warm-up": time.perf_counter() - loaded}
        seconds = ", ".join(f"{name} {value:.1f} s" for name, value in phases.items())
        model = f"{self.embedder.model.name} ({self.embedder.source}), {self.embedder.dtype} on {self.embedder.device}"
        print(f"Ready: {model}: {sum(phases.values()):.1f} s = {seconds}", flush=True)

    async def healthcheck(self) -> bool:
        """Whether the model computes. Asked of the model only after a failure: a broken GPU stays broken."""
        return await self.batcher.works()

    @cog.concurrent(max=64)  # type: ignore[untyped-decorator]
    async def predict(
        self,
        task: str = Input(description=TASK_HELP, default=TASK),
        query: str | None = Input(description=QUERY_HELP, default=None),
        document: str | None = Input(description=DOCUMENT_HELP, default=None),
        normalize: bool = Input(description=NORMALIZE_HELP, default=False),
        queries: list[str] | None = Input(description=QUERIES_HELP, default=None),
        documents: list[str] | None = Input(description=DOCUMENTS_HELP, default=None),
        encoding_format: str = Input(description=FORMAT_HELP, default="float", choices=["float", "base64"]),
    ) -> Output:
        """Embed the texts. Raises InputError, which names the input, the cause and the cure."""
        left, right = gather_texts(self.limits, query, document, queries, documents, task)
        self.limits.check_answer(len(left), len(right), self.embedder.dimensions, encoding_format == "base64")
        if left and not task and self.embedder.uses_task:
            print("Warning: `task` is empty: queries are embedded without the instruction that this model is made for")
        started = time.perf_counter()
        prepare = partial(self.batcher.prepare, left, right, task)
        large = sum(map(len, left + right)) + len(task) * len(left) > INLINE_CHARACTERS
        prepared = await asyncio.to_thread(prepare) if large else prepare()
        self.limits.check_tokens(prepared.tokens)
        if prepared.truncated:
            print(f"Warning: {prepared.truncated} of {len(prepared.ids)} texts were cut to {prepared.longest} tokens")
        tokenized = time.perf_counter()
        embedded = await self.batcher.embed(prepared)
        done = time.perf_counter()
        answer = partial(encode, embedded.vectors, len(left), normalize, encoding_format)
        output = await asyncio.to_thread(answer) if embedded.vectors.size > INLINE_FLOATS else answer()
        metrics: dict[str, str | int | float] = {
            "model": self.embedder.model.name,
            "texts": len(prepared.ids),
            "input_tokens": prepared.tokens,
            "truncated": prepared.truncated,
            "batch_texts": embedded.batch_texts,
            "tokenize_ms": milliseconds(tokenized - started),
            "queued_ms": milliseconds(embedded.queued_seconds),
            "model_ms": milliseconds(embedded.model_seconds),
            "encode_ms": milliseconds(time.perf_counter() - done),
        }
        for name, value in metrics.items():
            self.record_metric(name, value)
        if time.monotonic() > self.next_sweep:
            self.next_sweep = time.monotonic() + SWEEP_SECONDS
            asyncio.get_running_loop().run_in_executor(None, sweep, COG_FOLDERS, time.time() - SWEEP_AGE)
        return output


def gather_texts(
    limits: Limits,
    query: str | None,
    document: str | None,
    queries: list[str] | None,
    documents: list[str] | None,
    task: str,
) -> tuple[list[str], list[str]]:
    """All queries and all documents of a request, checked. Raises InputError."""
    left = gather("query", query, "queries", queries, limits.characters)
    right = gather("document", document, "documents", documents, limits.characters)
    check_task(task, limits.characters)
    if not left and not right:
        raise e5.InputError("there is no text: pass at least one of `query`, `document`, `queries`, `documents`")
    limits.check_texts(left + right, repeated=len(task) * len(left))
    return left, right


def encode(vectors: Vectors, queries: int, unit_length: bool, encoding_format: str) -> Output:
    """float32 [N, D], the first `queries` of them queries → the answer."""
    shown = e5.normalize(vectors) if unit_length else vectors
    base64 = encoding_format == "base64"
    embeddings = None if base64 else serialize.rows(shown)
    embeddings_base64 = serialize.base64_rows(shown) if base64 else None
    paired = 0 < queries < len(vectors)
    scores = serialize.rows(e5.scores(vectors[:queries], vectors[queries:])) if paired else None
    return Output(
        embeddings=embeddings,
        embeddings_base64=embeddings_base64,
        score=float(scores[0, 0]) if scores is not None and scores.size == 1 else None,
        scores=scores,
    )


def milliseconds(seconds: float) -> float:
    """Seconds → milliseconds to the microsecond."""
    return round(seconds * 1e3, 3)
