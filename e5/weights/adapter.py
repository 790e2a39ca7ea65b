"""A LoRA adapter folder, and a base's weights → the merged ones: base + scaling · B @ A.

The meaning of the configuration is peft's (0.21: `get_delta_weight`, `get_pattern_key`). The arithmetic is float64's,
rounded once to float32: a sum in float32 ends in other bits on a GPU than on a CPU, some of which survive the rounding
to 16 bits; in float64 the order of the sum moves nothing that is left. The tests hold the merged weights equal to those
of peft run in float64, to the last bit. Covers plain LoRA on linear layers. A configuration
that asks for more is refused by name, and so is a tensor that is missing or left over: a half-applied adapter gives
plausible, wrong vectors.
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

UNDERSTOOD = {
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
WITHOUT_EFFECT = {  # on saved weights: facts about the training, and settings of features that are refused when on
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
TENSOR_NAME = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<part>[AB])(?:\.\w+)?\.weight")


CHUNK = 4_000_000
"""Elements that are merged at a time: 32 MB in float64."""


class Adapter:
    """The tensors of one adapter by bare module name, e.g. `layers.0.self_attn.q_proj`, and the scaling of each."""

    def __init__(self, folder: Path) -> None:
        """Read adapter_config.json and the tensors. Raises WeightsError for what is not plain LoRA."""
        self.folder = folder
        self.config: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text("utf-8"))
        _refuse_unknown(folder, self.config)
        self._pairs, self._prefix = _pairs(folder, _read_tensors(folder))
        self._unused = set(self._pairs)

    def merged(self, weight_name: str, base: Tensor) -> Tensor | None:
        """float32 [out, in] of a base weight [out, in], on its device; None for one that the adapter leaves alone.

        Raises WeightsError where configuration, tensors and base disagree about it.
        """
        module = weight_name.removesuffix(".weight")
        pair = self._pairs.get(module)
        if base.dim() == 2 and (pair is not None) != self._is_target(module):
            what = "says to adapt" if pair is None else "does not say to adapt"
            has = "has no tensors for" if pair is None else "has tensors for"
            raise WeightsError(f"{self.folder} {has} {module}, which its configuration {what}: fetch it again")
        if pair is None:
            return None
        self._unused.discard(module)
        a, b = (tensor.to(base.device, torch.float64) for tensor in pair)
        if (b.shape[0], a.shape[1]) != base.shape or a.shape[0] != b.shape[1]:
            shapes = f"A {list(a.shape)} and B {list(b.shape)}"
            raise WeightsError(
                f"{self.folder}: {shapes} of {module} do not make a {list(base.shape)} weight: wrong base?"
            )
        scaling, result = self.scaling(module), torch.empty_like(base, dtype=torch.float32)
        rows = min(base.shape[0], max(1, CHUNK // base.shape[1]))
        space = torch.empty(rows, base.shape[1], dtype=torch.float64, device=base.device)
        for start in range(0, base.shape[0], rows):
            part = slice(start, start + rows)
            total = space[: len(base[part])].copy_(base[part])
            result[part] = total.addmm_(b[part], a, alpha=scaling)
        return result

    def scaling(self, module: str) -> float:
        """alpha / r, or alpha / √r for rank-stabilised LoRA, with the module's own alpha and rank where given."""
        rank = self._by_pattern("rank_pattern", module, self.config["r"])
        alpha = self._by_pattern("alpha_pattern", module, self.config["lora_alpha"])
        if self._pairs[module][0].shape[0] != rank:
            raise WeightsError(
                f"{self.folder}: {module} has rank {self._pairs[module][0].shape[0]}, its configuration says {rank}"
            )
        return float(alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank))

    def check_all_used(self) -> None:
        """Raises WeightsError that names a module of the adapter which the base does not have."""
        if self._unused:
            raise WeightsError(
                f"{self.folder} adapts {sorted(self._unused)[0]} ({len(self._unused)} left over), which the base does "
                "not have: base and adapter do not belong together"
            )

    def _is_target(self, module: str) -> bool:
        """Whether the configuration means this module, by the rules of peft's check_target_module_exists."""
        name, config = self._prefix + module, self.config
        if _names(config.get("exclude_modules") or [], name):
            return False
        if config["target_modules"] == "all-linear":
            return module != "embed_tokens"
        if not _names(config["target_modules"], name):
            return False
        layers, pattern = config.get("layers_to_transform"), config.get("layers_pattern")
        if layers is None:
            return True
        patterns = [pattern] if isinstance(pattern, str) else pattern or [r"[^.]*"]
        found = next((m for p in patterns if (m := re.match(rf"(?:.*\.)?{p}\.(\d+)\.", name))), None)
        return found is not None and int(found[1]) in ([layers] if isinstance(layers, int) else layers)

    def _by_pattern(self, field: str, module: str, default: float) -> float:
        for pattern, value in (self.config.get(field) or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", self._prefix + module):
                return float(value)
        return default


def _names(modules: str | list[str], name: str) -> bool:
    """Whether a pattern matches the module, or a list has its name or the end of it."""
    if isinstance(modules, str):
        return re.fullmatch(modules, name) is not None
    return any(name == module or name.endswith(f".{module}") for module in modules)


def _refuse_unknown(folder: Path, config: dict[str, Any]) -> None:
    wrong = [key for key in sorted(set(config) - UNDERSTOOD - WITHOUT_EFFECT) if config[key]]
    wrong += [key for key, right in (("peft_type", "LORA"), ("bias", "none")) if config.get(key, right) != right]
    wrong += ["fan_in_fan_out"] if config.get("fan_in_fan_out") else []
    # Other initialisations (PiSSA, OLoRA, …) change the base as well, so base + B @ A would be a different model.
    wrong += [] if config.get("init_lora_weights", True) in (True, False, "gaussian") else ["init_lora_weights"]
    for key in ("r", "lora_alpha", "target_modules"):
        if not config.get(key):
            raise WeightsError(f"{folder}/adapter_config.json says no {key}: fetch it again")
    if wrong:
        asks = ", ".join(f"{key}={config[key]!r}" for key in wrong)
        raise WeightsError(f"{folder} asks for {asks}, which is more than plain LoRA: merge it with peft and pass that")


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    safe, pickled = (folder / name for name in ADAPTER_TENSORS)
    try:
        if safe.is_file():
            return load_file(safe)
        tensors: dict[str, Tensor] = dict(torch.load(pickled, map_location="cpu", weights_only=True))
        return tensors
    except Exception as error:  # safetensors, pickle and zipfile each have errors of their own
        path = safe if safe.is_file() else pickled
        raise WeightsError(f"{path} cannot be read as tensors ({error}): delete it and fetch it again") from error


def _pairs(folder: Path, tensors: dict[str, Tensor]) -> tuple[dict[str, tuple[Tensor, Tensor]], str]:
    """(A, B) by bare module name, and the prefix that the modules have in the model that was adapted."""
    halves: dict[str, dict[str, Tensor]] = {}
    prefix = ""
    for name, tensor in tensors.items():
        match = TENSOR_NAME.fullmatch(name)
        if not match:
            raise WeightsError(f"{folder} has the tensor {name}, which is not a LoRA matrix: is it a plain adapter?")
        module = bare_name(match["module"])
        prefix = match["module"].removesuffix(module)
        halves.setdefault(module, {})[match["part"]] = tensor
    for module, found in halves.items():
        if len(found) != 2:
            missing = "A" if "B" in found else "B"
            raise WeightsError(f"{folder} has no {module}.lora_{missing}.weight: it is incomplete, fetch it again")
    return {module: (found["A"], found["B"]) for module, found in halves.items()}, prefix
