"""What a plan has to know of the model, read from its files without loading it."""

import hashlib
import json
from pathlib import Path

from e5.corpus.plan import Identity
from e5.network.device import choose_device, choose_dtype
from e5.settings import Settings
from e5.weights.locate import locate

SAMPLE = 2**20
"""Bytes at both ends of a large file that stand for it: sizes and tensors of other weights differ there."""


def identify(settings: Settings) -> Identity:
    """The model that the settings name; downloads its weights if necessary. Raises SettingsError and WeightsError."""
    model = settings.resolve()
    files = locate(model, settings.weights, settings.source)
    device = choose_device(settings.device)
    config = json.loads((files.checkpoint / "config.json").read_text("utf-8"))
    folders = [files.checkpoint] + ([files.adapter] if files.adapter else [])
    weights = [path for folder in folders for path in sorted(folder.iterdir()) if path.is_file()]
    return Identity(
        model=model.name,
        weights=_digest([path for path in weights if path.suffix in (".safetensors", ".bin", ".json")]),
        dtype=str(choose_dtype(settings.dtype, device)).removeprefix("torch."),
        dimensions=int(config["hidden_size"]),
        max_tokens=model.max_tokens,
    )


def _digest(paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(SAMPLE)
            file.seek(max(SAMPLE, size - SAMPLE))
            digest.update(f"{path.name} {size} ".encode() + hashlib.sha256(head + file.read()).digest())
    return digest.hexdigest()[:16]
