"""The package as an encoder for mteb: mteb passes texts and computes metrics, this adds prompts and makes vectors."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models import ModelMeta
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ScoringFunction
from mteb.types import BatchedInput, PromptType
from torch.utils.data import DataLoader

from e5 import catalog, normalize
from e5.vectors import Vectors
from evaluation import protocols
from evaluation.backends import Backend, Prepared
from evaluation.cache.key_index import ABSENT
from evaluation.cache.vector_cache import Dtype, VectorCache
from evaluation.compress import COMPRESSIONS
from evaluation.progress import Progress
from evaluation.protocols import Prompt, Protocol

CHUNK_CHARACTERS = 500_000
"""Computed between two writes to the cache: a killed run loses at most these. At 2,000 tokens/s, a minute; ten times as
many on a GPU, so that it does not wait for the disk."""


@dataclass
class Counts:
    """What one task's texts took. `cached`: different texts whose vectors were read from disk."""

    texts: int = 0
    tokens: int = 0
    truncated: int = 0
    cached: int = 0


def stored_dtype(backend: Backend) -> Dtype:
    """The dtype of stored vectors: float16 is enough for a model that computes in 16 bits or fewer."""
    return "float16" if backend.dtype in ("float16", "bfloat16", "float8") else "float32"


class Encoder(AbsEncoder):
    """An mteb encoder over a backend, by a protocol.

    `vectors`: the name of a compression. `cache`: the folder of vectors. `counts`: by the task's name.
    """

    def __init__(self, backend: Backend, protocol: Protocol, *, vectors: str, cache: Path, progress: Progress) -> None:
        self.backend, self.protocol, self.cache, self.progress = backend, protocol, cache, progress
        self.vectors, self.compress = vectors, COMPRESSIONS[vectors]
        self.counts: dict[str, Counts] = {}
        organization = "intfloat" if backend.model.name in catalog.names() else "local"
        self._name = backend.model.name.replace("/", "--")  # for a folder
        self.mteb_model_meta = ModelMeta.create_empty(
            overwrites={
                "name": f"{organization}/{self._name}",
                "revision": backend.revision,
                "max_tokens": float(backend.max_tokens),
                "embed_dim": backend.dimensions,
                "similarity_fn_name": ScoringFunction.COSINE,
                "use_instructions": backend.model.prompt == "instruct",
                "framework": ["PyTorch"],
                "modalities": ["text"],
            }
        )

    def encode(
        self,
        inputs: DataLoader[BatchedInput],
        *,
        task_metadata: TaskMetadata,
        hf_split: str,
        hf_subset: str,
        prompt_type: PromptType | None = None,
        **_: Any,
    ) -> Vectors:
        """float32 [N, D]. Raises EvaluationError."""
        prompt = protocols.prompt(self.protocol, self.backend.model.prompt, task_metadata, prompt_type)
        texts = [text for batch in inputs for text in _texts(batch, prompt.with_title)]
        counts = self.counts.setdefault(task_metadata.name, Counts())
        counts.texts += len(texts)
        rows = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        vectors = self._embed(list(rows), prompt, counts)
        if len(rows) < len(texts):  # SICK-R has 19,854 texts, of which 6,076 differ
            self.progress.skip(sum(map(len, texts)) - sum(map(len, rows)))
            vectors = vectors[[rows[text] for text in texts]]
        if protocols.normalized(self.protocol, task_metadata):
            vectors = normalize(vectors)
        return self.compress(vectors)

    def _embed(self, texts: Sequence[str], prompt: Prompt, counts: Counts) -> Vectors:
        dimensions, dtype = self.backend.dimensions, stored_dtype(self.backend)
        with VectorCache(self.cache / self._key(prompt), dimensions, dtype) as cache:
            known = cache.find(texts) != ABSENT
            counts.cached += int(known.sum())
            self.progress.skip(sum(len(texts[index]) for index in np.flatnonzero(known)))
            for part, computed in self._compute(texts, np.flatnonzero(~known), prompt, counts):
                cache.append([texts[index] for index in part], computed)
            return cache.read(cache.find(texts))  # as stored: a resumed run has the same vectors

    def _compute(
        self, texts: Sequence[str], indices: np.ndarray, prompt: Prompt, counts: Counts
    ) -> Iterator[tuple[np.ndarray, Vectors]]:
        """Vectors of the texts at `indices`, in chunks of similar lengths, longest first."""
        order = np.array(sorted(indices.tolist(), key=lambda index: -len(texts[index])), np.int64)
        most = CHUNK_CHARACTERS * (10 if self.backend.place.startswith("cuda") else 1)
        ends = np.cumsum([len(texts[index]) for index in order]) // most
        parts = np.split(order, np.flatnonzero(np.diff(ends)) + 1) if len(order) else []

        def prepare(part: np.ndarray) -> Prepared:
            return self.backend.prepare([texts[index] for index in part], prompt)

        with ThreadPoolExecutor(1, thread_name_prefix="tokenize") as thread:
            following = [thread.submit(prepare, part) for part in parts[:1]]
            for number, part in enumerate(parts):
                prepared = following.pop().result()
                following = [thread.submit(prepare, later) for later in parts[number + 1 : number + 2]]
                yield part, self.backend.compute(prepared)
                counts.tokens += prepared.tokens
                counts.truncated += prepared.truncated
                self.progress.add(sum(len(texts[index]) for index in part), prepared.tokens)

    def _key(self, prompt: Prompt) -> str:
        """The folder of the vectors of one prompt. Equal folders mean equal vectors, whatever the task."""
        backend = self.backend
        name = f"{self._name}-{backend.revision}-{backend.dtype}-{backend.max_tokens}"
        return f"{name}-{prompt.side}-{sha256(prompt.apply('').encode()).hexdigest()[:8]}".replace(" ", "-")


def _texts(batch: BatchedInput, with_title: bool) -> Sequence[str]:
    """The texts of one of mteb's batches; a document's `text` has its title, `body` has not."""
    texts: Sequence[str] = batch["text"] if with_title else batch["body"]  # type: ignore[typeddict-item]
    return texts
