"""Write a checkpoint of a real model's size with random weights: to measure without a download.

Speed and memory use are those of the real model; the vectors mean nothing. Encoders get a small tokenizer.
"""

import argparse
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import AutoConfig, AutoModel, BertConfig, MistralConfig, XLMRobertaConfig

from e5 import catalog
from e5.weights.locate import WEIGHTS
from e5.weights.writer import Shapes, write_config, write_tensors

EMBEDDED_BASE = WEIGHTS / catalog.EMBEDDED / "base"
MAX_SHARD_BYTES = 4_900_000_000
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
RANK, ALPHA = 16, 32
STD = 0.02
"""Standard deviation of the weights: the models' own initialization. Activations stay within float16's range."""

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
"""hidden_size → num_attention_heads, intermediate_size."""


def build(
    model: catalog.Model,
    folder: Path,
    *,
    layers: int | None = None,
    seed: int = 0,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    merged: bool = False,
) -> Path:
    """Write the checkpoint into `folder`, in a layout that `e5.weights.files.in_folder` accepts. Returns `folder`.

    `layers`: override the model's number of layers. `merged`: write a decoder as one checkpoint, without adapter. On
    one device, the same seed gives the same weights. The host holds one tensor at a time, or an encoder's all.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator = torch.Generator(device).manual_seed(seed)
    config = configuration(model, layers)
    if model.architecture != "mistral":
        dtype = torch.float16 if model.prompt == "instruct" else torch.float32  # like the published files
        folder.mkdir(parents=True, exist_ok=True)
        write_config(folder, config, "BertModel" if model.architecture == "bert" else "XLMRobertaModel", dtype)
        tensors = dict(_draw(shapes(config), dtype, generator))
        tensors["embeddings.position_ids"] = torch.arange(config.max_position_embeddings).unsqueeze(0)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        encoder_tokenizer(model).save(str(folder / "tokenizer.json"))
        return folder
    base = folder if merged else folder / "base"
    dtype = torch.float16 if merged else torch.bfloat16
    tensor_shapes = shapes(config) if merged else decoder_shapes(config)
    base.mkdir(parents=True, exist_ok=True)
    write_config(base, config, "MistralModel" if merged else "MistralForCausalLM", dtype)
    write_tensors(base, tensor_shapes, dtype, _draw(tensor_shapes, dtype, generator), max_shard_bytes)
    shutil.copy(EMBEDDED_BASE / "tokenizer.json", base)
    if not merged:
        shutil.copy(EMBEDDED_BASE / "tokenizer_config.json", base)
        _save_adapter(shapes(config), folder / "adapter", generator)
    return folder


def configuration(model: catalog.Model, layers: int | None = None) -> Any:
    """The real model's transformers config. `layers` overrides its number of layers."""
    if model.name == catalog.FLAGSHIP:
        config = MistralConfig(**MISTRAL_7B)
    elif model.name == catalog.EMBEDDED:
        config = AutoConfig.from_pretrained(EMBEDDED_BASE)
    else:
        heads, intermediate_size = ENCODER_SHAPES[model.dimensions]
        size = {
            "hidden_size": model.dimensions,
            "num_attention_heads": heads,
            "intermediate_size": intermediate_size,
        }
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
    """The shape of each parameter of the bare model, without allocating it."""
    with torch.device("meta"):
        module = AutoModel.from_config(config)
    return {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}


def decoder_shapes(config: Any) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor of the decoder with its language head, by its published name."""
    bare = {f"model.{name}": shape for name, shape in shapes(config).items()}
    return {**bare, "lm_head.weight": (config.vocab_size, config.hidden_size)}


def _draw(shapes: Shapes, dtype: torch.dtype, generator: torch.Generator) -> Iterator[tuple[str, Tensor]]:
    """Draw one tensor at a time: biases 0, norms 1, the rest normally distributed. They are returned on the host."""
    for name, shape in shapes.items():
        if len(shape) == 1:
            yield name, torch.full(shape, 0 if name.endswith("bias") else 1, dtype=dtype)
        else:
            normal = torch.randn(shape, dtype=dtype, device=generator.device, generator=generator)
            yield name, normal.mul_(STD).cpu()


def _save_adapter(base_shapes: Shapes, folder: Path, generator: torch.Generator) -> None:
    """Write a LoRA adapter of the bare model, as peft would save it."""
    folder.mkdir(parents=True, exist_ok=True)
    matrices: dict[str, tuple[int, ...]] = {}
    for name, shape in base_shapes.items():
        module = name.removesuffix(".weight")
        if module.endswith(PROJECTIONS):
            matrices[f"base_model.model.{module}.lora_A.weight"] = (RANK, shape[1])
            matrices[f"base_model.model.{module}.lora_B.weight"] = (shape[0], RANK)
    save_file(dict(_draw(matrices, torch.float32, generator)), folder / "adapter_model.safetensors", {"format": "pt"})
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


def _multilingual(model: catalog.Model) -> bool:
    return model.name.startswith("multilingual")


def _words() -> list[str]:
    """The ASCII words of the embedded model's vocabulary in lower case: about 10,000."""
    vocabulary = json.loads((EMBEDDED_BASE / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]
    words = (piece[1:].lower() for piece in vocabulary if piece.startswith("▁") and len(piece) > 2)
    return list(dict.fromkeys(word for word in words if word.isascii() and word.isalpha()))


def encoder_tokenizer(model: catalog.Model) -> Tokenizer:
    """A tokenizer of the model's type (WordPiece or Unigram) with about 10,000 one-token words."""
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


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Write a random checkpoint with a real model's sizes and files.")
    parser.add_argument("--model", required=True, choices=catalog.names(), metavar="MODEL")
    parser.add_argument("--to", required=True, type=Path, metavar="FOLDER")
    parser.add_argument("--layers", type=int, help="override the model's number of layers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--merged", action="store_true", help="write a decoder as one checkpoint, without adapter")
    arguments = parser.parse_args(argv)
    folder: Path = arguments.to
    options = {"layers": arguments.layers, "seed": arguments.seed, "merged": arguments.merged}
    marker, content = folder / "drawn.json", json.dumps({"model": arguments.model, **options})
    if marker.is_file() and marker.read_text("utf-8") == content:
        print(f"{folder} has this checkpoint already")
    else:
        marker.unlink(missing_ok=True)
        build(catalog.get(arguments.model), folder, **options)
        marker.write_text(content, "utf-8")  # last: marks the folder as complete
    print(f"E5_MODEL={arguments.model} E5_WEIGHTS={folder}")
    return 0
