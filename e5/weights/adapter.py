"""Read a plain LoRA adapter and merge it into base weights: base + scaling · B @ A.

Merging computes in float64 and rounds once to float32. Float32 sums differ between GPU and CPU, and some of those
differences survive rounding to 16 bits; with float64 sums the order no longer matters. Tests require the merged weights
to be bit-identical to peft's in float64.

Supports plain LoRA on linear layers; `e5.weights.peft_adapter` merges the rest. A missing or unused tensor is an error:
a partly applied adapter gives plausible but wrong vectors. An adapter's files are untrusted: reading one runs no code,
memory is bounded by the size of the files, and so is the time of its patterns (`e5.weights.patterns`).
"""

import io
import math
import re
import zipfile
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from e5.catalog import ADAPTER_TENSORS
from e5.errors import WeightsError
from e5.weights.adapter_config import AdapterConfig
from e5.weights.checkpoint import bare_name, is_weight

TENSOR_NAME = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<matrix>[AB])(?:\.\w+)?\.weight")
CHUNK = 4_000_000
"""Elements merged per step: 32 MB in float64."""


class Adapter:
    """A and B of each adapted module, by its name in the bare model, e.g. `layers.0.self_attn.q_proj`.

    `unused`: the names of modules that have not been merged.
    """

    def __init__(self, config: AdapterConfig) -> None:
        """Read the tensors of an adapter whose settings are plain LoRA. Raises WeightsError for any other tensor."""
        self.config, self.folder = config, config.folder
        self._pairs, self._prefix = _lora_pairs(self.folder, read_tensors(self.folder))
        self.unused = set(self._pairs)

    def merged(self, weight_name: str, base: Tensor) -> Tensor:
        """Merge into one base weight [out, in], on its device. Returns float32, or `base` itself if not adapted.

        Raises WeightsError if configuration, tensors and base disagree.
        """
        module = weight_name.removesuffix(".weight")
        pair = self._pairs.get(module)
        if base.dim() == 2 and (pair is not None) != self.config.is_target(self._prefix + module):
            tensors, config = ("no tensors", "says") if pair is None else ("tensors", "does not say")
            raise WeightsError(
                f"{self.folder} has {tensors} for {module}, which its configuration {config} to adapt: "
                "download it again"
            )
        if pair is None:
            return base
        self.unused.discard(module)
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
        config, name = self.config, self._prefix + module
        rank = config.by_pattern("rank_pattern", name, config.values["r"])
        alpha = config.by_pattern("alpha_pattern", name, config.values["lora_alpha"])
        if (stored_rank := self._pairs[module][0].shape[0]) != rank:
            raise WeightsError(f"{self.folder}: {module} has rank {stored_rank}, its configuration says {rank}")
        return float(alpha / (math.sqrt(rank) if config.values.get("use_rslora") else rank))


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors of an adapter's folder by name. Raises WeightsError for a file that is not safe or not readable."""
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
        if not is_weight(module):
            continue  # of a head
        matrices.setdefault(module, {})[match["matrix"]] = tensor
    for module, pair in matrices.items():
        if len(pair) != 2:
            missing = "A" if "B" in pair else "B"
            raise WeightsError(
                f"{folder} has no {module:.200}.lora_{missing}.weight: it is incomplete, download it again"
            )
    return {module: (pair["A"], pair["B"]) for module, pair in matrices.items()}, prefix
