"""The E5 text-embedding family: exact vectors, packed batches, one class.

>>> from e5 import Embedder, scores
>>> e5 = Embedder.load("e5-mistral-tiny")
>>> scores(e5.embed_queries(["how tall is it?"]), e5.embed_documents(["It is 300 m high."]))

Names are imported when first used, so that a tool which only looks at the catalogue does not load torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from e5.embedder import Embedder, normalize, scores
    from e5.errors import InputError, SettingsError, WeightsError
    from e5.prompts import DEFAULT_TASK
    from e5.settings import Settings

__version__ = "0.1.0"
__all__ = [
    "DEFAULT_TASK",
    "Embedder",
    "InputError",
    "Settings",
    "SettingsError",
    "WeightsError",
    "normalize",
    "scores",
]

_HOMES = {
    "DEFAULT_TASK": "e5.prompts",
    "Embedder": "e5.embedder",
    "InputError": "e5.errors",
    "Settings": "e5.settings",
    "SettingsError": "e5.errors",
    "WeightsError": "e5.errors",
    "normalize": "e5.embedder",
    "scores": "e5.embedder",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'e5' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
