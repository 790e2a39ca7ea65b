"""predict.py without shared batches: the same server computes one prediction at a time."""

import asyncio

import predict
from e5.serving.batcher import Embedded
from e5.tokens import Tokens
from predict import Output as Output


class Predictor(predict.Predictor):
    """Serialises predictions with a lock."""

    async def setup(self) -> None:
        """Set up predict.py's predictor and put a lock around the device."""
        await super().setup()
        lock, embed = asyncio.Lock(), self.service.batcher.embed

        async def embed_one_at_a_time(tokens: Tokens) -> Embedded:
            async with lock:
                return await embed(tokens)

        self.service.batcher.embed = embed_one_at_a_time  # type: ignore[method-assign]
