"""The server under check, with what the checks know of it: its model's facts and the expected vectors, if any."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from e5.vectors import Vectors
from evaluation.client.apis import Answer, Numbers
from evaluation.client.remote import Server, ServerError
from evaluation.server_check.candidates import prompted
from evaluation.server_check.expected import Expected, Facts
from evaluation.server_check.texts import TASK, Probe

EXACT, CLOSE = 1e-5, 1e-3
"""1 - cosine that arithmetic in float32 stays below (measured: 1e-7), and arithmetic in 16 bits (measured: 1e-4)."""


class CannotAsk(Exception):
    """The server does not answer plain texts. The message says the cause and the cure."""


@dataclass(frozen=True)
class Compared:
    """The answers to `texts.COMPARED`, each text in a request of its own.

    `numbers`: float64 [N, D] as they came, with normalize=false where the API has it. `tokens`: as the server counted.
    """

    probes: tuple[Probe, ...]
    numbers: Numbers
    tokens: tuple[int | None, ...]

    @property
    def usable(self) -> bool:
        """Whether every vector is finite and has a direction."""
        return bool(np.isfinite(self.numbers).all() and self.numbers.any(axis=1).all())

    @property
    def units(self) -> Numbers:
        return unit(self.numbers)


@dataclass(frozen=True)
class Subject:
    """`expected`: None without weights and fixtures."""

    server: Server
    facts: Facts
    expected: Expected | None

    def ask(self, probes: Sequence[Probe], *, normalize: bool = False) -> Answer:
        """One request for texts of the same side. A server that adds no prompts gets them with the text.

        Raises ServerError if there is no answer.
        """
        texts, side = [probe.text for probe in probes], probes[0].side
        if self.server.adds_prompts:
            return self.server.ask(texts, side, TASK, normalize)
        return self.server.ask([prompted(self.facts.prompt, probe) for probe in probes], "raw", "", normalize)

    def ask_bare(self, text: str) -> Answer:
        """One text without the client's prompt: an empty text has to stay empty. Raises ServerError as `ask`."""
        return self.server.ask([text], "document" if self.server.adds_prompts else "raw")

    def vectors(self, probes: Sequence[Probe], *, normalize: bool = False) -> Numbers:
        """float64 [N, D], each text in a request of its own. Raises CannotAsk for a text that is refused."""
        answers = [self.answer(probe, normalize=normalize) for probe in probes]
        return np.stack([answer.vectors[0] for answer in answers if answer.vectors is not None])

    def answer(self, probe: Probe, *, normalize: bool = False) -> Answer:
        """The answer for one plain text. Raises CannotAsk if it has no vector; a vector with NaN is one."""
        try:
            answer = self.ask([probe], normalize=normalize)
        except ServerError as error:
            raise CannotAsk(str(error)) from error
        if answer.vectors is None or len(answer.vectors) != 1:
            raise CannotAsk(str(self.server.failure(answer)))
        return answer


def unit(vectors: Numbers | Vectors) -> Numbers:
    """Rows of length 1, in float64. A zero row stays zero."""
    rows = np.asarray(vectors, np.float64)
    result: Numbers = rows / np.linalg.norm(rows, axis=-1, keepdims=True).clip(1e-30)
    return result


def distance(one: Numbers | Vectors, other: Numbers | Vectors) -> float:
    """The largest 1 - cosine of all rows, from differences, which keep small values exact: at least 0."""
    return float(np.max(np.sum((unit(one) - unit(other)) ** 2, axis=-1)) / 2)
