"""Embedder: composes the steps – prompts, tokens, batches, model, pooling. The one seam that every front calls."""

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from e5 import batches, catalog, pooling, prompts, weights
from e5.inputs import check_task, check_texts
from e5.model import PackedModel, choose_device, choose_dtype, load, max_positions
from e5.prompts import DEFAULT_TASK
from e5.settings import Settings
from e5.tokens import Tokenizer, Tokens

Vectors = NDArray[np.float32]

log = logging.getLogger(__name__)

MAX_BATCH_TOKENS = {"cpu": 4096, "cuda": 16384}
"""Default token budget of one forward pass."""


class Embedder:
    """A loaded model of the E5 family. Not thread-safe: one call at a time; `tokenize` may run beside others.

    Attributes: `model` (its facts), `source`, `dimensions`, `device`, `dtype`, `max_batch_tokens`, and `phases`, the
    seconds that `locate`, `load` and `merge` took.
    """

    def __init__(
        self,
        model: catalog.Model,
        packed: PackedModel,
        tokenizer: Tokenizer,
        *,
        source: str,
        max_batch_tokens: int | None = None,
        phases: dict[str, float] | None = None,
    ) -> None:
        self.model = model
        self.source = source
        self.dimensions = packed.dimensions
        self.device = str(packed.device)
        self.dtype = str(packed.dtype).removeprefix("torch.")
        self.max_batch_tokens = max_batch_tokens or MAX_BATCH_TOKENS[packed.device.type]
        self.phases = phases or {}
        self.packed = packed
        self.tokenizer = tokenizer

    @classmethod
    def load(
        cls,
        name: str | None = None,
        weights: str | Path | None = None,
        *,
        source: str | None = None,
        device: str | None = None,
        dtype: str | None = None,
        max_batch_tokens: int | None = None,
    ) -> Self:
        """Load a model by name, from `weights` (a folder) or where `e5.weights.locate` finds it, else the hub.

        What is not given comes from the E5_* environment variables. Raises SettingsError, WeightsError.
        """
        given = {
            "model": name,
            "weights": Path(weights) if weights is not None else None,
            "source": source,
            "device": device,
            "dtype": dtype,
            "max_batch_tokens": max_batch_tokens,
        }
        environment = Settings.from_environment()
        # A name asks for that model, not for another one's weights or source that the environment speaks of.
        inherited = {} if name not in (None, environment.model) else vars(environment)
        inherited = {**{key: getattr(environment, key) for key in ("device", "dtype", "max_batch_tokens")}, **inherited}
        return cls.from_settings(Settings(**{**inherited, **{k: v for k, v in given.items() if v is not None}}))

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Load what the settings say. Raises SettingsError, WeightsError."""
        started = time.perf_counter()
        model = catalog.get(settings.model)
        device = choose_device(settings.device)
        files = weights.locate(model, settings.weights, settings.source)
        located = time.perf_counter() - started
        packed, seconds = load(model, files, device, choose_dtype(settings.dtype, device))
        if packed.dimensions != model.dimensions:
            log.warning(
                "%s gives %d dimensions, %s has %d: is E5_MODEL the model that the folder holds?",
                files.checkpoint,
                packed.dimensions,
                model.name,
                model.dimensions,
            )
        limit = min(model.max_tokens, max_positions(packed.config))
        return cls(
            model,
            packed,
            Tokenizer(files.tokenizer, model.frame, limit, literal=model.architecture == "mistral"),
            source=files.source,
            max_batch_tokens=settings.max_batch_tokens,
            phases={"locate": located, **seconds},
        )

    @property
    def uses_task(self) -> bool:
        """Whether a query's vector depends on the task: True for the instruct models."""
        return self.model.prompt == "instruct"

    def embed_queries(
        self, texts: Sequence[str], *, task: str = DEFAULT_TASK, normalize: bool = False, progress: bool | None = None
    ) -> Vectors:
        """Embed texts as queries, with the task's instruction where the model has one → float32 [N, D].

        `progress`: a bar on stderr; None shows it on a terminal when the work takes longer than two seconds.
        Raises InputError for a text or task that cannot be embedded.
        """
        tokens = self.tokenize(check_texts("queries", texts), [], check_task(task))
        return self._vectors(tokens, normalize, progress)

    def embed_documents(
        self, texts: Sequence[str], *, normalize: bool = False, progress: bool | None = None
    ) -> Vectors:
        """Embed texts as documents, without an instruction → float32 [N, D]. Otherwise as `embed_queries`."""
        tokens = self.tokenize([], check_texts("documents", texts), "")
        return self._vectors(tokens, normalize, progress)

    def tokenize(self, queries: Sequence[str], documents: Sequence[str], task: str) -> Tokens:
        """Prompt and tokenise checked texts: all queries, then all documents."""
        kind = self.model.prompt
        texts = [prompts.query_prompt(kind, task, query) for query in queries]
        texts += [prompts.document_prompt(kind, document) for document in documents]
        return self.tokenizer.encode(texts)

    def embed_tokens(self, tokens: Tokens, progress: bool | None = False) -> Vectors:
        """The pooled vector of each text, not normalised → float32 [N, D], in the order of `tokens`."""
        vectors = np.empty((len(tokens), self.dimensions), dtype=np.float32)
        waiting: tuple[list[int], torch.Tensor] | None = None
        # disable=None: tqdm then shows a bar on a terminal only.
        quiet, delay = (None, 2) if progress is None else (not progress, 0)
        with tqdm(total=len(tokens), unit="text", delay=delay, disable=quiet) as bar:
            for indices in batches.plan([len(ids) for ids in tokens.ids], self.max_batch_tokens):
                batch = batches.pack([tokens.ids[index] for index in indices], self.packed.padding_id)
                running = (indices, self.packed.embed(batch))
                # A GPU computes this batch while the one before it is fetched: nobody waits in between.
                _collect(vectors, waiting)
                waiting = running
                bar.update(len(indices))
            _collect(vectors, waiting)
        return vectors

    def _vectors(self, tokens: Tokens, unit_length: bool, progress: bool | None) -> Vectors:
        vectors = self.embed_tokens(tokens, progress)
        return normalize(vectors) if unit_length else vectors


def _collect(vectors: Vectors, batch: tuple[list[int], torch.Tensor] | None) -> None:
    if batch is not None:
        vectors[batch[0]] = batch[1].cpu().numpy()


def normalize(vectors: Vectors) -> Vectors:
    """Rows of length 1: float32 [N, D] → float32 [N, D]."""
    rows: Vectors = pooling.normalize(torch.from_numpy(vectors)).numpy()
    return rows


def scores(queries: Vectors, documents: Vectors) -> Vectors:
    """100 × cosine of each query [Q, D] with each document [N, D] → float32 [Q, N]; norms do not matter."""
    matrix: Vectors = pooling.scores(torch.from_numpy(queries), torch.from_numpy(documents)).numpy()
    return matrix
