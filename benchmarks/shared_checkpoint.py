"""The complete checkpoint that every compared engine loads, so that all have bit-identical weights.

Models of base and adapter are merged once and saved; the files of other models are linked. The folder also gets the
files with which sentence-transformers loads a published E5 model. Its tokenizer adds `</s>`; the published tokenizer of
e5-mistral does not.
"""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, processors
from transformers import AutoConfig

from benchmarks.report import log
from e5 import catalog
from e5.network.device import choose_dtype
from e5.network.encoder import max_positions
from e5.weights import checkpoint
from e5.weights.files import LocalWeights
from e5.weights.merge import write_merged

FLOAT32_MERGE_LIMIT = 1_000_000_000
"""Models with fewer parameters are merged in float32; larger ones in the device's dtype, to save disk and time."""
PAD_TOKENS = ("<pad>", "[PAD]", "</s>")
"""Padding tokens of the family; a tokenizer uses the first that its vocabulary has."""


def build(model: catalog.Model, weights: LocalWeights, device: torch.device, to: Path) -> Path:
    """Write the checkpoint into `to` and return `to`."""
    if weights.adapter is None:
        to.mkdir(parents=True, exist_ok=True)
        shards = (path.name for path in checkpoint.shards(weights.checkpoint))
        for name in {"config.json", *catalog.CHECKPOINT, *shards}:
            if (weights.checkpoint / name).is_file():
                (to / name).symlink_to((weights.checkpoint / name).resolve())
    else:
        log("merging base and adapter into one checkpoint for all engines …")
        dtype = torch.float32 if model.parameters < FLOAT32_MERGE_LIMIT else choose_dtype(None, device)
        write_merged(weights, to, dtype, device)
    add_tokenizer_and_pooling(model, weights, to)
    return to


def add_tokenizer_and_pooling(model: catalog.Model, weights: LocalWeights, to: Path) -> None:
    """Complete a folder of weights and config.json with the tokenizer and sentence-transformers' files."""
    config: Any = AutoConfig.from_pretrained(to, local_files_only=True)
    max_tokens = min(model.max_tokens, max_positions(config))
    _write_tokenizer(model, weights.tokenizer, to, max_tokens)
    _write_modules(model, to, int(config.hidden_size), max_tokens)


def _write_tokenizer(model: catalog.Model, source: Path, to: Path, max_tokens: int) -> None:
    tokenizer = Tokenizer.from_file(str(source))
    assert model.special_tokens is not None  # every model of the catalog has them
    bos, eos = model.special_tokens
    special_tokens = [(token, tokenizer.token_to_id(token)) for token in (bos, eos)]
    tokenizer.post_processor = processors.TemplateProcessing(f"{bos} $A {eos}", None, special_tokens)
    tokenizer.save(str(to / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_tokens,
        "model_input_names": ["input_ids", "attention_mask"],
        "padding_side": "right",
        "pad_token": next(token for token in PAD_TOKENS if tokenizer.token_to_id(token) is not None),
    }
    (to / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")


def _write_modules(model: catalog.Model, to: Path, dimensions: int, max_tokens: int) -> None:
    """Write the files from which sentence-transformers learns how to pool. Leaves out its Normalize module."""
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (kind, path) in enumerate((("Transformer", ""), ("Pooling", "1_Pooling")))
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
        ("sentence_bert_config.json", {"max_seq_length": max_tokens, "do_lower_case": False}),
        ("1_Pooling/config.json", pooling),
    ):
        (to / name).write_text(json.dumps(content, indent=2), "utf-8")
