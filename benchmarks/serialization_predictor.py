"""Predictor of the serialization benchmark: returns the same two vectors, without a model, in the requested encoding.

benchmarks/serialization.py starts it in Cog's server. Like predict.py it is asynchronous and concurrent.
"""

import cog
import numpy as np
from cog import BaseModel, BasePredictor, Input

from e5.serving import serialize

COUNT, DIMENSIONS = 2, 4096


class Output(BaseModel):  # type: ignore[misc]  # mypy skips cog
    """Vectors as numbers, or as base64 of their float32 bytes."""

    embeddings: list[list[float]] | None
    embeddings_base64: list[str] | None


class Predictor(BasePredictor):  # type: ignore[misc]
    """Spends no time in a model, so that a request measures only serialization and the server."""

    async def setup(self) -> None:
        self.vectors = np.random.default_rng(0).standard_normal((COUNT, DIMENSIONS), dtype=np.float32)

    @cog.concurrent(max=64)  # type: ignore[untyped-decorator]
    async def predict(
        self,
        encoding: str = Input(description="Encoding of the vectors.", choices=["list", "float", "base64", "nothing"]),
        dimensions: int = Input(description="Numbers per vector.", default=4096),
    ) -> Output:
        """`list`: plain lists of floats; `float` and `base64`: the output of e5.serving.serialize."""
        vectors = self.vectors[:, :dimensions]
        if encoding == "list":
            return Output(embeddings=vectors.tolist(), embeddings_base64=None)
        if encoding == "float":
            return Output(embeddings=serialize.json_numbers(vectors), embeddings_base64=None)
        if encoding == "base64":
            return Output(embeddings=None, embeddings_base64=serialize.base64_rows(vectors))
        return Output(embeddings=None, embeddings_base64=None)
