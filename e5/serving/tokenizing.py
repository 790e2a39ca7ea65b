"""Tokenizing for concurrent requests: two threads, in slices of a request's texts.

1. Every other slice is one of the oldest request, so no request starves.
2. The others are of the requests with the fewest characters left, so short requests wait for a slice, not for a long
   request. A text is never split: a slice is up to 100,000 characters or one longer text.

A cancelled request ends after the slices that are being tokenized, at most two, and its memory is freed.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field

from e5.inputs import LongTexts
from e5.serving.request import EmbedRequest
from e5.tokens import CHUNK_CHARACTERS, CHUNK_TEXTS, Tokens

THREADS = 2
"""Slices tokenized at a time, which bounds their memory. One slice of several texts already uses all cores."""


@dataclass(frozen=True)
class _Slice:
    """Consecutive texts of a request. `characters` with the task of each query."""

    queries: list[str]
    documents: list[str]
    characters: int


@dataclass(eq=False)
class _Waiting:
    """A request. `slices`: those that no thread has taken, in order; `characters`: their sum; `missing`: not done."""

    task: str
    long_texts: LongTexts
    slices: deque[_Slice]
    characters: int
    tokens: list[Tokens | None]
    missing: int
    result: Future[Tokens] = field(default_factory=Future)


class TokenizerPool:
    """The threads that tokenize requests which are too large for the event loop."""

    def __init__(self, tokenize: Callable[[Sequence[str], Sequence[str], str, LongTexts], Tokens]) -> None:
        """`tokenize` is `Embedder.tokenize`, or a function like it that both threads may call at a time."""
        self._tokenize = tokenize
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="tokenize")
        self._lock = threading.Lock()  # guards the next two and what is in them
        self._waiting: list[_Waiting] = []
        self._oldest_first = False

    async def tokenize(self, request: EmbedRequest) -> Tokens:
        """The same tokens as one call for all texts. Raises InputError if the task is too long."""
        slices = deque(_slices(request))
        count = len(slices)
        characters = sum(each.characters for each in slices)
        waiting = _Waiting(request.task, request.long_texts, slices, characters, [None] * count, count)
        with self._lock:
            self._waiting.append(waiting)
        for _ in range(count):
            self._threads.submit(self._tokenize_next)
        try:
            return await asyncio.wrap_future(waiting.result)
        finally:  # after an error or a cancellation there may be slices left
            with self._lock, suppress(ValueError):
                self._waiting.remove(waiting)

    def _tokenize_next(self) -> None:
        """Tokenize one slice of the request whose turn it is. Runs in a thread, once for each slice that entered."""
        with self._lock:
            if not self._waiting:  # those that this call was for were cancelled
                return
            self._oldest_first = not self._oldest_first
            waiting = self._waiting[0] if self._oldest_first else min(self._waiting, key=lambda each: each.characters)
            index = len(waiting.tokens) - len(waiting.slices)
            taken = waiting.slices.popleft()
            waiting.characters -= taken.characters
            if not waiting.slices:
                self._waiting.remove(waiting)
        try:
            tokens = self._tokenize(taken.queries, taken.documents, waiting.task, waiting.long_texts)
        except BaseException as error:
            with suppress(InvalidStateError):  # it was cancelled, or the other thread has failed too
                waiting.result.set_exception(error)
            return
        with self._lock:
            waiting.tokens[index] = tokens
            waiting.missing -= 1
            if waiting.missing:
                return
        with suppress(InvalidStateError):  # it was cancelled
            waiting.result.set_result(Tokens.join([part for part in waiting.tokens if part is not None]))


def _slices(request: EmbedRequest) -> Iterator[_Slice]:
    """The request's texts in order, in slices of at most one tokenizer call: up to CHUNK_TEXTS and CHUNK_CHARACTERS."""
    start = characters = 0
    queries = len(request.queries)
    for index, text in enumerate(texts := request.texts):
        length = len(text) + (len(request.task) if index < queries else 0)
        if index > start and (index - start == CHUNK_TEXTS or characters + length > CHUNK_CHARACTERS):
            yield _Slice(texts[start : min(index, queries)], texts[max(start, queries) : index], characters)
            start, characters = index, 0
        characters += length
    yield _Slice(texts[start:queries], texts[max(start, queries) :], characters)
