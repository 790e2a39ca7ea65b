"""Device policy: the device and dtype to use, and whether the device supports float8."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch

from e5.errors import SettingsError
from e5.network import linear
from e5.network.linear import FLOAT8


def choose_device(name: str | None) -> torch.device:
    """The named device; by default the first GPU, or the CPU without one. Raises SettingsError if it does not exist."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    devices = ["cpu", *(f"cuda:{index}" for index in range(count))]
    device = torch.device(name or ("cuda" if count else "cpu"))
    if device.type == "cuda" and (device.index or 0) >= count:
        raise SettingsError(f"E5_DEVICE={name}: no such device; this machine has: {', '.join(devices)}")
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


def choose_dtype(name: str | None, device: torch.device) -> torch.dtype:
    """The named dtype (float8 applies to the linear layers' weights only), or the device's default.

    Defaults: float16 on CUDA, in which e5-mistral was published and evaluated. bfloat16 on CPUs that multiply it
    natively (4 × the float32 rate on a Zen 4; emulated, it is slower than float32). Otherwise float32.
    """
    if name is not None:
        dtype: torch.dtype = FLOAT8 if name == "float8" else getattr(torch, name)
        return dtype
    if device.type == "cuda":
        return torch.float16
    return torch.bfloat16 if _cpu_multiplies_bfloat16() else torch.float32


def _cpu_multiplies_bfloat16() -> bool:
    try:
        flags = set(Path("/proc/cpuinfo").read_text("utf-8").split())
    except OSError:  # not Linux: the CPU's features are unknown
        return False
    return not flags.isdisjoint({"avx512_bf16", "amx_bf16", "bf16"})


def check_float8(device: torch.device) -> None:
    """Raise SettingsError if the GPU cannot multiply float8 matrices with a scale per row, or does it wrongly."""
    if device.type != "cuda":
        return
    name, capability = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
    if capability < (8, 9):
        raise SettingsError(
            f"E5_DTYPE=float8: {name} has no float8 arithmetic (Ada, Hopper and newer have): leave it out"
        )
    # Before torch 2.12, the kernel for Ada ignores the current stream (pytorch#177651): it hangs when other streams are
    # in use, and a CUDA graph does not capture it, so a replay would read a stale buffer.
    if capability == (8, 9) and torch.__version__ < "2.12":
        raise SettingsError(
            f"E5_DTYPE=float8: torch {torch.__version__} multiplies float8 wrongly on {name}: "
            "install torch 2.12 or newer, or leave it out"
        )
    try:
        _try_float8(device)
    except RuntimeError as error:  # on Blackwell cuBLAS lacks this product (pytorch#160693, #192707)
        raise SettingsError(
            f"E5_DTYPE=float8: torch {torch.__version__} cannot multiply float8 on {name} "
            f"({str(error).splitlines()[0]}): leave it out"
        ) from error


def _try_float8(device: torch.device) -> None:
    """Multiply two small float8 matrices of ones. Raises RuntimeError if that fails or the product is wrong."""
    size = 32  # a multiple of 16, which the product requires
    layer = linear.empty(size, size, device, torch.bfloat16, float8=True)
    layer.destination(0, size).copy_(torch.ones(size, size, device=device))
    product = layer(linear.Activations(*linear.quantize(torch.ones(size, size, device=device))))
    if (product.float() - size).abs().max().item() > 0.5:
        raise RuntimeError(f"{size} ones times {size} ones is {product.flatten()[0].item()}")


def use_device(device: torch.device) -> AbstractContextManager[object]:
    """Make `device` current: Triton, pinned memory and graph capture use the current device, not the tensors' own."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
