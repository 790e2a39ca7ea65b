"""Merge an adapter that is more than plain LoRA through peft: DoRA, biases, saved modules, LoHa, LoKr and (IA)³.

peft wraps the layers of a model without weights, on torch's meta device. When a weight arrives, peft merges it in a
copy of its layer, in float64. So memory is that of the adapter and of one layer, as for plain LoRA, and the result is
peft's own, rounded once to float32.

The adapter's files are untrusted (`e5.weights.adapter`). peft gets neither the files nor the patterns, but tensors and
the names of the modules that the patterns match. The names and shapes that peft expects must be those of the file, so
no setting can ask for more memory than the file has. Adapters that change the base or its architecture are refused.
"""

import copy
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from e5.errors import WeightsError
from e5.weights.adapter import read_tensors
from e5.weights.adapter_config import AdapterConfig
from e5.weights.checkpoint import bare_name, is_weight

REQUIREMENT = "peft>=0.19,<1"
PASSED_ON = {
    "LORA": ("r", "lora_alpha", "use_rslora", "use_dora", "lora_bias", "bias", "fan_in_fan_out", "modules_to_save"),
    "LOHA": ("r", "alpha", "use_effective_conv2d", "modules_to_save"),
    "LOKR": ("r", "alpha", "use_effective_conv2d", "decompose_both", "decompose_factor", "modules_to_save"),
    "IA3": ("fan_in_fan_out", "modules_to_save"),
}
"""Settings that peft gets as they are, by peft type. It gets no others: `megatron_core`, say, names code to import."""
RESOLVED = {
    "alpha_pattern",
    "exclude_modules",
    "feedforward_modules",
    "layers_pattern",
    "layers_to_transform",
    "peft_type",
    "rank_pattern",
    "target_modules",
}
"""Settings that name modules, by patterns or by parts of names. peft gets the modules' full names."""
PREFIX = "base_model.model."
"""Of the names of tensors in an adapter."""
META = torch.device("meta")


class PeftAdapter:
    """peft's layers, by the names of their modules in the bare model, and the tensors that replace one of the base.

    `unused`: the names of modules and tensors that have not been merged.
    """

    def __init__(self, config: AdapterConfig, checkpoint: Path) -> None:
        """`checkpoint`: the base's folder, of which only config.json is read.

        Raises WeightsError if peft is not installed, for a setting that cannot be merged, and if settings, tensors and
        base do not belong together.
        """
        self.folder = config.folder
        peft = _import_peft(config)
        tensors, prefix = _bare_names(read_tensors(self.folder))
        from e5.weights import stock  # here: imports transformers

        base = stock.build(checkpoint, META)
        weights = {name for name, _ in base.named_parameters() if is_weight(name)}
        try:
            model = _wrap(peft, base, config, prefix)
            # With keep_vars the values are the parameters themselves, which says where peft loads each tensor.
            parameters = model.state_dict(keep_vars=True)
            expected = peft.get_peft_model_state_dict(model, parameters, save_embedding_layers=False)
        except WeightsError:
            raise
        except Exception as error:  # peft raises any type
            raise self._failed(error) from error
        expected = {key: parameter for key, parameter in expected.items() if is_weight(key.removeprefix(PREFIX))}
        self._check(tensors, expected)
        names = {id(parameter): name for name, parameter in parameters.items()}
        loaded = {names[id(expected[key])]: tensor for key, tensor in tensors.items()}
        self._replaced: dict[str, Tensor] = {}
        for name in list(loaded):
            replaced = name.removeprefix(PREFIX).replace(".base_layer.", ".").replace(".modules_to_save.default.", ".")
            if replaced in weights:
                self._replaced[replaced] = loaded.pop(name)
        model.load_state_dict(loaded, strict=False, assign=True)
        is_layer = peft.tuners.tuners_utils.BaseTunerLayer
        named_modules = model.base_model.model.named_modules()
        self._layers = {name: module for name, module in named_modules if isinstance(module, is_layer)}
        self.unused = {name for name in {*self._layers, *self._replaced} if is_weight(name)}

    @torch.no_grad()
    def merged(self, weight_name: str, base: Tensor) -> Tensor:
        """Merge into one of the base's tensors, on its device. Returns float32, or `base` itself if not adapted."""
        module, _, parameter = weight_name.rpartition(".")
        replaced, layer = self._replaced.get(weight_name), self._layers.get(module)
        self.unused -= {weight_name, module}
        if replaced is None and layer is None:
            return base
        start = base if replaced is None else replaced.to(base.device)
        if layer is None:
            return start.float()
        layer = copy.deepcopy(layer)  # its base has no weights
        inner = layer.get_base_layer()
        for name, place in list(inner.named_parameters(recurse=False)):
            # Weight and bias are merged independently of each other: zeros stand in for the one that is not here.
            values = start if name == parameter else torch.zeros(place.shape, device=base.device)
            setattr(inner, name, nn.Parameter(values.to(torch.float64, copy=True), requires_grad=False))
        try:
            layer.to(base.device, torch.float64).merge()
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError) as error:  # biases of B need a bias of the base, for one
            raise self._failed(error) from error
        merged: Tensor = getattr(layer.get_base_layer(), parameter).data.float()
        return merged

    def _failed(self, error: Exception) -> WeightsError:
        cause = next(iter(str(error).splitlines()), type(error).__name__)
        return WeightsError(
            f"peft cannot merge {self.folder} ({cause:.300}): base and adapter do not belong together, or the adapter "
            "needs another release of peft"
        )

    def _check(self, tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
        """Raise WeightsError unless the file has the tensors that peft expects, with their shapes."""
        for name in sorted(expected.keys() ^ tensors.keys()):
            verb, ask = ("lacks", "ask") if name in expected else ("has", "do not ask")
            raise WeightsError(
                f"{self.folder} {verb} a tensor {name:.200}, which its settings {ask} for: download it again"
            )
        for name, tensor in tensors.items():
            if tensor.shape != expected[name].shape or not tensor.is_floating_point():
                raise WeightsError(
                    f"{self.folder} has a tensor {name:.200} {list(tensor.shape)} of {tensor.dtype}, for base and "
                    f"settings it is {list(expected[name].shape)}: wrong base?"
                )


def _import_peft(config: AdapterConfig) -> Any:
    """The package peft. Raises WeightsError if it is not installed, and for settings that it does not merge."""
    passed_on = PASSED_ON.get(config.peft_type)
    refused = {"peft_type"} if passed_on is None else config.enabled() - RESOLVED - set(passed_on)
    if refused:
        raise WeightsError(
            f"{config.folder} asks for {config.shown(refused)}, which cannot be merged into the base: convert it to "
            "plain LoRA with peft, or use a complete checkpoint"
        )
    try:
        import peft  # here: it takes seconds to import, and plain LoRA does not need it
    except ImportError as error:
        raise WeightsError(
            f"{config.folder} asks for {config.beyond_plain_lora()}, which peft merges, but peft cannot be imported "
            f'({error}): pip install "{REQUIREMENT}"'
        ) from error
    return peft


def _bare_names(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """The tensors by their names in an adapter of the bare model, and the prefix that the names had without PREFIX."""
    bare, prefix = {}, ""
    for name, tensor in tensors.items():
        adapted = name.removeprefix(PREFIX)
        if is_weight(bare_name(adapted)):
            prefix = adapted.removesuffix(bare_name(adapted))
            bare[PREFIX + bare_name(adapted)] = tensor
    return bare, prefix


def _wrap(peft: Any, base: Any, config: AdapterConfig, prefix: str) -> Any:
    """The base with peft's layers, without weights. `prefix`: of the modules' names in the model that was adapted."""
    from transformers.pytorch_utils import Conv1D

    values = config.values
    settings = {key: values[key] for key in PASSED_ON[config.peft_type] if values.get(key) is not None}
    linear = (nn.Linear, Conv1D) if values["target_modules"] == "all-linear" else nn.Module
    modules = [name for name, module in base.named_modules() if name and isinstance(module, linear)]
    targets = [name for name in modules if config.is_target(prefix + name)]
    settings["target_modules"] = targets
    if values.get("rank_pattern"):
        ranks = {name: config.by_pattern("rank_pattern", prefix + name, values["r"]) for name in targets}
        settings["rank_pattern"] = {re.escape(name): int(rank) for name, rank in ranks.items()}
    if values.get("alpha_pattern"):
        default = values["lora_alpha" if config.peft_type == "LORA" else "alpha"]
        alphas = {name: config.by_pattern("alpha_pattern", prefix + name, default) for name in targets}
        settings["alpha_pattern"] = {re.escape(name): alpha for name, alpha in alphas.items()}
    if values.get("feedforward_modules"):
        settings["feedforward_modules"] = [n for n in targets if config.matches("feedforward_modules", prefix + n)]
    with META:
        return peft.PeftModel(
            base, peft.PEFT_TYPE_TO_CONFIG_MAPPING[config.peft_type](**settings), low_cpu_mem_usage=True
        )
