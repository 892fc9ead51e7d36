"""What one pass over a part of a column leaves: small, and the parts' sum is that of the whole, bit for bit.

    of(part 1) + of(part 2) == of(part 2) + of(part 1) == of(both)

It holds exact sums for mean and standard deviation, the first histogram of the quantiles, and counts of the rows
without a number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fluxentropy.histogram import Histogram
from fluxentropy.quantiles import Selection
from fluxentropy.scorecolumn import ExactSums, ScoreColumn

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
