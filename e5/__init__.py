"""The E5 text-embedding family in one class, `Embedder`: exact vectors, packed batches.

>>> from e5 import Embedder, scores
>>> e5 = Embedder.load("e5-mistral-tiny")
>>> scores(e5.embed_queries(["how tall is it?"]), e5.embed_documents(["It is 300 m high."]))

Names are imported on first use, so that a tool that only reads the catalog does not load torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from e5.embedder import Embedder as Embedder
    from e5.embedder import normalize as normalize
    from e5.embedder import scores as scores
    from e5.errors import InputError as InputError
    from e5.errors import SettingsError as SettingsError
    from e5.errors import WeightsError as WeightsError
    from e5.prompts import DEFAULT_TASK as DEFAULT_TASK
    from e5.settings import Settings as Settings

__version__ = "0.1.0"
_MODULES = {
    "DEFAULT_TASK": "e5.prompts",
    "Embedder": "e5.embedder",
    "InputError": "e5.errors",
    "Settings": "e5.settings",
    "SettingsError": "e5.errors",
    "WeightsError": "e5.errors",
    "normalize": "e5.embedder",
    "scores": "e5.embedder",
}
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'e5' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
