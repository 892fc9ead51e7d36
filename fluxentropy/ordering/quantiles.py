"""Exact quantiles of a column of any length, in bounded memory, whatever its order, its parts and who reads them.

The values at some ranks are found in a few passes over the column. Each pass is a sum of histograms over the parts, so
the parts may be read in any order, in any process; between passes there is a `Selection`, a small frozen object:

    histogram = sum of Histogram.of(part) over the parts                 # the first pass asks for nothing
    selection = Selection.start(histogram, levels=[0.25, 0.5, 0.75])
    while not selection.done:
        histogram = sum of selection.scan(part) over the parts           # only the cells that hold a sought rank
        selection = selection.refine(histogram)
    selection.quantiles([0.25, 0.5, 0.75])

At most CELLS distinct values take one pass. Else, with the ranks in R cells, p passes do for about
CELLS (CELLS / R)^(p-1) values that are spread as scores are: for R = 20, two passes for some 10^7 and three for
10^10. However they are spread, the first pass gives the top 16 bits of 64, and each other one log2(CELLS / R) more:
at most 6 passes for R = 20.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa

from fluxentropy.errors import RunError, UsageError

# --- a column of scores -----------------------------------------------------------------------------------------------
#
#     [2.5, null, NaN, -0.0]  ->  values [2.5, -0.0], 1 null, 1 NaN
#
# All numbers become float64. What that would change (an integer beyond 2^53) is refused, and so are infinities: they
# have no place in a mean, and no edge can lie between two of them.
#
# Means and standard deviations come from exact sums, so they are the same to the last bit for any order and any parts:
#
#     mean = Σx / n        std = √(Σx² / n − mean²)


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

    A decimal becomes the float64 that is nearest to it. A column of nothing but nulls may have no type.

    Errors: `UsageError` names a column that holds no numbers, an infinity, or an integer beyond 2^53.

    >>> as_floats(pa.array([3, None]), "n_tokens")
    array([ 3., nan])
    """
    array = _arrow(column)
    kind = array.type
    if not is_numeric(kind):
        raise UsageError(f"column {name}: its values are of type {kind}, not numbers")
    if pa.types.is_decimal(kind):
        return _decimals(array)
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


def is_numeric(kind: pa.DataType) -> bool:
    """Whether a column of this type can be a score: integers, floats and decimals of any width, or only nulls."""
    types = pa.types
    return any(test(kind) for test in (types.is_floating, types.is_integer, types.is_decimal, types.is_null))


def _decimals(array: pa.Array) -> np.ndarray:
    """A column of decimals as float64 (n,), each rounded once: Arrow's cast makes 2.6750000000000003 of 2.675."""
    found = np.full(len(array), np.nan)
    scale, there = array.type.scale, np.asarray(array.is_valid())
    quick = np.zeros(len(array), bool)
    if array.type.bit_width <= 128 and 0 <= scale <= 22 and len(array):  # 10^22 is the last power that float64 holds
        wide = array.cast(pa.decimal128(38, scale))
        low, high = np.frombuffer(wide.buffers()[1], "<i8").reshape(-1, 2)[wide.offset : wide.offset + len(wide)].T
        quick = there & (high == low >> 63) & (np.abs(low) <= EXACT)
        found[quick] = low[quick] / 10.0**scale
    for place in np.flatnonzero(there & ~quick).tolist():
        found[place] = float(array[place].as_py())
    return found


def _arrow(column: Any) -> pa.Array:
    if isinstance(column, np.ndarray):
        return pa.array(column, from_pandas=False)
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _whole_weights(weights: Any, there: np.ndarray, name: str) -> np.ndarray:
    chosen = _arrow(weights).filter(pa.array(there))
    if not is_numeric(chosen.type):  # "12" and true would be cast
        raise UsageError(f"weight column {name}: weights are whole numbers, here are values of type {chosen.type}")
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


# --- histograms -------------------------------------------------------------------------------------------------------
#
# A float64 becomes 64 *ordered bits*, whose order as integers is the order of the numbers:
#
#     -1.0 -> 400fffffffffffff    0.0 -> 8000000000000000    1.0 -> bff0000000000000    2.0 -> c000000000000000
#
# A histogram counts the values by their top `depth` bits, where `depth` is the largest for which at most CELLS of these
# prefixes occur. A column of few distinct values is held exactly (`depth` 64), however long it is. The depth of a
# union is never larger than that of a part, and follows from the parts' cells; hence
#
#     histogram(a) + histogram(b) == histogram(a and b)
#
# bit for bit, for any parts, in any order, in any grouping.


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


# --- quantiles --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Selection:
    """What is known about the values at the sought ranks: their top `depth` ordered bits.

    A rank r, from 1, seeks the smallest value with r values up to and including it; a weighted rank, the smallest one
    with a weight of r up to and including it.
    """

    count: int  # values in all
    weight: int  # their weight
    ranks: np.ndarray  # (R,) int64
    weighted: np.ndarray  # (R,) bool
    depth: int
    prefixes: np.ndarray  # (R,) uint64
    below: np.ndarray  # (R,) int64, the values, or the weight, below the prefix
    sought: tuple[int, int]  # values with these prefixes, and their weight

    @classmethod
    def start(cls, found: Histogram, levels: Sequence[float] = (), weighted_levels: Sequence[float] = ()) -> Selection:
        """Seek the quantiles of `levels` and the weighted ones of `weighted_levels`, both in [0, 1].

        The smallest and the largest value are always sought. `found` is the histogram of all values.

        Errors: `UsageError` where there are no values, or no weight, or too many levels.
        """
        count, weight = found.count, found.weight
        if not count:
            raise UsageError("there are no values, so there are no quantiles of them")
        low, high, _ = linear_ranks(count, levels)
        ranks = np.unique(np.concatenate(([1, count], low, high)))
        by_weight = np.unique(weighted_ranks(weight, weighted_levels))
        many = len(ranks) + len(by_weight)
        if 2 * many > CELLS:
            raise UsageError(f"{many} ranks are sought at once: at most {CELLS // 2} can be")
        everything = cls(
            count=count,
            weight=weight,
            ranks=np.concatenate((ranks, by_weight)),
            weighted=np.arange(many) >= len(ranks),
            depth=0,
            prefixes=np.zeros(many, np.uint64),
            below=np.zeros(many, np.int64),
            sought=(count, weight),
        )
        return everything.refine(found)

    @property
    def done(self) -> bool:
        return self.depth == BITS

    def scan(self, values: np.ndarray, weights: np.ndarray | None = None) -> Histogram:
        """The histogram of those of `values` (n,) that share a prefix with a sought one."""
        return Histogram.of(values, weights, within=(self.depth, np.unique(self.prefixes)))

    def refine(self, found: Histogram) -> Selection:
        """The next selection; `found` is the sum of `scan` over all parts.

        Errors: `RunError` where that is not what the last pass has seen.
        """
        if (found.count, found.weight) != self.sought:
            raise RunError(
                f"the values have changed while they were read: {found.count} (weight {found.weight}) where there were "
                f"{self.sought[0]} (weight {self.sought[1]}) one pass before"
            )
        prefixes, below = np.empty_like(self.prefixes), np.empty_like(self.below)
        for mine, measure in ((~self.weighted, found.counts), (self.weighted, found.weights)):
            if measure is None or not mine.any():
                continue
            running = np.concatenate(([0], np.cumsum(measure)))  # before each cell, of what was found
            offset = self.below[mine] - running[np.searchsorted(found.keys, self.prefixes[mine])]  # of what was not
            cell = np.searchsorted(running[1:], self.ranks[mine] - offset)
            prefixes[mine], below[mine] = found.keys[cell], running[cell] + offset
        cells = np.searchsorted(found.keys, np.unique(prefixes))
        weight = 0 if found.weights is None else int(found.weights[cells].sum())
        return replace(
            self, depth=found.depth, prefixes=prefixes, below=below, sought=(int(found.counts[cells].sum()), weight)
        )

    def quantiles(self, levels: Sequence[float]) -> np.ndarray:
        """`numpy.quantile(x, levels)`, bit for bit. `levels` (Q,) are among those of `start`.

        Errors: `UsageError` where two neighbouring values are further apart than float64 reaches.
        """
        low, high = self.neighbours(levels)
        _, _, part = linear_ranks(self.count, levels)
        with np.errstate(over="ignore", invalid="ignore"):
            step = high - low
            found = np.where(part < 0.5, low + step * part, high - step * (1 - part))  # as NumPy does: both ends exact
        if not np.isfinite(found).all():
            raise UsageError("the values span more than float64 holds: no quantile can be interpolated between them")
        return found

    def neighbours(self, levels: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
        """The values (Q,) and (Q,) that each quantile of `levels` lies between, or on."""
        low, high, _ = linear_ranks(self.count, levels)
        return self._at(low, weighted=False), self._at(high, weighted=False)

    def weighted_quantiles(self, levels: Sequence[float]) -> np.ndarray:
        """`numpy.quantile(x, levels, weights=w, method="inverted_cdf")`; `levels` are of `weighted_levels`."""
        return self._at(weighted_ranks(self.weight, levels), weighted=True)

    @property
    def minimum(self) -> float:
        return float(self._at(np.array([1]), weighted=False)[0])

    @property
    def maximum(self) -> float:
        return float(self._at(np.array([self.count]), weighted=False)[0])

    def _at(self, ranks: np.ndarray, *, weighted: bool) -> np.ndarray:
        assert self.done
        mine = self.weighted == weighted
        place = np.searchsorted(self.ranks[mine], ranks)
        assert (self.ranks[mine][place] == ranks).all(), "levels that `start` was not asked for"
        return from_ordered_bits(self.prefixes[mine][place])


def select(
    parts: Callable[[], Iterable[tuple[np.ndarray, np.ndarray | None]]],
    levels: Sequence[float] = (),
    weighted_levels: Sequence[float] = (),
) -> Selection:
    """All passes, in this process. `parts` is called for each of them and yields (values, weights or None).

    >>> found = select(lambda: [(np.array([3.0, 1.0]), None), (np.array([2.0, 10.0]), None)], levels=[0.5, 0.9])
    >>> found.quantiles([0.5, 0.9]), found.maximum
    (array([2.5, 7.9]), 10.0)
    """
    found = Histogram.empty(weighted=bool(weighted_levels))
    for values, weights in parts():
        found += Histogram.of(values, weights)
    selection = Selection.start(found, levels, weighted_levels)
    while not selection.done:
        found = Histogram.empty(weighted=bool(weighted_levels))
        for values, weights in parts():
            found += selection.scan(values, weights)
        selection = selection.refine(found)
    return selection


def linear_ranks(count: int, levels: Sequence[float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The ranks below and above each quantile of `count` values, and how far it lies between them: three (Q,) arrays.

    Definition 7 of Hyndman and Fan, NumPy's default: the quantile of level q lies at (count − 1) q, from 0.

    >>> linear_ranks(4, [0.0, 0.5, 1.0])
    (array([1, 2, 4]), array([2, 3, 4]), array([0. , 0.5, 0. ]))
    """
    place = (count - 1) * _checked(levels)
    low = np.floor(place).astype(np.int64)
    return low + 1, np.minimum(low + 2, count), place - low


def weighted_ranks(weight: int, levels: Sequence[float]) -> np.ndarray:
    """The smallest weight (Q,) whose share of `weight` is at least each level, and at least 1.

    The share is compared as a float64, as NumPy does: 3 of 10 reach the level 0.3.

    >>> weighted_ranks(10, [0.0, 0.3, 0.31, 1.0])
    array([ 1,  3,  4, 10])
    """
    found = []
    for level in _checked(levels).tolist():
        if not weight:
            raise UsageError("all weights are zero, so there are no quantiles by weight")
        rank = math.ceil(level * weight)
        while rank > 1 and (rank - 1) / weight >= level:
            rank -= 1
        while rank / weight < level:
            rank += 1
        found.append(max(rank, 1))
    return np.array(found, dtype=np.int64)


def _checked(levels: Sequence[float]) -> np.ndarray:
    array = np.asarray(levels, dtype=np.float64)
    if not ((array >= 0) & (array <= 1)).all():
        raise UsageError(f"levels of quantiles are from 0 to 1, here is {array[~((array >= 0) & (array <= 1))][0]}")
    return array


# --- summaries --------------------------------------------------------------------------------------------------------
#
#     of(part 1) + of(part 2) == of(part 2) + of(part 1) == of(both)
#
# It holds exact sums for mean and standard deviation, the first histogram of the quantiles, and counts of the rows
# without a number.


PERCENTS = (1, 5, 10, 25, 50, 75, 90, 95, 99)  # of `stats`
STAT_LEVELS = tuple(percent / 100 for percent in PERCENTS)  # what its selection must have sought


@dataclass(frozen=True, kw_only=True, eq=False)
class ColumnSummary:
    """A column, or a part of it, summed up.

    >>> import numpy as np
    >>> half = ColumnSummary.of(ScoreColumn.read(np.array([1.0, np.nan, 3.0]), name="x"))
    >>> whole = half + half
    >>> whole.sums.mean, whole.sums.count, whole.nans
    (2.0, 4, 2)
    """

    nulls: int
    nans: int
    sums: ExactSums
    histogram: Histogram

    @classmethod
    def of(cls, column: ScoreColumn) -> ColumnSummary:
        """Errors: those of `Histogram.of`."""
        return cls(
            nulls=column.nulls,
            nans=column.nans,
            sums=ExactSums.of(column.values),
            histogram=Histogram.of(column.values, column.weights),
        )

    def __add__(self, other: ColumnSummary) -> ColumnSummary:
        return ColumnSummary(
            nulls=self.nulls + other.nulls,
            nans=self.nans + other.nans,
            sums=self.sums + other.sums,
            histogram=self.histogram + other.histogram,
        )

    def stats(self, selection: Selection | None) -> dict[str, Any]:
        """The `stats` of `bins.json`; `selection` has sought STAT_LEVELS; None stands for a column without numbers."""
        counts = {"count": self.sums.count, "nulls": self.nulls, "nan": self.nans}
        if selection is None:
            return {**counts, "mean": None, "std": None, "min": None, "max": None, "percentiles": {}}
        percentiles = selection.quantiles(STAT_LEVELS).tolist()
        return {
            **counts,
            "mean": self.sums.mean,
            "std": self.sums.std,
            "min": selection.minimum,
            "max": selection.maximum,
            "percentiles": {str(percent): value for percent, value in zip(PERCENTS, percentiles, strict=True)},
        }
