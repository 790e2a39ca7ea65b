"""The front for Cog: its inputs in, the engine's call, its outputs back. What is computed, and how, is in `e5`.

Cog's build reads this file without running it, so inputs and outputs are plain literals (scripts/cog_schema.py refuses
the rest). One thread runs the model: the event loop answers health checks and cancellations while a batch is computed.
"""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import cog
from cog import BaseModel, BasePredictor, Input

import e5  # its parts load when first used: torch in setup(), so that a tool may import this file at no cost
from e5 import openmp, wire
from e5.inputs import check_task, gather
from e5.tokens import Tokens
from e5.vectors import Vectors

TASK = "Given a web search query, retrieve relevant passages that answer the query"
TASK_HELP = "What the queries look for, in one sentence: goes with each query, never with documents. May be empty."
QUERY_HELP = "A query to embed, with the task's instruction."
DOCUMENT_HELP = "A document or passage to embed, without an instruction. One query and one document give a score."
NORMALIZE_HELP = "Scale each returned vector to length 1, so that a dot product is a cosine. Scores stay the same."
QUERIES_HELP = "More queries, as a list: their vectors follow the single query's."
DOCUMENTS_HELP = "More documents, as a list: their vectors follow the single document's."
FORMAT_HELP = "float: lists of numbers. base64: little-endian float32 bytes, smaller and faster for large batches."

INLINE_CHARACTERS, INLINE_FLOATS = 4_096, 65_536  # what the event loop does by itself, in milliseconds; more: a thread


class Output(BaseModel):  # type: ignore[misc]  # mypy is told not to read cog
    """Vectors of all queries, then of all documents; scores are 100 × cosine, queries × documents."""

    embeddings: list[list[float]] | None
    embeddings_base64: list[str] | None
    score: float | None
    scores: list[list[float]] | None


class Predictor(BasePredictor):  # type: ignore[misc]
    """One loaded model; requests wait for it in the order of their coming."""

    def __init__(self) -> None:
        # One thread is lock and queue in one: a prediction that is cancelled while it waits never starts, and one
        # that is cancelled while it runs stops after the batch that is being computed. Two never overlap.
        self.model_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")
        self.forward_failed = False

    async def setup(self) -> None:
        """Load the model and warm it up through predict(). Raises SettingsError, WeightsError."""
        started = time.perf_counter()
        settings = e5.Settings.from_environment()
        openmp.spin_shortly()
        load = e5.Embedder.from_settings
        phases = {"import": time.perf_counter() - started}
        self.embedder = await asyncio.get_running_loop().run_in_executor(self.model_thread, load, settings)
        loaded = time.perf_counter()
        await self.predict(TASK, "warm", "up", False, None, None, "float")
        phases |= self.embedder.phases | {"warm-up": time.perf_counter() - loaded}
        seconds = ", ".join(f"{name} {value:.1f} s" for name, value in phases.items())
        model = f"{self.embedder.model.name} ({self.embedder.source}), {self.embedder.dtype} on {self.embedder.device}"
        print(f"Ready: {model}: {sum(phases.values()):.1f} s = {seconds}", flush=True)

    async def healthcheck(self) -> bool:
        """Whether the model computes. Asked of the model only after a failure: a broken GPU stays broken."""
        if self.forward_failed:
            await self._embed(self.embedder.tokenize(["health"], [], ""))
        return True

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
        left, right = gather_texts(query, document, queries, documents, task)
        if left and not task and self.embedder.uses_task:
            print("Warning: `task` is empty: queries are embedded without the instruction that this model is made for")
        started = time.perf_counter()
        tokenize = partial(self.embedder.tokenize, left, right, task)
        large = sum(map(len, left + right)) + len(task) * len(left) > INLINE_CHARACTERS
        tokens = await asyncio.to_thread(tokenize) if large else tokenize()
        if tokens.truncated:
            print(f"Warning: {tokens.truncated} of {len(tokens)} texts were cut to {max(map(len, tokens.ids))} tokens")
        tokenized = time.perf_counter()
        vectors, begun, done = await self._embed(tokens)
        embedded = time.perf_counter()
        answer = partial(encode, vectors, len(left), normalize, encoding_format)
        output = await asyncio.to_thread(answer) if vectors.size > INLINE_FLOATS else answer()
        spans = {"tokenize": (started, tokenized), "queued": (tokenized, begun), "model": (begun, done)}
        spans["encode"] = (embedded, time.perf_counter())
        metrics: dict[str, float] = {"texts": len(tokens), "input_tokens": tokens.total, "truncated": tokens.truncated}
        metrics |= {f"{name}_ms": round((end - start) * 1e3, 3) for name, (start, end) in spans.items()}
        for name, value in metrics.items():
            self.record_metric(name, value)
        return output

    async def _embed(self, tokens: Tokens) -> tuple[Vectors, float, float]:
        """Vectors [N, D] from the model's thread, and when it began and ended (s, perf_counter)."""

        stop = threading.Event()

        def forward() -> tuple[Vectors, float, float]:
            begun = time.perf_counter()
            try:
                vectors = self.embedder.embed_tokens(tokens, stop=stop)
            except Exception:
                self.forward_failed = not stop.is_set()
                raise
            self.forward_failed = False
            return vectors, begun, time.perf_counter()

        try:
            return await asyncio.get_running_loop().run_in_executor(self.model_thread, forward)
        except asyncio.CancelledError:
            stop.set()
            raise


def gather_texts(
    query: str | None, document: str | None, queries: list[str] | None, documents: list[str] | None, task: str
) -> tuple[list[str], list[str]]:
    """All queries and all documents of a request, checked. Raises InputError."""
    left = gather("query", query, "queries", queries)
    right = gather("document", document, "documents", documents)
    check_task(task)
    if not left and not right:
        raise e5.InputError("there is no text: pass at least one of `query`, `document`, `queries`, `documents`")
    return left, right


def encode(vectors: Vectors, queries: int, unit_length: bool, encoding_format: str) -> Output:
    """float32 [N, D], the first `queries` of them queries → the answer."""
    shown = e5.normalize(vectors) if unit_length else vectors
    base64 = encoding_format == "base64"
    matrix = e5.scores(vectors[:queries], vectors[queries:]) if 0 < queries < len(vectors) else vectors[:0]
    return Output(
        embeddings=None if base64 else wire.rows(shown),
        embeddings_base64=wire.base64_rows(shown) if base64 else None,
        score=wire.number(matrix[0, 0]) if matrix.size == 1 else None,
        scores=wire.rows(matrix) if matrix.size else None,
    )
