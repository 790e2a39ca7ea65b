"""What a plan has to know of the model, read from its files without loading it."""

import hashlib
import json
from pathlib import Path

from e5.corpus.plan import Identity
from e5.network.device import choose_device, choose_dtype
from e5.settings import Settings
from e5.weights.locate import locate

CONFIGS = ("config.json", "adapter_config.json")


def identify(settings: Settings) -> Identity:
    """The model that the settings name; downloads its weights if necessary. Raises SettingsError and WeightsError."""
    model = settings.resolve()
    files = locate(model, settings.weights, settings.source)
    device = choose_device(settings.device)
    config = json.loads((files.checkpoint / "config.json").read_text("utf-8"))
    folders = [files.checkpoint] + ([files.adapter] if files.adapter else [])
    tensors = [
        path for folder in folders for path in sorted(folder.iterdir()) if path.suffix in (".safetensors", ".bin")
    ]
    configs = [folder / name for folder in folders for name in CONFIGS if (folder / name).is_file()]
    return Identity(
        model=model.name,
        weights=_digest([files.tokenizer, *configs, *tensors]),
        prompt=model.prompt,
        pooling=model.pooling,
        special_tokens=model.special_tokens,
        dtype=str(choose_dtype(settings.dtype, device)).removeprefix("torch."),
        dimensions=int(config["hidden_size"]),
        max_tokens=model.max_tokens,
    )


def _digest(paths: list[Path]) -> str:
    """Of the files' contents: 14 GB take some ten seconds."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]
