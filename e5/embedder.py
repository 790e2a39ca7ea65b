"""Embedder: composes the steps – prompts, tokens, batches, model, pooling. The one seam that every front calls."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from e5 import catalog, prompts
from e5.errors import InputError
from e5.inputs import check_prompt, check_task, check_texts
from e5.network import batches, pooling
from e5.network.device import choose_device, choose_dtype
from e5.network.load import load
from e5.network.model import PackedModel, PendingResult
from e5.prompts import DEFAULT_TASK
from e5.settings import Settings
from e5.tokens import Tokenizer, Tokens
from e5.vectors import Vectors, check_finite
from e5.weights.locate import locate

log = logging.getLogger(__name__)

MAX_BATCH_TOKENS = {"cpu": 4096, "cuda": 16384}
"""Default token budget of one forward pass."""
WINDOW = 4096
"""Texts that are sorted by length together for a GPU: a second of the flagship's time or more, some 40 batches."""

Tokenize = Callable[[Sequence[str]], Tokens]


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
        self.dtype = packed.dtype
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
        given: dict[str, Any] = {
            "weights": Path(weights) if weights is not None else None,
            "source": source,
            "device": device,
            "dtype": dtype,
            "max_batch_tokens": max_batch_tokens,
        }
        environment = Settings.from_environment(model=name)
        return cls.from_settings(replace(environment, **{k: v for k, v in given.items() if v is not None}))

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Load what the settings say. Raises SettingsError, WeightsError."""
        started = time.perf_counter()
        model = catalog.get(settings.model)
        device = choose_device(settings.device)
        files = locate(model, settings.weights, settings.source)
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
        limit = min(model.max_tokens, packed.max_positions)
        return cls(
            model,
            packed,
            Tokenizer(files.tokenizer, model.special_tokens, limit, literal=model.architecture == "mistral"),
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
        checked = check_texts("queries", texts)
        check_task(task)
        return self._embed(checked, lambda some: self.tokenize(some, [], task), normalize, progress)

    def embed_documents(
        self, texts: Sequence[str], *, normalize: bool = False, progress: bool | None = None
    ) -> Vectors:
        """Embed texts as documents, without an instruction → float32 [N, D]. Otherwise as `embed_queries`."""
        return self._embed(
            check_texts("documents", texts), lambda some: self.tokenize([], some, ""), normalize, progress
        )

    def embed_texts(
        self, texts: Sequence[str], prompt: str = "", normalize: bool = False, *, progress: bool | None = None
    ) -> Vectors:
        """Embed texts exactly as given, with `prompt` in front of each → float32 [N, D].

        Only the special tokens are added: no instruction, no `query: `, no `passage: `. This is for evaluations and
        prompts of your own; `embed_queries` and `embed_documents` prompt a text as the model was trained.
        `progress` as in `embed_queries`. Raises InputError for a text or prompt that cannot be embedded.
        """
        checked = check_texts("texts", texts)
        check_prompt(prompt)
        if checked and prompt:
            self._check_room("prompt", prompt, "text", "pass a shorter prompt")
        return self._embed(
            checked, lambda some: self.tokenizer.encode(prompt + text for text in some), normalize, progress
        )

    def tokenize(self, queries: Sequence[str], documents: Sequence[str], task: str) -> Tokens:
        """Prompt and tokenise checked texts: all queries, then all documents. Raises InputError for too long a task."""
        kind = self.model.prompt
        if queries and task and self.uses_task:
            cure = "pass an instruction of one sentence, and the text itself as query"
            self._check_room("task", prompts.query_prompt(kind, task, ""), "query", cure)
        texts = chain(  # made one at a time: a long task times many queries would not fit in memory
            (prompts.query_prompt(kind, task, query) for query in queries),
            (prompts.document_prompt(kind, document) for document in documents),
        )
        return self.tokenizer.encode(texts)

    def forward(self, ids: Sequence[Sequence[int] | NDArray[np.int32]]) -> torch.Tensor:
        """One packed pass over the token ids of N texts → float32 [N, D] on the device, not normalised.

        A GPU may still be computing it on return. Longest texts first is fastest: equal lengths should be neighbours.
        """
        return self.packed.embed(batches.pack(ids, self.packed.padding_idx, self.packed.bucketed))

    def launch(self, ids: Sequence[Sequence[int] | NDArray[np.int32]]) -> PendingResult:
        """`forward`, and the copy of its vectors to the host, which the caller waits for when it needs them."""
        return PendingResult(self.forward(ids), sum(map(len, ids)))

    def embed_tokens(self, tokens: Tokens, progress: bool | None = False) -> Vectors:
        """The pooled vector of each text, not normalised → float32 [N, D], in the order of `tokens`.

        Raises FloatingPointError for a vector with NaN or infinity.
        """
        return self._compute(_one(tokens), len(tokens), progress)

    def _compute(self, windows: Iterable[Tokens], count: int, progress: bool | None) -> Vectors:
        """The vectors of `count` texts, whose tokens come in some windows, one after the other."""
        vectors = np.empty((count, self.dimensions), dtype=np.float32)
        waiting: tuple[list[int], PendingResult] | None = None
        first = 0
        # disable=None: tqdm then shows a bar on a terminal only.
        quiet, delay = (None, 2) if progress is None else (not progress, 0)
        with tqdm(total=count, unit="text", delay=delay, disable=quiet) as bar:
            for tokens in windows:
                for indices in batches.plan([len(ids) for ids in tokens.ids], self.max_batch_tokens):
                    result = self.launch([tokens.ids[index] for index in indices])
                    # A GPU computes this batch while the one before it is fetched: nobody waits in between.
                    _collect(vectors, waiting)
                    waiting = [first + index for index in indices], result
                    bar.update(len(indices))
                first += len(tokens)
            _collect(vectors, waiting)
        return vectors

    def _check_room(self, name: str, prefix: str, text_name: str, cure: str) -> None:
        """Raise InputError if `prefix` takes more than half of the tokens that it shares with a text."""
        used, limit = len(self.tokenizer.encode([prefix]).ids[0]), self.tokenizer.max_tokens
        if used > limit // 2:
            raise InputError(
                f"`{name}` takes {used} tokens or more of the {limit} that it shares with the {text_name}: {cure}"
            )

    def _embed(self, texts: Sequence[str], tokenize: Tokenize, unit_length: bool, progress: bool | None) -> Vectors:
        truncated = 0

        def counted() -> Iterator[Tokens]:
            nonlocal truncated
            for tokens in self._windows(texts, tokenize):
                truncated += tokens.truncated
                yield tokens

        vectors = self._compute(counted(), len(texts), progress)
        if truncated:
            log.warning("%d of %d texts were cut to %d tokens", truncated, len(texts), self.tokenizer.max_tokens)
        return normalize(vectors) if unit_length else vectors

    def _windows(self, texts: Sequence[str], tokenize: Tokenize) -> Iterator[Tokens]:
        """The tokens of all texts; for a GPU in windows, each tokenised while the one before it is computed.

        A CPU has no cores to spare meanwhile, and gains by equal lengths side by side: one window.
        """
        first = WINDOW // 16  # until it is tokenised the GPU has nothing to do
        if self.device == "cpu" or len(texts) <= first:
            yield tokenize(texts)
            return
        starts = [0, *range(first, len(texts), WINDOW), len(texts)]
        present: Future[Tokens] | None = None
        with ThreadPoolExecutor(1, thread_name_prefix="tokenize") as thread:
            for start, stop in pairwise(starts):
                coming = thread.submit(tokenize, texts[start:stop])
                if present is not None:
                    yield present.result()
                present = coming
            assert present is not None  # there are two windows at least
            yield present.result()


def _one(tokens: Tokens) -> Iterator[Tokens]:
    yield tokens


def _collect(vectors: Vectors, batch: tuple[list[int], PendingResult] | None) -> None:
    if batch is None:
        return
    indices, result = batch[0], batch[1].vectors()
    check_finite(result, indices, len(vectors))
    vectors[indices] = result


def normalize(vectors: Vectors) -> Vectors:
    """Rows of length 1: float32 [N, D] → float32 [N, D]."""
    rows: Vectors = pooling.normalize(_tensor(vectors)).numpy()
    return rows


def scores(queries: Vectors, documents: Vectors) -> Vectors:
    """100 × cosine of each query [Q, D] with each document [N, D] → float32 [Q, N]; norms do not matter."""
    matrix: Vectors = pooling.scores(_tensor(queries), _tensor(documents)).numpy()
    return matrix


def _tensor(vectors: Vectors) -> torch.Tensor:
    """Any array of numbers, also a reversed, a read-only or a big-endian one, as a float32 tensor."""
    return torch.from_numpy(np.require(vectors, np.float32, ["C", "W"]))
