"""A model that is not in the catalog: the user declares it in the file `e5.json` in its folder.

    {"name": "my-e5", "prompt": "prefix", "pooling": "mean", "max_tokens": 512}

Nothing is guessed: every key is required but `special_tokens`, without which tokenizer.json must add them. If the
folder has files of sentence-transformers, they must name the same pooling and no module that is not computed here.
"""

import json
import re
from pathlib import Path
from typing import Any, get_args

from e5.catalog import Model, Pooling, PromptKind, names
from e5.errors import SettingsError

FILE = "e5.json"
EXAMPLE = '{"name": "my-e5", "prompt": "prefix", "pooling": "mean", "max_tokens": 512}'
MIN_TOKENS = 64
KEYS = {
    "name": "a name that no model of the catalog has",
    "prompt": " or ".join(get_args(PromptKind)),
    "pooling": " or ".join(get_args(Pooling)),
    "max_tokens": f"a whole number, {MIN_TOKENS} or more",
    "special_tokens": 'the first and the last token of every text, each "" for none',
}
MODULES = ("Transformer", "Pooling", "Normalize")
"""sentence-transformers' modules that are computed here, the last one when a request asks for it."""
POOLING_MODES = {"cls_token": "cls", "mean_tokens": "mean", "lasttoken": "last"}


def declared(folder: Path) -> Model | None:
    """The model that the folder's e5.json declares, None without the file. Raises SettingsError if it is not valid."""
    path = folder / FILE
    if not path.is_file():
        return None
    values = _read(path, dict)
    for key in [*values, *KEYS]:
        if key not in KEYS:
            raise SettingsError(f"{path} has the key {key!r:.100}, which is not one of {', '.join(KEYS)}")
        if not (_is_valid(key, values[key]) if key in values else key == "special_tokens"):
            value = f"{key}={values[key]!r:.100}" if key in values else f"no {key}"
            raise SettingsError(f"{path} has {value}: {key} is {KEYS[key]}. An example: {EXAMPLE}")
    parts = [folder / "base", folder / "adapter"]
    checkpoint = parts[0] if all(part.is_dir() for part in parts) else folder
    _check_sentence_transformers(checkpoint, path, values["pooling"])
    config = checkpoint / "config.json"
    model_type = _read(config, dict).get("model_type") if config.is_file() else None
    special_tokens = values.get("special_tokens")
    return Model(
        name=values["name"],
        architectures=(str(model_type or "unknown"),),
        special_tokens=None if special_tokens is None else (special_tokens[0], special_tokens[1]),
        pooling=values["pooling"],
        prompt=values["prompt"],
        max_tokens=values["max_tokens"],
        dimensions=0,
        layers=0,
        parameters=0,
        license="unknown",
        languages="unknown",
        sources=(("merged", ()), ("adapter", ())),
    )


def _is_valid(key: str, value: Any) -> bool:
    match key:
        case "name":
            return isinstance(value, str) and value.strip() == value != "" and value not in names()
        case "prompt":
            return value in get_args(PromptKind)
        case "pooling":
            return value in get_args(Pooling)
        case "max_tokens":
            return type(value) is int and value >= MIN_TOKENS
        case _:
            return isinstance(value, list) and len(value) == 2 and all(isinstance(token, str) for token in value)


def _check_sentence_transformers(folder: Path, declaration: Path, pooling: str) -> None:
    """Raise SettingsError if the folder's modules.json says something other than the declaration."""
    config = folder / "sentence_bert_config.json"
    if config.is_file() and _read(config, dict).get("do_lower_case"):
        raise SettingsError(f"{config} has do_lower_case, which is not supported: lowercase the texts, and remove it")
    path = folder / "modules.json"
    if not path.is_file():
        return
    for module in _read(path, list):
        kind = str(module.get("type")).rpartition(".")[2] if isinstance(module, dict) else str(module)
        if kind not in MODULES:
            raise SettingsError(f"{path} lists the module {kind:.100}, which is not supported: use another model")
        if kind == "Pooling":
            name = str(module.get("path"))
            if not re.fullmatch(r"\w+", name):
                raise SettingsError(f"{path} names the folder {name!r:.100} for its Pooling: correct it")
            config = folder / name / "config.json"
            stored = _pooling(_read(config, dict))
            if stored != pooling:
                raise SettingsError(
                    f"{declaration} has pooling={pooling!r}, but {config} says {stored!r:.100}: correct one of them"
                )


def _pooling(config: dict[str, Any]) -> str:
    """The pooling of a sentence-transformers configuration, old or new, by its name here if it has one."""
    mode = config.get("pooling_mode") or []
    modes = [mode] if isinstance(mode, str) else list(mode)
    modes += [key.removeprefix("pooling_mode_") for key, value in config.items() if value is True]
    modes = [POOLING_MODES.get(mode, mode) for mode in modes if mode != "include_prompt"]
    return "+".join(modes) + (" without the prompt" if config.get("include_prompt") is False else "")


def _read(path: Path, kind: type) -> Any:
    """A JSON file that holds an object (dict) or a list. Raises SettingsError for anything else."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise SettingsError(f"{path} cannot be read ({error!s:.200}): correct it") from error
    if not isinstance(content, kind):
        raise SettingsError(f"{path} is not a JSON {'object' if kind is dict else 'list'}: correct it")
    return content
