"""Configuration: environment variables, read once, refused at start when wrong. Six say what runs, five set limits.

Values that need the model's facts or the machine (does this model have that source? is there a GPU?) are
checked where those are known: `e5.weights.locate` and `e5.network.model`.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Self

from e5 import catalog
from e5.errors import SettingsError
from e5.limits import Limits

SOURCES = ("adapter", "merged")
WHOLE_NUMBER = "a whole number, 1 or more"
DTYPES = ("float16", "bfloat16", "float32", "float8")
LIMITS = {f"E5_MAX_{one.name.upper()}": one.name for one in fields(Limits)}
"""Variable → field of `Limits`: E5_MAX_TEXTS and so on."""
VARIABLES = ("E5_MODEL", "E5_WEIGHTS", "E5_SOURCE", "E5_DEVICE", "E5_DTYPE", "E5_MAX_BATCH_TOKENS", *LIMITS)
"""The first three belong together: which model, and where it comes from."""


@dataclass(frozen=True)
class Settings:
    """What to load and how to run it. None means: decide from the model or the machine.

    `max_batch_tokens` is the token budget of one packed forward pass; a single longer text gets a pass of its own.
    `limits` are for fronts that serve others.
    """

    model: str = catalog.EMBEDDED
    weights: Path | None = None
    source: str | None = None
    device: str | None = None
    dtype: str | None = None
    max_batch_tokens: int | None = None
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if self.model not in catalog.names():
            raise _wrong("E5_MODEL", self.model, catalog.names())
        if self.weights is not None and not self.weights.is_dir():
            raise SettingsError(f"E5_WEIGHTS={self.weights} is not a folder: name the folder that holds the weights")
        if self.source is not None and self.source not in SOURCES:
            raise _wrong("E5_SOURCE", self.source, SOURCES)
        if self.device is not None and not _is_device(self.device):
            raise _wrong("E5_DEVICE", self.device, ("cpu", "cuda", "cuda:0", "cuda:1", "…"))
        if self.dtype is not None and self.dtype not in DTYPES:
            raise _wrong("E5_DTYPE", self.dtype, DTYPES)
        if self.max_batch_tokens is not None and self.max_batch_tokens < 1:
            raise _wrong("E5_MAX_BATCH_TOKENS", self.max_batch_tokens, (WHOLE_NUMBER,))
        for variable, name in LIMITS.items():
            if getattr(self.limits, name) < 1:
                raise _wrong(variable, getattr(self.limits, name), (WHOLE_NUMBER,))

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ, *, model: str | None = None) -> Self:
        """Read the E5_* variables; an empty value counts as unset. Raises SettingsError.

        `model` goes before E5_MODEL; weights and source that the variables name for another model are then left out.
        """
        for name in environ:
            # A slip of the pen is refused. Others may have E5_* variables, too: Kubernetes gives every pod
            # E5_SERVICE_HOST and more, once there is a service called e5.
            if name not in VARIABLES and get_close_matches(name, VARIABLES, n=1, cutoff=0.85):
                raise SettingsError(f"{name}: no such setting; the settings are {', '.join(VARIABLES)}")
        given = {name: environ[name].strip() for name in VARIABLES if environ.get(name, "").strip()}
        if model is not None and model != given.setdefault("E5_MODEL", model):
            given = {"E5_MODEL": model, **{k: given[k] for k in VARIABLES[3:] if k in given}}
        weights = given.get("E5_WEIGHTS")
        numbers = {name: _whole_number(name, text) for name, text in given.items() if name.startswith("E5_MAX_")}
        return cls(
            model=given.get("E5_MODEL", cls.model),
            weights=Path(os.path.expanduser(weights)) if weights else None,  # noqa: PTH111 – which raises for no user
            source=given.get("E5_SOURCE"),
            device=given.get("E5_DEVICE"),
            dtype=given.get("E5_DTYPE"),
            max_batch_tokens=numbers.pop("E5_MAX_BATCH_TOKENS", None),
            limits=Limits(**{LIMITS[name]: number for name, number in numbers.items()}),
        )


def _is_device(name: str) -> bool:
    kind, colon, index = name.partition(":")
    return name == "cpu" or (kind == "cuda" and (not colon or index.isdecimal()))


def _whole_number(variable: str, text: str) -> int:
    if not text.isdecimal():
        raise _wrong(variable, text, (WHOLE_NUMBER,))
    return int(text)


def _wrong(variable: str, value: object, right: tuple[str, ...]) -> SettingsError:
    return SettingsError(f"{variable}={value} is not one of the possible values: {', '.join(right)}")
