"""predict.py's Predictor with a device that breaks on request: what the tests serve with the real Cog server.

A text that begins with one of these words makes the forward pass that it is part of fail so:

| word | what the device does |
|---|---|
| nan | a vector with NaN |
| memory | out of memory, as long as the batch has more than four texts |
| huge | out of memory, always |
| kernel | raises what a broken kernel raises |
| death | ends the thread that owns the device |
"""

from typing import Any

import torch

import predict
from predict import Output as Output


class Predictor(predict.Predictor):
    """The model is the real one; only its forward pass is wrapped."""

    async def setup(self) -> None:
        """As predict.py's, and then the device becomes faulty."""
        await super().setup()
        embedder = self.service.embedder
        forward = embedder.forward

        def faulty(ids: Any) -> torch.Tensor:
            texts = [embedder.tokenizer._file.decode(one.tolist()) for one in ids]
            words = {text.split()[0] for text in texts if text.split()}
            if "death" in words:
                raise SystemExit("the device has gone")
            if "huge" in words or ("memory" in words and len(texts) > 4):
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
            if "kernel" in words:
                raise RuntimeError("CUDA error: an illegal memory access was encountered")
            vectors = forward(ids).clone()  # an inference tensor cannot be written to here
            vectors[[text.startswith("nan") for text in texts]] = float("nan")
            return vectors

        embedder.forward = faulty  # type: ignore[method-assign]
