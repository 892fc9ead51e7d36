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

import numpy as np

from fluxentropy import histogram
from fluxentropy.errors import RunError, UsageError
from fluxentropy.histogram import BITS, Histogram, from_ordered_bits


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
        if 2 * many > histogram.CELLS:
            raise UsageError(f"{many} ranks are sought at once: at most {histogram.CELLS // 2} can be")
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
