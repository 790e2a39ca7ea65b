"""Dynamic batching: concurrent requests share batches on one device.

One thread owns the device. Whenever it is free it takes a batch from the requests that wait, so an idle device never
delays a request, and the next batch fills up while one is computed. `e5.serving.schedule` decides the order.

A failing text fails only the requests that contain it: the batcher splits a failed batch in half and retries, down to
single texts. After an out-of-memory error it also halves the token budget, and doubles it again after 16 successes.
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
from e5.tokens import Tokens
from e5.vectors import Vectors, not_finite

log = logging.getLogger(__name__)

RECOVERY = 16
"""Successful batches in a row before the budget is doubled after an out-of-memory error."""
TRIM = 256
"""Batches between two calls of `trim_memory`, which takes 5 ms."""


@dataclass(frozen=True)
class Embedded:
    """Vectors of all sequences, float32 [N, D], not normalized, and their timings.

    `model_seconds`: time spent computing batches that contained a text of the request; `queued_seconds`: the rest of
    the time in the queue. `batch_texts`: size of the largest such batch.
    """

    vectors: Vectors
    queued_seconds: float
    model_seconds: float
    batch_texts: int


@dataclass(eq=False)
class _Request:
    """A waiting caller. `texts`: for each row of `vectors`, the index of its text. `missing`: rows not yet computed."""

    vectors: Vectors
    texts: Sequence[int]
    tokens: int
    missing: int
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Embedded]
    entered: float = field(default_factory=time.perf_counter)
    model_seconds: float = 0.0
    batch_texts: int = 0

    def place(self, row: int) -> tuple[int, int]:
        """The index of a row's text, and how many texts there are."""
        return self.texts[row], self.texts[-1] + 1


@dataclass(eq=False)
class _Batch:
    """Texts on the device. `result` may still be computing; None after an error, which `failure` describes."""

    texts: list[Text[_Request]]
    started: float = field(default_factory=time.perf_counter)
    result: PendingResult | None = None
    failure: str = ""
    out_of_memory: bool = False

    def fail(self, error: Exception) -> None:
        # Keep only the text: the exception would keep the model's stack frames, and so their tensors, alive.
        self.failure, self.out_of_memory = _describe(error), is_out_of_memory(error)


class Batcher:
    """The queue in front of one Embedder, for any number of callers in event loops.

    `dead`: why the thread has ended, or "". A dead batcher computes nothing. `suspect`: the last batch failed for
    another reason than memory, so the device may be broken.
    """

    def __init__(self, embedder: Embedder, thread: ThreadPoolExecutor, max_queued_tokens: int) -> None:
        """`thread` has one worker, which loaded `embedder`: CUDA and OpenMP keep state per thread."""
        self.embedder = embedder
        self.max_queued_tokens = max_queued_tokens
        self.budget = embedder.max_batch_tokens
        self.dead = ""
        self.suspect = False
        self._successes = 0
        self._batches = 0
        self._thread = thread
        self._lock = threading.Lock()  # guards the next two: the event loop and the thread share them
        self._schedule: Schedule[_Request] = Schedule()
        self._working = False

    @classmethod
    async def start(cls, load: Callable[[], Embedder], max_queued_tokens: int) -> Self:
        """Load the model in the thread that will run it."""
        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")
        return cls(await asyncio.get_running_loop().run_in_executor(thread, load), thread, max_queued_tokens)

    async def healthcheck(self) -> bool:
        """Health probe. Runs a forward pass only if the last batch failed and none is in flight.

        Raises ModelError if the pass fails.
        """
        if self.suspect and not self.dead and not self._working:
            await self.embed(self.embedder.tokenize([], ["health"], ""))
        return not self.dead

    async def embed(self, tokens: Tokens) -> Embedded:
        """Compute a request's vectors in batches shared with other requests. Cancelling it leaves the queue at once.

        Raises OverloadError if the queue is full, FloatingPointError for NaN or infinity, and ModelError if a text
        cannot be computed or the thread has ended.
        """
        loop = asyncio.get_running_loop()
        vectors = np.empty((len(tokens), self.embedder.dimensions), dtype=np.float32)
        if not len(tokens):
            return Embedded(vectors, 0.0, 0.0, 0)
        request = _Request(vectors, tokens.texts, tokens.total, len(vectors), loop, loop.create_future())
        with self._lock:
            self._check(request)
            self._schedule.enter(request, tokens.ids)
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
        queued = sum(other.tokens for other in self._schedule.requests)
        if queued and queued + request.tokens > self.max_queued_tokens:
            raise OverloadError(
                f"the queue is full: {queued:,} tokens are waiting, and the {request.tokens:,} of this request would "
                f"exceed the {self.max_queued_tokens:,} of E5_MAX_QUEUED_TOKENS: try again later"
            )

    # The methods below run in the thread.

    def _work(self) -> None:
        """Compute until the queue is empty. An uncaught error kills the batcher and fails every waiting request."""
        in_flight: _Batch | None = None
        try:
            while True:
                with self._lock:
                    texts = self._schedule.take(self.budget)
                    if not texts and in_flight is None:
                        self._working = False
                        return
                batch = self._launch(texts) if texts else None
                if in_flight is not None:
                    self._complete(in_flight)
                if batch is not None and (batch.result is None or self.embedder.device == "cpu"):
                    self._complete(batch)
                    batch = None
                in_flight = batch  # a GPU computes it while this thread fetches the last one and takes the next one
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
            batch.result = self.embedder.launch([text.ids for text in texts])
        except Exception as error:
            batch.fail(error)
        return batch

    def _complete(self, batch: _Batch) -> None:
        vectors = None
        if batch.result is not None:
            try:
                vectors = batch.result.vectors()
            except Exception as error:  # a GPU reports errors only when its result is fetched
                batch.fail(error)
            batch.result = None
        if vectors is None:
            self._retry_halves(batch)
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
            _record_times(batch)
            for index, text in enumerate(batch.texts):
                for request, rows in self._schedule.finish(text):
                    if index in broken:
                        self._settle(request, not_finite(*request.place(rows[0])))
                        continue
                    request.vectors[rows] = vectors[index]
                    request.missing -= len(rows)
                    if not request.missing:
                        self._settle(request)

    def _retry_halves(self, batch: _Batch) -> None:
        """Compute a failed batch again in two halves. If it is a single text, fail the requests that contain it."""
        if batch.out_of_memory:
            release_memory()
            self._successes = 0
            self.budget = max(1, min(self.budget, sum(map(len, batch.texts)) // 2))
        with self._lock:
            _record_times(batch)
            wanted = [text for text in batch.texts if text.rows]
            for text in batch.texts:
                if not text.rows or len(batch.texts) == 1:
                    for request, rows in self._schedule.finish(text):
                        self.suspect = not batch.out_of_memory
                        self._settle(request, _failure(batch, *request.place(rows[0])))
        if len(batch.texts) > 1:
            middle = (len(wanted) + 1) // 2
            for half in filter(None, (wanted[:middle], wanted[middle:])):
                self._complete(self._launch(half))

    def _settle(self, request: _Request, error: Exception | None = None) -> None:
        """Remove a request from the schedule and wake its caller with its vectors or an error. Needs the lock."""
        queued = time.perf_counter() - request.entered - request.model_seconds
        result = Embedded(request.vectors, max(0.0, queued), request.model_seconds, request.batch_texts)
        self._schedule.leave(request)
        with suppress(RuntimeError):  # the caller's event loop is closed
            request.loop.call_soon_threadsafe(_resolve, request.future, result, error)


def _record_times(batch: _Batch) -> None:
    now = time.perf_counter()
    for request in {request for text in batch.texts for request in text.rows}:
        request.model_seconds += now - max(batch.started, request.entered)
        request.batch_texts = max(request.batch_texts, len(batch.texts))


def _resolve(future: asyncio.Future[Embedded], result: Embedded, error: Exception | None) -> None:
    if future.done():  # cancelled in the meantime
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)


def _failure(batch: _Batch, index: int, count: int) -> ModelError:
    text = f"text {index + 1} of {count} ({len(batch.texts[0]):,} tokens)"
    if batch.out_of_memory:
        return ModelError(
            f"{text} does not fit into the device's memory, even alone: shorten it, or try again when the device is "
            f"less busy ({batch.failure})"
        )
    return ModelError(f"the model failed on {text}: {batch.failure}")


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
