"""Find a complete local copy of a model's weights, or download one.

Lookup order: a folder given by the user → `weights/<model>` → the hub's cache → the hub (`e5.weights.fetch`). A copy is
used only if all its files pass the check of `e5.weights.files`.
"""

import logging
from pathlib import Path

from e5.catalog import Model
from e5.errors import WeightsError
from e5.weights.files import LocalWeights, check, in_folder

_PACKAGED = Path(__file__).parents[1] / "embedded"
WEIGHTS = _PACKAGED if _PACKAGED.is_dir() else Path(__file__).parents[2] / "weights"
"""The folder of models by name: `weights/` in a clone; in an installed wheel, the folder with the embedded model."""

log = logging.getLogger(__name__)


def locate(
    model: Model, folder: Path | None = None, source: str | None = None, *, root: Path = WEIGHTS
) -> LocalWeights:
    """Find the model's weights, downloading them if necessary, with progress on stderr.

    If `folder` is given, it must be complete; nothing else is tried. Without `source`, a folder's content decides the
    source, and the cache and the hub use the model's default source. A complete local copy needs no network request.

    Raises SettingsError for a source that the model lacks, and WeightsError with the cure for any other failure.
    """
    if source is not None:
        model.parts(source)  # raises SettingsError
    if folder is not None:
        try:
            return in_folder(model, folder, source)
        except WeightsError as error:
            raise WeightsError(f"{error}; complete it, or unset E5_WEIGHTS to download the weights") from error
    home = root / model.name
    embedded = not model.parts(model.default_source)
    if embedded or home.is_dir():
        try:
            return in_folder(model, home, source)
        except WeightsError as error:
            if embedded:
                cure = "these files are part of the repository: run from a complete clone (pip install -e)"
                raise WeightsError(f"{error}; {cure}, or set E5_WEIGHTS to a folder that has them") from error
            log.warning("%s; trying the hub's cache", error)
    source = source or model.default_source

    from e5.weights import fetch  # here: huggingface_hub takes 0.2 s to import, and local weights do not need it

    weights = fetch.cached(model, source)
    if weights and not check(model, weights):
        return weights
    return fetch.to_cache(model, source)
