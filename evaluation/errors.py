"""Errors of an evaluation. `scripts/evaluate.py` prints the message and exits with status 2."""


class EvaluationError(Exception):
    """Input that cannot be evaluated: what is wrong, why, and what to do."""


class StoppedError(EvaluationError):
    """The model, the server or the disk failed: the remaining tasks would fail as well."""
