"""What predict.py would be without shared batches: the same server, one prediction at a time on the device."""

import asyncio

import predict
from e5.serving.batcher import Embedded
from e5.tokens import Tokens
from predict import Output as Output


class Predictor(predict.Predictor):
    """Others wait for the one that is computed."""

    async def setup(self) -> None:
        """As predict.py's, with a lock around the device."""
        await super().setup()
        lock, embed = asyncio.Lock(), self.service.batcher.embed

        async def alone(tokens: Tokens) -> Embedded:
            async with lock:
                return await embed(tokens)

        self.service.batcher.embed = alone  # type: ignore[method-assign]
