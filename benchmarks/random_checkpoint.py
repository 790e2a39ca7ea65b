"""A checkpoint of real size with random weights, in the file layout of the real one: to measure without a download.

    python scripts/random_checkpoint.py --model e5-mistral-7b-instruct --to /tmp/random-7b
    python scripts/random_checkpoint.py --model e5-small --to /tmp/random-small --layers 2
    python scripts/random_checkpoint.py --model e5-mistral-7b-instruct --to /tmp/random-7b --merged

The decoder gets `base/` (bfloat16 shards with an index, keys of a model with a language head, as Mistral-7B-v0.1 has
them) and `adapter/` (rank 16 on all seven projections), or `--merged` the complete checkpoint in float16, which every
library loads; an encoder one file. The tensors are drawn on the GPU if there
is one and saved shard by shard, so that the host never holds more than one shard (twice, while it is written).

A folder that has the same checkpoint already is left as it is.

Speed and memory are those of the real model; the vectors mean nothing. The encoders' tokenizers are small ones.
"""

import argparse
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import AutoConfig, AutoModel, BertConfig, MistralConfig, XLMRobertaConfig

from e5 import catalog
from e5.weights.locate import ROOT as WEIGHTS

EMBEDDED_BASE = WEIGHTS / catalog.EMBEDDED / "base"
MAX_SHARD_BYTES = 4_900_000_000
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
RANK, ALPHA = 16, 32
STD = 0.02
"""Spread of the weights: how all these models are initialised. Activations stay within float16's range."""

MISTRAL_7B: dict[str, Any] = {  # the config.json of mistralai/Mistral-7B-v0.1
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 32768,
    "sliding_window": 4096,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ENCODER_SHAPES = {384: (12, 1536), 768: (12, 3072), 1024: (16, 4096)}
"""Hidden size → attention heads, size of the feed-forward layer."""

Shapes = Mapping[str, tuple[int, ...]]


def build(
    model: catalog.Model,
    folder: Path,
    *,
    layers: int | None = None,
    seed: int = 0,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    merged: bool = False,
) -> Path:
    """Write the checkpoint into `folder`, which `e5.weights.files.in_folder` then accepts. Returns `folder`.

    `layers`: this many instead of the model's own, for a test. `merged`: a decoder as its authors publish it merged.
    The same seed gives the same weights on one device.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator = torch.Generator(device).manual_seed(seed)
    config = configuration(model, layers)
    if model.architecture != "mistral":
        dtype = torch.float16 if model.prompt == "instruct" else torch.float32  # as their files on the hub are
        _save_config(config, folder, "BertModel" if model.architecture == "bert" else "XLMRobertaModel", dtype)
        tensors = dict(_draw(shapes(config), dtype, generator))
        tensors["embeddings.position_ids"] = torch.arange(config.max_position_embeddings).unsqueeze(0)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        _save_tokenizer(encoder_tokenizer(model), folder)
        return folder
    if merged:
        config.use_cache = False
        _save_config(config, folder, "MistralModel", torch.float16)
        _save_shards(shapes(config), folder, generator, max_shard_bytes, torch.float16)
        shutil.copy(EMBEDDED_BASE / "tokenizer.json", folder / "tokenizer.json")
        return folder
    _save_config(config, folder / "base", "MistralForCausalLM", torch.bfloat16)
    _save_shards(decoder_shapes(config), folder / "base", generator, max_shard_bytes, torch.bfloat16)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(EMBEDDED_BASE / name, folder / "base" / name)
    _save_adapter(shapes(config), folder / "adapter", generator)
    return folder


def configuration(model: catalog.Model, layers: int | None = None) -> Any:
    """The real model's configuration (a transformers config), with another number of layers if one is given."""
    if model.name == catalog.FLAGSHIP:
        config = MistralConfig(**MISTRAL_7B)
    elif model.name == catalog.EMBEDDED:
        config = AutoConfig.from_pretrained(EMBEDDED_BASE)
    else:
        heads, inner = ENCODER_SHAPES[model.dimensions]
        size = {"hidden_size": model.dimensions, "num_attention_heads": heads, "intermediate_size": inner}
        config = (
            BertConfig(**size, vocab_size=250037 if _multilingual(model) else 30522)
            if model.architecture == "bert"
            else XLMRobertaConfig(**size, vocab_size=250002, max_position_embeddings=514, type_vocab_size=1)
        )
        config.num_hidden_layers = model.layers
    if layers is not None:
        config.num_hidden_layers = layers
    return config


def shapes(config: Any) -> dict[str, tuple[int, ...]]:
    """Every parameter of the bare model; nothing is allocated."""
    with torch.device("meta"):
        module = AutoModel.from_config(config)
    return {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}


def decoder_shapes(config: Any) -> dict[str, tuple[int, ...]]:
    """Every tensor of the decoder with its language head, under the names of the published files."""
    bare = {f"model.{name}": shape for name, shape in shapes(config).items()}
    return {**bare, "lm_head.weight": (config.vocab_size, config.hidden_size)}


def plan_shards(tensors: Shapes, limit: int) -> list[dict[str, tuple[int, ...]]]:
    """The tensors of each file, in order; at most `limit` bytes of 16 bits each (a larger tensor goes alone)."""
    files: list[dict[str, tuple[int, ...]]] = []
    room = 0
    for name, shape in tensors.items():
        size = 2 * torch.Size(shape).numel()
        if not files or size > room:
            files.append({})
            room = limit
        files[-1][name] = shape
        room -= size
    return files


def _save_shards(tensors: Shapes, folder: Path, generator: torch.Generator, limit: int, dtype: torch.dtype) -> None:
    files = plan_shards(tensors, limit)
    weight_map: dict[str, str] = {}
    for number, part in enumerate(files, 1):
        name = f"model-{number:05}-of-{len(files):05}.safetensors"
        save_file(dict(_draw(part, dtype, generator)), folder / name, {"format": "pt"})
        weight_map |= dict.fromkeys(part, name)
    total = sum(2 * torch.Size(shape).numel() for shape in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), "utf-8")


def _draw(tensors: Shapes, dtype: torch.dtype, generator: torch.Generator) -> Iterator[tuple[str, Tensor]]:
    """One tensor after the other, on the host: norms as at the start of a training, the rest normal."""
    for name, shape in tensors.items():
        if len(shape) == 1:
            yield name, torch.zeros(shape, dtype=dtype) if name.endswith("bias") else torch.ones(shape, dtype=dtype)
        else:
            normal = torch.randn(shape, dtype=dtype, device=generator.device, generator=generator)
            yield name, normal.mul_(STD).cpu()


def _save_adapter(bare: Shapes, folder: Path, generator: torch.Generator) -> None:
    """A LoRA adapter in the layout that peft gives to one of a bare model."""
    folder.mkdir(parents=True, exist_ok=True)
    halves: dict[str, tuple[int, ...]] = {}
    for name, shape in bare.items():
        module = name.removesuffix(".weight")
        if module.endswith(PROJECTIONS):
            halves[f"base_model.model.{module}.lora_A.weight"] = (RANK, shape[1])
            halves[f"base_model.model.{module}.lora_B.weight"] = (shape[0], RANK)
    save_file(dict(_draw(halves, torch.float32, generator)), folder / "adapter_model.safetensors", {"format": "pt"})
    config = {
        "base_model_name_or_path": "../base",
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": ALPHA,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": RANK,
        "target_modules": list(PROJECTIONS),
        "task_type": "FEATURE_EXTRACTION",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2), "utf-8")


def _save_config(config: Any, folder: Path, architecture: str, dtype: torch.dtype) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    config.architectures, config.dtype = [architecture], dtype
    config.save_pretrained(folder)


def _multilingual(model: catalog.Model) -> bool:
    return model.name.startswith("multilingual")


def _words() -> list[str]:
    """ASCII words of the embedded model's vocabulary, lower-cased: about 10,000, the same on every machine."""
    vocabulary = json.loads((EMBEDDED_BASE / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]
    words = (piece[1:].lower() for piece in vocabulary if piece.startswith("▁") and len(piece) > 2)
    return list(dict.fromkeys(word for word in words if word.isascii() and word.isalpha()))


def encoder_tokenizer(model: catalog.Model) -> Tokenizer:
    """A tokenizer of the model's kind (WordPiece or Unigram) that has some thousand words, each one token."""
    characters = [chr(code) for code in range(33, 127)]
    if _multilingual(model):
        special = ["<s>", "<pad>", "</s>", "<unk>"]
        scored = [(token, 0.0) for token in special] + [(character, -12.0) for character in ["▁", *characters]]
        tokenizer = Tokenizer(models.Unigram(scored + [(f"▁{word}", -9.0) for word in _words()], unk_id=3))
        tokenizer.normalizer = normalizers.NFKC()
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", None, [("<s>", 0), ("</s>", 2)])
    else:
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        pieces = [*special, *characters, *(f"##{character}" for character in characters), *_words()]
        vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
        tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
        tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.add_special_tokens(special)
    return tokenizer


def _save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    tokenizer.save(str(folder / "tokenizer.json"))


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Write a random checkpoint with a real model's sizes and files.")
    parser.add_argument("--model", required=True, choices=catalog.names(), metavar="MODEL")
    parser.add_argument("--to", required=True, type=Path, metavar="FOLDER")
    parser.add_argument("--layers", type=int, help="this many layers instead of the model's own")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--merged", action="store_true", help="of a decoder: the complete checkpoint, without adapter")
    arguments = parser.parse_args(argv)
    folder: Path = arguments.to
    options = {"layers": arguments.layers, "seed": arguments.seed, "merged": arguments.merged}
    done, want = folder / "drawn.json", json.dumps({"model": arguments.model, **options})
    if done.is_file() and done.read_text("utf-8") == want:
        print(f"{folder} has this checkpoint already")
    else:
        done.unlink(missing_ok=True)
        build(catalog.get(arguments.model), folder, **options)
        done.write_text(want, "utf-8")  # last: a folder that has it is complete
    print(f"E5_MODEL={arguments.model} E5_WEIGHTS={folder}")
    return 0
