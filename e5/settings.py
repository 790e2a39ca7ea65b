"""Configuration: thirteen environment variables, read once and validated at startup. Seven of them are limits.

Checks that depend on the model or the machine (does the model have this source? is there a GPU?) are in
`e5.weights.locate` and `e5.network.device`.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Self

from e5 import catalog
from e5.declaration import FILE, declared
from e5.errors import SettingsError
from e5.limits import MAX_CHARACTERS, MAX_CHARACTERS_PER_TOKEN, Limits

SOURCES = ("adapter", "merged")
WHOLE_NUMBER = "a whole number, 1 or more"
DTYPES = ("float16", "bfloat16", "float32", "float8")
LIMITS = {f"E5_MAX_{limit.name.upper()}": limit.name for limit in fields(Limits)}
"""Variable → field of `Limits`: E5_MAX_TEXTS → texts, and so on."""
VARIABLES = ("E5_MODEL", "E5_WEIGHTS", "E5_SOURCE", "E5_DEVICE", "E5_DTYPE", "E5_MAX_BATCH_TOKENS", *LIMITS)
"""The first three belong together: the model and where its weights come from."""


@dataclass(frozen=True)
class Settings:
    """The model to load and how to run it. None: choose by the model and the machine.

    `model`: a name of the catalog, or of the model that e5.json in the folder `weights` declares.
    `max_batch_tokens`: token budget of a packed forward pass; a longer text gets a pass of its own. `limits`: for
    servers; the default for a text's characters depends on the model.
    """

    model: str = catalog.EMBEDDED
    weights: Path | None = None
    source: str | None = None
    device: str | None = None
    dtype: str | None = None
    max_batch_tokens: int | None = None
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if self.weights is not None and not self.weights.is_dir():
            raise SettingsError(f"E5_WEIGHTS={self.weights} is not a folder: name the folder with the weights")
        if (own := self._declared()) is not None and self.model not in (Settings.model, own.name):
            raise SettingsError(
                f"E5_MODEL={self.model}, but {self.weights}/{FILE} declares the model {own.name}: set E5_MODEL to this "
                "name or to nothing"
            )
        if own is None and self.model not in catalog.names():
            raise _invalid("E5_MODEL", self.model, catalog.names())
        if self.source is not None and self.source not in SOURCES:
            raise _invalid("E5_SOURCE", self.source, SOURCES)
        if self.device is not None and not _is_device(self.device):
            raise _invalid("E5_DEVICE", self.device, ("cpu", "cuda", "cuda:0", "cuda:1", "…"))
        if self.dtype is not None and self.dtype not in DTYPES:
            raise _invalid("E5_DTYPE", self.dtype, DTYPES)
        if self.max_batch_tokens is not None and self.max_batch_tokens < 1:
            raise _invalid("E5_MAX_BATCH_TOKENS", self.max_batch_tokens, (WHOLE_NUMBER,))
        if self.limits.characters is None:
            model = own or catalog.get(self.model)
            characters = min(MAX_CHARACTERS, MAX_CHARACTERS_PER_TOKEN * model.max_tokens)
            object.__setattr__(self, "limits", replace(self.limits, characters=characters))
        for variable, name in LIMITS.items():
            if getattr(self.limits, name) < 1:
                raise _invalid(variable, getattr(self.limits, name), (WHOLE_NUMBER,))

    def resolve(self) -> catalog.Model:
        """The model that e5.json in the folder `weights` declares, else the one of the catalog."""
        return self._declared() or catalog.get(self.model)

    def _declared(self) -> catalog.Model | None:
        return declared(self.weights) if self.weights is not None else None

    @classmethod
    def from_environment(
        cls, environ: Mapping[str, str] = os.environ, *, model: str | None = None, weights: Path | None = None
    ) -> Self:
        """Read the E5_* variables; an empty value counts as unset. Raises SettingsError.

        `model` overrides E5_MODEL. If they differ, E5_WEIGHTS and E5_SOURCE are ignored, as those of another model.
        `weights` overrides E5_WEIGHTS.
        """
        for name in environ:
            # Reject likely typos only. Other E5_* variables are legitimate: Kubernetes sets E5_SERVICE_HOST and
            # more in every pod if there is a service called e5.
            if name not in VARIABLES and get_close_matches(name, VARIABLES, n=1, cutoff=0.85):
                raise SettingsError(f"{name}: no such setting; the settings are {', '.join(VARIABLES)}")
        variables = {name: environ[name].strip() for name in VARIABLES if environ.get(name, "").strip()}
        if model is not None and model != variables.setdefault("E5_MODEL", model):
            variables = {"E5_MODEL": model, **{k: variables[k] for k in VARIABLES[3:] if k in variables}}
        folder = os.path.expanduser(variables.get("E5_WEIGHTS", ""))  # noqa: PTH111 – Path's raises for an unknown user
        numbers = {name: _whole_number(name, text) for name, text in variables.items() if name.startswith("E5_MAX_")}
        return cls(
            model=variables.get("E5_MODEL", cls.model),
            weights=weights or (Path(folder) if folder else None),
            source=variables.get("E5_SOURCE"),
            device=variables.get("E5_DEVICE"),
            dtype=variables.get("E5_DTYPE"),
            max_batch_tokens=numbers.pop("E5_MAX_BATCH_TOKENS", None),
            limits=Limits(**{LIMITS[name]: number for name, number in numbers.items()}),
        )


def usable_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _is_device(name: str) -> bool:
    kind, colon, index = name.partition(":")
    return name == "cpu" or (kind == "cuda" and (not colon or index.isdecimal()))


def _whole_number(variable: str, text: str) -> int:
    if not text.isdecimal():
        raise _invalid(variable, text, (WHOLE_NUMBER,))
    return int(text)


def _invalid(variable: str, value: object, valid: tuple[str, ...]) -> SettingsError:
    return SettingsError(f"{variable}={value} is not one of the possible values: {', '.join(valid)}")
