"""Embedder: the library's public class. Runs the steps in order: prompts, tokens, batches, forward pass, pooling."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain, pairwise, repeat
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from tqdm import tqdm

from e5 import catalog, prompts
from e5.declaration import FILE
from e5.errors import InputError, SettingsError
from e5.inputs import LongTexts, check_long_texts, check_prompt, check_task, check_texts
from e5.network import batches, pooling
from e5.network.device import choose_device, choose_dtype
from e5.network.load import load
from e5.network.model import PackedModel, PendingResult
from e5.prompts import DEFAULT_TASK
from e5.settings import Settings
from e5.tokens import TokenIds, Tokenizer, Tokens
from e5.vectors import Vectors, check_finite
from e5.weights.locate import locate

log = logging.getLogger(__name__)

MAX_BATCH_TOKENS = {"cpu": 4096, "cuda": 16384}
"""Default token budget of a forward pass."""
PART = 4096
"""Number of texts tokenized and planned into batches at a time on a GPU: about 40 batches, a second or more of the
flagship's time."""

Tokenize = Callable[[Sequence[str]], Tokens]


class Embedder:
    """A loaded model of the E5 family. Not thread-safe, except for `tokenize`.

    Attributes: `model` (its catalog entry or declaration), `source`, `dimensions`, `device`, `dtype`,
    `max_batch_tokens`, and `phases`: the seconds that `locate`, `load`, `merge`, on CUDA `graphs`, and
    `tokenizer` took.
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
        """Load a model by name, from the folder `weights`, from where `e5.weights.locate` finds it, or from the hub.

        A folder with an `e5.json` holds a model of its own (`e5.declaration`): pass it alone or with the declared name.
        Arguments that are None come from the E5_* environment variables. Raises SettingsError, WeightsError.
        """
        arguments: dict[str, Any] = {
            "source": source,
            "device": device,
            "dtype": dtype,
            "max_batch_tokens": max_batch_tokens,
        }
        folder = Path(weights) if weights is not None else None
        environment = Settings.from_environment(model=name, weights=folder)
        return cls.from_settings(replace(environment, **{k: v for k, v in arguments.items() if v is not None}))

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Load the model that the settings name. Raises SettingsError, WeightsError."""
        started = time.perf_counter()
        model = settings.resolve()
        device = choose_device(settings.device)
        files = locate(model, settings.weights, settings.source)
        located = time.perf_counter() - started
        packed, seconds = load(model, files, device, choose_dtype(settings.dtype, device))
        if model.dimensions and packed.dimensions != model.dimensions:
            log.warning(
                "%s has %d dimensions, %s has %d: is E5_MODEL the model in this folder?",
                files.checkpoint,
                packed.dimensions,
                model.name,
                model.dimensions,
            )
        if model.name not in catalog.names() and model.max_tokens > packed.max_positions:
            raise SettingsError(
                f"{settings.weights}/{FILE} declares max_tokens={model.max_tokens}, but the model has positions for "
                f"{packed.max_positions} tokens: declare no more"
            )
        loaded = time.perf_counter()
        max_tokens = min(model.max_tokens, packed.max_positions)
        literal = model.architecture == "mistral"
        tokenizer = Tokenizer(files.tokenizer, model.special_tokens, max_tokens, literal=literal)
        seconds["tokenizer"] = time.perf_counter() - loaded
        return cls(
            model,
            packed,
            tokenizer,
            source=files.source,
            max_batch_tokens=settings.max_batch_tokens,
            phases={"locate": located, **seconds},
        )

    @property
    def uses_task(self) -> bool:
        """Whether a query's vector depends on the task: True for the instruct models."""
        return self.model.prompt == "instruct"

    def embed_queries(
        self,
        texts: Sequence[str],
        *,
        task: str = DEFAULT_TASK,
        normalize: bool = False,
        long_texts: LongTexts = "truncate",
        progress: bool | None = None,
    ) -> Vectors:
        """Embed texts as queries → float32 [N, D]. Instruct models read the task's instruction with each query.

        `long_texts`: truncate a text to the model's `max_tokens`, raise an error, or average the vectors of windows
        that cover it (`e5.tokens.Tokens.average`). `progress`: show a progress bar on stderr. None shows it on a
        terminal, after two seconds. Raises InputError for a text or task that cannot be embedded.
        """
        checked = check_texts("queries", texts)
        check_task(task)
        prompt = self._query_prompt(task) if checked else ""
        return self._embed("queries", checked, prompt, long_texts, normalize, progress)

    def embed_documents(
        self,
        texts: Sequence[str],
        *,
        normalize: bool = False,
        long_texts: LongTexts = "truncate",
        progress: bool | None = None,
    ) -> Vectors:
        """Embed texts as documents, without an instruction → float32 [N, D]. Otherwise like `embed_queries`."""
        checked = check_texts("documents", texts)
        prompt = prompts.document_prompt(self.model.prompt, "")
        return self._embed("documents", checked, prompt, long_texts, normalize, progress)

    def embed_texts(
        self,
        texts: Sequence[str],
        prompt: str = "",
        normalize: bool = False,
        *,
        long_texts: LongTexts = "truncate",
        progress: bool | None = None,
    ) -> Vectors:
        """Embed texts exactly as given, with `prompt` in front of each → float32 [N, D].

        Adds only the special tokens: no instruction, no `query: `, no `passage: `. Use this for evaluations and for
        prompts of your own; `embed_queries` and `embed_documents` add the prompts that the model was trained with.
        Otherwise like `embed_queries`. Raises InputError for a text or prompt that cannot be embedded.
        """
        checked = check_texts("texts", texts)
        check_prompt(prompt)
        if checked and prompt:
            self._check_room("prompt", prompt, "text", "pass a shorter prompt")
        return self._embed("texts", checked, prompt, long_texts, normalize, progress)

    def tokenize(
        self, queries: Sequence[str], documents: Sequence[str], task: str, long_texts: LongTexts = "truncate"
    ) -> Tokens:
        """Prompt and tokenize checked texts: all queries, then all documents.

        Raises InputError if the task is too long, but not for long texts.
        """
        before = chain(
            repeat(self._query_prompt(task) if queries else "", len(queries)),
            repeat(prompts.document_prompt(self.model.prompt, ""), len(documents)),
        )
        return self._encode(chain(queries, documents), before, long_texts)

    def too_long(self, name: str, tokens: int) -> InputError:
        """The error for a text of more tokens than the model reads, where long_texts=error."""
        return InputError(
            f"`{name}` has {tokens:,} tokens, more than the {self.tokenizer.max_tokens:,} of {self.model.name}: "
            "shorten it, or pass long_texts=truncate or average"
        )

    def forward(self, ids: Sequence[TokenIds]) -> torch.Tensor:
        """One packed forward pass over the token ids of N texts → float32 [N, D] on the device, not normalized.

        A GPU may still be computing the result on return. Texts sorted by length are fastest.
        """
        return self.packed.embed(batches.pack(ids, self.packed.padding_idx, self.packed.bucket_step))

    def launch(self, ids: Sequence[TokenIds]) -> PendingResult:
        """Start `forward` and the copy of its vectors to the host. `PendingResult.vectors()` waits for them."""
        return PendingResult(self.forward(ids), sum(map(len, ids)))

    def embed_tokens(self, tokens: Tokens, progress: bool | None = False) -> Vectors:
        """Embed token ids → float32 [N, D], not normalized, in the order of `tokens`.

        Raises FloatingPointError for a vector with NaN or infinity.
        """
        return self._compute([tokens], len(tokens.lengths), progress)

    def _encode(self, texts: Iterable[str], before: Iterable[str], long_texts: LongTexts) -> Tokens:
        """Tokenize texts, each with the prompt `before` it."""
        if long_texts == "average":
            return self.tokenizer.encode_windows(texts, before)
        # Lazy: the prompts of many queries with a long task may not fit in memory together.
        return self.tokenizer.encode(prompt + text for prompt, text in zip(before, texts, strict=True))

    def _embed(
        self,
        name: str,
        texts: Sequence[str],
        prompt: str,
        long_texts: LongTexts,
        unit_length: bool,
        progress: bool | None,
    ) -> Vectors:
        """Embed checked texts, each with `prompt` in front. `name`: of the list, for errors."""
        check_long_texts(long_texts)
        first = truncated = 0

        def tokenize(part: Sequence[str]) -> Tokens:
            return self._encode(part, repeat(prompt, len(part)), long_texts)

        def checked_parts() -> Iterator[Tokens]:
            nonlocal first, truncated
            for tokens in self._tokenized_parts(texts, tokenize):
                cut = tokens.truncated
                if cut and long_texts == "error":
                    raise self.too_long(f"{name}[{first + cut[0]}]", tokens.lengths[cut[0]])
                truncated += len(cut)
                first += len(tokens.lengths)
                yield tokens

        vectors = self._compute(checked_parts(), len(texts), progress)
        if truncated:
            log.warning("%d of %d texts were cut to %d tokens", truncated, len(texts), self.tokenizer.max_tokens)
        return normalize(vectors) if unit_length else vectors

    def _compute(self, parts: Iterable[Tokens], count: int, progress: bool | None) -> Vectors:
        """Embed `count` texts, whose tokens arrive in parts."""
        vectors = np.empty((count, self.dimensions), dtype=np.float32)
        in_flight: _Batch | None = None
        first = 0
        # disable=None: tqdm shows the bar on a terminal only.
        disable, delay = (None, 2) if progress is None else (not progress, 0)
        with tqdm(total=count, unit="text", delay=delay, disable=disable) as bar:
            for tokens in parts:
                of_texts = vectors[first : first + len(tokens.lengths)]
                rows = of_texts if tokens.weights is None else np.empty((len(tokens), self.dimensions), np.float32)
                texts = tokens.texts
                for indices in batches.plan([len(ids) for ids in tokens.ids], self.max_batch_tokens):
                    result = self.launch([tokens.ids[index] for index in indices])
                    # A GPU computes this batch while the previous one is fetched.
                    if in_flight:
                        in_flight.collect(count)
                    in_flight = _Batch(rows, indices, [first + texts[index] for index in indices], result)
                    bar.update(len(indices) if tokens.weights is None else 0)
                if tokens.weights is not None:
                    if in_flight:
                        in_flight.collect(count)
                        in_flight = None
                    of_texts[:] = tokens.average(rows)
                    bar.update(len(of_texts))
                first += len(of_texts)
            if in_flight:
                in_flight.collect(count)
        return vectors

    def _query_prompt(self, task: str) -> str:
        """What precedes each query. Raises InputError if the task is too long."""
        prompt = prompts.query_prompt(self.model.prompt, task, "")
        if task and self.uses_task:
            cure = "pass an instruction of one sentence, and the text itself as query"
            self._check_room("task", prompt, "query", cure)
        return prompt

    def _check_room(self, name: str, prefix: str, text_name: str, cure: str) -> None:
        """Raise InputError if `prefix` takes more than half of the model's `max_tokens`."""
        used, max_tokens = self.tokenizer.encode([prefix]).total, self.tokenizer.max_tokens
        if used > max_tokens // 2:
            raise InputError(
                f"`{name}` takes {used} tokens or more of the {max_tokens} that it shares with the {text_name}: {cure}"
            )

    def _tokenized_parts(self, texts: Sequence[str], tokenize: Tokenize) -> Iterator[Tokens]:
        """Tokenize the texts. For a GPU, a thread tokenizes the next part while one is computed.

        On a CPU the model needs all cores, and sorting all texts by length gains more: one part.
        """
        first = PART // 16  # short, because the GPU idles until it is tokenized
        if self.device == "cpu" or len(texts) <= first:
            yield tokenize(texts)
            return
        starts = [0, *range(first, len(texts), PART), len(texts)]
        current: Future[Tokens] | None = None
        with ThreadPoolExecutor(1, thread_name_prefix="tokenize") as thread:
            for start, stop in pairwise(starts):
                following = thread.submit(tokenize, texts[start:stop])
                if current is not None:
                    yield current.result()
                current = following
            assert current is not None  # there are at least two parts
            yield current.result()


@dataclass(frozen=True, eq=False)
class _Batch:
    """Sequences on the device, whose vectors go to `rows[indices]`. `texts`: the index of each one's text."""

    rows: Vectors
    indices: list[int]
    texts: list[int]
    result: PendingResult

    def collect(self, count: int) -> None:
        """Wait for the vectors. `count`: texts of the call. Raises FloatingPointError for NaN or infinity."""
        vectors = self.result.vectors()
        check_finite(vectors, self.texts, count)
        self.rows[self.indices] = vectors


def normalize(vectors: Vectors) -> Vectors:
    """Scale each row to length 1: float32 [N, D] → float32 [N, D]."""
    unit: Vectors = pooling.normalize(_tensor(vectors)).numpy()
    return unit


def scores(queries: Vectors, documents: Vectors) -> Vectors:
    """100 × cosine of each query [Q, D] with each document [N, D] → float32 [Q, N], whatever the vectors' lengths."""
    matrix: Vectors = pooling.scores(_tensor(queries), _tensor(documents)).numpy()
    return matrix


def _tensor(vectors: Vectors) -> torch.Tensor:
    """Any numeric array → float32 tensor; reversed, read-only and big-endian arrays included."""
    return torch.from_numpy(np.require(vectors, np.float32, ["C", "W"]))
