"""Tiny random checkpoints with the file layout of the real ones, written by transformers and peft.

Weights have a large standard deviation (.2 to .4), so that attention is far from uniform and each part affects the
result.
"""

import json
import shutil
from contextlib import AbstractContextManager
from pathlib import Path
from unittest.mock import patch

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertModel, MistralConfig, MistralModel, XLMRobertaConfig, XLMRobertaModel

from e5.network import linear
from e5.network.model import PackedModel
from e5_cog.repository import ROOT

EMBEDDED = ROOT / "weights" / "e5-mistral-tiny"
CORPUS = [
    "how much protein should a female eat each day according to the guideline",
    "Definition of summit: the highest point of a mountain, or a meeting between leaders",
    "query: passage: Instruct: Given a web search query, retrieve relevant passages that answer the query",
    "南瓜的家常做法 清炒南瓜丝 原料 嫩南瓜半个 调料 葱 盐 白糖 鸡精",
    "Ünïcödé ñandú привет мир γειά σου κόσμε مرحبا بالعالم 0123456789 .,;:!?()[]<>/",
]
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "initializer_range": 0.2,
}
"""The encoders' sizes."""
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def mistral(folder: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32, **overrides: object) -> Path:
    """A bare Mistral model with the real tokenizer."""
    settings: dict[str, object] = {
        "vocab_size": 32000,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 32768,
        "sliding_window": 4096,
        "initializer_range": 0.3,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    torch.manual_seed(seed)
    MistralModel(MistralConfig(**{**settings, **overrides})).to(dtype).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(EMBEDDED / "base" / name, folder / name)
    return folder


def adapter(folder: Path, base: torch.nn.Module, *, seed: int = 1, **overrides: object) -> Path:
    """A LoRA adapter for `base`, saved by peft, with random instead of zero B matrices."""
    settings: dict[str, object] = {"r": 4, "lora_alpha": 8, "target_modules": LINEAR, "task_type": "FEATURE_EXTRACTION"}
    torch.manual_seed(seed)
    model = get_peft_model(base, LoraConfig(**{**settings, **overrides}))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(std=0.2)
    model.save_pretrained(folder)
    return folder


def decoder(folder: Path, *, base_options: dict[str, object] | None = None, **adapter_options: object) -> Path:
    """base/ and adapter/, as for the flagship."""
    mistral(folder / "base", **(base_options or {}))  # type: ignore[arg-type]
    base = MistralModel.from_pretrained(folder / "base", dtype=torch.float32)
    adapter(folder / "adapter", base, **adapter_options)  # type: ignore[arg-type]
    return folder


def bert(folder: Path, seed: int = 0) -> Path:
    """A BertModel with a lower-casing WordPiece tokenizer, as in e5-small."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(CORPUS, trainers.WordPieceTrainer(vocab_size=400, special_tokens=special))
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    config = BertConfig(vocab_size=400, max_position_embeddings=512, **SMALL)
    torch.manual_seed(seed)
    BertModel(config).save_pretrained(folder)
    _save(tokenizer, folder, {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"})
    return folder


def xlm_roberta(folder: Path, seed: int = 0) -> Path:
    """An XLMRobertaModel with a Unigram tokenizer and positions from padding_idx + 1, as in multilingual E5."""
    config = XLMRobertaConfig(
        vocab_size=300,
        **SMALL,
        max_position_embeddings=514,
        type_vocab_size=1,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
    )
    torch.manual_seed(seed)
    XLMRobertaModel(config).save_pretrained(folder)
    _unigram(folder)
    return folder


def multilingual_bert(folder: Path, seed: int = 0) -> Path:
    """A BertModel (two token types, padding_idx 0) with a Unigram tokenizer, as in multilingual-e5-small."""
    config = BertConfig(vocab_size=300, max_position_embeddings=512, **SMALL)
    torch.manual_seed(seed)
    BertModel(config).save_pretrained(folder)
    _unigram(folder)
    return folder


def _unigram(folder: Path) -> None:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer.train_from_iterator(
        CORPUS, trainers.UnigramTrainer(vocab_size=300, special_tokens=special, unk_token="<unk>")
    )
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", None, [("<s>", 0), ("</s>", 2)])
    _save(tokenizer, folder, {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"})


def _save(tokenizer: Tokenizer, folder: Path, names: dict[str, str]) -> None:
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 512, **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")


def plain_weights() -> AbstractContextManager[object]:
    """While a model is loaded: keep its weights as they are in the checkpoint, not in oneDNN's layout."""
    return patch.object(linear, "can_prepack", lambda *_: False)


def parameters(model: PackedModel) -> dict[str, torch.Tensor]:
    """The weights, by their names in the stock model, of a model that was loaded with `plain_weights`."""
    destinations = model.network.destinations()
    return {name: destination for name, destination in destinations.items() if isinstance(destination, torch.Tensor)}
