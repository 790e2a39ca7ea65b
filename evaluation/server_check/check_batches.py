"""The same vector alone and in a batch, and the order of a batch's vectors."""

import numpy as np

from evaluation.client.apis import Numbers
from evaluation.client.remote import ServerError
from evaluation.server_check.findings import Finding, right, unknown, wrong
from evaluation.server_check.subject import CLOSE, EXACT, Subject, distance, unit
from evaluation.server_check.texts import BATCHED, COMPARED

DOCUMENTS = (*(probe for probe in COMPARED if probe.side == "document"), *BATCHED)
SMALL = 4
"""Texts of a batch that no sensible server refuses."""
ALIKE = 1e-6
"""1 - cosine."""
NAMES = ("order", "batch")


class BatchError(Exception):
    """A batch has no vectors that can be used. `refused`: by a status 4xx, because it is too large."""

    def __init__(self, reason: str, refused: bool) -> None:
        super().__init__(reason)
        self.refused = refused


def check(subject: Subject, exact: bool) -> list[Finding]:
    """`exact`: the server is known to compute in float32, so that a batch may change nothing that 16 bits would."""
    alone = subject.vectors(DOCUMENTS)
    if _nearest(alone) < ALIKE:
        return [unknown(name, "the vectors of different texts are the same") for name in NAMES]
    try:
        batches = _batches(subject)
    except BatchError as error:
        evidence = f"a batch of texts that are fine alone: {error}"
        if error.refused:
            return [unknown(name, evidence) for name in NAMES]
        return [unknown("order", evidence), wrong("batch", evidence, "see the server's log")]
    found = []
    furthest = 0.0
    for order, vectors in batches:
        sent = alone[order]
        matches = np.argmax(unit(vectors) @ unit(sent).T, axis=1)
        found.append(matches)
        furthest = max(furthest, distance(vectors, sent[matches]))
    return [_order(found), _same(furthest, exact)]


def _nearest(vectors: Numbers) -> float:
    """The smallest 1 - cosine between two of the vectors."""
    return min(distance(vectors[i : i + 1], vectors[j : j + 1]) for i in range(len(vectors)) for j in range(i))


def _batches(subject: Subject) -> list[tuple[list[int], Numbers]]:
    """Orders of the texts, and the vectors of each as one batch; of a few texts if the server refuses more.

    Raises BatchError.
    """
    try:
        return [_batch(subject, order) for order in _orders(len(DOCUMENTS))]
    except BatchError as error:
        if not error.refused:
            raise
    return [_batch(subject, order) for order in _orders(SMALL)]


def _orders(count: int) -> list[list[int]]:
    forward = list(range(count))
    return [forward, forward[::-1], forward[1::2] + forward[::2]]


def _batch(subject: Subject, order: list[int]) -> tuple[list[int], Numbers]:
    try:
        answer = subject.ask([DOCUMENTS[index] for index in order])
    except ServerError as error:
        raise BatchError(str(error), refused=False) from error
    if answer.error is not None or answer.vectors is None:
        raise BatchError(answer.error or "no vectors", answer.refused)
    return order, answer.vectors


def _order(found: list[np.ndarray[tuple[int], np.dtype[np.intp]]]) -> Finding:
    cure = "give each vector the place of its text; servers that sort by length have to undo it"
    for matches in found:
        want = np.arange(len(matches))
        if (matches == want).all():
            continue
        if (matches == want[::-1]).all():
            return wrong("order", "the vectors of a batch come in reversed order", cure)
        if len(set(matches.tolist())) < len(matches):
            evidence = f"{len(matches) - len(set(matches.tolist()))} of {len(matches)} texts of a batch got no vector"
            return wrong("order", f"{evidence} of their own", cure)
        return wrong("order", f"the vectors of a batch come in the order {(matches + 1).tolist()}", cure)
    return right("order", f"{len(found)} batches of {len(found[0])} texts come back in their order")


def _same(furthest: float, exact: bool) -> Finding:
    evidence = f"1 - cosine between alone and in a batch ≤ {furthest:.1e}"
    if furthest <= (EXACT if exact else CLOSE):
        return right("batch", evidence)
    cure = "mask the padding, also in the pooling, and count positions from each text's first token"
    return wrong("batch", f"{evidence}: the other texts of a batch change a vector", cure)
