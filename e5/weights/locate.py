"""Catalogue entry → a complete local copy.

Order: a folder given by the user → `weights/<model>` → the hub's cache → the hub (`e5.weights.fetch`). A copy is taken
only when every file of it passes the structural check of `e5.weights.files`.
"""

import logging
from pathlib import Path

from e5.catalog import Model
from e5.errors import WeightsError
from e5.weights.files import LocalWeights, check, in_folder

_PACKAGED = Path(__file__).parents[1] / "embedded"
ROOT = _PACKAGED if _PACKAGED.is_dir() else Path(__file__).parents[2] / "weights"
"""A folder of models by name: `weights/` of a clone; in an installed wheel, which has the embedded model, its own."""

log = logging.getLogger(__name__)


def locate(model: Model, folder: Path | None = None, source: str | None = None, *, root: Path = ROOT) -> LocalWeights:
    """The model's weights on this machine, fetched if need be. Prints progress to stderr while it fetches.

    `folder` must be complete; nothing else is tried then. Without `source` a folder is taken for what it holds, and
    the cache and the hub are asked for the model's default source. A complete copy costs no request to the network.

    Raises SettingsError for a source that the model does not have, WeightsError for everything that keeps the
    weights away, with what to do about it.
    """
    if source is not None:
        model.parts(source)
    if folder is not None:
        try:
            return in_folder(model, folder, source)
        except WeightsError as error:
            raise WeightsError(
                f"{error}; complete it, or name no folder (unset E5_WEIGHTS) to have the weights fetched"
            ) from error
    home = root / model.name
    embedded = not model.parts(model.default_source)
    if embedded or home.is_dir():
        try:
            return in_folder(model, home, source)
        except WeightsError as error:
            if embedded:
                cure = (
                    "these files come with the repository: run from a complete clone (pip install -e), or name a folder"
                )
                raise WeightsError(f"{error}; {cure}") from error
            log.warning("%s; looking further", error)
    source = source or model.default_source

    from e5.weights import (
        fetch,  # here, because huggingface_hub takes 0.2 s to import, which local weights need not pay
    )

    found = fetch.cached(model, source)
    if found and not check(model, found):
        return found
    return fetch.to_cache(model, source)
