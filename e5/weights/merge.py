"""Merge a base and its adapter: tensor by tensor while loading, or into a checkpoint on disk."""

import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import Tensor

from e5.errors import SettingsError, WeightsError
from e5.weights import checkpoint, writer
from e5.weights.adapter import Adapter
from e5.weights.adapter_config import AdapterConfig
from e5.weights.files import LocalWeights
from e5.weights.peft_adapter import PeftAdapter

log = logging.getLogger(__name__)


def merged_tensors(
    files: LocalWeights, device: torch.device, timer: Callable[[], AbstractContextManager[None]] = nullcontext
) -> Iterator[tuple[str, Tensor]]:
    """Yield (bare name, tensor on the device) for each weight, in file order, with the adapter merged in.

    Merged weights are float32, the others have the files' dtype. A tensor is valid only until the next one is
    requested. `timer` is entered around each merge. Raises WeightsError if base and adapter do not belong together,
    and after the last tensor if some of the adapter's tensors were not used.
    """
    adapter = _open(files.adapter, files.checkpoint) if files.adapter else None
    for name, tensor in checkpoint.tensors(files.checkpoint, pin=device.type == "cuda"):
        # Copied in the file's dtype: converting on the host takes longer than the transfer. The copy is synchronous,
        # because the tensor's host memory is reused; GPU work on the copy is asynchronous.
        base = tensor.to(device)
        if adapter is None:
            yield name, base
            continue
        with timer():
            merged = adapter.merged(name, base)
        yield name, merged
        del base, merged  # before the next tensor arrives
    if adapter is not None:
        _check_all_used(adapter)


def _open(folder: Path, base: Path) -> Adapter | PeftAdapter:
    """The adapter in a folder, merged by this package if it is plain LoRA, else by peft."""
    config = AdapterConfig(folder)
    setting = config.beyond_plain_lora()
    if setting is None:
        return Adapter(config)
    adapter = PeftAdapter(config, base)
    log.warning("%s: %s is merged by peft, which is slower", folder, setting)
    return adapter


def _check_all_used(adapter: Adapter | PeftAdapter) -> None:
    """Raise WeightsError if the adapter has tensors for a module that was never merged."""
    if adapter.unused:
        raise WeightsError(
            f"{adapter.folder} adapts {min(adapter.unused):.200} ({len(adapter.unused)} left over), which the base "
            "does not have: base and adapter do not belong together"
        )


def write_merged(
    files: LocalWeights,
    folder: Path,
    dtype: torch.dtype,
    device: torch.device,
    max_shard_bytes: int = writer.MAX_SHARD_BYTES,
    declaration: Path | None = None,
) -> Path:
    """Merge into a checkpoint like the one that the adapter's authors publish. Returns its absolute path.

    `declaration`: the e5.json of a model of the user's own, copied as it is. The parameters are those that loading base
    and adapter in `dtype` gives, bit for bit. One tensor at a time is in memory. `folder` must be empty or absent; it
    appears when it is complete, and a failure leaves nothing behind. Raises SettingsError if it is taken, WeightsError
    for files that do not belong together or a full disk.
    """
    from e5.weights import stock  # here: imports transformers, which loading does not need

    folder = folder.expanduser().absolute()
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise SettingsError(f"--to {folder} is not empty: name an empty folder or one that does not exist")
    model = stock.build(files.checkpoint, torch.device("meta"))
    parameters = {name: weight.shape for name, weight in model.named_parameters() if checkpoint.is_weight(name)}
    checkpoint.check_shapes(files.checkpoint, parameters)
    shapes = {stored.name: stored.shape for stored in checkpoint.stored_weights(files.checkpoint)}
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", suffix=".partial", dir=folder.parent))
        try:
            partial.chmod(0o755)
            writer.write_config(partial, model.config, type(model).__name__, dtype)
            for path in (files.tokenizer, *([declaration] if declaration else [])):
                shutil.copyfile(path, partial / path.name)
            writer.write_tensors(partial, shapes, dtype, _finite(merged_tensors(files, device), dtype), max_shard_bytes)
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)  # renamed by now, unless something failed
    except OSError as error:
        size = writer.total_bytes(shapes, dtype) / 1e9
        raise WeightsError(
            f"{folder} cannot be written ({error.strerror or error}): it needs {size:.3g} GB; nothing was left there"
        ) from error
    return folder


def _finite(tensors: Iterator[tuple[str, Tensor]], dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Convert to `dtype`, and check that every number is finite in it."""
    for name, tensor in tensors:
        converted = tensor.to(dtype)
        if not torch.isfinite(converted).all():
            raise WeightsError(f"{name} has numbers that {dtype} cannot hold, or NaN: pass --dtype bfloat16")
        yield name, converted
