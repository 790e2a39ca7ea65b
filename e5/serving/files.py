"""The input `file`: a file of texts → a Parquet file of vectors, by the units of `e5.corpus`.

The rows share the model's batches with all other requests. Every row gets a vector, or the file is refused with the
first row that cannot have one. Imports torch and pyarrow.
"""

import asyncio
import os
import re
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.parquet as pq

from e5.corpus import plan as plans
from e5.corpus import unit as steps
from e5.corpus.errors import CorpusError
from e5.corpus.plan import Identity, Options, Plan
from e5.corpus.recognize import recognize
from e5.corpus.report import Progress
from e5.corpus.sources import read
from e5.corpus.unit import Prepared
from e5.embedder import normalize
from e5.errors import InputError, OverloadError
from e5.inputs import check_text
from e5.limits import Limits
from e5.serving.request import FILE_VECTORS, FileRequest
from e5.tokens import TokenIds, Tokens
from e5.vectors import Vectors, check_finite

if TYPE_CHECKING:
    from e5.serving.batcher import Batcher

NAME = "vectors.parquet"
BYTES = {"float32": 4.0, "float16": 2.0, "int8": 1.0, "ubinary": 1 / 8}
PIECE_BATCHES, PIECES_QUEUED = 16, 2
"""A job has two pieces in the queue, each of tokens for 16 batches: enough for a busy device, and room for others."""
RETRY_SECONDS = 0.5


@dataclass(frozen=True)
class FileResult:
    """`path`: a Parquet file whose columns `e5.corpus.parts.table_of` describes."""

    path: Path
    texts: int
    tokens: int
    truncated: int


class FileJob:
    """One request's file. `report` gets a line of progress now and then."""

    def __init__(
        self, batcher: "Batcher", limits: Limits, request: FileRequest, folder: Path, report: Callable[[str], None]
    ) -> None:
        """`folder`: for the result, and a link to the input."""
        self.batcher, self.embedder = batcher, batcher.embedder
        self.limits, self.request, self.folder, self.report = limits, request, folder, report

    async def run(self) -> FileResult:
        """Embed the file. Cancelling this call ends it after the step that a thread has begun.

        Raises InputError for the file or a row, and the errors of `Batcher.embed` but OverloadError.
        """
        try:
            return await self._run()
        except CorpusError as error:
            raise InputError(re.sub(rf"\S*{re.escape(str(self.folder))}\S*", "`file`", str(error))) from None

    async def _run(self) -> FileResult:
        plan, characters = await asyncio.to_thread(self._check)
        total, done, texts, tokens, truncated = sum(characters), 0, 0, 0, 0
        started = time.perf_counter()
        progress = Progress(len(plan.units), 0)
        path = self.folder / NAME
        writer: pq.ParquetWriter | None = None
        try:
            async for unit, prepared in self._prepared(plan):
                rows = await self._embed(prepared)
                table = await asyncio.to_thread(steps.table, prepared, rows, plan.options)
                writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd", use_dictionary=False)
                await asyncio.to_thread(writer.write_table, table)
                done += characters[unit]
                texts, tokens = texts + len(prepared.ids), tokens + prepared.tokens.total
                truncated += len(prepared.tokens.truncated)
                os.utime(self.folder)  # so that it does not look left over
                if unit == 0 and done:
                    self._check_time((time.perf_counter() - started) * total / done, plan.records)
                progress.add(len(prepared.ids), prepared.tokens.total)
                if progress.is_due:
                    self.report(str(progress))
        finally:
            if writer is not None:
                await asyncio.to_thread(writer.close)
        self.link.unlink()
        return FileResult(path, texts, tokens, truncated)

    def _check(self) -> tuple[Plan, list[int]]:
        """The plan, and the characters of each unit. Raises InputError for a row that cannot be embedded."""
        request, model = self.request, self.embedder.model
        found = recognize(request.path)
        self.link = self.folder / f"file.{found.format}"  # its ending says the format
        try:
            self.link.hardlink_to(request.path)
        except OSError:  # another file system
            self.link.symlink_to(request.path.absolute())
        identity = Identity(
            model.name, "", model.prompt, model.pooling, model.special_tokens, self.embedder.dtype,
            self.embedder.dimensions, self.embedder.tokenizer.max_tokens,
        )  # fmt: skip
        kind = FILE_VECTORS[request.encoding_format]
        options = Options(
            identity, found.side, request.task, request.long_texts, kind, request.normalize, found.columns
        )
        size = plans.unit_size(model, "cuda" if self.embedder.device != "cpu" else "cpu")
        plan = plans.make(options, [str(self.link)], size)
        each = BYTES[kind] * identity.dimensions
        if plan.records * each > self.limits.file_bytes:
            raise InputError(
                f"`file` has about {plan.records:,} rows, whose {kind} vectors would take "
                f"{plan.records * each / 1e6:,.0f} MB, more than E5_MAX_FILE_BYTES={self.limits.file_bytes:,}: "
                f"{int(self.limits.file_bytes / each):,} rows fit; pass several files"
                + ("" if kind == "ubinary" else ", or encoding_format=float16, int8 or ubinary")
            )
        if found.side == "query":
            self.embedder.tokenize(["a"], [], request.task)  # is the task too long?
        characters = [self._check_unit(plan, unit) for unit in range(len(plan.units))]
        if not any(characters):
            raise InputError("`file` has no rows")
        return plan, characters

    def _check_unit(self, plan: Plan, unit: int) -> int:
        characters, columns = 0, plan.options.columns
        for row in read(plan.files[0], plan.units[unit], columns):
            try:
                if row.problem is not None:
                    raise InputError(row.problem)
                characters += len(check_text(columns.text, row.text, self.limits.characters))
            except InputError as error:
                raise InputError(f"`file`, row {row.number + 1}: {error}") from None
        return characters

    async def _prepared(self, plan: Plan) -> AsyncIterator[tuple[int, Prepared]]:
        """The units in order; the next is read and tokenized while one is computed."""

        def start(unit: int) -> asyncio.Task[Prepared]:
            return asyncio.create_task(asyncio.to_thread(steps.prepare, plan, unit, self.embedder))

        following = start(0)
        try:
            for unit in range(len(plan.units)):
                prepared = await following
                if unit + 1 < len(plan.units):
                    following = start(unit + 1)
                for name, reason in prepared.rejected:  # with long_texts=error: too long
                    raise InputError(f"`file`, {name}: {reason}")
                yield unit, prepared
        finally:
            following.cancel()

    async def _embed(self, prepared: Prepared) -> Vectors:
        """The vectors of a unit's texts, float32 [N, D]."""
        ids = prepared.tokens.ids
        vectors = np.empty((len(ids), self.embedder.dimensions), np.float32)
        turns = asyncio.Semaphore(PIECES_QUEUED)

        async def embed(piece: list[int]) -> None:
            async with turns:
                vectors[piece] = await self._embed_piece([ids[index] for index in piece])

        pieces = _pieces(ids, PIECE_BATCHES * self.embedder.max_batch_tokens)
        tasks = [asyncio.create_task(embed(piece)) for piece in pieces]
        try:
            await asyncio.gather(*tasks)
        finally:  # the others, after an error
            for task in tasks:
                task.cancel()
        rows = prepared.tokens.average(vectors)
        check_finite(rows)
        return normalize(rows) if self.request.normalize else rows

    async def _embed_piece(self, ids: list[TokenIds]) -> Vectors:
        tokens = Tokens(ids, [len(each) for each in ids])
        while True:
            try:
                return (await self.batcher.embed(tokens)).vectors
            except OverloadError:
                await asyncio.sleep(RETRY_SECONDS)

    def _check_time(self, seconds: float, rows: int) -> None:
        """Is there time for all units? `seconds`: by the rate of the first one."""
        limit = self.limits.file_seconds
        if seconds > limit:
            raise InputError(
                f"`file` would take about {seconds / 60:,.0f} minutes, more than E5_MAX_FILE_SECONDS={limit:,} allows: "
                f"about {int(rows * limit / seconds):,} of its {rows:,} rows fit; pass several files, or use "
                "scripts/corpus.py"
            )


def _pieces(ids: list[TokenIds], max_tokens: int) -> list[list[int]]:
    """Indices of sequences, longest first, in pieces of at most `max_tokens`, or of one longer sequence."""
    pieces: list[list[int]] = []
    room = 0
    for index in sorted(range(len(ids)), key=lambda index: -len(ids[index])):
        if not pieces or len(ids[index]) > room:
            pieces.append([])
            room = max_tokens
        pieces[-1].append(index)
        room -= len(ids[index])
    return pieces
