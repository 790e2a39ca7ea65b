"""Read a LoRA adapter and merge it into base weights: base + scaling · B @ A.

The configuration means what it means to peft (0.21: `get_delta_weight`, `get_pattern_key`). Merging computes in float64
and rounds once to float32. Float32 sums differ between GPU and CPU, and some of those differences survive rounding to
16 bits; with float64 sums the order no longer matters. Tests require the merged weights to be bit-identical to peft's
in float64.

Supports plain LoRA on linear layers. Any other setting raises an error that names it, and so does a missing or unused
tensor: a partly applied adapter gives plausible but wrong vectors.
"""

import json
import math
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from e5.catalog import ADAPTER_TENSORS
from e5.errors import WeightsError
from e5.weights.checkpoint import bare_name

SUPPORTED = {
    "alpha_pattern",
    "bias",
    "exclude_modules",
    "fan_in_fan_out",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "peft_type",
    "r",
    "rank_pattern",
    "target_modules",
    "use_rslora",
}
WITHOUT_EFFECT = {  # training details, and settings of features that are rejected when enabled
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "ensure_weight_tying",
    "ephemeral_gpu_offload",
    "eva_config",
    "inference_mode",
    "loftq_config",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "task_type",
}
TENSOR_NAME = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<matrix>[AB])(?:\.\w+)?\.weight")
CHUNK = 4_000_000
"""Elements merged per step: 32 MB in float64."""


class Adapter:
    """A and B of each adapted module, by its name in the bare model, e.g. `layers.0.self_attn.q_proj`."""

    def __init__(self, folder: Path) -> None:
        """Read adapter_config.json and the tensors. Raises WeightsError for anything but plain LoRA."""
        self.folder = folder
        self.config: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text("utf-8"))
        _check_supported(folder, self.config)
        self._pairs, self._prefix = _lora_pairs(folder, _read_tensors(folder))
        self._unused = set(self._pairs)

    def merged(self, weight_name: str, base: Tensor) -> Tensor:
        """Merge into one base weight [out, in], on its device. Returns float32, or `base` itself if not adapted.

        Raises WeightsError if configuration, tensors and base disagree.
        """
        module = weight_name.removesuffix(".weight")
        pair = self._pairs.get(module)
        if base.dim() == 2 and (pair is not None) != self._is_target(module):
            tensors, config = ("no tensors", "says") if pair is None else ("tensors", "does not say")
            raise WeightsError(
                f"{self.folder} has {tensors} for {module}, which its configuration {config} to adapt: "
                "download it again"
            )
        if pair is None:
            return base
        self._unused.discard(module)
        a, b = (matrix.to(base.device, torch.float64) for matrix in pair)
        if (b.shape[0], a.shape[1]) != base.shape or a.shape[0] != b.shape[1]:
            shapes = f"A {list(a.shape)} and B {list(b.shape)}"
            raise WeightsError(
                f"{self.folder}: {shapes} of {module} do not make a {list(base.shape)} weight: wrong base?"
            )
        scaling, result = self.scaling(module), torch.empty_like(base, dtype=torch.float32)
        chunk_rows = min(base.shape[0], max(1, CHUNK // base.shape[1]))
        buffer = torch.empty(chunk_rows, base.shape[1], dtype=torch.float64, device=base.device)
        for start in range(0, base.shape[0], chunk_rows):
            rows = slice(start, start + chunk_rows)
            total = buffer[: len(base[rows])].copy_(base[rows])
            result[rows] = total.addmm_(b[rows], a, alpha=scaling)
        return result

    def scaling(self, module: str) -> float:
        """alpha / r, or alpha / √r for rank-stabilised LoRA. A module may have its own alpha and rank."""
        rank = self._by_pattern("rank_pattern", module, self.config["r"])
        alpha = self._by_pattern("alpha_pattern", module, self.config["lora_alpha"])
        if (stored_rank := self._pairs[module][0].shape[0]) != rank:
            raise WeightsError(f"{self.folder}: {module} has rank {stored_rank}, its configuration says {rank}")
        return float(alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank))

    def check_all_used(self) -> None:
        """Raise WeightsError if the adapter has tensors for a module that was never merged."""
        if self._unused:
            raise WeightsError(
                f"{self.folder} adapts {min(self._unused)} ({len(self._unused)} left over), which the base does not "
                "have: base and adapter do not belong together"
            )

    def _is_target(self, module: str) -> bool:
        """Whether the configuration targets this module, by the rules of peft's check_target_module_exists."""
        name, config = self._prefix + module, self.config
        if _matches(config.get("exclude_modules") or [], name):
            return False
        if config["target_modules"] == "all-linear":
            return module != "embed_tokens"
        if not _matches(config["target_modules"], name):
            return False
        layers, patterns = config.get("layers_to_transform"), config.get("layers_pattern") or [r"[^.]*"]
        if layers is None:
            return True
        if isinstance(patterns, str):
            patterns = [patterns]
        for pattern in patterns:
            if match := re.match(rf"(?:.*\.)?{pattern}\.(\d+)\.", name):
                return int(match[1]) in ([layers] if isinstance(layers, int) else layers)
        return False

    def _by_pattern(self, field: str, module: str, default: float) -> float:
        for pattern, value in (self.config.get(field) or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", self._prefix + module):
                return float(value)
        return default


def _matches(targets: str | list[str], name: str) -> bool:
    """Whether the regular expression matches the module's name, or the list has the name or its last parts."""
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return any(name == target or name.endswith(f".{target}") for target in targets)


def _check_supported(folder: Path, config: dict[str, Any]) -> None:
    for key in ("r", "lora_alpha", "target_modules"):
        if not config.get(key):
            raise WeightsError(f"{folder}/adapter_config.json has no {key}: download it again")
    unsupported = [key for key in sorted(set(config) - SUPPORTED - WITHOUT_EFFECT) if config[key]]
    unsupported += [key for key, value in (("peft_type", "LORA"), ("bias", "none")) if config.get(key, value) != value]
    if config.get("fan_in_fan_out"):
        unsupported.append("fan_in_fan_out")
    # Other initializations (PiSSA, OLoRA, …) also change the base, so base + B @ A would be a different model.
    if config.get("init_lora_weights", True) not in (True, False, "gaussian"):
        unsupported.append("init_lora_weights")
    if unsupported:
        settings = ", ".join(f"{key}={config[key]!r}" for key in unsupported)
        raise WeightsError(
            f"{folder} asks for {settings}, which is more than plain LoRA: merge it with peft and use the result"
        )


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    safetensors, pickled = (folder / name for name in ADAPTER_TENSORS)
    path = safetensors if safetensors.is_file() else pickled
    try:
        if path == safetensors:
            return load_file(path)
        tensors: dict[str, Tensor] = dict(torch.load(path, map_location="cpu", weights_only=True))
        return tensors
    except Exception as error:  # safetensors, pickle and zipfile each raise their own types
        raise WeightsError(f"{path} cannot be read as tensors ({error}): delete it and download it again") from error


def _lora_pairs(folder: Path, tensors: dict[str, Tensor]) -> tuple[dict[str, tuple[Tensor, Tensor]], str]:
    """(A, B) by module name in the bare model, and the prefix of these names in the model that was adapted."""
    matrices: dict[str, dict[str, Tensor]] = {}
    prefix = ""
    for name, tensor in tensors.items():
        match = TENSOR_NAME.fullmatch(name)
        if not match:
            raise WeightsError(f"{folder} has the tensor {name}, which is not a LoRA matrix: is it a plain adapter?")
        module = bare_name(match["module"])
        prefix = match["module"].removesuffix(module)
        matrices.setdefault(module, {})[match["matrix"]] = tensor
    for module, pair in matrices.items():
        if len(pair) != 2:
            missing = "A" if "B" in pair else "B"
            raise WeightsError(f"{folder} has no {module}.lora_{missing}.weight: it is incomplete, download it again")
    return {module: (pair["A"], pair["B"]) for module, pair in matrices.items()}, prefix
