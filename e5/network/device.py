"""Device policy: which device and dtype to use, and whether the device can compute in that dtype."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch

from e5.errors import SettingsError
from e5.network import linear
from e5.network.linear import FLOAT8


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


def check_float8(device: torch.device) -> None:
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
    layer.destination(0, size).copy_(torch.ones(size, size, device=device))
    product = layer(linear.quantize(torch.ones(size, size, device=device)))
    if (product.float() - size).abs().max().item() > 0.5:
        raise RuntimeError(f"{size} ones times {size} ones is {product.flatten()[0].item()}")


def current(device: torch.device) -> AbstractContextManager[object]:
    """Triton launches on the current device, memory is pinned and graphs are recorded for it, wherever tensors lie."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
