"""A local folder → a model on the device; and the forward pass of one packed batch.

The empty model is built on the device in its final dtype, and each tensor is copied into its place, merged with the
adapter on the way. So there is never a second copy of the weights: the peak is the model plus a few tensors, one of
them in float32.
"""

import ctypes
import os
import platform
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from e5 import attention, catalog, checkpoint, decoder, graphs, linear, pooling
from e5.adapter import Adapter
from e5.batches import PackedBatch
from e5.errors import SettingsError, WeightsError
from e5.linear import FLOAT8, Place
from e5.stopwatch import Stopwatch
from e5.vectors import Vectors
from e5.weights import LocalWeights

NO_MEMORY = ("can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""What CPUs say; the driver, of pinned memory and of launches; and cuBLAS."""
SPIN_TOKENS = 2000
"""Up to this batch size the host spins until the GPU is done. Above, it sleeps: waking up takes 20 to 50 µs, and a
core that spins for the 40 ms or more of such a batch of the flagship is lost to the tokenizer and the server."""


class Network(Protocol):
    """A transformer without a head: `e5.decoder.Decoder` or `e5.encoder.Encoder`.

    `forward` gives a row for each token, or for each text where `pools_last_token` says so; rows of filler may follow.
    `position_padding`: XLM-R's padding token, after which its positions begin; None where positions begin at 0.
    """

    pools_last_token: bool
    device: torch.device
    dtype: torch.dtype
    dimensions: int
    max_positions: int
    position_padding: int | None

    def places(self) -> dict[str, Place]: ...

    def forward(self, batch: PackedBatch) -> Tensor: ...


class PackedModel:
    """A network that maps packed batches to one pooled vector a text.

    `dtype`: as in E5_DTYPE. `graphs`: recorded passes for small batches, on CUDA; without them everything is launched
    anew.
    """

    def __init__(self, network: Network, kind: catalog.Pooling, dtype: torch.dtype) -> None:
        self.network = network
        self.pooling = kind
        self.device = network.device
        self.dtype = "float8" if dtype == FLOAT8 else str(dtype).removeprefix("torch.")
        self.padding_id = network.position_padding
        self.dimensions, self.max_positions = network.dimensions, network.max_positions
        # Where each new shape costs time and memory (`batches.rounded`), batches should have few of them.
        self.few_shapes = self.device.type == "cpu"
        self.weights_bytes = sum(place.nbytes for place in network.places().values())
        self.graphs: graphs.Graphs | None = None

    @torch.inference_mode()
    def embed(self, batch: PackedBatch) -> Tensor:
        """N texts → float32 [N, D] on the device, not normalised."""
        with _current(self.device):
            if self.graphs is not None:
                vectors = self.graphs.run(batch)
                if vectors is not None:
                    return vectors
            batch = batch.to(self.device)
            hidden = self.network.forward(batch)
            if self.network.pools_last_token:
                return hidden[: len(batch.cu_seqlens) - 1].float()
            return pooling.pool(self.pooling, hidden[: batch.tokens], batch.cu_seqlens)

    @torch.inference_mode()
    def record_graphs(self) -> None:
        """Record passes for small batches, where the attention is that of the variable-length kernel: it takes the
        texts' lengths from the device. Elsewhere nothing is done."""
        if self.network.pools_last_token and attention.has_kernel(self.device, self.network.dtype):
            self.graphs = graphs.record(self.network.forward, self.device)


def _current(device: torch.device) -> AbstractContextManager[object]:
    """Triton launches on the current device, memory is pinned and graphs are recorded for it, wherever tensors lie."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


class Arriving:
    """Vectors on their way from the device to the host; made as soon as they are asked for, before other work is.

    A copy that is asked for later waits on a GPU for all the work that was asked for before it: the next batch's.
    """

    def __init__(self, result: Tensor, tokens: int) -> None:
        """`tokens`: how many the batch of `result` has."""
        self._host, self._copied = result, None
        if result.is_cuda:
            with _current(result.device):  # pinning memory creates a context on the current device, 500 MB of its own
                self._host = torch.empty(result.shape, dtype=result.dtype, pin_memory=True)
                self._host.copy_(result, non_blocking=True)
                self._copied = torch.cuda.Event(blocking=tokens > SPIN_TOKENS)  # type: ignore[no-untyped-call]
                self._copied.record(torch.cuda.current_stream(result.device))

    def vectors(self) -> Vectors:
        """float32 [N, D], once they are there. Raises what went wrong on the device."""
        if self._copied is not None:
            self._copied.synchronize()
        arrived: Vectors = self._host.numpy()
        return arrived


def load(
    model: catalog.Model, weights: LocalWeights, device: torch.device, dtype: torch.dtype
) -> tuple[PackedModel, dict[str, float]]:
    """Build, fill and merge; on CUDA compile kernels and record graphs.

    Returns the model and the seconds spent to `load`, to `merge` and, where there are any, to record `graphs`. Raises
    WeightsError, and SettingsError for a dtype that model or device cannot have.
    """
    started = time.perf_counter()
    with _current(device):
        network = _empty(model, weights.checkpoint, device, dtype)
        adapter = Adapter(weights.adapter) if weights.adapter else None
        with _compiling(network):
            merge_seconds = _fill(network, weights.checkpoint, adapter)
        if device.type == "cpu":
            _keep_freed_memory()  # not before: what loading frees should go back
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
            _check_float8(device)
            # Before CUDA 12.9 the product of float8 rows is CUTLASS's, which gives back nothing else on Hopper.
            return decoder.Decoder(decoder.Config.read(folder), device, torch.bfloat16, float8=True)
        return decoder.Decoder(decoder.Config.read(folder), device, dtype)
    if dtype == FLOAT8:
        raise SettingsError(f"E5_DTYPE=float8 is for Mistral models, {model.name} is a {kind} one: leave it out")
    from e5.encoder import Encoder  # imports transformers, 2.5 s that the decoders' starts do without

    return Encoder(folder, device, dtype)


@contextmanager
def _compiling(network: Network) -> Iterator[None]:
    """Compile a decoder's kernels beside what is done meanwhile: reading files leaves the cores alone."""
    if network.device.type != "cuda" or not isinstance(network, decoder.Decoder):
        yield
        return

    def compile_kernels() -> None:
        with _current(network.device):
            network.compile_kernels()

    with ThreadPoolExecutor(1) as thread:
        compiled = thread.submit(compile_kernels)
        yield
        compiled.result()


def _check_float8(device: torch.device) -> None:
    """Raise SettingsError where the device cannot multiply float8 rows that have a scale each, or does it wrong."""
    if device.type != "cuda":
        return
    name, capability = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
    if capability < (8, 9):
        raise SettingsError(
            f"E5_DTYPE=float8: {name} has no such arithmetic (Ada, Hopper and newer have): leave it out"
        )
    # Before 2.12 the kernel for Ada ignores the current stream (pytorch#177651): beside other streams it hangs, and a
    # CUDA graph does not record it, so that replays would read whatever its buffer holds.
    if capability == (8, 9) and torch.__version__ < "2.12":
        raise SettingsError(
            f"E5_DTYPE=float8: torch {torch.__version__} multiplies float8 wrongly on {name}: "
            "install torch 2.12 or newer, or leave it out"
        )
    try:
        _try_float8(device)
    except RuntimeError as error:  # cuBLAS lacks this product for Blackwell (pytorch#160693, #192707)
        raise SettingsError(
            f"E5_DTYPE=float8: torch {torch.__version__} cannot multiply float8 on {name} "
            f"({str(error).splitlines()[0]}): leave it out"
        ) from error


def _try_float8(device: torch.device) -> None:
    """Multiply two small float8 matrices of ones. Raises RuntimeError where that fails or gives a wrong result."""
    size = 32  # a multiple of 16, which the product requires
    layer = linear.empty(size, size, device, torch.bfloat16, float8=True)
    layer.place(0, size).copy_(torch.ones(size, size, device=device))
    product = layer(linear.quantize(torch.ones(size, size, device=device)))
    if (product.float() - size).abs().max().item() > 0.5:
        raise RuntimeError(f"{size} ones times {size} ones is {product.flatten()[0].item()}")


def choose_device(name: str | None) -> torch.device:
    """The device asked for, or the GPU if there is one, else the CPU. Raises SettingsError if it is not there."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    have = ["cpu", *(f"cuda:{index}" for index in range(count))]
    device = torch.device(name or ("cuda" if count else "cpu"))
    if device.type == "cuda" and (device.index or 0) >= count:
        raise SettingsError(f"E5_DEVICE={name}: there is no such device here; there are: {', '.join(have)}")
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


def choose_dtype(name: str | None, device: torch.device) -> torch.dtype:
    """The dtype asked for (float8: that of the linear layers' weights), or the policy.

    float16 on CUDA: what e5-mistral was published and evaluated in. bfloat16 on CPUs that multiply it natively (4 ×
    the float32 rate on a Zen 4; emulated, it is slower than float32). float32 elsewhere.
    """
    if name is not None:
        chosen: torch.dtype = FLOAT8 if name == "float8" else getattr(torch, name)
        return chosen
    if device.type == "cuda":
        return torch.float16
    return torch.bfloat16 if _cpu_multiplies_bfloat16() else torch.float32


def _cpu_multiplies_bfloat16() -> bool:
    try:
        flags = set(Path("/proc/cpuinfo").read_text("utf-8").split())
    except OSError:  # not Linux: no list of features to read
        return False
    return not flags.isdisjoint({"avx512_bf16", "amx_bf16", "bf16"})


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it says that the device, or the host, has no memory left: beside their own exceptions in bare texts."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(text in str(error) for text in NO_MEMORY)


def release_memory() -> None:
    """Return the GPU's cached, unused blocks to the driver, so that a smaller batch fits."""
    if torch.cuda.is_available():
        with suppress(RuntimeError):  # the GPU reports an earlier error here as well; the next batch meets it, too
            torch.cuda.empty_cache()


def trim_memory() -> None:
    """Return the pages of freed blocks to the kernel; for servers that keep them (`_keep_freed_memory`) for weeks.

    Batches of ever new sizes fragment the kept memory: it grew by 2 kB a prediction, without an end in sight at 30,000.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def _keep_freed_memory() -> None:
    """Tell glibc to reuse large blocks instead of returning them to the kernel.

    Each operator's result is a fresh block of megabytes, and by default each is mapped and page-faulted anew: float32
    ran 15–40 % slower so. An allocator that the user chose or tuned is left alone, and so are other C libraries.
    """
    tuned = ("GLIBC_TUNABLES", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "LD_PRELOAD")
    if platform.libc_ver()[0] != "glibc" or any(os.environ.get(name) for name in tuned):
        return
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD, bytes: what is larger is rare, and would fragment the rest
    mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD, bytes


@torch.inference_mode()
def _fill(network: Network, folder: Path, adapter: Adapter | None) -> float:
    """Copy every tensor of the checkpoint into its place, merged on the device on the way, and wait until it is there.

    Returns the device's seconds of the merge.
    """
    places = network.places()
    missing = set(places)
    watch = Stopwatch(network.device)
    for name, tensor in checkpoint.tensors(folder, pin=network.device.type == "cuda"):
        if name not in places or places[name].shape != tensor.shape:
            want = f", which is {list(places[name].shape)} in the model" if name in places else ""
            raise WeightsError(
                f"{folder} has a tensor {name} {list(tensor.shape)}{want}: not a checkpoint of its config"
            )
        # First to the device in the dtype of the file: converting on the host costs more than the bus. This waits for
        # the copy, as the tensor's memory is used again afterwards; what follows on a GPU is waited for by nobody.
        arrived, merged = tensor.to(network.device), None
        if adapter:
            with watch.running():
                merged = adapter.merged(name, arrived)
        places[name].copy_(arrived if merged is None else merged)
        missing.discard(name)
    if missing:
        raise WeightsError(f"{folder} lacks {sorted(missing)[0]} ({len(missing)} missing): fetch it again")
    if adapter:
        adapter.check_all_used()
    return watch.seconds()
