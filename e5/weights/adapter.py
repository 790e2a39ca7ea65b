"""Read a LoRA adapter and merge it into base weights: base + scaling · B @ A.

The configuration means what it means to peft (0.21: `get_delta_weight`, `get_pattern_key`). Merging computes in float64
and rounds once to float32. Float32 sums differ between GPU and CPU, and some of those differences survive rounding to
16 bits; with float64 sums the order no longer matters. Tests require the merged weights to be bit-identical to peft's
in float64.

Supports plain LoRA on linear layers. Any other setting raises an error that names it, and so does a missing or unused
tensor: a partly applied adapter gives plausible but wrong vectors. An adapter's files are untrusted: reading one runs
no code, memory is bounded by the size of the files, and so is the time of its patterns (`e5.weights.patterns`).
"""

import io
import math
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from e5.catalog import ADAPTER_TENSORS
from e5.errors import WeightsError
from e5.weights.checkpoint import bare_name
from e5.weights.files import read_json
from e5.weights.patterns import Patterns
from e5.weights.reading import unreadable

SUPPORTED = {  # the types of the values; all may be null
    "alpha_pattern": dict,
    "bias": str,
    "exclude_modules": str | list,
    "fan_in_fan_out": bool,
    "init_lora_weights": bool | str,
    "layers_pattern": str | list,
    "layers_to_transform": int | list,
    "lora_alpha": int | float,
    "peft_type": str,
    "r": int,
    "rank_pattern": dict,
    "target_modules": str | list,
    "use_rslora": bool,
}
MAX_CONFIG_BYTES = 1_000_000
"""The flagship's has 500 bytes, one with a rank for each module 20,000."""
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
        path = folder / "adapter_config.json"
        try:
            if (size := path.stat().st_size) > MAX_CONFIG_BYTES:
                raise ValueError(f"{size} bytes, the limit is {MAX_CONFIG_BYTES}")
            self.config: dict[str, Any] = read_json(path)
        except (OSError, ValueError) as error:
            raise unreadable(path, error) from error
        self._patterns = Patterns(path)
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
        a, b = pair
        if (b.shape[0], a.shape[1]) != base.shape or a.shape[0] != b.shape[1]:
            shapes = f"A {list(a.shape)} and B {list(b.shape)}"
            raise WeightsError(
                f"{self.folder}: {shapes} of {module} do not make a {list(base.shape)} weight: wrong base?"
            )
        scaling, result = self.scaling(module), torch.empty_like(base, dtype=torch.float32)
        a, b = (matrix.to(base.device, torch.float64) for matrix in pair)
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
                f"{self.folder} adapts {min(self._unused):.200} ({len(self._unused)} left over), which the base does "
                "not have: base and adapter do not belong together"
            )

    def _is_target(self, module: str) -> bool:
        """Whether the configuration targets this module, by the rules of peft's check_target_module_exists."""
        name, config = self._prefix + module, self.config
        if self._matches(config.get("exclude_modules") or [], name):
            return False
        if config["target_modules"] == "all-linear":
            return module != "embed_tokens"
        if not self._matches(config["target_modules"], name):
            return False
        layers, patterns = config.get("layers_to_transform"), config.get("layers_pattern") or [r"[^.]*"]
        if layers is None:
            return True
        if isinstance(patterns, str):
            patterns = [patterns]
        whole = [rf"(?:^|.*?\.){pattern}\.(?P<index>\d+)\." for pattern in patterns]
        match = self._patterns.first("match", whole, name)
        return match is not None and int(match[1]["index"]) in ([layers] if isinstance(layers, int) else layers)

    def _matches(self, targets: str | list[str], name: str) -> bool:
        """Whether the regular expression matches the module's name, or the list has the name or its last parts."""
        if isinstance(targets, str):
            return self._patterns.first("fullmatch", [targets], name) is not None
        return any(name == target or name.endswith(f".{target}") for target in targets)

    def _by_pattern(self, field: str, module: str, default: float) -> float:
        values: dict[str, float] = self.config.get(field) or {}
        if not values:
            return default
        match = self._patterns.first("match", [rf"(.*\.)?({pattern})$" for pattern in values], self._prefix + module)
        return default if match is None else float(list(values.values())[match[0]])


def _check_supported(folder: Path, config: dict[str, Any]) -> None:
    for key in ("r", "lora_alpha", "target_modules"):
        if not config.get(key):
            raise WeightsError(f"{folder}/adapter_config.json has no {key}: download it again")
    for key, types in SUPPORTED.items():
        if (value := config.get(key)) is not None and not (isinstance(value, types) and _has_valid_items(value)):
            raise WeightsError(
                f"{folder}/adapter_config.json has {key}={value!r:.100}, which peft does not write: download it again"
            )
    unsupported = [key for key in sorted(set(config) - set(SUPPORTED) - WITHOUT_EFFECT) if config[key]]
    unsupported += [key for key, value in (("peft_type", "LORA"), ("bias", "none")) if config.get(key, value) != value]
    if config.get("fan_in_fan_out"):
        unsupported.append("fan_in_fan_out")
    # Other initializations (PiSSA, OLoRA, …) also change the base, so base + B @ A would be a different model.
    if config.get("init_lora_weights", True) not in (True, False, "gaussian"):
        unsupported.append("init_lora_weights")
    if unsupported:
        settings = ", ".join(f"{key}={config[key]!r:.100}" for key in unsupported)
        raise WeightsError(
            f"{folder} asks for {settings:.200}, which is more than plain LoRA: merge it with peft and use the result"
        )


def _has_valid_items(value: Any) -> bool:
    """Whether a list has strings and numbers only, a mapping numbers only, and no number is huge or NaN."""
    items = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else [value]
    allowed = int | float if isinstance(value, dict) else int | float | str
    return all(isinstance(item, allowed) and (isinstance(item, str) or abs(item) < 1e9) for item in items)


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    safetensors, pickled = (folder / name for name in ADAPTER_TENSORS)
    path = safetensors if safetensors.is_file() else pickled
    try:
        if path == safetensors:
            return load_file(path)
        return _read_pickled(path)
    except Exception as error:  # safetensors, pickle and zipfile each raise their own types
        raise WeightsError(
            f"{path} cannot be read as tensors ({error!s:.200}): delete it and download it again"
        ) from error


def _read_pickled(path: Path) -> dict[str, Tensor]:
    """Read what torch.save wrote, without running code, in at most three times the file's size of memory.

    torch gets a copy of the archive. It reads the directory to which the archive's end points, zipfile the one that
    stands before the end, so that checking the file with one and reading it with the other would check nothing.
    """
    size, copy = path.stat().st_size, io.BytesIO()
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(copy, "w") as stored:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("it is compressed, which torch.save does not do")
        if (unpacked := sum(entry.file_size for entry in entries)) > size:
            raise ValueError(f"it unpacks to {unpacked} bytes, but has only {size}")
        for entry in entries:
            stored.writestr(entry.filename, archive.read(entry))
    copy.seek(0)
    tensors: dict[str, Tensor] = dict(torch.load(copy, map_location="cpu", weights_only=True))
    for name, tensor in tensors.items():
        dense = isinstance(tensor, Tensor) and tensor.layout == torch.strided and not tensor.is_meta
        if not isinstance(name, str) or not dense:
            raise ValueError(f"{name!r:.100} is not a named dense tensor")
    if (total := sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())) > size:
        raise ValueError(f"its tensors have {total} bytes, but it has only {size}")
    return tensors


def _lora_pairs(folder: Path, tensors: dict[str, Tensor]) -> tuple[dict[str, tuple[Tensor, Tensor]], str]:
    """(A, B) by module name in the bare model, and the prefix of these names in the model that was adapted."""
    matrices: dict[str, dict[str, Tensor]] = {}
    prefix = ""
    for name, tensor in tensors.items():
        match = TENSOR_NAME.fullmatch(name)
        if not match or tensor.dim() != 2 or not tensor.numel() or not tensor.is_floating_point():
            raise WeightsError(
                f"{folder} has the tensor {name:.200}, which is not a LoRA matrix: is it a plain adapter?"
            )
        module = bare_name(match["module"])
        prefix = match["module"].removesuffix(module)
        matrices.setdefault(module, {})[match["matrix"]] = tensor
    for module, pair in matrices.items():
        if len(pair) != 2:
            missing = "A" if "B" in pair else "B"
            raise WeightsError(
                f"{folder} has no {module:.200}.lora_{missing}.weight: it is incomplete, download it again"
            )
    return {module: (pair["A"], pair["B"]) for module, pair in matrices.items()}, prefix
