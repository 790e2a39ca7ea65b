"""An answer of POST /predictions → numbers and texts that belong together, whichever format it came in."""

import base64
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from e5_playground.form import Json, sides

WARNING = "Warning: "
"""How predict.py's lines in an answer's `logs` begin when they are for the person who asked."""


class AnswerError(ValueError):
    """The answer is not what the API promises: says what is missing."""


@dataclass(frozen=True)
class Answer:
    """One answer. `scores` is [queries, documents], or None where one of them is missing."""

    queries: tuple[str, ...]
    documents: tuple[str, ...]
    vectors: NDArray[np.float32]
    scores: NDArray[np.float64] | None
    metrics: dict[str, float]
    warnings: tuple[str, ...]

    @property
    def texts(self) -> tuple[str, ...]:
        return self.queries + self.documents


def parse(sent: Json, answered: Json) -> Answer:
    """What was asked and what came back. Raises AnswerError."""
    queries, documents = sides(sent)
    output = answered.get("output")
    if not isinstance(output, dict):
        raise AnswerError("The API's answer has no output.")
    try:
        vectors = _vectors(output, sent.get("encoding_format", "float"))
        scores = None if output.get("scores") is None else np.asarray(output["scores"], np.float64)
    except (KeyError, ValueError, TypeError) as error:
        raise AnswerError(f"The API's answer has vectors or scores that cannot be read: {error}.") from None
    if vectors.ndim != 2 or not vectors.shape[1]:
        raise AnswerError("The API's answer has no vectors.")
    if len(vectors) != len(queries) + len(documents):
        raise AnswerError(f"The API's answer has {len(vectors)} vectors for {len(queries) + len(documents)} texts.")
    if scores is not None and scores.shape != (len(queries), len(documents)):
        raise AnswerError("The API's answer has scores of another shape than queries × documents.")
    metrics = answered.get("metrics")
    numbers = metrics if isinstance(metrics, dict) else {}
    return Answer(
        tuple(queries),
        tuple(documents),
        vectors,
        scores,
        {name: value for name, value in numbers.items() if isinstance(value, int | float)},
        warnings(answered.get("logs")),
    )


def similarities(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    """100 × cosine of each vector with each: what the API leaves to its clients when all texts are of one side."""
    wide = vectors.astype(np.float64)
    unit = wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12)
    found: NDArray[np.float64] = 100 * (unit @ unit.T)
    return found


def warnings(logs: object) -> tuple[str, ...]:
    """The warnings among an answer's lines of log."""
    lines = logs.splitlines() if isinstance(logs, str) else []
    return tuple(line.strip().removeprefix(WARNING) for line in lines if line.strip().startswith(WARNING))


DTYPES = {"base64": "<f4", "float16": "<f2", "int8": "i1", "ubinary": "u1"}


def _vectors(output: Json, encoding_format: str) -> NDArray[np.float32]:
    if encoding_format == "float":
        return np.asarray(output.get("embeddings"), np.float32)
    encoded = [base64.b64decode(text, validate=True) for text in output["embeddings_base64"]]
    rows = np.stack([np.frombuffer(row, DTYPES[encoding_format]) for row in encoded])
    if encoding_format == "int8":
        return rows * np.asarray(output["scales"], np.float32)[:, None]
    if encoding_format == "ubinary":
        return np.unpackbits(rows, axis=1).astype(np.float32) * 2 - 1
    return rows.astype(np.float32)
