"""Scheduling: which texts of the waiting requests make up the next batch. Plain data, without threads or a device.

1. Half of the token budget serves requests in order of arrival, so no request takes more than twice as long as under
   first-come, first-served order. A text longer than that half accumulates its share over several batches.
2. The other half serves the requests with the fewest tokens left, so short requests don't wait for long ones.

A text that several requests contain is computed once.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from e5.tokens import TokenIds

R = TypeVar("R")


@dataclass(eq=False)
class Text(Generic[R]):
    """A text that waits or is being computed. `rows`: for each request, the rows of its result that it fills."""

    ids: TokenIds
    key: bytes
    rows: dict[R, list[int]] = field(default_factory=dict)
    taken: bool = False

    def __len__(self) -> int:
        """Number of tokens."""
        return len(self.ids)


@dataclass(eq=False)
class _Waiting(Generic[R]):
    """A request's texts. `waiting`: those that no batch has taken, longest first; `tokens`: their sum."""

    texts: list[Text[R]]
    waiting: deque[Text[R]]
    tokens: int

    def next(self) -> Text[R] | None:
        while self.waiting and self.waiting[0].taken:  # another request's turn took it
            self.waiting.popleft()
        return self.waiting[0] if self.waiting else None


class _NextBatch(Generic[R]):
    """Texts of the next batch, at most `budget` tokens. A longer text becomes a batch of its own."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.texts: list[Text[R]] = []
        self.tokens = 0

    def fits(self, text: Text[R]) -> bool:
        return not self.texts or self.tokens + len(text) <= self.budget

    def add(self, text: Text[R]) -> None:
        self.texts.append(text)
        self.tokens += len(text)


class Schedule(Generic[R]):
    """The waiting requests R, from `enter` to `leave`. Not thread-safe."""

    def __init__(self) -> None:
        self._texts: dict[bytes, Text[R]] = {}  # waiting or with the device, by key
        self._waiting: dict[R, _Waiting[R]] = {}  # in order of arrival
        self._saved = 0  # tokens of rule 1 accumulated for a long text

    @property
    def requests(self) -> list[R]:
        """Requests that have entered and not left."""
        return list(self._waiting)

    def enter(self, request: R, ids: Sequence[TokenIds]) -> None:
        """Queue a request's texts. Equal token ids share one text."""
        texts = []
        for row in sorted(range(len(ids)), key=lambda row: -len(ids[row])):
            key = ids[row].tobytes()
            text = self._texts.setdefault(key, Text(ids[row], key))
            if request not in text.rows:
                texts.append(text)
            text.rows.setdefault(request, []).append(row)
        waiting = deque(text for text in texts if not text.taken)
        self._waiting[request] = _Waiting(texts, waiting, sum(map(len, waiting)))

    def leave(self, request: R) -> None:
        """Remove an answered or cancelled request. Texts that no other request has are dropped from the queue."""
        work = self._waiting.pop(request, None)
        for text in work.texts if work else ():
            text.rows.pop(request, None)
            if not text.rows and not text.taken:
                del self._texts[text.key]

    def take(self, budget: int) -> list[Text[R]]:
        """The next batch, longest text first: at most `budget` tokens, or one longer text; empty if nothing waits."""
        batch: _NextBatch[R] = _NextBatch(budget)
        unfinished = [work for work in self._waiting.values() if work.next()]
        self._take_oldest(batch, unfinished)
        self._take_shortest(batch, unfinished)
        return sorted(batch.texts, key=len, reverse=True)

    def finish(self, text: Text[R]) -> list[tuple[R, list[int]]]:
        """Forget a computed text. Returns the requests that still wait for it, with their rows."""
        del self._texts[text.key]
        return list(text.rows.items())

    def _take_oldest(self, batch: _NextBatch[R], unfinished: list[_Waiting[R]]) -> None:
        """Rule 1: fill half of the budget, and what earlier batches left of it, in order of arrival."""
        self._saved += max(1, batch.budget // 2)
        for work in unfinished:
            self._move(work, batch, max_tokens=self._saved)
            if work.next():  # did not fit: its unused share carries over to later batches
                self._saved -= batch.tokens
                return
        self._saved = 0

    def _take_shortest(self, batch: _NextBatch[R], unfinished: list[_Waiting[R]]) -> None:
        """Rule 2: fill the rest, fewest tokens left first."""
        for work in sorted(unfinished, key=lambda work: work.tokens):
            self._move(work, batch, max_tokens=None)

    def _move(self, work: _Waiting[R], batch: _NextBatch[R], max_tokens: int | None) -> None:
        """Move texts into the batch until one does not fit, or the batch would exceed `max_tokens`."""
        while text := work.next():
            if not batch.fits(text) or (max_tokens is not None and batch.tokens + len(text) > max_tokens):
                return
            text.taken = True
            batch.add(text)
            for request in text.rows:
                self._waiting[request].tokens -= len(text)
