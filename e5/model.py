"""A local folder → a model on the device; and the forward pass of one packed batch.

The empty model is built on the device in its final dtype, and each tensor is copied into its place, merged with the
adapter on the way. So there is never a second copy of the weights: the peak is the model plus a few tensors, one of
them in float32.
"""

import ctypes
import os
import platform
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers.initialization import no_init_weights

from e5 import attention, catalog, checkpoint, pooling
from e5.adapter import Adapter
from e5.batches import PackedBatch
from e5.errors import SettingsError, WeightsError
from e5.last_layer import keep_last_tokens
from e5.stopwatch import Stopwatch
from e5.vectors import Vectors
from e5.weights import LocalWeights


class PackedModel:
    """A bare transformer that maps packed batches to one pooled vector a text."""

    def __init__(self, module: PreTrainedModel, kind: catalog.Pooling) -> None:
        self.module = module
        self.pooling = kind
        self.padding_id = position_padding(module.config)
        self.device, self.dtype = module.device, module.dtype
        self.config = module.config
        self.dimensions = int(self.config.hidden_size)
        # Where each new shape costs time and memory (`batches.rounded`), batches should have few of them.
        self.few_shapes = self.device.type == "cpu"
        # The decoder's last layer gives pooling the tokens that it reads and no others.
        self._last_only = kind == "last" and self.config.model_type == "mistral"
        if self._last_only:
            keep_last_tokens(module.layers[-1])
        # BERT and XLM-R add a token type; given none, they look one up by position, which costs a gather a pass.
        self._typed = hasattr(self.config, "type_vocab_size")
        self._extra: dict[str, Any] = {} if self._typed else {"use_cache": False}

    @torch.inference_mode()
    def embed(self, batch: PackedBatch) -> Tensor:
        """N texts → float32 [N, D] on the device, not normalised."""
        batch = batch.to(self.device)
        hidden = self._forward(batch)
        if self._last_only:
            return hidden[: len(batch.cu_seqlens) - 1].float()
        return pooling.pool(self.pooling, hidden[: batch.tokens], batch.cu_seqlens)

    def _forward(self, batch: PackedBatch) -> Tensor:
        """[T, D] in the model's dtype, or at least [N, D] where the last layer keeps each text's last token alone."""
        row = batch.input_ids.unsqueeze(0)
        extra = {"token_type_ids": torch.zeros_like(row)} if self._typed else self._extra
        output = self.module(input_ids=row, position_ids=batch.position_ids.unsqueeze(0), packed=batch, **extra)
        hidden: Tensor = output.last_hidden_state
        return hidden[0]


class Arriving:
    """Vectors on their way from the device to the host; made as soon as they are asked for, before other work is.

    A copy that is asked for later waits on a GPU for all the work that was asked for before it: the next batch's.
    """

    def __init__(self, result: Tensor) -> None:
        self._host, self._copied = result, None
        if result.is_cuda:
            self._host = torch.empty(result.shape, dtype=result.dtype, pin_memory=True)
            self._host.copy_(result, non_blocking=True)
            self._copied = torch.cuda.current_stream(result.device).record_event()

    def vectors(self) -> Vectors:
        """float32 [N, D], once they are there. Raises what went wrong on the device."""
        if self._copied is not None:
            self._copied.synchronize()
        arrived: Vectors = self._host.numpy()
        return arrived


def load(
    model: catalog.Model, weights: LocalWeights, device: torch.device, dtype: torch.dtype
) -> tuple[PackedModel, dict[str, float]]:
    """Build, fill and merge. Returns the model and the seconds spent to `load` and to `merge`. Raises WeightsError."""
    started = time.perf_counter()
    config = AutoConfig.from_pretrained(weights.checkpoint, local_files_only=True)
    if config.model_type not in model.architectures:
        raise WeightsError(
            f"{weights.checkpoint} holds a {config.model_type} model, {model.name} is a {model.architecture} one: "
            "set E5_MODEL to the model that the folder holds"
        )
    module = _empty(config, device, dtype)
    adapter = Adapter(weights.adapter) if weights.adapter else None
    merge_seconds = _fill(module, weights.checkpoint, adapter)
    if device.type == "cpu":
        _keep_freed_memory()  # not before: what loading frees should go back
    packed = PackedModel(module, model.pooling)
    return packed, {"load": time.perf_counter() - started - merge_seconds, "merge": merge_seconds}


def position_padding(config: Any) -> int | None:
    """XLM-R's padding token, after which its positions begin; None for models whose positions begin at 0."""
    return int(config.pad_token_id) if config.model_type == "xlm-roberta" else None


def max_positions(config: Any) -> int:
    """How many tokens, special ones included, the checkpoint has positions for."""
    padding_id = position_padding(config)
    return int(config.max_position_embeddings) - (0 if padding_id is None else padding_id + 1)


def choose_device(name: str | None) -> torch.device:
    """The device asked for, or the GPU if there is one, else the CPU. Raises SettingsError if it is not there."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    have = ["cpu", *(f"cuda:{index}" for index in range(count))]
    device = torch.device(name or ("cuda" if count else "cpu"))
    if device.type == "cuda" and (device.index or 0) >= count:
        raise SettingsError(f"E5_DEVICE={name}: there is no such device here; there are: {', '.join(have)}")
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


def choose_dtype(name: str | None, device: torch.device) -> torch.dtype:
    """The dtype asked for, or the policy.

    float16 on CUDA: what e5-mistral was published and evaluated in. bfloat16 on CPUs that multiply it natively (4 ×
    the float32 rate on a Zen 4; emulated, it is slower than float32). float32 elsewhere.
    """
    if name is not None:
        chosen: torch.dtype = getattr(torch, name)
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
    """Whether it says that the device, or the host, has no memory left: CPUs say it in a bare RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def release_memory() -> None:
    """Give the GPU's cached, unused blocks back, so that a smaller batch can be laid out anew."""
    if torch.cuda.is_available():
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


def _empty(config: Any, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    attention.register()
    extra = {"add_pooling_layer": False} if config.model_type in ("bert", "xlm-roberta") else {}
    with no_init_weights(), device:
        module = AutoModel.from_config(config, dtype=dtype, attn_implementation=attention.NAME, **extra)
    return module.eval().requires_grad_(False)


@torch.inference_mode()
def _fill(module: PreTrainedModel, folder: Path, adapter: Adapter | None) -> float:
    """Copy every tensor of the checkpoint into its place, merged on the device on the way, and wait until it is there.

    Returns the device's seconds of the merge.
    """
    parameters = dict(module.named_parameters())
    missing = set(parameters)
    watch = Stopwatch(module.device)
    for name, tensor in checkpoint.tensors(folder, pin=module.device.type == "cuda"):
        if name not in parameters or parameters[name].shape != tensor.shape:
            want = f", which is {list(parameters[name].shape)} in the model" if name in parameters else ""
            raise WeightsError(
                f"{folder} has a tensor {name} {list(tensor.shape)}{want}: not a checkpoint of its config"
            )
        # First to the device in the dtype of the file: converting on the host costs more than the bus. This waits for
        # the copy, as the tensor's memory is used again afterwards; what follows on a GPU is waited for by nobody.
        arrived, merged = tensor.to(module.device), None
        if adapter:
            with watch.running():
                merged = adapter.merged(name, arrived)
        parameters[name].copy_(arrived if merged is None else merged)
        missing.discard(name)
    if missing:
        raise WeightsError(f"{folder} lacks {sorted(missing)[0]} ({len(missing)} missing): fetch it again")
    if adapter:
        adapter.check_all_used()
    return watch.seconds()
