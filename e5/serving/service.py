"""The service behind predict.py: one call checks limits, embeds texts in shared batches and encodes the output.

Importing this module does not load torch; `Service.start` does.
"""

import asyncio
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Self

import e5
from e5.errors import InputError
from e5.limits import Limits
from e5.network import openmp
from e5.prompts import DEFAULT_TASK
from e5.serving import serialize
from e5.serving.request import EmbedRequest, FileRequest
from e5.serving.tokenizing import TokenizerPool
from e5.settings import Settings
from e5.tokens import Tokens
from e5.vectors import Vectors, check_finite, to_int8, to_ubinary

if TYPE_CHECKING:
    from e5.serving.batcher import Batcher

Metrics = dict[str, str | int | float]

INLINE_CHARACTERS, INLINE_FLOATS = 4_096, 65_536
"""The event loop itself tokenizes and encodes up to these sizes, which takes milliseconds. Larger requests use worker
threads, so that health checks and cancellations don't wait."""

FILE_JOBS = 2
"""At a time: while one reads, checks and writes, the device computes for the other. A third one waits."""
JOB = "e5-file-"
"""Beginning of the name of a file job's temporary folder."""


@dataclass(frozen=True)
class EncodedOutput:
    """Vectors of all queries, then of all documents, as numbers or in base64; scores are 100 × cosine.

    `scales`: for int8, vector ≈ scale × int8. `score` needs exactly one query and one document, `scores`
    [queries, documents] at least one of each. `tokens`: tokens of each text before truncation, with prompt and special
    tokens; `truncated`: indices of the texts that were cut. `token_ids` and `pieces`: for the format `tokens`. `file`:
    Parquet, for a file of texts.
    """

    tokens: serialize.JsonArray
    truncated: serialize.JsonArray
    embeddings: serialize.JsonArray | None = None
    embeddings_base64: list[str] | None = None
    scales: serialize.JsonArray | None = None
    score: float | None = None
    scores: serialize.JsonArray | None = None
    token_ids: serialize.JsonArray | None = None
    pieces: serialize.JsonArray | None = None
    file: Path | None = None


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
        self._file_jobs = asyncio.Semaphore(FILE_JOBS)

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

        Raises InputError for a request over a limit or a text that is refused, OverloadError if the queue is full, and
        ModelError or FloatingPointError for a text that cannot be computed.
        """
        dimensions = self.embedder.dimensions if request.encoding_format == "float" else 0
        self.limits.check_answer(len(request.queries), len(request.documents), dimensions)
        started = time.perf_counter()
        tokens, warnings = await self._tokenize(request)
        tokenized = time.perf_counter()
        metrics = self._metrics(len(tokens.lengths), tokens.total, len(tokens.truncated))
        metrics["tokenize_ms"] = _milliseconds(tokenized - started)
        if request.encoding_format == "tokens":
            self.limits.check_token_ids(tokens.total)
            return EmbedResult(self._list_tokens(tokens), metrics, warnings)
        embedded = await self.batcher.embed(tokens)
        done = time.perf_counter()
        if embedded.vectors.size > INLINE_FLOATS:
            output = await asyncio.to_thread(encode, embedded.vectors, tokens, request)
        else:
            output = encode(embedded.vectors, tokens, request)
        metrics |= {
            "batch_texts": embedded.batch_texts,
            "queued_ms": _milliseconds(embedded.queued_seconds),
            "model_ms": _milliseconds(embedded.model_seconds),
            "encode_ms": _milliseconds(time.perf_counter() - done),
        }
        return EmbedResult(output, metrics, warnings)

    async def embed_file(self, request: FileRequest, report: Callable[[str], None]) -> EmbedResult:
        """Embed a file of texts into a Parquet file in a folder of its own. `report` gets a line of progress at times.

        Raises InputError for the file, a row that cannot be embedded, and one of more rows than fit into the limits.
        """
        try:
            from e5.serving.files import FileJob
        except ImportError as error:
            raise InputError(
                f"this server has no {error.name}, which `file` needs: pip install 'e5-cog[cog]'"
            ) from None

        async with self._file_jobs:
            folder = Path(tempfile.mkdtemp(prefix=JOB))
            try:
                result = await FileJob(self.batcher, self.limits, request, folder, report).run()
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
        metrics = self._metrics(result.texts, result.tokens, result.truncated)
        warnings = [self._cut(result.truncated, result.texts)] if result.truncated else []
        empty = serialize.json_ints([])
        return EmbedResult(EncodedOutput(empty, empty, file=result.path), metrics, warnings)

    def _metrics(self, texts: int, tokens: int, truncated: int) -> Metrics:
        return {
            "model": self.embedder.model.name,
            "dtype": self.embedder.dtype,
            "max_tokens": self.embedder.tokenizer.max_tokens,
            "texts": texts,
            "input_tokens": tokens,
            "truncated": truncated,
        }

    def _cut(self, truncated: int, texts: int) -> str:
        return f"{truncated:,} of {texts:,} texts were cut to {self.embedder.tokenizer.max_tokens} tokens"

    async def _tokenize(self, request: EmbedRequest) -> tuple[Tokens, list[str]]:
        """The request's tokens, and warnings. Raises InputError."""
        embedder = self.embedder
        warnings = []
        if request.queries and not request.task and embedder.uses_task:
            warnings += ["`task` is empty: queries are embedded without the instruction that this model is made for"]
        if request.characters > INLINE_CHARACTERS:
            tokens = await self.tokenizers.tokenize(request)
        else:
            tokens = embedder.tokenize(request.queries, request.documents, request.task, request.long_texts)
        self.limits.check_tokens(tokens.total)
        if truncated := tokens.truncated:
            if request.long_texts == "error":
                raise embedder.too_long(request.name(truncated[0]), tokens.lengths[truncated[0]])
            warnings.append(self._cut(len(truncated), len(tokens)))
        return tokens, warnings

    def _list_tokens(self, tokens: Tokens) -> EncodedOutput:
        pieces = serialize.json_lists([self.embedder.tokenizer.pieces(ids) for ids in tokens.ids])
        token_ids = serialize.json_lists([ids.tolist() for ids in tokens.ids])
        lengths, truncated = serialize.json_ints(tokens.lengths), serialize.json_ints(tokens.truncated)
        return EncodedOutput(lengths, truncated, token_ids=token_ids, pieces=pieces)


def encode(sequences: Vectors, tokens: Tokens, request: EmbedRequest) -> EncodedOutput:
    """Vectors of the sequences of `tokens`, float32 [len(tokens), D] → output.

    Raises FloatingPointError for NaN or infinity.
    """
    queries = len(request.queries)
    vectors = tokens.average(sequences)
    # Before the scores, so that an error for NaN names the text's place in the whole request.
    check_finite(vectors)
    returned = e5.normalize(vectors) if request.normalize else vectors
    embeddings, encoded, scales = None, None, None
    match request.encoding_format:
        case "float":
            embeddings = serialize.json_numbers(returned)
        case "float16":
            encoded = serialize.base64_rows(serialize.to_float16(returned))
        case "int8":
            rows, row_scales = to_int8(returned)
            encoded, scales = serialize.base64_rows(rows), serialize.json_numbers(row_scales)
        case "ubinary":
            encoded = serialize.base64_rows(to_ubinary(returned))
        case _:
            encoded = serialize.base64_rows(returned)
    paired = 0 < queries < len(vectors)
    scores = serialize.json_numbers(e5.scores(vectors[:queries], vectors[queries:])) if paired else None
    score = float(scores[0, 0]) if scores is not None and scores.size == 1 else None
    lengths, truncated = serialize.json_ints(tokens.lengths), serialize.json_ints(tokens.truncated)
    return EncodedOutput(lengths, truncated, embeddings, encoded, scales, score, scores)


def _milliseconds(seconds: float) -> float:
    """Rounded to microseconds."""
    return round(seconds * 1e3, 3)
