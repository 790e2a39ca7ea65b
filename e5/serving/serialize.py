"""Vectors → JSON numbers with the shortest float32 digits, or base64 of float32 or of a smaller type.

Cog's server (coglet 0.23) walks every Python list of an answer at about 17 µs a float: 150 ms for two vectors of 4,096.
For a numpy array it calls `tolist()`; in the result it walks exact `list` objects only and leaves the rest to `json`,
which is written in C. So vectors leave as an array whose `tolist()` returns a subclass of list: 12 ms for the same
answer. Digits matter too: float64's expansion of a float32 doubles the bytes to write, send and parse.
"""

import base64
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from e5.errors import InputError
from e5.vectors import Vectors, check_finite

_POWERS = np.array([10.0**power for power in range(23)])
"""10^0 … 10^22: the powers of ten that are exact in float64."""


class JsonArray(np.ndarray[Any, np.dtype[Any]]):
    """An array whose `tolist()` returns a list that Cog's encoder does not walk."""

    def tolist(self) -> "_UnwalkedList":
        return _UnwalkedList(super().tolist())

    def __deepcopy__(self, memo: dict[int, Any] | None) -> Self:
        return self  # for dataclasses.asdict: nothing writes to an answer, so it need not copy it


class _UnwalkedList(list[Any]):
    """A list, except for its exact type."""


def json_numbers(values: Vectors) -> JsonArray:
    """float32 of any shape → float64 whose repr has the shortest digits that round-trip to the same float32.

    Raises FloatingPointError for NaN and infinity, which JSON cannot represent.
    """
    check_finite(values)
    return shortest(values).view(JsonArray)


def json_ints(values: Sequence[int]) -> JsonArray:
    return np.array(values, np.int64).view(JsonArray)


def json_lists(rows: Sequence[list[Any]]) -> JsonArray:
    """Lists of different lengths, as an array of lists."""
    array = np.empty(len(rows), dtype=object)
    for index, row in enumerate(rows):
        array[index] = row
    return array.view(JsonArray)


def to_float16(vectors: Vectors) -> NDArray[np.float16]:
    """Raises InputError for a number that float16 does not have."""
    with np.errstate(over="ignore"):
        narrow = vectors.astype(np.float16)
    if not np.isfinite(narrow).all():
        raise InputError("`encoding_format` float16 ends at ±65,504: pass normalize=true, or ask for base64")
    return narrow


def base64_rows(rows: NDArray[Any]) -> list[str]:
    """Numbers of any type [N, D] → N strings: base64 of each row's little-endian bytes."""
    little_endian = rows.astype(rows.dtype.newbyteorder("<"), copy=False)
    return [base64.b64encode(row.tobytes()).decode("ascii") for row in little_endian]


def shortest(values: Vectors) -> NDArray[np.float64]:
    """For each float32 the decimal with the fewest digits that rounds to it, as the nearest float64.

    `json` writes float64's repr, which shows exactly these digits. Six to nine significant digits are tried.
    rint(x · 10^d) / 10^d is the float64 nearest to the decimal while 10^d is exact, which covers 1e-14 to 1e6. Other
    numbers keep float64's expansion: correct, but longer.
    """
    wide = values.astype(np.float64)
    magnitude = np.abs(wide)
    exponent = np.floor(np.log10(np.where(magnitude > 0, magnitude, 1.0))).astype(np.int64)
    result = wide.copy()
    pending = np.ones(values.shape, dtype=bool)
    for digits in range(6, 10):
        decimals = digits - 1 - exponent
        usable = (decimals >= 0) & (decimals < len(_POWERS))
        scale = _POWERS[np.where(usable, decimals, 0)]
        rounded = np.rint(wide * scale) / scale
        fits = pending & usable & (rounded.astype(np.float32) == values)
        np.copyto(result, rounded, where=fits)
        pending &= ~fits
        if not pending.any():
            break
    return result
