"""Load a local folder's weights into a model on the device.

The model is allocated on the device in its final dtype. Each tensor is merged with the adapter and copied to its
destination. So there is never a second copy of the weights: peak memory is the model plus a few tensors, one of them in
float32.
"""

import logging
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from e5 import catalog
from e5.errors import SettingsError, WeightsError
from e5.network import decoder, encoder
from e5.network.device import check_float8, use_device
from e5.network.linear import FLOAT8
from e5.network.memory import keep_freed_memory
from e5.network.model import Network, PackedModel
from e5.network.stopwatch import Stopwatch
from e5.weights import checkpoint
from e5.weights.files import LocalWeights
from e5.weights.merge import merged_tensors

log = logging.getLogger(__name__)


def load(
    model: catalog.Model, weights: LocalWeights, device: torch.device, dtype: torch.dtype
) -> tuple[PackedModel, dict[str, float]]:
    """Allocate the model, load and merge its weights; on CUDA also compile kernels and capture graphs.

    Returns the model and the seconds of the phases `load`, `merge` and, if graphs were captured, `graphs`. Raises
    WeightsError, and SettingsError for a dtype that the model or device does not support.
    """
    started = time.perf_counter()
    with use_device(device):
        network = _allocate(model, weights.checkpoint, device, dtype)
        with _compiling_kernels(network):
            merge_seconds = _fill(network, weights)
        packed = PackedModel(network, dtype)
        if device.type == "cpu":
            keep_freed_memory()  # only now: memory that loading frees should go back to the kernel
        seconds = {"load": time.perf_counter() - started - merge_seconds, "merge": merge_seconds}
        packed.capture_graphs()
    if packed.graphs is not None:
        seconds["graphs"] = packed.graphs.seconds
    return packed, seconds


def _allocate(model: catalog.Model, folder: Path, device: torch.device, dtype: torch.dtype) -> Network:
    """The network that config.json describes, uninitialized."""
    config = checkpoint.config(folder)
    model_type = config.get("model_type")
    if model_type not in model.architectures:
        raise WeightsError(
            f"{folder} holds a {model_type} model, {model.name} is a {model.architecture} one: "
            "set E5_MODEL to the model that the folder holds"
        )
    if config.get("quantization_config") is not None:
        raise WeightsError(f"{folder} holds quantized weights, which are not supported: use other weights")
    setting = _beyond_the_loops(config, model.pooling)
    if dtype == FLOAT8 and (model_type != "mistral" or setting is not None):
        kind = f"is a {model_type} one" if model_type != "mistral" else f"has {setting}"
        raise SettingsError(f"E5_DTYPE=float8 is for Mistral models, {model.name} {kind}: leave it out")
    if setting is not None:
        from e5.network.stock_model import StockModel  # here, because it imports transformers: 2.5 s

        stock = StockModel(folder, device, dtype, model.pooling)
        log.warning("%s: %s is computed by transformers' own module, which is slower", model.name, setting)
        return stock
    if model_type != "mistral":
        return encoder.Encoder(encoder.Config.read(folder), device, dtype, model.pooling)
    if dtype == FLOAT8:
        check_float8(device)
        # bfloat16: before CUDA 12.9, CUTLASS computes float8 products, and on Hopper it outputs nothing else.
        return decoder.Decoder(decoder.Config.read(folder), device, torch.bfloat16, float8=True)
    return decoder.Decoder(decoder.Config.read(folder), device, dtype)


def _beyond_the_loops(config: Mapping[str, Any], pooling: catalog.Pooling) -> str | None:
    """The first setting that neither the decoder's nor the encoder's loop computes, None if one of them does."""
    match config["model_type"]:
        case "mistral":
            return decoder.unsupported(config) or (None if pooling == "last" else f"pooling={pooling!r}")
        case "bert" | "xlm-roberta":
            return encoder.unsupported(config)
        case other:
            return f"model_type={other!r}"


@contextmanager
def _compiling_kernels(network: Network) -> Iterator[None]:
    """Compile Triton kernels in the background during the block, which loads weights and is I/O-bound."""
    if network.device.type != "cuda" or not isinstance(network, decoder.Decoder | encoder.Encoder):
        yield
        return

    def compile_kernels() -> None:
        with use_device(network.device):
            network.compile_kernels()

    with ThreadPoolExecutor(1) as thread:
        compilation = thread.submit(compile_kernels)
        yield
        compilation.result()


@torch.inference_mode()
def _fill(network: Network, weights: LocalWeights) -> float:
    """Copy every merged tensor to its destination and wait for the device. Returns the device's seconds of merging."""
    destinations = network.destinations()
    checkpoint.check_shapes(weights.checkpoint, {name: destination.shape for name, destination in destinations.items()})
    watch = Stopwatch(network.device)
    for name, tensor in merged_tensors(weights, network.device, watch.running):
        destinations[name].copy_(tensor)
        del tensor  # free its memory before the next one is merged
    return watch.seconds()
