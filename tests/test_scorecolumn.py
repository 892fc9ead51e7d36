"""Columns of NumPy and PyArrow as float64, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from fluxentropy.errors import UsageError
from fluxentropy.scorecolumn import ScoreColumn, as_floats

BIG = 2**53 + 1


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
