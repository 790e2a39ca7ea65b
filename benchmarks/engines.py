"""The compared engines: this package, sentence-transformers, and the model card's loop, on one shared checkpoint.

They share a process, so this package's allocator settings on a CPU (e5.network.memory: glibc keeps freed blocks) speed
up the others too: in its own process sentence-transformers 6.2 took 1.2 times as long on the embedded model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from benchmarks.texts import Pair
from e5 import DEFAULT_TASK, Settings, catalog, prompts, scores
from e5.embedder import Embedder
from e5.network.device import choose_dtype
from e5.vectors import Vectors

OURS, RIVAL, MODEL_CARD = "this package", "sentence-transformers", "model card"

EngineKey = tuple[str, str]
"""Engine and dtype."""


def dtypes(device: torch.device) -> list[str]:
    """float32, then this package's default dtype on the device if that is another one."""
    default = str(choose_dtype(None, device)).removeprefix("torch.")
    return list(dict.fromkeys(["float32", default]))


@dataclass(frozen=True)
class Engines:
    """Both libraries by dtype, loaded from one checkpoint. The first dtype is the reference.

    Only this package has float8, so `rivals` lacks it.
    """

    ours: dict[str, Embedder]
    rivals: dict[str, SentenceTransformer]

    @property
    def dtypes(self) -> list[str]:
        return list(self.ours)

    @property
    def reference(self) -> str:
        """The dtype that the others are compared with."""
        return self.dtypes[0]

    @property
    def shared_dtypes(self) -> list[str]:
        """Dtypes that both libraries have."""
        return list(self.rivals)

    @property
    def default(self) -> Embedder:
        return self.ours[self.shared_dtypes[-1]]


def load_ours(model: catalog.Model, folder: Path, device: torch.device, dtype: str) -> Embedder:
    """Load this package from a complete checkpoint."""
    return Embedder.from_settings(Settings(model.name, folder, "merged", str(device), dtype))


def load_rivals(folder: Path, device: torch.device, names: Sequence[str]) -> dict[str, SentenceTransformer]:
    """Load sentence-transformers as documented, in each of these dtypes that torch has."""
    return {
        name: SentenceTransformer(
            str(folder), device=str(device), local_files_only=True, model_kwargs={"dtype": getattr(torch, name)}
        )
        for name in names
        if hasattr(torch, name)
    }


def document_texts(model: catalog.Model, texts: Sequence[str]) -> list[str]:
    """Documents with prompts, as input to the other engines."""
    return [prompts.document_prompt(model.prompt, text) for text in texts]


def pair_texts(model: catalog.Model, pair: Pair) -> list[str]:
    """Query and document with prompts."""
    query = prompts.query_prompt(model.prompt, DEFAULT_TASK, pair.query)
    return [query, prompts.document_prompt(model.prompt, pair.document)]


def check_same_ids(engines: Engines, texts: Sequence[str]) -> int:
    """Count the documents' tokens. Raises RuntimeError if the libraries disagree on any token ID."""
    ours = engines.default.tokenize([], texts, "").ids
    prompted = document_texts(engines.default.model, texts)
    for dtype, rival in engines.rivals.items():
        theirs = rival.tokenizer(prompted, truncation=True, max_length=rival.max_seq_length)["input_ids"]
        if [ids.tolist() for ids in ours] != [list(ids) for ids in theirs]:
            raise RuntimeError(f"{RIVAL} ({dtype}) has other token IDs: this is a bug of the benchmark")
    return sum(map(len, ours))


def score_ours(embedder: Embedder, pair: Pair) -> float:
    """100 × cosine from this package: tokenize, forward, score."""
    vectors = embedder.embed_tokens(embedder.tokenize([pair.query], [pair.document], DEFAULT_TASK))
    return float(scores(vectors[:1], vectors[1:])[0, 0])


def score_rival(rival: SentenceTransformer, texts: list[str]) -> float:
    """100 × cosine from sentence-transformers' `encode` with its defaults."""
    vectors: Vectors = rival.encode(texts, show_progress_bar=False).astype(np.float32)
    return float(scores(vectors[:1], vectors[1:])[0, 0])


class ModelCardLoop:
    """The model cards' code: pad a batch of two, run the stock AutoModel, pool, normalise, multiply.

    Uses sentence-transformers' model, which is the result of `AutoModel.from_pretrained` with transformers' default
    attention. The cards also compute gradients; this loop does not, in its favour.
    """

    def __init__(self, rival: SentenceTransformer, model: catalog.Model) -> None:
        self.model: Any = rival[0].auto_model
        self.tokenizer, self.max_length = rival.tokenizer, rival.max_seq_length
        self.pool = _last_token_pool if model.pooling == "last" else _average_pool

    @torch.no_grad()
    def score(self, texts: list[str]) -> float:
        batch = self.tokenizer(texts, max_length=self.max_length, padding=True, truncation=True, return_tensors="pt")
        batch = batch.to(self.model.device)
        hidden = self.model(**batch).last_hidden_state
        vectors = torch.nn.functional.normalize(self.pool(hidden, batch["attention_mask"]), p=2, dim=1)
        return float((vectors[:1] @ vectors[1:].T) * 100)


def _last_token_pool(hidden: Tensor, attention_mask: Tensor) -> Tensor:
    """hidden [2, L, D], attention_mask [2, L] padded on the right → [2, D]."""
    return hidden[torch.arange(len(hidden), device=hidden.device), attention_mask.sum(dim=1) - 1]


def _average_pool(hidden: Tensor, attention_mask: Tensor) -> Tensor:
    """hidden [2, L, D], attention_mask [2, L] → [2, D]."""
    summed = hidden.masked_fill(~attention_mask[..., None].bool(), 0.0).sum(dim=1)
    return summed / attention_mask.sum(dim=1)[..., None]
