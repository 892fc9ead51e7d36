"""Summaries of parts against NumPy on the whole column."""

from __future__ import annotations

import functools
import operator

import numpy as np
import pyarrow as pa
import pytest
from test_histogram import same

from fluxentropy.columnsummary import PERCENTS, STAT_LEVELS, ColumnSummary
from fluxentropy.quantiles import Selection
from fluxentropy.scorecolumn import ScoreColumn

ROWS = [None, float("nan"), *np.random.default_rng(0).gamma(9.0, size=1000).tolist(), -0.0, 0.0, None]
TOKENS = [7] * len(ROWS)


def summarise(rows: list[float | None], tokens: list[int]) -> ColumnSummary:
    column = ScoreColumn.read(pa.array(rows, pa.float64()), pa.array(tokens), name="x", weight_name="n_tokens")
    return ColumnSummary.of(column)


def test_stats_are_those_of_numpy() -> None:
    summary = summarise(ROWS, TOKENS)
    there = np.array([row for row in ROWS if row is not None and row == row])
    stats = summary.stats(Selection.start(summary.histogram, STAT_LEVELS))
    assert (stats["count"], stats["nulls"], stats["nan"]) == (1002, 2, 1)
    assert (stats["mean"], stats["std"]) == (pytest.approx(there.mean()), pytest.approx(there.std()))
    assert (stats["min"], stats["max"]) == (there.min(), there.max())
    assert list(stats["percentiles"]) == ["1", "5", "10", "25", "50", "75", "90", "95", "99"]
    assert list(stats["percentiles"].values()) == np.percentile(there, PERCENTS).tolist()


@pytest.mark.parametrize("parts", [1, 2, 7, 500])
def test_nothing_depends_on_parts_or_order(parts: int) -> None:
    pieces = [summarise(ROWS[part::parts], TOKENS[part::parts]) for part in range(parts)]
    found, whole = functools.reduce(operator.add, pieces[::-1]), summarise(ROWS, TOKENS)
    assert (found.sums, found.nulls, found.nans) == (whole.sums, whole.nulls, whole.nans)
    assert same(found.histogram, whole.histogram)


def test_a_column_without_numbers_has_counts_only() -> None:
    stats = summarise([None, float("nan")], [1, 1]).stats(None)
    assert stats == {
        "count": 0,
        "nulls": 1,
        "nan": 1,
        "mean": None,
        "std": None,
        "min": None,
        "max": None,
        "percentiles": {},
    }
