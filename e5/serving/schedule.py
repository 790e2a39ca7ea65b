"""Who comes first: which texts of the waiting requests make the next batch. Plain data, without threads or a device.

1. Half of the budget goes to the requests in the order of their coming: so none waits more than twice as long as if
   that were the only rule. Where a text is longer than that half, it is saved up for over several batches.
2. The other half goes to the requests with the fewest tokens left to do: so a short one does not wait for a long one.

A text that several requests have is computed once.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

R = TypeVar("R")


@dataclass(eq=False)
class Text(Generic[R]):
    """Token ids in flight (the bytes of int32), and the rows of each request that they are for."""

    ids: bytes
    rows: dict[R, list[int]] = field(default_factory=dict)
    taken: bool = False

    def __len__(self) -> int:
        """Its tokens."""
        return len(self.ids) // 4


@dataclass(eq=False)
class _Work(Generic[R]):
    """What is left of a request: texts that are not taken yet, the longest first, and their tokens."""

    texts: list[Text[R]]
    waiting: deque[Text[R]]
    tokens: int

    def next(self) -> Text[R] | None:
        while self.waiting and self.waiting[0].taken:  # on behalf of another request
            self.waiting.popleft()
        return self.waiting[0] if self.waiting else None


class Schedule(Generic[R]):
    """The requests R that wait, from `enter` to `leave`. Not thread-safe."""

    def __init__(self) -> None:
        self._texts: dict[bytes, Text[R]] = {}  # all in flight: those that wait, and those with the device
        self._work: dict[R, _Work[R]] = {}  # in the order of their coming
        self._saved = 0  # tokens of rule 1 that a long text waits for

    @property
    def requests(self) -> list[R]:
        """All that have entered and not left."""
        return list(self._work)

    def enter(self, request: R, ids: Sequence[bytes]) -> None:
        """Wait for the texts with these ids; equal ones are one text."""
        texts = []
        for row in sorted(range(len(ids)), key=lambda row: -len(ids[row])):
            text = self._texts.setdefault(ids[row], Text(ids[row]))
            if request not in text.rows:
                texts.append(text)
            text.rows.setdefault(request, []).append(row)
        waiting = deque(text for text in texts if not text.taken)
        self._work[request] = _Work(texts, waiting, sum(map(len, waiting)))

    def leave(self, request: R) -> None:
        """Forget a request that is answered or cancelled; what it alone has asked for is never taken."""
        work = self._work.pop(request, None)
        for text in work.texts if work else ():
            text.rows.pop(request, None)
            if not text.rows and not text.taken:
                del self._texts[text.ids]

    def take(self, budget: int) -> list[Text[R]]:
        """The next batch, longest text first: at most `budget` tokens, or one longer text; empty when nothing waits."""
        batch: list[Text[R]] = []
        unfinished = [work for work in self._work.values() if work.next()]
        self._saved += max(1, budget // 2)
        taken = 0
        for work in unfinished:
            taken += self._fill(batch, work, budget - taken, self._saved - taken)
            if work.next():
                self._saved -= taken
                break
        else:  # nobody's text is saved up for
            self._saved = 0
        for work in sorted(unfinished, key=lambda work: work.tokens):
            taken += self._fill(batch, work, budget - taken)
        return sorted(batch, key=len, reverse=True)

    def finish(self, text: Text[R]) -> list[tuple[R, list[int]]]:
        """Forget a taken text. Returns the requests that still want it, with the rows that it is for."""
        del self._texts[text.ids]
        return list(text.rows.items())

    def _fill(self, batch: list[Text[R]], work: _Work[R], room: int, most: int | None = None) -> int:
        """Move texts of `work`, of at most `most` tokens, into the batch while there is room. Returns their tokens."""
        taken = 0
        while text := work.next():
            fits = taken + len(text) <= room or not batch  # a text longer than the budget goes alone
            if not fits or (most is not None and taken + len(text) > most):
                break
            text.taken = True
            batch.append(text)
            taken += len(text)
            for request in text.rows:
                self._work[request].tokens -= len(text)
        return taken
