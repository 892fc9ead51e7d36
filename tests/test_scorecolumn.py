"""Columns of NumPy and PyArrow as float64, what is refused, and their exact sums against rational arithmetic."""

from __future__ import annotations

import statistics
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxentropy.errors import UsageError
from fluxentropy.scorecolumn import ExactSums, ScoreColumn, as_floats

BIG = 2**53 + 1
FLOATS = st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=30)


@pytest.mark.parametrize(
    "column",
    [
        pa.array([1.5, None, float("nan"), -2.0]),
        pa.array([1.5, None, float("nan"), -2.0], pa.float32()),
        pa.array([1.5, None, float("nan"), -2.0], pa.float16()),
        pa.chunked_array([[1.5, None], [], [float("nan"), -2.0]]),
        pa.array([9.9, 1.5, None, float("nan"), -2.0])[1:],
    ],
    ids=["float64", "float32", "float16", "chunks", "slice"],
)
def test_nulls_and_nan_are_no_values_and_counted(column: Any) -> None:
    read = ScoreColumn.read(column, pa.array([1, -2, None, 4]), name="x", weight_name="w")
    assert read.values.dtype == np.float64
    assert read.values.tolist() == [1.5, -2.0]
    assert read.weights is not None and read.weights.tolist() == [1, 4]
    assert (read.nulls, read.nans) == (1, 1)


@pytest.mark.parametrize("kind", [np.int8, np.uint64, np.int32, np.float32, np.float64])
def test_numpy_columns_keep_their_numbers(kind: Any) -> None:
    column = np.array([3, 0, 100], dtype=kind)
    read = ScoreColumn.read(column[::-1], name="x")
    assert read.values.tolist() == [100, 0, 3]
    assert read.weights is None


def test_integers_with_nulls_stay_exact() -> None:
    assert as_floats(pa.array([2**53, None, -(2**53)]), "x")[[0, 2]].tolist() == [2**53, -(2**53)]


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (np.array([1.0, np.inf, -np.inf]), "column x: 2 of 3 values are infinite, the first is inf in row 1"),
        (pa.array([None, float("-inf")]), "column x: 1 of 2 values are infinite, the first is -inf in row 1"),
        (pa.array([1, None, BIG]), "column x: integers beyond 2.53"),
        (np.array([BIG]), "column x: integers beyond 2.53"),
        (pa.array(["a"]), "column x: its values are of type string, not numbers"),
        (np.array([True]), "column x: its values are of type bool, not numbers"),
    ],
)
def test_what_has_no_place_among_floats_is_refused(column: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        as_floats(column, "x")


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (pa.array([1, None]), "weight column w: 1 rows have a score but no weight"),
        (np.array([1, -1]), "weight column w: weights are not negative, here is -1"),
        (np.array([1, 0.5]), "weight column w: weights are whole numbers"),
        (np.array([1, np.nan]), "weight column w: weights are whole numbers"),
        (pa.array(["1", "a"]), "weight column w: weights are whole numbers"),
    ],
)
def test_weights_are_whole_and_not_negative(weights: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ScoreColumn.read(np.array([1.0, 2.0]), weights, name="x", weight_name="w")


def test_whole_floats_are_weights() -> None:
    read = ScoreColumn.read(np.array([1.0, 2.0]), np.array([3.0, 0.0]), name="x", weight_name="w")
    assert read.weights is not None and read.weights.tolist() == [3, 0]


# --- exact sums -------------------------------------------------------------------------------------------------------


@given(FLOATS)
def test_mean_and_std_are_those_of_rational_arithmetic_rounded_once(floats: list[float]) -> None:
    found = ExactSums.of(np.array(floats))
    assert found.mean == float(sum(map(Fraction, floats)) / len(floats))
    assert found.std == statistics.pstdev(map(Fraction, floats))


@given(FLOATS, st.integers(0, 30), st.integers(0, 30))
def test_parts_and_order_change_nothing(floats: list[float], first: int, second: int) -> None:
    values = np.array(floats)
    parts = [ExactSums.of(part) for part in np.split(values, sorted([first, second]))]
    assert parts[2] + (parts[0] + parts[1]) == ExactSums.of(values[::-1])


@pytest.mark.parametrize("value", [1.0 - 2**-53, -(2.0 - 2**-52), 1e300 / 3, 5e-324], ids=repr)
def test_many_equal_values_are_exact(value: float) -> None:
    n = 1003
    found = ExactSums.of(np.full(n, value))
    assert (found.mean, found.std) == (value, 0.0)
    mixed = ExactSums.of(np.concatenate((np.full(n, value), np.full(n, -value))))
    assert (mixed.mean, mixed.std) == (0.0, abs(value))


def test_the_last_bit_is_rounded_right() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):  # of a root that is cut off instead, 1 of 27 is wrong
        values = rng.random(rng.integers(2, 9))
        assert ExactSums.of(values).std == statistics.pstdev(map(Fraction, values.tolist()))


def test_many_values_far_from_zero() -> None:
    values = 1e9 + np.random.default_rng(0).random(10**5)
    exact = [Fraction(value) for value in values.tolist()]
    found = ExactSums.of(values)
    assert found.mean == float(sum(exact) / len(exact))
    assert found.std == statistics.pstdev(exact)
