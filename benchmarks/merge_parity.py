"""This package's merge of base and adapter against peft's: the weights, and the vectors of engines loaded from each."""

from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import merging, shared_checkpoint
from benchmarks.agreement import distance
from benchmarks.reference import ModelUnderTest
from benchmarks.report import Json
from e5.embedder import Embedder
from e5.settings import Settings
from e5.vectors import Vectors
from e5.weights.merge import merged_tensors

MAX_MERGED_PARAMETERS = 2_000_000_000
"""Limit of the merge by peft in float64 on the CPU, which takes 16 bytes per parameter."""


def compare(subject: ModelUnderTest, name: str, texts: Sequence[str]) -> list[Json]:
    """Merge on the device and by peft, in the dtype `name`. Raises ValueError if the model is too large for peft."""
    if subject.model.parameters > MAX_MERGED_PARAMETERS and _parameters(subject.checkpoint) > MAX_MERGED_PARAMETERS:
        raise ValueError("too large for float64 on the CPU: draw fewer layers, --random-weights --layers 2")
    dtype: torch.dtype = getattr(torch, name)
    by_peft = merging.by_peft(subject.weights, dtype)
    different = total = 0
    for weight, tensor in merged_tensors(subject.weights, subject.device):
        different += int((tensor.to(dtype) != by_peft[weight].to(subject.device)).sum())
        total += tensor.numel()
    folder = subject.scratch / name
    merging.save(subject.weights, by_peft, dtype, folder)
    del by_peft
    shared_checkpoint.add_tokenizer_and_pooling(subject.model, subject.weights, folder)
    device = str(subject.device)
    base_and_adapter = subject.weights.checkpoint.parent
    ours = _embed(Settings(subject.model.name, base_and_adapter, "adapter", device, name), texts)
    peft = _embed(Settings(subject.model.name, folder, "merged", device, name), texts)
    vectors = distance(ours, peft).facts()
    return [{"dtype": name, "weights": total, "different_weights": different, "vectors": vectors}]


def _parameters(checkpoint: Path) -> int:
    return sum(path.stat().st_size for path in checkpoint.glob("*.safetensors")) // 2


def _embed(settings: Settings, texts: Sequence[str]) -> Vectors:
    return Embedder.from_settings(settings).embed_documents(texts, progress=False)
