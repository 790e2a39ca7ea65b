"""predict.py's Predictor with injected device faults, for tests with the real Cog server.

The first word of a text chooses the fault of its forward pass:

| word | fault |
|---|---|
| nan | the text's vector is NaN |
| memory | out of memory if the batch has more than four texts |
| huge | out of memory |
| kernel | the error of a broken CUDA kernel |
| death | the thread that owns the device ends |
"""

from typing import Any

import torch

import predict
from predict import Output as Output


class Predictor(predict.Predictor):
    """Loads the real model and wraps its forward pass."""

    async def setup(self) -> None:
        """Load the model, then inject the faults."""
        await super().setup()
        embedder = self.service.embedder
        forward = embedder.forward

        def faulty(ids: Any) -> torch.Tensor:
            texts = [embedder.tokenizer._file.decode(row.tolist()) for row in ids]
            words = {text.split()[0] for text in texts if text.split()}
            if "death" in words:
                raise SystemExit("the device has gone")
            if "huge" in words or ("memory" in words and len(texts) > 4):
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
            if "kernel" in words:
                raise RuntimeError("CUDA error: an illegal memory access was encountered")
            vectors = forward(ids).clone()  # an inference tensor is read-only here
            vectors[[text.startswith("nan") for text in texts]] = float("nan")
            return vectors

        embedder.forward = faulty  # type: ignore[method-assign]
