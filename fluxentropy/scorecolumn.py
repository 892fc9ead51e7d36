"""A column of a table -> its numbers, and how many rows have none.

    [2.5, null, NaN, -0.0]  ->  values [2.5, -0.0], 1 null, 1 NaN

All numbers become float64. What that would change (an integer beyond 2^53) is refused, and so are infinities: they have
no place in a mean, and no edge can lie between two of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from fluxentropy.errors import UsageError

EXACT = 2**53  # up to here float64 holds every whole number


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoreColumn:
    """The rows of a column that have a number, with their weights, and the counts of the others."""

    values: np.ndarray  # (n,) float64, finite
    weights: np.ndarray | None  # (n,) int64, not negative
    nulls: int
    nans: int

    @classmethod
    def read(cls, column: Any, weights: Any = None, *, name: str, weight_name: str = "") -> ScoreColumn:
        """The numbers of `column`, an array of NumPy or PyArrow, with those of `weights`, another of the same length.

        Weights of rows without a number are not looked at.

        Errors: those of `as_floats`; `UsageError` where a weight is missing, negative or not whole.

        >>> read = ScoreColumn.read(pa.array([2.5, None, 1.0]), pa.array([3, None, 4]), name="x", weight_name="w")
        >>> read.values, read.weights, read.nulls
        (array([2.5, 1. ]), array([3, 4]), 1)
        """
        floats = as_floats(column, name)
        there = ~np.isnan(floats)
        nulls = 0 if isinstance(column, np.ndarray) else column.null_count
        return cls(
            values=floats[there],
            weights=None if weights is None else _whole_weights(weights, there, weight_name),
            nulls=nulls,
            nans=len(floats) - int(there.sum()) - nulls,
        )


def as_floats(column: Any, name: str) -> np.ndarray:
    """`column`, an array of NumPy or PyArrow, as float64 (n,), with NaN for null.

    Errors: `UsageError` names a column that holds no numbers, an infinity, or an integer beyond 2^53.

    >>> as_floats(pa.array([3, None]), "n_tokens")
    array([ 3., nan])
    """
    array = _arrow(column)
    kind = array.type
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
        raise UsageError(f"column {name}: its values are of type {kind}, not numbers")
    try:
        floats = np.asarray(array.cast(pa.float64()).to_numpy(zero_copy_only=False))
    except pa.ArrowInvalid as error:
        raise UsageError(f"column {name}: integers beyond 2^53 would change as float64 ({error})") from error
    if infinite := int(np.isinf(floats).sum()):
        row = int(np.isinf(floats).argmax())
        raise UsageError(
            f"column {name}: {infinite} of {len(floats)} values are infinite, the first is {floats[row]} in row {row}: "
            "make them null, or leave these rows out"
        )
    return floats


def _arrow(column: Any) -> pa.Array:
    if isinstance(column, np.ndarray):
        return pa.array(column, from_pandas=False)
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _whole_weights(weights: Any, there: np.ndarray, name: str) -> np.ndarray:
    chosen = _arrow(weights).filter(pa.array(there))
    if chosen.null_count:
        raise UsageError(f"weight column {name}: {chosen.null_count} rows have a score but no weight")
    try:
        whole = np.asarray(chosen.cast(pa.int64()).to_numpy(zero_copy_only=False))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise UsageError(f"weight column {name}: weights are whole numbers ({error})") from error
    if len(whole) and whole.min() < 0:
        raise UsageError(f"weight column {name}: weights are not negative, here is {whole.min()}")
    return whole
