"""An adapter's adapter_config.json: its settings, and the modules that its patterns name.

The settings mean what they mean to peft (0.21: `check_target_module_exists`, `get_pattern_key`). The file is untrusted:
values are checked for their types, and regular expressions run in a process of their own (`e5.weights.patterns`).
"""

from pathlib import Path
from typing import Any

from e5.errors import WeightsError
from e5.weights.files import read_json
from e5.weights.patterns import Patterns
from e5.weights.reading import unreadable

PLAIN_LORA = {  # the types of the values; all may be null
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
OTHER = {  # settings that peft merges (`e5.weights.peft_adapter`)
    "alpha": int | float,
    "decompose_both": bool,
    "decompose_factor": int,
    "feedforward_modules": str | list,
    "lora_bias": bool,
    "modules_to_save": list,
    "use_dora": bool,
    "use_effective_conv2d": bool,
}
WITHOUT_EFFECT = {  # training details, and settings of features that are rejected when enabled
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "ensure_weight_tying",
    "ephemeral_gpu_offload",
    "eva_config",
    "inference_mode",
    "init_ia3_weights",
    "init_weights",
    "loftq_config",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    "module_dropout",
    "peft_version",
    "qalora_group_size",
    "rank_dropout",
    "rank_dropout_scale",
    "revision",
    "runtime_config",
    "task_type",
}
KEEPS_THE_BASE = (True, False, "gaussian", "eva", "orthogonal")
"""Values of init_lora_weights. The others (PiSSA, OLoRA, …) also change the base, so base + B @ A is another model."""
MAX_CONFIG_BYTES = 1_000_000
"""The flagship's has 500 bytes, one with a rank for each module 20,000."""


class AdapterConfig:
    """The settings as `values`. Names of modules are those in the model that was adapted."""

    def __init__(self, folder: Path) -> None:
        """Read adapter_config.json. Raises WeightsError for a file that peft would not write."""
        self.folder = folder
        path = folder / "adapter_config.json"
        try:
            if (size := path.stat().st_size) > MAX_CONFIG_BYTES:
                raise ValueError(f"{size} bytes, the limit is {MAX_CONFIG_BYTES}")
            self.values: dict[str, Any] = read_json(path)
        except (OSError, ValueError) as error:
            raise unreadable(path, error) from error
        for key, types in (PLAIN_LORA | OTHER).items():
            if (value := self.values.get(key)) is not None and not (
                isinstance(value, types) and _has_valid_items(value)
            ):
                raise WeightsError(f"{path} has {key}={value!r:.100}, which peft does not write: download it again")
        self.peft_type: str = self.values.get("peft_type") or "LORA"
        for key in ("r", "lora_alpha", "target_modules") if self.peft_type == "LORA" else ("target_modules",):
            if not self.values.get(key):
                raise WeightsError(f"{path} has no {key}: download it again")
        self._patterns = Patterns(path)

    def enabled(self) -> set[str]:
        """The settings that have an effect on the merged weights."""
        values = self.values
        unused = [key for key, value in (("peft_type", "LORA"), ("bias", "none")) if values.get(key, value) == value]
        if values.get("init_lora_weights", True) in KEEPS_THE_BASE:
            unused.append("init_lora_weights")
        return {key for key in values if values[key]} - WITHOUT_EFFECT - set(unused)

    def beyond_plain_lora(self) -> str | None:
        """The settings that are more than plain LoRA on linear layers, e.g. "use_dora=True". None if there are none."""
        plain = PLAIN_LORA.keys() - {"peft_type", "bias", "fan_in_fan_out", "init_lora_weights"}
        return self.shown(self.enabled() - plain) or None

    def shown(self, keys: set[str]) -> str:
        """The settings for a message, e.g. "bias='all', use_dora=True"."""
        return ", ".join(f"{key}={self.values[key]!r:.100}" for key in sorted(keys))[:200]

    def is_target(self, name: str) -> bool:
        """Whether the settings target this module, by the rules of peft's check_target_module_exists."""
        values = self.values
        if self.matches("exclude_modules", name):
            return False
        if values["target_modules"] == "all-linear":
            return not name.endswith(("embed_tokens", "embeddings"))
        if not self.matches("target_modules", name):
            return False
        layers, patterns = values.get("layers_to_transform"), values.get("layers_pattern") or [r"[^.]*"]
        if layers is None:
            return True
        if isinstance(patterns, str):
            patterns = [patterns]
        whole = [rf"(?:^|.*?\.){pattern}\.(?P<index>\d+)\." for pattern in patterns]
        match = self._patterns.first("match", whole, name)
        return match is not None and int(match[1]["index"]) in ([layers] if isinstance(layers, int) else layers)

    def matches(self, key: str, name: str) -> bool:
        """Whether the setting's regular expression matches the name, or its list has the name or its last parts."""
        targets: str | list[str] = self.values.get(key) or []
        if isinstance(targets, str):
            return self._patterns.first("fullmatch", [targets], name) is not None
        return any(name == target or name.endswith(f".{target}") for target in targets)

    def by_pattern(self, key: str, name: str, default: float) -> float:
        """The module's own value in `rank_pattern` or `alpha_pattern`, else the default."""
        values: dict[str, float] = self.values.get(key) or {}
        if not values:
            return default
        match = self._patterns.first("match", [rf"(.*\.)?({pattern})$" for pattern in values], name)
        return default if match is None else float(list(values.values())[match[0]])


def _has_valid_items(value: Any) -> bool:
    """Whether a list has strings and numbers only, a mapping numbers only, and no number is huge or NaN."""
    items = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else [value]
    allowed = int | float if isinstance(value, dict) else int | float | str
    return all(isinstance(item, allowed) and (isinstance(item, str) or abs(item) < 1e9) for item in items)
