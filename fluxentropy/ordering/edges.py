"""Edges that cut a column into bins, and the bin of each value.

    edges [1.5, 2.5]:   bin 0: x <= 1.5     bin 1: 1.5 < x <= 2.5     bin 2: x > 2.5     bin -1: null or NaN

A value on an edge goes to the lower bin, and equal values are never parted. A `Cut` says where edges shall lie, and
with the exact quantiles of the column gives `BinEdges`; these also come from fixed values or from another `bins.json`.
One or two of them make a `Binning`, which gives every row its bin; the edges of one column for each value of another
make one as well, in `within.py`.

Edges from a `Cut` leave no bin empty. Of the edges that cut the values in the same place, which ties and more bins than
values lead to, the lowest stays; an edge above which there is nothing goes. Fixed and loaded edges stay as they are.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fluxentropy.errors import UsageError
from fluxentropy.ordering.quantiles import Histogram, Selection, as_floats
from fluxentropy.runs.files import fingerprint_json

MAX_BINS = 10_000
UNSCORED = -1  # the bin of rows without a value


@dataclass(frozen=True, kw_only=True)
class Cut:
    """The levels, in (0, 1), of the quantiles that become edges; of the rows, or of the column `weight`.

    >>> from fluxentropy.ordering.quantiles import select
    >>> cut = Cut.equal(2)
    >>> cut.edges("x", select(lambda: [(np.array([1.0, 2.0, 3.0, 4.0]), None)], levels=cut.levels))
    BinEdges(by='x', edges=(2.5,), how='2 bins of equal counts', requested=2)
    """

    levels: tuple[float, ...]
    how: str
    weight: str | None = None

    @classmethod
    def equal(cls, bins: int, weight: str | None = None) -> Cut:
        """`bins` bins with as equal counts, or sums of `weight`, as the values allow."""
        if not 2 <= bins <= MAX_BINS:
            raise UsageError(f"{bins} bins: from 2 to {MAX_BINS} are possible")
        levels = tuple(number / bins for number in range(1, bins))
        return cls(levels=levels, how=f"{bins} bins of equal {weight or 'counts'}", weight=weight)

    @classmethod
    def percentiles(cls, percents: Sequence[float], weight: str | None = None) -> Cut:
        """Edges at `percents`, ascending, between 0 and 100."""
        if not percents:
            raise UsageError("no percentiles are given: for example 10,25,50,75,90")
        for percent in percents:
            if not 0 < percent < 100:
                raise UsageError(f"percentile {percent:g}: percentiles are above 0 and below 100")
        _check_edges(percents, "percentiles")
        how = "percentiles " + ",".join(f"{percent:.15g}" for percent in percents) + (f" of {weight}" if weight else "")
        return cls(levels=tuple(percent / 100 for percent in percents), how=how, weight=weight)

    def start(self, found: Histogram, levels: Sequence[float] = ()) -> Selection:
        """A selection that seeks these levels and, of the rows, `levels`; errors are those of `Selection.start`."""
        if self.weight is None:
            return Selection.start(found, levels=(*levels, *self.levels))
        return Selection.start(found, levels=levels, weighted_levels=self.levels)

    def edges(self, by: str, selection: Selection) -> BinEdges:
        """The edges of the column `by`; `selection` has come from `start`.

        They are `numpy.quantile(x, levels)`, or with weights its method "inverted_cdf".
        """
        edges, cuts = self.places(selection)
        stays = np.diff(cuts, prepend=-np.inf) > 0
        stays &= cuts < selection.maximum
        return BinEdges(by=by, edges=tuple(edges[stays].tolist()), how=self.how, requested=len(self.levels) + 1)

    def places(self, selection: Selection) -> tuple[np.ndarray, np.ndarray]:
        """An edge for each level, and the largest value below it or on it: two (levels,) arrays, which may repeat."""
        if self.weight is not None:
            edges = selection.weighted_quantiles(self.levels)
            return edges, edges
        edges = selection.quantiles(self.levels)
        low, high = selection.neighbours(self.levels)
        return edges, np.where(edges < high, low, high)

    def no_edges(self, by: str) -> BinEdges:
        """The one bin of a column without values, which is empty."""
        return BinEdges(by=by, edges=(), how=self.how, requested=len(self.levels) + 1)


@dataclass(frozen=True, kw_only=True)
class BinEdges:
    """The edges of one column, ascending; one less than there are bins.

    Errors: `UsageError` names edges that are not ascending, or not finite, and too many of them.
    """

    by: str
    edges: tuple[float, ...]
    how: str
    requested: int  # bins that were asked for; there may be fewer

    def __post_init__(self) -> None:
        _check_edges(self.edges, f"edges of {self.by}")

    @classmethod
    def fixed(cls, by: str, values: Sequence[float]) -> BinEdges:
        """Edges at `values`, whatever is in the column; bins may stay empty.

        >>> BinEdges.fixed("entropy_mean", [1.5, 2.5]).assign(np.array([2.5, 1.5, 9.0, np.nan]))
        array([ 1,  0,  2, -1], dtype=int32)
        """
        if not values:
            raise UsageError(f"edges of {by}: none are given")
        return cls(by=by, edges=tuple(value + 0.0 for value in values), how="fixed values", requested=len(values) + 1)

    @property
    def bins(self) -> int:
        return len(self.edges) + 1

    @property
    def note(self) -> str | None:
        """What to tell where there are fewer bins than asked for."""
        if self.bins == self.requested:
            return None
        return f"{self.by}: {self.bins} of {self.requested} bins, as equal values are never parted and no bin is empty"

    def assign(self, column: Any) -> np.ndarray:
        """The bin of each row of `column`, an array of NumPy or PyArrow: int32 (n,), -1 for null and NaN.

        Errors: those of `as_floats`.
        """
        values = as_floats(column, self.by)
        found = np.searchsorted(np.array(self.edges), values, side="left").astype(np.int32)
        found[np.isnan(values)] = UNSCORED
        return found


@dataclass(frozen=True, kw_only=True)
class Binning:
    """The bins of one column, or of a grid of two, counted row by row: 0, 1, … along the second axis first.

    >>> grid = Binning(axes=(BinEdges.fixed("x", [0.0]), BinEdges.fixed("y", [1.0, 2.0])))
    >>> grid.bins, grid.assign(np.array([0.0, 5.0, 5.0]), np.array([9.0, 1.0, np.nan]))
    (6, array([ 2,  3, -1], dtype=int32))
    """

    axes: tuple[BinEdges, ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.axes) <= 2:
            raise UsageError(f"edges of one column or two are possible, here are {len(self.axes)}")
        columns = [axis.by for axis in self.axes]
        if len(set(columns)) < len(columns):
            raise UsageError(f"a grid needs two columns, here is {columns[0]} twice")
        if self.bins > MAX_BINS:
            raise UsageError(f"{self.bins} bins: at most {MAX_BINS} are possible")

    @property
    def bins(self) -> int:
        return math.prod(axis.bins for axis in self.axes)

    @property
    def columns(self) -> tuple[str, ...]:
        """The scores."""
        return tuple(axis.by for axis in self.axes)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The columns that `assign` takes."""
        return self.columns

    @property
    def notes(self) -> list[str]:
        """What to tell of the edges."""
        return [axis.note for axis in self.axes if axis.note]

    @property
    def fingerprint(self) -> str:
        """The same for the same columns and edges, however these were found."""
        return fingerprint_json([[axis.by, *map(float.hex, axis.edges)] for axis in self.axes])

    def assign(self, *columns: Any) -> np.ndarray:
        """The bin of each row, int32 (n,); -1 where one of `columns`, those of `axes`, has no value."""
        found = np.zeros(len(columns[0]), np.int32)
        unscored = np.zeros(len(found), bool)
        for axis, column in zip(self.axes, columns, strict=True):
            bins = axis.assign(column)
            found = found * np.int32(axis.bins) + bins
            unscored |= bins == UNSCORED
        found[unscored] = UNSCORED
        return found

    def to_json(self) -> dict[str, Any]:
        """What `bins.json` says of the edges: values of one column, lists of two for a grid.

        >>> Binning(axes=(BinEdges.fixed("x", [0.0]),)).to_json() | {"fingerprint": "…"}
        {'by': 'x', 'edges': [0.0], 'how': 'fixed values', 'requested': 2, 'fingerprint': '…'}
        """
        found: dict[str, Any] = {
            "by": [axis.by for axis in self.axes],
            "edges": [list(axis.edges) for axis in self.axes],
            "how": [axis.how for axis in self.axes],
            "requested": [axis.requested for axis in self.axes],
        }
        if len(self.axes) == 1:
            found = {name: values[0] for name, values in found.items()}
        else:
            found["grid"] = [axis.bins for axis in self.axes]
        return {**found, "fingerprint": self.fingerprint}

    @classmethod
    def load(cls, path: Path) -> Binning:
        """The edges in `path`, a `bins.json`, to cut another corpus at the same places.

        Errors: `UsageError` where it is missing, is no `bins.json`, or its edges do not fit its fingerprint.
        """
        try:
            return cls.of(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError as error:
            raise UsageError(f"{path}: no such file; `fluxentropy bin` writes it") from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f"{path} is no bins.json with `by` and `edges` ({type(error).__name__}: {error})"
            ) from error
        except UsageError as error:
            raise UsageError(f"{path}: {error}") from error

    @classmethod
    def of(cls, facts: Any) -> Binning:
        """The edges that `facts`, the content of a `bins.json`, say. Errors: `UsageError`, and those of odd JSON."""
        one = isinstance(facts["by"], str)
        if facts.get("within") is not None:
            from fluxentropy.ordering.within import WithinBinning  # which is made of this one

            return WithinBinning.of(facts)
        columns, edges = ([facts["by"]], [facts["edges"]]) if one else (facts["by"], facts["edges"])
        axes = (
            BinEdges(by=str(by), edges=tuple(map(float, values)), how="loaded", requested=len(values) + 1)
            for by, values in zip(columns, edges, strict=True)
        )
        binning = cls(axes=tuple(axes))
        if facts.get("fingerprint", binning.fingerprint) != binning.fingerprint:
            raise UsageError("the edges do not fit the fingerprint: remove it if you meant to change them")
        return binning


def _check_edges(edges: Sequence[float], what: str) -> None:
    for edge in edges:
        if not math.isfinite(edge):
            raise UsageError(f"{what}: {edge} is not a finite number")
    for lower, upper in itertools.pairwise(edges):
        if not lower < upper:
            raise UsageError(f"{what}: {upper} after {lower}, but they must be ascending and different")
    if len(edges) >= MAX_BINS:
        raise UsageError(f"{what}: {len(edges)} make more than {MAX_BINS} bins")
