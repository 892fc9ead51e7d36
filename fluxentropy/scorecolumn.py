"""A column of a table -> its numbers, and how many rows have none.

    [2.5, null, NaN, -0.0]  ->  values [2.5, -0.0], 1 null, 1 NaN

All numbers become float64. What that would change (an integer beyond 2^53) is refused, and so are infinities: they have
no place in a mean, and no edge can lie between two of them.

Means and standard deviations come from exact sums, so they are the same to the last bit for any order and any parts:

    mean = Σx / n        std = √(Σx² / n − mean²)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa

from fluxentropy.errors import UsageError

EXACT = 2**53  # up to here float64 holds every whole number
LEAST, MOST = 1e-140, 1e140  # between these the square of a float64 is the sum of two others, exactly


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


@dataclass(frozen=True, kw_only=True)
class ExactSums:
    """The number of some values, their sum and the sum of their squares, all exact.

    >>> sums = ExactSums.of(np.array([1e16, 1.0])) + ExactSums.of(np.array([-1e16, 2.0]))
    >>> sums.mean, ExactSums.of(np.array([1.0, 3.0])).std
    (0.75, 1.0)
    """

    count: int = 0
    total: Fraction = Fraction()
    squares: Fraction = Fraction()

    @classmethod
    def of(cls, values: np.ndarray) -> ExactSums:
        """The sums of `values` (n,), finite float64."""
        sizes = np.abs(values)
        usual = (sizes > LEAST) & (sizes < MOST)
        odd = [Fraction(value) for value in values[~usual & (sizes > 0)].tolist()]
        x = values[usual]
        total = sum(odd, _exact(x.tolist()))
        squares = sum((value**2 for value in odd), _exact(np.concatenate(_squares(x)).tolist()))
        return cls(count=len(values), total=total, squares=squares)

    def __add__(self, other: ExactSums) -> ExactSums:
        return ExactSums(
            count=self.count + other.count, total=self.total + other.total, squares=self.squares + other.squares
        )

    @property
    def mean(self) -> float:
        """The mean, rounded once. There must be values."""
        return float(self.total / self.count)

    @property
    def std(self) -> float:
        """The standard deviation of the values as a whole population (divided by n), rounded once."""
        over, under = (self.squares / self.count - (self.total / self.count) ** 2).as_integer_ratio()
        shift = max(0, 112 + under.bit_length() - over.bit_length()) // 2  # the root then has 55 bits or more
        root = math.isqrt((over << 2 * shift) // under)
        root |= root**2 * under != over << 2 * shift  # what was cut off still decides which way to round
        return root / (1 << shift)


def _exact(values: list[float]) -> Fraction:
    """The sum of `values`: `fsum` rounds it once, and what is left is summed again."""
    found = Fraction()
    while part := math.fsum(values):
        found += Fraction(part)
        values.append(-part)
    return found


def _squares(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The squares (n,) of `values`, and what was rounded off them (Dekker, Numer. Math. 18, 1971)."""
    squares, split = values * values, values * (2**27 + 1)
    high = split - (split - values)
    low = values - high
    return squares, ((high * high - squares) + 2 * high * low) + low * low
