"""The Cog predictor. It translates Cog's inputs and outputs; `e5.serving.service` does the work.

Cog's build reads this file without running it, so inputs and outputs are plain literals. e5_cog/static_schema.py
rejects anything that Cog's parser would drop or mangle.
"""

import asyncio
import os

import cog
from cog import BaseModel, BasePredictor, Input, Path

from e5.serving.request import FileRequest, read_request
from e5.serving.service import Service
from e5.settings import Settings
from e5_cog.housekeeping import clean_periodically, keep_private

TASK = "Given a web search query, retrieve relevant passages that answer the query"
TASK_HELP = "What the queries look for, in one sentence: goes with each query, never with documents. May be empty."
QUERY_HELP = "A query to embed, with the task's instruction."
DOCUMENT_HELP = "A document or passage to embed, without an instruction. One query and one document give a score."
NORMALIZE_HELP = "Scale each returned vector to length 1, so that a dot product is a cosine. Scores stay the same."
QUERIES_HELP = "More queries, as a list: their vectors follow the single query's."
DOCUMENTS_HELP = "More documents, as a list: their vectors follow the single document's."
FORMAT_HELP = "float: lists. base64: float32 bytes. float16, int8, ubinary: fewer bytes. tokens: token ids, no vectors."
FILE_HELP = "Many texts: JSONL, CSV or Parquet with a column text (or query, id, title), or txt. Gives back Parquet."
LONG_TEXTS_HELP = "Texts that are too long for the model. truncate: cut. error: refuse. average: the mean over windows."


class Output(BaseModel):  # type: ignore[misc]  # mypy skips cog
    """Vectors of all queries, then of all documents; scores are 100 × cosine, queries × documents."""

    embeddings: list[list[float]] | None
    embeddings_base64: list[str] | None
    scales: list[float] | None
    score: float | None
    scores: list[list[float]] | None
    tokens: list[int]
    truncated: list[int]
    token_ids: list[list[int]] | None
    pieces: list[list[str]] | None
    file: Path | None


class Predictor(BasePredictor):  # type: ignore[misc]
    """One loaded model that serves 64 predictions at a time, on twice as many slots (docs/serving.md#slots)."""

    async def setup(self) -> None:
        """Load the model. Raises SettingsError, WeightsError."""
        os.environ.pop("TOKIO_WORKER_THREADS", None)  # cog.yaml sets it for Cog's server; hf_xet would download slowly
        self.service = await Service.start(Settings.from_environment())
        keep_private()
        self.housekeeping = asyncio.create_task(clean_periodically())
        print(f"Ready: {self.service}", flush=True)

    async def healthcheck(self) -> bool:
        """Called for each GET /health-check."""
        return await self.service.healthcheck()

    @cog.concurrent(max=128)  # type: ignore[untyped-decorator]
    async def predict(
        self,
        task: str = Input(description=TASK_HELP, default=TASK),
        query: str | None = Input(description=QUERY_HELP, default=None),
        document: str | None = Input(description=DOCUMENT_HELP, default=None),
        normalize: bool = Input(description=NORMALIZE_HELP, default=False),
        queries: list[str] | None = Input(description=QUERIES_HELP, default=None),
        documents: list[str] | None = Input(description=DOCUMENTS_HELP, default=None),
        encoding_format: str = Input(
            description=FORMAT_HELP,
            default="float",
            choices=["float", "base64", "float16", "int8", "ubinary", "tokens"],
        ),
        long_texts: str = Input(
            description=LONG_TEXTS_HELP, default="truncate", choices=["truncate", "error", "average"]
        ),
        file: Path | None = Input(description=FILE_HELP, default=None),
    ) -> Output:
        """Embed the texts. Raises InputError, whose message names the input, the cause and the cure."""
        request = read_request(
            self.service.limits, task, query, document, normalize, queries, documents, encoding_format, long_texts, file
        )
        if isinstance(request, FileRequest):
            result = await self.service.embed_file(request, report=print)
        else:
            result = await self.service.embed(request)
        for warning in result.warnings:
            print(f"Warning: {warning}")
        for name, value in result.metrics.items():
            self.record_metric(name, value)
        output = result.output
        return Output(**vars(output) | {"file": Path(output.file) if output.file else None})
