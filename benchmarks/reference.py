"""The model under test, and its reference vectors from stock transformers."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModel

from benchmarks import engines
from benchmarks.timing import free
from e5 import catalog
from e5.embedder import Embedder
from e5.tokens import TokenIds
from e5.vectors import Vectors
from e5.weights.files import LocalWeights


@dataclass(frozen=True)
class ModelUnderTest:
    """`weights`: as located; `checkpoint`: the same as one complete checkpoint; `scratch`: a folder for new files."""

    model: catalog.Model
    weights: LocalWeights
    checkpoint: Path
    device: torch.device
    scratch: Path

    def load(self, dtype: str) -> Embedder:
        return engines.load_ours(self.model, self.checkpoint, self.device, dtype)


@contextmanager
def exact_float32() -> Iterator[None]:
    """Turn off TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@torch.inference_mode()
def stock_vectors(subject: ModelUnderTest, dtype: torch.dtype, ids: Sequence[TokenIds]) -> Vectors:
    """The model cards' procedure, one text at a time, without this package: float32 [N, D]."""
    options = {} if subject.model.architecture == "mistral" else {"add_pooling_layer": False}
    loaded: Any = AutoModel.from_pretrained(
        subject.checkpoint, dtype=dtype, attn_implementation="eager", local_files_only=True, **options
    )
    module = loaded.to(subject.device).eval()
    vectors = []
    for text_ids in ids:
        input_ids = torch.tensor([text_ids.tolist()], device=subject.device)
        hidden = module(input_ids=input_ids, attention_mask=torch.ones_like(input_ids)).last_hidden_state[0]
        vector = hidden[-1] if subject.model.pooling == "last" else hidden.float().mean(dim=0)
        vectors.append(vector.float().cpu().numpy())
    del module, loaded
    free(subject.device)
    return np.stack(vectors)
