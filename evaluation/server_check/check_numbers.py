"""Dimensions, precision and length of the numbers that a server sends."""

import numpy as np

from evaluation.client.apis import Numbers
from evaluation.server_check.findings import Finding, right, unknown, wrong
from evaluation.server_check.subject import Compared, Subject, unit

UNIT_TOLERANCE = 5e-3
"""Of a length of 1: bfloat16 rounds by up to 4e-3."""
NORM_TOLERANCE = 0.02
BFLOAT16_ERROR = 2.0**-9
"""The largest relative error of rounding to bfloat16. Coarser numbers have fewer than 16 bits."""


def check_dimensions(compared: Compared, subject: Subject) -> Finding:
    """The vectors' size, and that they are finite."""
    got, want = compared.numbers.shape[1], subject.facts.dimensions
    if not np.isfinite(compared.numbers).all():
        cure = "see the server's log: float16 overflows where bfloat16 and float32 do not"
        return wrong("dimensions", "a plain text's vector has NaN or infinity", cure)
    if not compared.numbers.any(axis=1).all():
        return wrong("dimensions", "a plain text's vector is all zeros", "see the server's log")
    if not want:
        return unknown("dimensions", f"{got}; the model's are not known")
    if got != want:
        cure = "check that it serves this model; the E5 models' vectors cannot be shortened"
        return wrong("dimensions", f"{got} instead of {want}", cure)
    return right("dimensions", str(got))


def check_precision(compared: Compared) -> Finding:
    """How many bits the numbers have."""
    kind = precision(compared.numbers)
    if kind in ("float32", "float16", "bfloat16") or kind.startswith("float32 "):
        return right("precision", f"the numbers are {kind}")
    cure = "send float32, base64 of it, or at least four significant digits"
    return wrong("precision", f"the numbers are {kind}: fewer than 16 bits", cure)


def precision(numbers: Numbers) -> str:
    """The coarsest format that holds all numbers: "float32", "bfloat16", "3 decimal digits", "8-bit integers" …"""
    values = numbers[numbers != 0]
    for digits in range(1, 6):
        scaled = values * 10**digits
        if values.size and np.abs(scaled - np.round(scaled)).max() < 1e-3 * 10**digits * 1e-3:
            error = 10.0**-digits / np.sqrt(12) / np.sqrt(np.mean(values**2))
            return f"{digits} decimal digits" if error > BFLOAT16_ERROR else f"float32 with {digits} decimal digits"
    if all(_steps(row) <= 127 for row in numbers):
        return "8-bit integers, scaled"
    as_float32 = values.astype(np.float32)
    if not (as_float32.view(np.uint32) & 0xFFFF).any():
        return "bfloat16"
    with np.errstate(over="ignore"):
        return "float16" if (as_float32.astype(np.float16).astype(np.float32) == as_float32).all() else "float32"


def _steps(row: Numbers) -> float:
    """The largest number in units of the smallest difference, if all numbers are multiples of it; else infinity."""
    sizes = np.unique(np.abs(row[row != 0]))
    gaps = np.diff(sizes)
    gaps = gaps[gaps > 1e-6 * sizes.max(initial=0)]
    if not gaps.size:
        return float("inf")
    multiples = sizes / gaps.min()
    exact = np.abs(multiples - np.round(multiples)).max() < 0.02
    return float(np.round(multiples[-1])) if exact else float("inf")


def check_length(compared: Compared, subject: Subject, same_vectors: bool) -> Finding:
    """Whether vectors have length 1 when they should. `same_vectors`: `check_vectors` found the right ones."""
    lengths = np.linalg.norm(compared.numbers, axis=1)
    shown = f"{lengths.min():.3f}" if np.ptp(lengths) < 1e-3 else f"{lengths.min():.3g} to {lengths.max():.3g}"
    is_unit = bool(np.abs(lengths - 1).max() < UNIT_TOLERANCE)
    if not subject.server.takes_normalize:
        if is_unit:
            return right("normalization", "length 1")
        cure = "clients of this API take dot products for cosines: let the server normalize"
        return wrong("normalization", f"length {shown}, not 1", cure)
    asked = np.linalg.norm(subject.vectors(compared.probes[:1], normalize=True), axis=1)
    if abs(asked[0] - 1) > UNIT_TOLERANCE:
        return wrong("normalization", f"length {asked[0]:.3g} with normalize=true", "let normalize=true scale to 1")
    if subject.expected is not None and same_vectors:
        want = np.array([subject.expected.texts[probe.name].norm for probe in compared.probes])
        if np.abs(lengths / want - 1).max() > NORM_TOLERANCE:
            evidence = f"length {shown} with normalize=false, {want.min():.3g} to {want.max():.3g} would be right"
            return wrong("normalization", evidence, "let normalize=false leave the vectors as the model gives them")
    elif is_unit:
        evidence = "length 1 with normalize=false, too"
        return wrong("normalization", evidence, "let normalize=false leave the vectors as the model gives them")
    return right("normalization", f"length 1 with normalize=true, {shown} without")


def differ(one: Numbers, other: Numbers, tolerance: float) -> bool:
    """Whether two vectors point in directions that differ by more than `tolerance`, in radians."""
    return bool(np.linalg.norm(unit(one) - unit(other)) > tolerance)
