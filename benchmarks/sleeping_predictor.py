"""A predictor that needs no CPU: it sleeps for SLEEP_SECONDS. Measures the gateway with several servers."""

import asyncio
import base64
import os
import struct

import cog
from cog import BaseModel, BasePredictor, Input

MODEL = "sleeper"
VECTOR = base64.b64encode(struct.pack("<2f", 1.0, 0.0)).decode()


class Output(BaseModel):  # type: ignore[misc]
    """The part of predict.py's output that the gateway reads."""

    embeddings_base64: list[str]


class Predictor(BasePredictor):  # type: ignore[misc]
    """Takes one document, and returns the same vector for each."""

    async def setup(self) -> None:
        """There is nothing to load."""

    @cog.concurrent(max=128)  # type: ignore[untyped-decorator]
    async def predict(
        self, document: str = Input(default=""), encoding_format: str = Input(default="base64")
    ) -> Output:
        """Sleep."""
        await asyncio.sleep(float(os.environ["SLEEP_SECONDS"]))
        for name, value in (("model", MODEL), ("dtype", "float32"), ("max_tokens", 512)):
            self.record_metric(name, value)
        return Output(embeddings_base64=[VECTOR])
