"""Requests that come at the same time → shared batches on one device.

One thread owns the device. It takes a batch whenever it is free, of whatever waits then: an idle device makes nobody
wait, and while a batch is computed the next one gathers. Who comes first is said in e5/serving/schedule.py.

What goes wrong with a text fails the requests that have it, and no others: a batch that fails is computed again in
halves, down to single texts. Out of memory, the budget of tokens is halved as well, and doubled again after every 16
batches that succeed.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Self

import numpy as np

from e5.embedder import Embedder
from e5.errors import ModelError, OverloadError
from e5.network.memory import is_out_of_memory, release_memory, trim_memory
from e5.network.model import PendingResult
from e5.serving.schedule import Schedule, Text
from e5.vectors import Vectors, not_finite

log = logging.getLogger(__name__)

RECOVERY = 16
"""Batches in a row that must succeed before a budget that memory has halved is doubled."""
TRIM = 256
"""Batches between two calls of `trim_memory`, of 5 ms each."""


@dataclass(frozen=True)
class Prepared:
    """The token ids of a request's texts, each as the bytes of int32; their sum, and how many texts were cut."""

    ids: list[bytes]
    tokens: int
    truncated: int

    @property
    def longest(self) -> int:
        """The tokens of the longest text."""
        return max(map(len, self.ids), default=0) // 4


@dataclass(frozen=True)
class Embedded:
    """Vectors float32 [N, D], not normalised, and how they came about.

    `model_seconds`: while a batch with one of its texts was computed; `queued_seconds`: the rest of the time from
    handing over to the end. `batch_texts`: the texts of the largest batch that it shared.
    """

    vectors: Vectors
    queued_seconds: float
    model_seconds: float
    batch_texts: int


@dataclass(eq=False)
class _Request:
    """A caller that waits; `missing` counts the rows of `vectors` that are still to come."""

    vectors: Vectors
    tokens: int
    missing: int
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Embedded]
    handed_over: float = field(default_factory=time.perf_counter)
    model_seconds: float = 0.0
    batch_texts: int = 0


@dataclass(eq=False)
class _Batch:
    """Texts with the device. `result` may still be computing; without one, `failure` says what was raised."""

    texts: list[Text[_Request]]
    started: float = field(default_factory=time.perf_counter)
    result: PendingResult | None = None
    failure: str = ""
    out_of_memory: bool = False

    def fail(self, error: Exception) -> None:
        # Its text alone: an exception that is kept keeps the frames of the model, and their tensors, alive.
        self.failure, self.out_of_memory = _describe(error), is_out_of_memory(error)


class Batcher:
    """The queue in front of one Embedder, for any number of callers in event loops.

    `dead`: why the thread has ended, if it has; nothing is computed any more then. `suspect`: the last batch failed for
    another reason than memory, so that it is worth while to ask whether the device still works.
    """

    def __init__(self, embedder: Embedder, thread: ThreadPoolExecutor, max_queued_tokens: int) -> None:
        """`thread` has one worker, in which `embedder` was loaded: CUDA and OpenMP keep state by thread."""
        self.embedder = embedder
        self.max_queued_tokens = max_queued_tokens
        self.budget = embedder.max_batch_tokens
        self.dead = ""
        self.suspect = False
        self._successes = 0
        self._batches = 0
        self._thread = thread
        self._lock = threading.Lock()  # of the two below, which the event loop and the thread share
        self._schedule: Schedule[_Request] = Schedule()
        self._working = False

    @classmethod
    async def start(cls, load: Callable[[], Embedder], max_queued_tokens: int) -> Self:
        """Load the model in the thread that will run it."""
        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")
        return cls(await asyncio.get_running_loop().run_in_executor(thread, load), thread, max_queued_tokens)

    def prepare(self, queries: Sequence[str], documents: Sequence[str], task: str) -> Prepared:
        """Prompt and tokenise checked texts. May run in any thread, beside the device. Raises InputError."""
        tokens = self.embedder.tokenize(queries, documents, task)
        ids = [np.array(text, dtype=np.int32).tobytes() for text in tokens.ids]
        return Prepared(ids, tokens.total, tokens.truncated)

    async def works(self) -> bool:
        """Whether the device computes: asked of it only after a failure, and when no batch is going to tell.

        Raises what the device raises.
        """
        if self.suspect and not self.dead and not self._working:
            await self.embed(self.prepare([], ["health"], ""))
        return not self.dead

    async def embed(self, prepared: Prepared) -> Embedded:
        """The vectors of a request's texts, computed together with those of others. A cancelled call leaves at once.

        Raises OverloadError; ModelError for a text that cannot be computed, or when the thread has died;
        FloatingPointError for NaN or infinity.
        """
        loop = asyncio.get_running_loop()
        vectors = np.empty((len(prepared.ids), self.embedder.dimensions), dtype=np.float32)
        if not prepared.ids:
            return Embedded(vectors, 0.0, 0.0, 0)
        request = _Request(vectors, prepared.tokens, len(vectors), loop, loop.create_future())
        with self._lock:
            self._check(request)
            self._schedule.enter(request, prepared.ids)
            start, self._working = not self._working, True
        if start:
            self._thread.submit(self._work)
        try:
            return await request.future
        finally:
            with self._lock:
                self._schedule.leave(request)

    def _check(self, request: _Request) -> None:
        if self.dead:
            raise ModelError(self.dead)
        waiting = sum(one.tokens for one in self._schedule.requests)
        if waiting and waiting + request.tokens > self.max_queued_tokens:
            raise OverloadError(
                f"the queue is full: {waiting:,} tokens are waiting, and with the {request.tokens:,} of this request "
                f"there would be more than the {self.max_queued_tokens:,} of E5_MAX_QUEUED_TOKENS: try again later"
            )

    # All below runs in the thread.

    def _work(self) -> None:
        """Compute until nothing waits. Whatever escapes is the end of this batcher, and all who wait are told."""
        ahead: _Batch | None = None
        try:
            while True:
                with self._lock:
                    texts = self._schedule.take(self.budget)
                    if not texts and ahead is None:
                        self._working = False
                        return
                batch = self._launch(texts) if texts else None
                if ahead is not None:
                    self._complete(ahead)
                if batch is not None and (batch.result is None or self.embedder.device == "cpu"):
                    self._complete(batch)
                    batch = None
                ahead = batch  # a GPU computes it while the one before it is fetched and the next one taken
        except BaseException as error:
            with self._lock:
                self.dead = f"the model's thread has ended ({_describe(error)}): restart the server"
                for request in self._schedule.requests:
                    self._settle(request, ModelError(self.dead))
            log.critical("%s", self.dead, exc_info=error)

    def _launch(self, texts: list[Text[_Request]]) -> _Batch:
        self._batches += 1
        if self._batches % TRIM == 0:
            trim_memory()
        batch = _Batch(texts)
        try:
            batch.result = self.embedder.launch([np.frombuffer(text.ids, np.int32) for text in texts])
        except Exception as error:
            batch.fail(error)
        return batch

    def _complete(self, batch: _Batch) -> None:
        vectors = None
        if batch.result is not None:
            try:
                vectors = batch.result.vectors()
            except Exception as error:  # a GPU tells what went wrong when it is asked for the result
                batch.fail(error)
            batch.result = None
        if vectors is None:
            self._halve(batch)
        else:
            self._deliver(batch, vectors)

    def _deliver(self, batch: _Batch, vectors: Vectors) -> None:
        self.suspect = False
        self._successes += 1
        if self._successes >= RECOVERY:
            self._successes = 0
            self.budget = min(self.embedder.max_batch_tokens, 2 * self.budget)
        broken = set(np.flatnonzero(~np.isfinite(vectors).all(axis=1)).tolist())
        with self._lock:
            _account(batch)
            for index, text in enumerate(batch.texts):
                for request, rows in self._schedule.finish(text):
                    if index in broken:
                        self._settle(request, not_finite(rows[0], len(request.vectors)))
                        continue
                    request.vectors[rows] = vectors[index]
                    request.missing -= len(rows)
                    if not request.missing:
                        self._settle(request)

    def _halve(self, batch: _Batch) -> None:
        """Compute a failed batch again in two halves; a single text fails, and with it those who wait for it."""
        if batch.out_of_memory:
            release_memory()
            self._successes = 0
            self.budget = max(1, min(self.budget, sum(map(len, batch.texts)) // 2))
        with self._lock:
            _account(batch)
            wanted = [text for text in batch.texts if text.rows]
            for text in batch.texts:
                if not text.rows or len(batch.texts) == 1:
                    for request, rows in self._schedule.finish(text):
                        self.suspect = not batch.out_of_memory
                        self._settle(request, _failure(batch, rows[0], len(request.vectors)))
        if len(batch.texts) > 1:
            middle = (len(wanted) + 1) // 2
            for half in filter(None, (wanted[:middle], wanted[middle:])):
                self._complete(self._launch(half))

    def _settle(self, request: _Request, error: Exception | None = None) -> None:
        """Wake the caller, with its vectors or with an error; it waits for nothing any more. Under the lock."""
        queued = time.perf_counter() - request.handed_over - request.model_seconds
        result = Embedded(request.vectors, max(0.0, queued), request.model_seconds, request.batch_texts)
        self._schedule.leave(request)
        with suppress(RuntimeError):  # its loop is closed: nobody waits there any more
            request.loop.call_soon_threadsafe(_resolve, request.future, result, error)


def _account(batch: _Batch) -> None:
    now = time.perf_counter()
    for request in {request for text in batch.texts for request in text.rows}:
        request.model_seconds += now - max(batch.started, request.handed_over)
        request.batch_texts = max(request.batch_texts, len(batch.texts))


def _resolve(future: asyncio.Future[Embedded], result: Embedded, error: Exception | None) -> None:
    if future.done():  # cancelled meanwhile
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)


def _failure(batch: _Batch, row: int, count: int) -> ModelError:
    which = f"text {row + 1} of {count} ({len(batch.texts[0]):,} tokens)"
    if batch.out_of_memory:
        return ModelError(
            f"{which} does not fit into the device's memory, even alone: shorten it, or try again when the device "
            f"has less to do ({batch.failure})"
        )
    return ModelError(f"the model failed on {which}: {batch.failure}")


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
