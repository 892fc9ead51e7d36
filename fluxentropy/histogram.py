"""Histograms of floats that do not depend on the order or the parts of their values.

A float64 becomes 64 *ordered bits*, whose order as integers is the order of the numbers:

    -1.0 -> 400fffffffffffff    0.0 -> 8000000000000000    1.0 -> bff0000000000000    2.0 -> c000000000000000

A histogram counts the values by their top `depth` bits, where `depth` is the largest for which at most CELLS of these
prefixes occur. A column of few distinct values is held exactly (`depth` 64), however long it is. The depth of a
union is never larger than that of a part, and follows from the parts' cells; hence

    histogram(a) + histogram(b) == histogram(a and b)

bit for bit, for any parts, in any order, in any grouping.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fluxentropy.errors import UsageError
from fluxentropy.scorecolumn import EXACT

CELLS = 2**16  # at most so many cells: 1.5 MB in memory
BLOCK = 2**18  # values that are sorted at once
BITS = 64
SIGN, ALL = np.uint64(2**63), np.uint64(2**64 - 1)


def ordered_bits(values: np.ndarray) -> np.ndarray:
    """float64 -> uint64 of the same shape, with a < b as floats exactly where a < b as integers; -0.0 equals 0.0.

    >>> [hex(bits) for bits in ordered_bits(np.array([-1.0, -0.0, 0.0, 5e-324]))]
    ['0x400fffffffffffff', '0x8000000000000000', '0x8000000000000000', '0x8000000000000001']
    """
    bits = (values + 0.0).view(np.int64)  # -0.0 + 0.0 is 0.0
    return bits.view(np.uint64) ^ ((bits >> 63).view(np.uint64) | SIGN)


def from_ordered_bits(bits: np.ndarray) -> np.ndarray:
    """The inverse of `ordered_bits`.

    >>> from_ordered_bits(ordered_bits(np.array([-1.5, 0.0, 5e-324])))
    array([-1.5e+000,  0.0e+000,  4.9e-324])
    """
    return (bits ^ np.where(bits >= SIGN, SIGN, ALL)).view(np.float64)


def top(depth: int) -> np.uint64:
    """A mask of the top `depth` of 64 bits."""
    return np.uint64((2**depth - 1) << (BITS - depth))


@dataclass(frozen=True, kw_only=True, eq=False)
class Histogram:
    """How many values, and how much weight, each prefix of `depth` ordered bits has.

    >>> found = Histogram.of(np.array([2.0, 1.0, 2.0])) + Histogram.of(np.array([-4.0]))
    >>> found.depth, from_ordered_bits(found.keys), found.counts
    (64, array([-4.,  1.,  2.]), array([1, 1, 2]))
    """

    depth: int
    keys: np.ndarray  # (cells,) uint64, ascending; the bits below `depth` are zero
    counts: np.ndarray  # (cells,) int64
    weights: np.ndarray | None  # (cells,) int64

    @classmethod
    def empty(cls, *, weighted: bool = False) -> Histogram:
        nothing = np.zeros(0, np.int64)
        return cls(depth=BITS, keys=nothing.view(np.uint64), counts=nothing, weights=nothing if weighted else None)

    @classmethod
    def of(
        cls, values: np.ndarray, weights: np.ndarray | None = None, within: tuple[int, np.ndarray] | None = None
    ) -> Histogram:
        """The histogram of `values` (n,), finite float64, with `weights` (n,), int64 and not negative.

        With `within` = (depth, prefixes (p,) ascending), only of the values with one of these prefixes.

        Errors: `UsageError` where the weights add up to more than 2^53, from where on float64 has gaps.
        """
        if weights is not None:
            _check_total(float(weights.sum(dtype=np.float64)))
        found = cls.empty(weighted=weights is not None)
        for start in range(0, len(values), BLOCK):
            bits = ordered_bits(values[start : start + BLOCK])
            block = None if weights is None else weights[start : start + BLOCK]
            if block is None:
                bits.sort()
            else:
                order = bits.argsort()
                bits, block = bits[order], block[order]
            if within is not None:
                mine = _places_within(bits, *within)
                bits, block = bits[mine], None if block is None else block[mine]
            found += _cells(bits, None, block, BITS)
        return found

    def __add__(self, other: Histogram) -> Histogram:
        """The histogram of both; `UsageError` where the weights add up to more than 2^53."""
        depth = min(self.depth, other.depth)
        keys = np.concatenate((self.keys, other.keys)) & top(depth)
        order = keys.argsort(kind="stable")  # quick, as both are sorted
        counts = np.concatenate((self.counts, other.counts))[order]
        weights = None
        if self.weights is not None and other.weights is not None:
            weights = np.concatenate((self.weights, other.weights))[order]
            _check_total(weights.sum())
        return _cells(keys[order], counts, weights, depth)

    @property
    def count(self) -> int:
        return int(self.counts.sum())

    @property
    def weight(self) -> int:
        """The sum of the weights; 0 where there are none."""
        return 0 if self.weights is None else int(self.weights.sum())


def _cells(keys: np.ndarray, counts: np.ndarray | None, weights: np.ndarray | None, depth: int) -> Histogram:
    """The histogram of ascending `keys` of `depth` bits; equal ones become one cell, near ones too if need be."""
    starts = np.flatnonzero(np.diff(keys, prepend=~keys[:1]))
    counts = np.diff(starts, append=len(keys)) if counts is None else np.add.reduceat(counts, starts)
    weights = None if weights is None else np.add.reduceat(weights, starts)
    keys = keys[starts]
    if len(keys) > CELLS:
        depth = _deepest(keys)
        return _cells(keys & top(depth), counts, weights, depth)
    return Histogram(depth=depth, keys=keys, counts=counts, weights=weights)


def _deepest(keys: np.ndarray) -> int:
    """The largest depth at which ascending, distinct `keys` have at most CELLS different prefixes."""
    apart = keys[1:] ^ keys[:-1]
    apart &= ~(apart >> np.uint64(1))  # keeps the highest bit, and a conversion to float from rounding up to the next
    differ = BITS + 1 - np.frexp(apart.astype(np.float64))[1]  # neighbours have different prefixes from this depth on
    prefixes = 1 + np.cumsum(np.bincount(differ, minlength=BITS + 1))  # at depth 0, 1, … 64
    return int(np.searchsorted(prefixes, CELLS, side="right")) - 1


def _places_within(bits: np.ndarray, depth: int, prefixes: np.ndarray) -> np.ndarray:
    """The places in ascending `bits` of all whose top `depth` bits are one of `prefixes`, ascending."""
    first = np.searchsorted(bits, prefixes)
    last = np.searchsorted(bits, prefixes | ~top(depth), side="right")
    lengths = last - first
    return np.arange(lengths.sum()) + np.repeat(first - np.cumsum(lengths) + lengths, lengths)


def _check_total(weight: float) -> None:
    if weight > EXACT:
        raise UsageError(f"the weights add up to {weight:.4g}: beyond 2^53 (9.007e15) their sums are not exact")
