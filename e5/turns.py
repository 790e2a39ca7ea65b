"""Who comes first: the texts of waiting requests, taken in turns. Plain data, without threads or a device.

In the order of their coming each request puts one text into the batch, its longest first, round and round until the
budget of tokens is full. A text that does not fit any more is the first of the next batch. So a short request waits
for a text of each other request and not for all the texts of a long one; and a long one gets on with every round,
however many short ones come.

A text that several requests have is taken once, at the first of their turns.
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


class Turns(Generic[R]):
    """The requests R that wait, from `enter` to `leave`. Not thread-safe."""

    def __init__(self) -> None:
        self._texts: dict[bytes, Text[R]] = {}  # all in flight: those that wait, and those with the device
        self._of: dict[R, list[Text[R]]] = {}
        self._turns: deque[tuple[R, deque[Text[R]]]] = deque()

    @property
    def requests(self) -> list[R]:
        """All that have entered and not left."""
        return list(self._of)

    def enter(self, request: R, ids: Sequence[bytes]) -> None:
        """Wait for the texts with these ids; equal ones are one text."""
        texts = []
        for row in sorted(range(len(ids)), key=lambda row: -len(ids[row])):
            text = self._texts.setdefault(ids[row], Text(ids[row]))
            if request not in text.rows:
                texts.append(text)
            text.rows.setdefault(request, []).append(row)
        self._of[request] = texts
        self._turns.append((request, deque(texts)))

    def leave(self, request: R) -> None:
        """Forget a request that is answered or cancelled; what it alone has asked for is never taken."""
        for text in self._of.pop(request, ()):
            text.rows.pop(request, None)
            if not text.rows and not text.taken:
                del self._texts[text.ids]

    def take(self, budget: int) -> list[Text[R]]:
        """The next batch, longest text first: at most `budget` tokens, or one longer text; empty when nothing waits."""
        batch: list[Text[R]] = []
        late = []
        room = budget
        while self._turns and (room > 0 or not batch):
            request, waiting = self._turns.popleft()
            while waiting and waiting[0].taken:  # at another request's turn
                waiting.popleft()
            if not waiting or request not in self._of:
                continue
            if batch and len(waiting[0]) > room:
                late.append((request, waiting))
                continue
            text = waiting.popleft()
            text.taken = True
            batch.append(text)
            room -= len(text)
            self._turns.append((request, waiting))
        self._turns.extendleft(reversed(late))
        return sorted(batch, key=len, reverse=True)

    def finish(self, text: Text[R]) -> list[tuple[R, list[int]]]:
        """Forget a taken text. Returns the requests that still want it, with the rows that it is for."""
        del self._texts[text.ids]
        return list(text.rows.items())
