"""Serialized vectors: exact to the last bit, short, and a type that Cog's encoder does not walk."""

import base64
import copy
import dataclasses
import json
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from e5.serving import serialize
from e5.vectors import Vectors

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.1, 0.5, 1e-45, -1e-45, 1.1754944e-38, 3.4028235e38, -3.4028235e38, 16777216.0, 1e22]


def number_of(value: np.float32) -> float:
    return float(serialize.json_numbers(np.array([[value]], dtype=np.float32))[0, 0])


def float32(*values: float) -> Vectors:
    return np.array([values], dtype=np.float32)


@given(st.lists(FLOATS, min_size=1, max_size=20))
def test_numbers_round_trip_to_the_same_float32(values: list[float]) -> None:
    sent = float32(*values)
    received = np.array(json.loads(json.dumps(serialize.json_numbers(sent).tolist())), dtype=np.float32)
    assert received.tobytes() == sent.tobytes()  # bytes, so that -0.0 is not 0.0


@given(st.integers(0, 2**32 - 1))
def test_any_bit_pattern_round_trips_or_is_rejected(bits: int) -> None:
    value = np.frombuffer(struct.pack("<I", bits), dtype="<f4")
    if np.isfinite(value[0]):
        assert np.float32(number_of(value[0])).tobytes() == value.tobytes()
    else:
        with pytest.raises(FloatingPointError):
            number_of(value[0])


@pytest.mark.parametrize("value", SPECIAL)
def test_special_values_round_trip(value: float) -> None:
    sent = float32(value)
    assert np.float32(json.loads(json.dumps(serialize.json_numbers(sent).tolist()))[0][0]).tobytes() == sent.tobytes()


@given(st.floats(min_value=2.0**-46, max_value=2.0**19, width=32), st.sampled_from([1, -1]))
def test_numbers_have_as_few_digits_as_numpy_writes(value: float, sign: int) -> None:
    number = np.float32(sign * value)
    assert number_of(number) == float(str(number))  # numpy writes the shortest digits that round-trip


def test_vectors_take_less_than_60_percent_of_float64_s_digits() -> None:
    vector = np.random.default_rng(0).standard_normal((1, 4096)).astype(np.float32)
    assert len(json.dumps(serialize.json_numbers(vector).tolist())) < 0.6 * len(json.dumps(vector.tolist()))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_rejected_with_their_text(value: float) -> None:
    vectors = np.ones((3, 4), dtype=np.float32)
    vectors[1, 2] = value
    with pytest.raises(FloatingPointError, match="text 2 of 3"):
        serialize.json_numbers(vectors)


def test_tolist_returns_a_subclass_of_list() -> None:
    rows = serialize.json_numbers(float32(1.5, 2.5)).tolist()
    assert isinstance(rows, list)
    assert type(rows) is not list  # the encoder walks exact lists at 17 µs a float
    assert rows == [[1.5, 2.5]]


def test_rows_survive_asdict_and_deepcopy() -> None:
    @dataclasses.dataclass
    class Output:
        rows: serialize.JsonArray

    output = Output(serialize.json_numbers(float32(0.1, -2.0)))
    for copied in (dataclasses.asdict(output)["rows"], copy.deepcopy(output).rows):
        assert isinstance(copied, serialize.JsonArray)
        assert json.dumps(copied.tolist()) == "[[0.1, -2.0]]"


def test_base64_is_little_endian_float32() -> None:
    assert serialize.base64_rows(float32(1.0, -2.0)) == ["AACAPwAAAMA="]
    rows = np.asfortranarray(np.arange(6, dtype=">f4").reshape(2, 3))
    decoded = [np.frombuffer(base64.b64decode(row), dtype="<f4").tolist() for row in serialize.base64_rows(rows)]
    assert decoded == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]


def test_no_vectors_give_no_rows() -> None:
    nothing = np.empty((0, 4), dtype=np.float32)
    assert serialize.json_numbers(nothing).tolist() == []
    assert serialize.base64_rows(nothing) == []
