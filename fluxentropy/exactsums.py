"""Mean and standard deviation from exact sums, the same to the last bit for any order and any parts.

A float64 is a whole number of units of 2^-1127. So a sum of values is a whole number of them, and a sum of squares one
of 2^-2254: Python's integers hold both exactly, and only the results are rounded, once.

    mean = Σx / n        std = √(n Σx² − (Σx)²) / n
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

LIMB = 18  # bits; 3 limbs hold the 53 of a float64
UNIT = 3 * LIMB + 1073  # values are multiples of 2^-UNIT; 2^-1074 is the smallest float64, 2^-1073 times its fraction ½
BLOCK = 2**17  # values; products of limbs then add up to at most 2^53, where float64 is still exact


@dataclass(frozen=True, kw_only=True)
class ExactSums:
    """The number of some values, their sum and the sum of their squares, all exact.

    >>> sums = ExactSums.of(np.array([1e16, 1.0])) + ExactSums.of(np.array([-1e16, 2.0]))
    >>> sums.mean, ExactSums.of(np.array([1.0, 3.0])).std
    (0.75, 1.0)
    """

    count: int = 0
    total: int = 0  # in units of 2^-UNIT
    squares: int = 0  # in units of 2^-2 UNIT

    @classmethod
    def of(cls, values: np.ndarray) -> ExactSums:
        """The sums of `values` (n,), finite float64."""
        total = squares = 0
        for start in range(0, len(values), BLOCK):
            fractions, exponents = np.frexp(np.sort(values[start : start + BLOCK]))  # ±[½, 1) times 2^exponent
            limbs = _limbs(fractions)
            edges = np.flatnonzero(np.diff(exponents, prepend=exponents[0] - 1)).tolist()
            for first, last in zip(edges, [*edges[1:], len(limbs)], strict=True):
                shift = int(exponents[first]) + 1073
                group = limbs[first:last]
                total += _number(group.sum(axis=0)) << shift
                squares += _number(_diagonals(group.T @ group)) << 2 * shift
        return cls(count=len(values), total=total, squares=squares)

    def __add__(self, other: ExactSums) -> ExactSums:
        return ExactSums(
            count=self.count + other.count, total=self.total + other.total, squares=self.squares + other.squares
        )

    @property
    def mean(self) -> float:
        """The mean, rounded once. There must be values."""
        return self.total / (self.count << UNIT)

    @property
    def std(self) -> float:
        """The standard deviation of the values as a whole population (divided by n), rounded once."""
        return _root(self.count * self.squares - self.total**2, self.count << UNIT)


def _limbs(fractions: np.ndarray) -> np.ndarray:
    """Fractions (n,) in (−1, 1) as whole numbers (n, 3) below 2^18 with their sign, the highest first."""
    limbs = np.empty((len(fractions), 3))
    for place in range(3):
        fractions = fractions * 2.0**LIMB
        limbs[:, place] = np.trunc(fractions)
        fractions = fractions - limbs[:, place]
    return limbs


def _diagonals(gram: np.ndarray) -> np.ndarray:
    """The sums (5,) along the rising diagonals of products (3, 3): the limbs of the squares, the highest first."""
    whole = np.fliplr(gram.astype(np.int64))
    return np.array([whole.trace(offset) for offset in range(2, -3, -1)])


def _number(limbs: np.ndarray) -> int:
    """The whole number that has these limbs, the highest first."""
    number = 0
    for limb in limbs.tolist():
        number = (number << LIMB) + int(limb)
    return number


def _root(number: int, divisor: int) -> float:
    """√number / divisor, rounded once."""
    if not number:
        return 0.0
    square = divisor**2
    shift = max(0, 112 + square.bit_length() - number.bit_length()) // 2  # the root then has 55 bits or more
    root = math.isqrt((number << 2 * shift) // square)
    root |= root**2 * square != number << 2 * shift  # what was cut off still decides which way to round
    return root / (1 << shift)
