"""A local folder → a model on the device.

The empty model is built on the device in its final dtype, and each tensor is copied into its place, merged with the
adapter on the way. So there is never a second copy of the weights: the peak is the model plus a few tensors, one of
them in float32.
"""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch

from e5 import catalog
from e5.errors import SettingsError, WeightsError
from e5.network import decoder
from e5.network.device import check_float8, current
from e5.network.linear import FLOAT8
from e5.network.memory import keep_freed_memory
from e5.network.model import Network, PackedModel
from e5.network.stopwatch import Stopwatch
from e5.weights import checkpoint
from e5.weights.files import LocalWeights
from e5.weights.merge import merged_tensors


def load(
    model: catalog.Model, weights: LocalWeights, device: torch.device, dtype: torch.dtype
) -> tuple[PackedModel, dict[str, float]]:
    """Build, fill and merge; on CUDA compile kernels and record graphs.

    Returns the model and the seconds spent to `load`, to `merge` and, where there are any, to record `graphs`. Raises
    WeightsError, and SettingsError for a dtype that model or device cannot have.
    """
    started = time.perf_counter()
    with current(device):
        network = _empty(model, weights.checkpoint, device, dtype)
        with _compiling(network):
            merge_seconds = _fill(network, weights)
        if device.type == "cpu":
            keep_freed_memory()  # not before: what loading frees should go back
        packed = PackedModel(network, model.pooling, dtype)
        seconds = {"load": time.perf_counter() - started - merge_seconds, "merge": merge_seconds}
        packed.record_graphs()
    if packed.graphs is not None:
        seconds["graphs"] = packed.graphs.seconds
    return packed, seconds


def _empty(model: catalog.Model, folder: Path, device: torch.device, dtype: torch.dtype) -> Network:
    kind = checkpoint.config(folder).get("model_type")
    if kind not in model.architectures:
        raise WeightsError(
            f"{folder} holds a {kind} model, {model.name} is a {model.architecture} one: "
            "set E5_MODEL to the model that the folder holds"
        )
    if kind == "mistral":
        if dtype == FLOAT8:
            check_float8(device)
            # Before CUDA 12.9 the product of float8 rows is CUTLASS's, which gives back nothing else on Hopper.
            return decoder.Decoder(decoder.Config.read(folder), device, torch.bfloat16, float8=True)
        return decoder.Decoder(decoder.Config.read(folder), device, dtype)
    if dtype == FLOAT8:
        raise SettingsError(f"E5_DTYPE=float8 is for Mistral models, {model.name} is a {kind} one: leave it out")
    from e5.network.encoder import Encoder  # imports transformers, 2.5 s that the decoders' starts do without

    return Encoder(folder, device, dtype)


@contextmanager
def _compiling(network: Network) -> Iterator[None]:
    """Compile a decoder's kernels beside what is done meanwhile: reading files leaves the cores alone."""
    if network.device.type != "cuda" or not isinstance(network, decoder.Decoder):
        yield
        return

    def compile_kernels() -> None:
        with current(network.device):
            network.compile_kernels()

    with ThreadPoolExecutor(1) as thread:
        compiled = thread.submit(compile_kernels)
        yield
        compiled.result()


@torch.inference_mode()
def _fill(network: Network, weights: LocalWeights) -> float:
    """Copy every merged tensor to its destination and wait for the device. Returns the device's seconds of merging."""
    destinations = network.destinations()
    checkpoint.check_shapes(weights.checkpoint, {name: place.shape for name, place in destinations.items()})
    watch = Stopwatch(network.device)
    for name, tensor in merged_tensors(weights, network.device, watch.running):
        destinations[name].copy_(tensor)
        del tensor  # free its memory before the next one is merged
    return watch.seconds()
