"""Vectors → what leaves: JSON numbers with as few digits as float32 needs, or base64. No front is imported here.

Cog's server (coglet 0.23) walks every Python list of an answer and spends about 17 µs on each float: 150 ms for two
vectors of 4,096. It calls `tolist()` on a numpy array instead, walks exact `list` objects only, and lets `json` write
the rest in C. So vectors leave as an array whose `tolist()` gives a subclass of list: 12 ms for the same answer. The
digits matter as well: float64's expansion of a float32 doubles the bytes that are written, parsed and sent.
"""

import base64
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from e5.vectors import Vectors, check_finite

_POWERS = np.array([10.0**power for power in range(23)])
"""10^0 … 10^22: the powers of ten that float64 holds exactly."""


class Rows(np.ndarray[Any, np.dtype[np.float64]]):
    """float64 [N, D] whose `tolist()` gives a list that Cog's encoder does not walk; it survives asdict."""

    def tolist(self) -> "_Rows":  # type: ignore[override]  # numpy has an overload for each depth
        return _Rows(super().tolist())

    def __deepcopy__(self, memo: dict[int, Any] | None) -> Self:
        return self  # nothing writes to an answer, so that dataclasses.asdict need not copy it


class _Rows(list[Any]):
    """A list in everything but its exact type."""


def rows(vectors: Vectors) -> Rows:
    """float32 [N, D] → the same numbers in float64 [N, D], each with the shortest digits that give the float32 back.

    Raises FloatingPointError for NaN and infinity, which JSON has no number for.
    """
    check_finite(vectors)
    return shortest(vectors).view(Rows)


def base64_rows(vectors: Vectors) -> list[str]:
    """float32 [N, D] → N strings: base64 of each vector's little-endian float32 bytes. Raises FloatingPointError."""
    check_finite(vectors)
    return [base64.b64encode(row.tobytes()).decode("ascii") for row in vectors.astype("<f4", copy=False)]


def shortest(values: Vectors) -> NDArray[np.float64]:
    """The decimal with the fewest digits that rounds to each float32, as the float64 next to that decimal.

    float64's own repr, which `json` writes, then shows just these digits. Six to nine significant digits are tried.
    rint(x · 10^d) / 10^d is the float64 next to the decimal as long as 10^d is exact: that covers 1e-14 to 1e6.
    Outside of it numbers keep float64's expansion: right, only longer.
    """
    wide = values.astype(np.float64)
    magnitude = np.abs(wide)
    exponent = np.floor(np.log10(np.where(magnitude > 0, magnitude, 1.0))).astype(np.int64)
    result = wide.copy()
    open_ = np.ones(values.shape, dtype=bool)
    for digits in range(6, 10):
        decimals = digits - 1 - exponent
        usable = (decimals >= 0) & (decimals < len(_POWERS))
        scale = _POWERS[np.where(usable, decimals, 0)]
        rounded = np.rint(wide * scale) / scale
        fits = open_ & usable & (rounded.astype(np.float32) == values)
        np.copyto(result, rounded, where=fits)
        open_ &= ~fits
        if not open_.any():
            break
    return result
