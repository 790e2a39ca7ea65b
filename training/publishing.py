"""Export the trained weights: base and adapter in the layout of the flagship's repositories."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from training.config import Config
from training.network import PROJECTIONS, Weights

PEFT_PREFIX = "base_model.model."


def publish(target: Path, base: Weights, adapter: Weights, config: Config, tokenizer: Path) -> None:
    """Write `target`/base and `target`/adapter. The files are replaced one by one after all were written elsewhere.

    `tokenizer`: the folder with tokenizer.json and tokenizer_config.json of Mistral-7B-v0.1.
    """
    partial = target.with_name(f"{target.name}.part")
    shutil.rmtree(partial, ignore_errors=True)
    write_base(partial / "base", base, config, tokenizer)
    write_adapter(partial / "adapter", adapter, config)
    mode = (partial / "base" / "config.json").stat().st_mode  # safetensors ignores the umask and creates files as 0600
    for file in sorted(path for path in partial.rglob("*") if path.is_file()):
        destination = target / file.relative_to(partial)
        destination.parent.mkdir(parents=True, exist_ok=True)
        file.chmod(mode)
        file.replace(destination)
    shutil.rmtree(partial)


def write_base(folder: Path, weights: Weights, config: Config, tokenizer: Path) -> None:
    """Write model.safetensors (bfloat16), config.json and the tokenizer."""
    from transformers import MistralConfig

    folder.mkdir(parents=True, exist_ok=True)
    save_file(_as_stored(weights), folder / "model.safetensors", {"format": "pt"})
    model = config.model
    MistralConfig(
        architectures=["MistralModel"],
        vocab_size=model.vocab_size,
        hidden_size=model.hidden_size,
        intermediate_size=model.intermediate_size,
        num_hidden_layers=model.num_hidden_layers,
        num_attention_heads=model.num_attention_heads,
        num_key_value_heads=model.num_key_value_heads,
        head_dim=model.head_dim,
        max_position_embeddings=model.max_position_embeddings,
        rms_norm_eps=model.rms_norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": model.rope_theta},
        sliding_window=model.max_position_embeddings,
        bos_token_id=1,
        eos_token_id=2,
        use_cache=False,
        dtype="bfloat16",
    ).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tokenizer / name, folder / name)


def write_adapter(folder: Path, adapter: Weights, config: Config) -> None:
    """Write adapter_model.safetensors (bfloat16) and adapter_config.json, as peft does for a bare model."""
    from peft import LoraConfig

    folder.mkdir(parents=True, exist_ok=True)
    tensors = _as_stored({f"{PEFT_PREFIX}{name}": tensor for name, tensor in adapter.items()})
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        target_modules=list(PROJECTIONS),
        lora_dropout=0.0,
        bias="none",
        task_type="FEATURE_EXTRACTION",
        base_model_name_or_path="../base",
        inference_mode=True,
    ).save_pretrained(folder)
    # peft keeps the modules in a set, whose order changes from run to run.
    path = folder / "adapter_config.json"
    content = json.loads(path.read_text())
    content["target_modules"] = sorted(content["target_modules"])
    path.write_text(json.dumps(content, indent=1) + "\n")


def _as_stored(weights: Weights) -> dict[str, Tensor]:
    return {name: tensor.to("cpu", torch.bfloat16).contiguous() for name, tensor in sorted(weights.items())}
