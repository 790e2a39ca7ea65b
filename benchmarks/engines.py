"""The engines that are compared, all loaded from one complete checkpoint: so each has the same weights to the last bit.

Models of base and adapter are merged once and saved; the other models' files are linked. Beside them lie the files
that the hub's repository of an E5 model has for sentence-transformers, so that it loads the folder as it would load
the published model. Its tokenizer adds `</s>` here, which the published file of e5-mistral does not.

They share a process, so what this package sets for a process on a CPU (e5.network.memory: glibc keeps freed blocks)
serves the others too: in a process of its own sentence-transformers 6.2 took 1.2 times as long on the embedded model.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer, processors
from torch import Tensor
from transformers import AutoConfig

from benchmarks.report import log
from benchmarks.texts import Pair
from e5 import DEFAULT_TASK, Settings, catalog, prompts, scores
from e5.embedder import Embedder
from e5.network.device import choose_dtype
from e5.network.encoder import max_positions
from e5.vectors import Vectors
from e5.weights import checkpoint
from e5.weights.files import LocalWeights
from e5.weights.merge import write_merged

OURS, RIVAL, CARD = "this package", "sentence-transformers", "model card"
SMALL = 1_000_000_000
"""Models of fewer parameters are merged in float32; larger ones in the device's dtype, to spare disk and time."""
PADDING = ("<pad>", "[PAD]", "</s>")
"""What the family pads with; a tokenizer has the first of these that its vocabulary knows."""


def dtypes(device: torch.device) -> list[str]:
    """float32, and the dtype that this package takes by itself on the device where that is another one."""
    default = str(choose_dtype(None, device)).removeprefix("torch.")
    return list(dict.fromkeys(["float32", default]))


@dataclass(frozen=True)
class Engines:
    """Both libraries by dtype, loaded from `folder`: the dtype to compare with first, this package's own last.

    float8 is a way of this package alone: `rivals` lacks it.
    """

    folder: Path
    ours: dict[str, Embedder]
    rivals: dict[str, SentenceTransformer]

    @property
    def dtypes(self) -> list[str]:
        return list(self.ours)

    @property
    def reference(self) -> str:
        """The dtype whose results the others are held against."""
        return self.dtypes[0]

    @property
    def shared_dtypes(self) -> list[str]:
        """Those of both libraries."""
        return list(self.rivals)

    @property
    def default(self) -> Embedder:
        return self.ours[self.shared_dtypes[-1]]


def load_ours(model: catalog.Model, folder: Path, device: torch.device, names: Sequence[str]) -> dict[str, Embedder]:
    """This package in each dtype, from a complete checkpoint."""
    return {name: load_one(model, folder, device, name) for name in names}


def load_one(model: catalog.Model, folder: Path, device: torch.device, name: str) -> Embedder:
    """This package in one dtype, from a complete checkpoint."""
    return Embedder.from_settings(Settings(model.name, folder, "merged", str(device), name))


def load_rivals(folder: Path, device: torch.device, names: Sequence[str]) -> dict[str, SentenceTransformer]:
    """sentence-transformers in each dtype that torch has, as its documentation loads a model."""
    return {
        name: SentenceTransformer(
            str(folder), device=str(device), local_files_only=True, model_kwargs={"dtype": getattr(torch, name)}
        )
        for name in names
        if hasattr(torch, name)
    }


def shared_checkpoint(model: catalog.Model, found: LocalWeights, device: torch.device, to: Path) -> Path:
    """Make the folder that every engine loads. The rest of this module relies on its files."""
    if found.adapter is None:
        to.mkdir(parents=True, exist_ok=True)
        names = ("config.json", *catalog.CHECKPOINT, *(path.name for path in checkpoint.shards(found.checkpoint)))
        for name in dict.fromkeys(names):
            if (found.checkpoint / name).is_file():
                (to / name).symlink_to((found.checkpoint / name).resolve())
    else:
        log("merging base and adapter into one checkpoint for all engines …")
        dtype = torch.float32 if model.parameters < SMALL else choose_dtype(None, device)
        write_merged(found, to, dtype, device)
    complete(model, found, to)
    return to


def complete(model: catalog.Model, found: LocalWeights, to: Path) -> None:
    """Put the tokenizer and sentence-transformers' files beside a checkpoint's weights and configuration."""
    config: Any = AutoConfig.from_pretrained(to, local_files_only=True)
    limit = min(model.max_tokens, max_positions(config))
    _write_tokenizer(model, found.tokenizer, to, limit)
    _write_modules(model, to, int(config.hidden_size), limit)


def _write_tokenizer(model: catalog.Model, source: Path, to: Path, limit: int) -> None:
    tokenizer = Tokenizer.from_file(str(source))
    first, last = model.special_tokens
    frame = [(token, tokenizer.token_to_id(token)) for token in (first, last)]
    tokenizer.post_processor = processors.TemplateProcessing(f"{first} $A {last}", None, frame)
    tokenizer.save(str(to / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": limit,
        "model_input_names": ["input_ids", "attention_mask"],
        "padding_side": "right",
        "pad_token": next(token for token in PADDING if tokenizer.token_to_id(token) is not None),
    }
    (to / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")


def _write_modules(model: catalog.Model, to: Path, dimensions: int, limit: int) -> None:
    """The files of a hub repository that tell sentence-transformers how to pool; without its Normalize module."""
    kinds = ("Transformer", "Pooling")
    folders = ("", "1_Pooling")
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (kind, path) in enumerate(zip(kinds, folders, strict=True))
    ]
    pooling = {
        "word_embedding_dimension": dimensions,
        "pooling_mode_cls_token": False,
        "pooling_mode_mean_tokens": model.pooling == "mean",
        "pooling_mode_max_tokens": False,
        "pooling_mode_mean_sqrt_len_tokens": False,
        "pooling_mode_lasttoken": model.pooling == "last",
    }
    (to / "1_Pooling").mkdir(exist_ok=True)
    for name, content in (
        ("modules.json", modules),
        ("sentence_bert_config.json", {"max_seq_length": limit, "do_lower_case": False}),
        ("1_Pooling/config.json", pooling),
    ):
        (to / name).write_text(json.dumps(content, indent=2), "utf-8")


def document_texts(model: catalog.Model, texts: Sequence[str]) -> list[str]:
    """Documents with their prompts, as the other libraries want them."""
    return [prompts.document_prompt(model.prompt, text) for text in texts]


def pair_texts(model: catalog.Model, pair: Pair) -> list[str]:
    """Query and document with their prompts."""
    query = prompts.query_prompt(model.prompt, DEFAULT_TASK, pair.query)
    return [query, prompts.document_prompt(model.prompt, pair.document)]


def check_same_ids(engines: Engines, texts: Sequence[str]) -> int:
    """Tokens of the documents. Raises RuntimeError unless both libraries see the same token ids."""
    ours = engines.default.tokenize([], texts, "").ids
    prompted = document_texts(engines.default.model, texts)
    for name, rival in engines.rivals.items():
        theirs = rival.tokenizer(prompted, truncation=True, max_length=rival.max_seq_length)["input_ids"]
        if [ids.tolist() for ids in ours] != [list(ids) for ids in theirs]:
            raise RuntimeError(f"{RIVAL} ({name}) sees other token ids: this is a bug of the benchmark")
    return sum(map(len, ours))


def score_ours(embedder: Embedder, pair: Pair) -> float:
    """100 × cosine through the engine: tokenise, forward, score."""
    vectors = embedder.embed_tokens(embedder.tokenize([pair.query], [pair.document], DEFAULT_TASK))
    return float(scores(vectors[:1], vectors[1:])[0, 0])


def score_rival(rival: SentenceTransformer, texts: list[str]) -> float:
    """The same through sentence-transformers' `encode`, its defaults."""
    vectors: Vectors = rival.encode(texts, show_progress_bar=False).astype(np.float32)
    return float(scores(vectors[:1], vectors[1:])[0, 0])


class Card:
    """The model cards' own loop: pad a batch of two, stock AutoModel, pool, normalise, multiply.

    The model is the one that sentence-transformers holds: what `AutoModel.from_pretrained` gives, with the attention
    that transformers chooses by itself. The cards compute gradients along; this loop does not, in its favour.
    """

    def __init__(self, rival: SentenceTransformer, model: catalog.Model) -> None:
        self.model: Any = rival[0].auto_model
        self.tokenizer, self.limit = rival.tokenizer, rival.max_seq_length
        self.pool = _last_token_pool if model.pooling == "last" else _average_pool

    @torch.no_grad()
    def score(self, texts: list[str]) -> float:
        batch = self.tokenizer(texts, max_length=self.limit, padding=True, truncation=True, return_tensors="pt")
        batch = batch.to(self.model.device)
        hidden = self.model(**batch).last_hidden_state
        vectors = torch.nn.functional.normalize(self.pool(hidden, batch["attention_mask"]), p=2, dim=1)
        return float((vectors[:1] @ vectors[1:].T) * 100)


def _last_token_pool(hidden: Tensor, mask: Tensor) -> Tensor:
    """hidden [2, L, D], mask [2, L] padded on the right → [2, D]."""
    return hidden[torch.arange(len(hidden), device=hidden.device), mask.sum(dim=1) - 1]


def _average_pool(hidden: Tensor, mask: Tensor) -> Tensor:
    """hidden [2, L, D], mask [2, L] → [2, D]."""
    return hidden.masked_fill(~mask[..., None].bool(), 0.0).sum(dim=1) / mask.sum(dim=1)[..., None]
