"""The predictor of the benchmark's section on answers: no model, the same two vectors, returned in the way asked for.

It runs in Cog's server, started by benchmarks/serialization.py, and is asynchronous and concurrent as predict.py is.
"""

import cog
import numpy as np
from cog import BaseModel, BasePredictor, Input

from e5.serving import serialize

COUNT, DIMENSIONS = 2, 4096


class Output(BaseModel):  # type: ignore[misc]  # mypy is told not to read cog
    """Vectors as numbers, or as base64 of their float32 bytes."""

    embeddings: list[list[float]] | None
    embeddings_base64: list[str] | None


class Predictor(BasePredictor):  # type: ignore[misc]
    """Its model time is zero; what is measured is the way of an answer through the server."""

    async def setup(self) -> None:
        self.vectors = np.random.default_rng(0).standard_normal((COUNT, DIMENSIONS), dtype=np.float32)

    @cog.concurrent(max=64)  # type: ignore[untyped-decorator]
    async def predict(
        self,
        way: str = Input(description="How to return them.", choices=["list", "float", "base64", "nothing"]),
        dimensions: int = Input(description="Numbers of each vector.", default=4096),
    ) -> Output:
        """`list`: plain lists of floats; `float` and `base64`: what e5.serving.serialize returns."""
        vectors = self.vectors[:, :dimensions]
        if way == "list":
            return Output(embeddings=vectors.tolist(), embeddings_base64=None)
        if way == "float":
            return Output(embeddings=serialize.json_rows(vectors), embeddings_base64=None)
        if way == "base64":
            return Output(embeddings=None, embeddings_base64=serialize.base64_rows(vectors))
        return Output(embeddings=None, embeddings_base64=None)
