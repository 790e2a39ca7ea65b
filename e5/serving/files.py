"""The input `file`: a file of texts → a Parquet file of vectors, by the units of `e5.corpus`.

The rows share the model's batches with all other requests. Every row gets a vector, or the file is refused with the
first row that cannot have one. Imports torch and pyarrow.
"""

import asyncio
import os
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import pyarrow.parquet as pq

from e5.corpus import plan as plans
from e5.corpus import unit as steps
from e5.corpus.errors import CorpusError
from e5.corpus.parts import DIMENSION_BYTES
from e5.corpus.plan import Identity, Options, Plan, UnitSize
from e5.corpus.report import Progress, duration
from e5.corpus.rows import UNREADABLE, Range, read
from e5.corpus.unit import Prepared
from e5.embedder import normalize
from e5.errors import InputError, ModelError, OverloadError
from e5.inputs import check_text
from e5.limits import Limits
from e5.serving.recognize import recognize
from e5.serving.request import FILE_VECTORS, FileRequest
from e5.serving.serialize import to_float16
from e5.tokens import TokenIds, Tokens
from e5.vectors import Vectors

if TYPE_CHECKING:
    from e5.serving.batcher import Batcher

T = TypeVar("T")
RESULT = "vectors.parquet"
MAX_ID = 1_000
"""Characters."""
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
        plan, characters = await _in_thread(self._check)
        total, done, texts, tokens, truncated = sum(characters), 0, 0, 0, 0
        started = time.perf_counter()
        progress = Progress(len(plan.units), 0)
        path = self.folder / RESULT
        writer: pq.ParquetWriter | None = None
        async for unit, prepared in self._prepared(plan):
            rows = await self._embed(prepared)
            table = await _in_thread(steps.table, prepared, rows, plan.options)
            writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd", use_dictionary=False)
            await _in_thread(writer.write_table, table)
            done += characters[unit]
            texts, tokens = texts + len(prepared.ids), tokens + prepared.tokens.total
            truncated += len(prepared.tokens.truncated)
            if 0 < done < total:
                self._check_time(time.perf_counter() - started, done / total, plan.records)
            progress.add(len(prepared.ids), prepared.tokens.total)
            if progress.is_due:
                self.report(str(progress))
        assert writer is not None
        await _in_thread(writer.close)
        self.link.unlink()
        return FileResult(path, texts, tokens, truncated)

    def _check(self) -> tuple[Plan, list[int]]:
        """The plan, and the characters of each unit. Raises InputError for a row that cannot be embedded."""
        request, model = self.request, self.embedder.model
        layout = recognize(request.path)
        self.link = self.folder / f"file.{layout.format}"  # its ending says the format
        try:
            self.link.hardlink_to(request.path)
        except OSError:  # another file system
            self.link.symlink_to(request.path.absolute())
        identity = Identity(
            model=model.name,
            weights="",
            prompt=model.prompt,
            pooling=model.pooling,
            special_tokens=model.special_tokens,
            dtype=self.embedder.dtype,
            dimensions=self.embedder.dimensions,
            max_tokens=self.embedder.tokenizer.max_tokens,
        )
        options = Options(
            identity,
            layout.side,
            request.task,
            request.long_texts,
            FILE_VECTORS[request.encoding_format],
            request.normalize,
            layout.columns,
        )
        if layout.side == "query":
            self.embedder.tokenize(["a"], [], request.task)  # is the task too long?
        size = plans.unit_size(model, "cpu" if self.embedder.device == "cpu" else "cuda")
        plan = plans.make(options, [str(self.link)], size)
        plan = replace(plan, files=(replace(plan.files[0], name=""),))  # an id is then the row's number alone
        units, characters = self._read_all(plan, size)
        if not any(characters):
            raise InputError("`file` has no rows")
        plan = replace(plan, units=tuple(units))
        if request.long_texts == "error":
            for unit in range(len(units)):
                for row, reason in steps.prepare(plan, unit, self.embedder).rejected:
                    raise InputError(f"`file`, row {row}: {reason}")
        return plan, characters

    def _read_all(self, plan: Plan, size: UnitSize) -> tuple[list[Range], list[int]]:
        """Units, and the characters of each. Raises InputError for a bad row, and for too many rows.

        Parquet is cut again by the texts themselves: it may store a text once that a million rows have.
        """
        units: list[Range] = []
        characters: list[int] = []
        options, rows = plan.options, 0
        max_rows = int(self.limits.file_bytes / (DIMENSION_BYTES[options.vectors] * options.identity.dimensions))
        for part in plan.units:
            first, stop, count = part.first, part.first + part.records, 0
            for number, length in self._checked_rows(plan, part):
                rows, count = rows + 1, count + length
                if rows > max_rows:
                    raise self._too_many_rows(plan, max_rows)
                if plan.files[0].format == "parquet" and count >= size.bytes:
                    units.append(replace(part, first=first, records=number + 1 - first))
                    characters.append(count)
                    first, count = number + 1, 0
            if first < stop:
                units.append(replace(part, first=first, records=stop - first))
                characters.append(count)
        return units, characters

    def _checked_rows(self, plan: Plan, part: Range) -> Iterator[tuple[int, int]]:
        """Number and characters of each row. Raises InputError for one that cannot be embedded."""
        columns = plan.options.columns
        try:
            for row in read(plan.files[0], part, columns):
                try:
                    if row.problem is not None:
                        raise InputError(row.problem)
                    if len(row.id) > MAX_ID:
                        raise InputError(f"`id` has {len(row.id):,} characters: pass at most {MAX_ID:,}")
                    yield row.number, len(check_text(columns.text, row.text, self.limits.characters))
                except InputError as error:
                    raise InputError(f"`file`, row {row.number + 1}: {error}") from None
        except UNREADABLE as error:
            if isinstance(error, InputError):  # which is a ValueError
                raise
            raise InputError(f"`file` is damaged ({error}): write it again") from None

    def _too_many_rows(self, plan: Plan, max_rows: int) -> InputError:
        kind = plan.options.vectors
        smaller = "" if kind == "ubinary" else ", or encoding_format=float16, int8 or ubinary"
        return InputError(
            f"`file` has about {plan.records:,} rows, more than the {max_rows:,} whose {kind} vectors fit into "
            f"E5_MAX_FILE_BYTES={self.limits.file_bytes:,}: pass several files{smaller}"
        )

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
        except (FloatingPointError, ModelError) as error:  # it counts in the piece
            place = f"one of the rows {prepared.rows[0] + 1:,} to {prepared.rows[-1] + 1:,} of `file`"
            raise type(error)(re.sub(r"text \d+ of \d+", place, str(error))) from None
        finally:  # the others, after an error
            for task in tasks:
                task.cancel()
        rows = prepared.tokens.average(vectors)
        rows = normalize(rows) if self.request.normalize else rows
        if self.request.encoding_format == "float16":
            to_float16(rows)
        return rows

    async def _embed_piece(self, ids: list[TokenIds]) -> Vectors:
        os.utime(self.folder)  # so that it does not look left over
        tokens = Tokens(ids, [len(each) for each in ids])
        while True:
            try:
                return (await self.batcher.embed(tokens)).vectors
            except OverloadError:
                await asyncio.sleep(RETRY_SECONDS)

    def _check_time(self, seconds: float, share: float, rows: int) -> None:
        """Refuse the file if the rate so far predicts more than the limit. `share`: of the file, in `seconds`."""
        limit, expected = self.limits.file_seconds, seconds / share
        if expected > limit:
            raise InputError(
                f"`file` would take about {duration(expected)}, more than E5_MAX_FILE_SECONDS={limit:,} allows: "
                f"about {int(rows * limit / expected):,} of its {rows:,} rows fit; pass several files, or use "
                "scripts/corpus.py"
            )


async def _in_thread(function: Callable[..., T], *arguments: object) -> T:
    """Like asyncio.to_thread(), but a cancellation waits for the thread, which may be writing a file."""
    task = asyncio.ensure_future(asyncio.to_thread(function, *arguments))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


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
