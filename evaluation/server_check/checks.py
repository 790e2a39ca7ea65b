"""Runs all checks of one server, in the order in which they are reported."""

from collections.abc import Iterator

import numpy as np

from evaluation.server_check import check_batches, check_inputs, check_numbers, check_truncation, check_vectors
from evaluation.server_check.findings import Finding, unknown
from evaluation.server_check.subject import CannotAsk, Compared, Subject
from evaluation.server_check.texts import COMPARED


def run(subject: Subject) -> Iterator[Finding]:
    """Yield each finding as soon as it is made. Raises CannotAsk if the server does not embed plain texts."""
    compared = _compare(subject)
    dimensions = check_numbers.check_dimensions(compared, subject)
    yield dimensions
    if not compared.usable:
        return
    same = exact = False
    if dimensions.status == "wrong":
        yield unknown("vectors", "they have another size than the model's")
    elif subject.expected is None:
        yield from check_vectors.check_from_outside(subject)
    else:
        findings = check_vectors.check(compared, subject.expected)
        yield from findings
        same, exact = check_vectors.are_right(findings), check_vectors.are_float32(compared, subject.expected)
    yield check_numbers.check_precision(compared)
    yield check_numbers.check_length(compared, subject, same)
    yield from check_batches.check(subject, exact)
    yield check_truncation.checked(subject, same)
    yield from check_inputs.check(subject, compared, same)


def _compare(subject: Subject) -> Compared:
    answers = [subject.answer(probe) for probe in COMPARED]
    rows = [answer.vectors[0] for answer in answers if answer.vectors is not None]
    if len({len(row) for row in rows}) > 1:
        raise CannotAsk(f"{subject.server.url} gives vectors of different sizes: is it one model?")
    return Compared(COMPARED, np.stack(rows), tuple(answer.tokens for answer in answers))
