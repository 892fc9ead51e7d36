"""Quantiles against `numpy.quantile`, for any parts, on the columns that break approximate ones, in bounded memory."""

from __future__ import annotations

import functools
import operator
import pickle
import statistics
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fluxentropy.errors import RunError, UsageError
from fluxentropy.ordering.quantiles import (
    PERCENTS,
    STAT_LEVELS,
    ColumnSummary,
    ExactSums,
    Histogram,
    ScoreColumn,
    Selection,
    as_floats,
    from_ordered_bits,
    ordered_bits,
    select,
    weighted_ranks,
)

LEVELS = (0.0, 0.1, 1 / 3, 0.5, 0.9999, 1.0)
RNG = np.random.default_rng(0)

COLUMNS = {
    "all equal": np.full(500, 2.5),
    "two values": RNG.choice([1.0, np.nextafter(1.0, 2)], 500),
    "one value": np.array([-3.0]),
    "denormals": RNG.integers(-50, 50, 500) * 5e-324,
    "negative": -RNG.gamma(2.0, size=500),
    "mixed signs and sizes": RNG.normal(size=500) * 10.0 ** RNG.integers(-300, 300, 500),
    "zeros of both signs": RNG.choice([0.0, -0.0, 5e-324, -5e-324], 500),
    "heavy ties": RNG.integers(0, 4, 500) / 3,
    "one bucket": 1 + RNG.permutation(500) * 2.0**-52,
    "nested clusters": np.concatenate([1 + RNG.random(60) * 2.0**-shift for shift in range(0, 53, 6)]),
    "float32": RNG.gamma(9.0, size=500).astype(np.float32),
    "integers": RNG.integers(-(10**6), 10**6, 500),
    "random": RNG.gamma(9.0, size=500),
}


def run(
    values: np.ndarray, weights: np.ndarray | None, parts: int, cells: int, weighted: bool = True
) -> tuple[Selection, int]:
    """A selection driven as another process would drive it, with parts merged from the last to the first."""
    pieces = list(zip(np.array_split(values, parts), np.array_split(weights, parts), strict=True))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fluxentropy.ordering.quantiles.CELLS", cells)
        found = sum((Histogram.of(*piece) for piece in pieces[::-1]), Histogram.empty(weighted=True))
        selection, passes = Selection.start(found, LEVELS, LEVELS if weighted else ()), 1
        while not selection.done:
            selection = pickle.loads(pickle.dumps(selection))
            found = sum((selection.scan(*piece) for piece in pieces[::-1]), Histogram.empty(weighted=True))
            selection, passes = selection.refine(found), passes + 1
    return selection, passes


@pytest.mark.parametrize("cells", [64, 2**16], ids=["many passes", "one pass"])
@pytest.mark.parametrize("name", COLUMNS)
def test_quantiles_are_those_of_numpy(name: str, cells: int) -> None:
    values = as_floats(COLUMNS[name], name)
    weights = np.random.default_rng(1).integers(0, 5, len(values)) if len(values) > 1 else np.array([7])
    by_weight = np.quantile(values, LEVELS, weights=weights, method="inverted_cdf")
    for parts in (1, 3, 17):
        found, passes = run(values, weights, parts, cells)
        assert found.quantiles(LEVELS).tolist() == np.quantile(values, LEVELS).tolist()
        assert found.weighted_quantiles(LEVELS).tolist() == by_weight.tolist()
        assert (found.minimum, found.maximum) == (values.min(), values.max())
        assert passes == 1 if len(np.unique(values)) <= cells else passes > 1


@settings(max_examples=200)
@given(
    st.lists(st.tuples(st.floats(-1e300, 1e300), st.integers(0, 3)), min_size=1, max_size=60),
    st.lists(st.floats(0, 1), min_size=1, max_size=5),
    st.integers(1, 5),
)
def test_any_column_any_levels_any_parts(rows: list[tuple[float, int]], levels: list[float], parts: int) -> None:
    values, weights = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    weights[0] += 1
    pieces = list(zip(np.array_split(values, parts), np.array_split(weights, parts), strict=True))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fluxentropy.ordering.quantiles.CELLS", 40)
        patch.setattr("fluxentropy.ordering.quantiles.BLOCK", 9)
        found = select(lambda: pieces, levels, levels)
    assert found.quantiles(levels).tolist() == np.quantile(values, levels).tolist()
    by_weight = np.quantile(values, levels, weights=weights, method="inverted_cdf")
    assert found.weighted_quantiles(levels).tolist() == by_weight.tolist()


def test_many_levels_at_once() -> None:
    levels = np.random.default_rng(3).random(5000).tolist()
    values = COLUMNS["mixed signs and sizes"]
    found = select(lambda: [(values, None)], levels)
    assert found.quantiles(levels).tolist() == np.quantile(values, levels).tolist()


@given(st.integers(1, 2**53), st.integers(1, 200), st.integers(1, 200), st.sampled_from([0.0, 0.5, 1.0]))
@example(weight=100, share=7, of=100, towards=0.5)  # 0.07 * 100 is above 7
@example(weight=7, share=3, of=7, towards=1.0)  # 7 times the float above 3 / 7 is 3
def test_weighted_ranks_are_the_first_whose_share_reaches_the_level(
    weight: int, share: int, of: int, towards: float
) -> None:
    level = float(np.nextafter(min(share / of, 1.0), towards)) if towards != 0.5 else min(share / of, 1.0)
    (rank,) = weighted_ranks(weight, [level]).tolist()
    assert 1 <= rank <= weight
    assert rank / weight >= level
    assert rank == 1 or (rank - 1) / weight < level


def test_the_number_of_passes_is_bounded_whatever_the_values() -> None:
    clusters = np.concatenate([3.0 + RNG.random(4000) * 2.0**-shift for shift in range(0, 52, 3)])
    levels = [0.2, 0.5, 0.8]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fluxentropy.ordering.quantiles.CELLS", 256)
        selection, passes = Selection.start(Histogram.of(clusters), levels), 1
        while not selection.done:
            found = selection.scan(clusters)
            assert len(found.keys) <= 256
            selection, passes = selection.refine(found), passes + 1
    assert selection.quantiles(levels).tolist() == np.quantile(clusters, levels).tolist()
    assert 3 < passes <= 1 + 56 / 5  # 8 bits, then 5 or more, as 8 ranks share 256 cells


def part_of(
    draw: Callable[[np.random.Generator, int], np.ndarray], parts: int = 40
) -> Iterator[tuple[np.ndarray, None]]:
    for part in range(parts):
        yield draw(np.random.default_rng(part), 10**7 // parts), None


@pytest.mark.parametrize(
    "draw",
    [
        lambda rng, n: rng.random(n),
        lambda rng, n: np.full(n, 2.5),
        lambda rng, n: rng.choice([1.0, 2.0], n),
        lambda rng, n: 1 + rng.integers(0, 2**24, n) * 2.0**-52,
    ],
    ids=["random", "all equal", "two values", "one bucket"],
)
def test_ten_million_values_need_no_more_memory_than_a_part(
    draw: Callable[[np.random.Generator, int], np.ndarray],
) -> None:
    expected = np.quantile(np.concatenate([values for values, _ in part_of(draw)]), LEVELS)
    tracemalloc.start()
    try:
        found = select(lambda: part_of(draw), LEVELS)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found.quantiles(LEVELS).tolist() == expected.tolist()
    assert peak < 32 * 2**20  # the column itself has 76 MiB


def test_values_that_change_between_passes_are_noticed() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fluxentropy.ordering.quantiles.CELLS", 64)
        selection = Selection.start(Histogram.of(COLUMNS["random"]), [0.5])
        assert not selection.done
        with pytest.raises(RunError, match="the values have changed while they were read: 0 .weight 0. where there"):
            selection.refine(selection.scan(COLUMNS["random"] + 100))


@pytest.mark.parametrize(
    ("values", "weights", "levels", "message"),
    [
        ([], [], [0.5], "there are no values"),
        ([1.0, 2.0], [0, 0], [0.5], "all weights are zero"),
        ([1.0, 2.0], [1, 1], [1.5], "levels of quantiles are from 0 to 1, here is 1.5"),
        ([1.0, 2.0], [1, 1], [float("nan")], "levels of quantiles are from 0 to 1, here is nan"),
        (range(99_999), [1] * 99_999, np.linspace(0, 1, 40_000).tolist(), "ranks are sought at once: at most 32768"),
    ],
)
def test_what_has_no_quantiles_is_refused(
    values: list[float], weights: list[int], levels: list[float], message: str
) -> None:
    column = [(np.array(values, float), np.array(weights, np.int64))]
    with pytest.raises(UsageError, match=message):
        select(lambda: column, levels, levels)


def test_neighbours_further_apart_than_floats_reach_are_refused() -> None:
    found = select(lambda: [(np.array([-1.7e308, 1.7e308]), None)], [0.5])
    with pytest.raises(UsageError, match="the values span more than float64 holds"):
        found.quantiles([0.5])


# --- Histograms against counting prefixes one by one, for any parts and any order of adding them ---


FLOATS = st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from([0.0, -0.0, 5e-324, 1.0, 1 + 2**-52])
ROWS = st.lists(st.tuples(FLOATS, st.integers(0, 9)), max_size=40)


def same(one: Histogram, other: Histogram) -> bool:
    pairs = ((one.keys, other.keys), (one.counts, other.counts), (one.weights, other.weights))
    return one.depth == other.depth and all(
        a is b is None or (np.array_equal(a, b) and a.dtype == b.dtype)  # type: ignore[arg-type, union-attr]
        for a, b in pairs
    )


def columns(rows: list[tuple[float, int]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([row[0] for row in rows], float), np.array([row[1] for row in rows], np.int64)


@given(st.lists(FLOATS))
def test_ordered_bits_have_the_order_of_the_numbers_and_lead_back(floats: list[float]) -> None:
    values = np.array(floats)
    bits = ordered_bits(values)
    assert np.array_equal(values[:, None] < values, bits[:, None] < bits)
    assert np.array_equal(from_ordered_bits(bits), values)


@given(ROWS, st.integers(2, 9))
def test_a_histogram_counts_the_longest_prefixes_that_fit(rows: list[tuple[float, int]], cells: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fluxentropy.ordering.quantiles.CELLS", cells)
        patch.setattr("fluxentropy.ordering.quantiles.BLOCK", 7)
        found = Histogram.of(*columns(rows))
    bits = [int(bit) for bit in ordered_bits(columns(rows)[0])]
    depth = max(depth for depth in range(65) if len({bit >> 64 - depth for bit in bits}) <= cells)
    counts, weights = Counter[int](), Counter[int]()
    for bit, (_, weight) in zip(bits, rows, strict=True):
        counts[bit >> 64 - depth << 64 - depth] += 1
        weights[bit >> 64 - depth << 64 - depth] += weight
    assert found.depth == depth
    assert found.keys.tolist() == sorted(counts)
    assert found.counts.tolist() == [counts[key] for key in sorted(counts)]
    assert found.weights is not None
    assert found.weights.tolist() == [weights[key] for key in sorted(counts)]


def test_a_difference_of_ones_only_is_not_rounded_up() -> None:
    bits = np.array([8 << 60, (9 << 60) - 1, 12 << 60], np.uint64)  # top bits 1000, 1000 and 1100
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fluxentropy.ordering.quantiles.CELLS", 2)
        assert Histogram.of(from_ordered_bits(bits)).depth == 4


@given(ROWS, st.lists(st.integers(0, 40)), st.integers(2, 9), st.randoms(use_true_random=False), st.booleans())
def test_the_sum_over_parts_is_that_of_the_whole(
    rows: list[tuple[float, int]], borders: list[int], cells: int, random: object, weighted: bool
) -> None:
    values, weights = columns(rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fluxentropy.ordering.quantiles.CELLS", cells)
        whole = Histogram.of(values, weights if weighted else None)
        parts = [
            Histogram.of(value, weight if weighted else None)
            for value, weight in zip(np.split(values, sorted(borders)), np.split(weights, sorted(borders)), strict=True)
        ]
        while len(parts) > 1:  # any two, in any order
            random.shuffle(parts)  # type: ignore[attr-defined]
            parts.append(parts.pop() + parts.pop())
    assert same(parts[0], whole)


@given(ROWS, st.integers(1, 64), st.lists(FLOATS, min_size=1, max_size=4), st.booleans())
def test_within_prefixes_only_their_values_are_counted(
    rows: list[tuple[float, int]], depth: int, sought: list[float], weighted: bool
) -> None:
    values, weights = columns(rows)
    shift = np.uint64(64 - depth)
    prefixes = np.unique(ordered_bits(np.array(sought)) >> shift << shift)
    mine = np.isin(ordered_bits(values) >> shift << shift, prefixes)
    found = Histogram.of(values, weights if weighted else None, within=(depth, prefixes))
    assert same(found, Histogram.of(values[mine], weights[mine] if weighted else None))


def test_weights_are_exact_up_to_2_53_and_refused_beyond() -> None:
    ones = np.ones(3)
    assert Histogram.of(ones, np.array([2**53 - 2, 1, 1])).weight == 2**53
    with pytest.raises(UsageError, match="the weights add up to 9.007e\\+15: beyond 2.53"):
        Histogram.of(ones, np.array([2**53, 2, 1]))
    with pytest.raises(UsageError, match="beyond 2.53"):
        Histogram.of(ones, np.array([2**63 - 1, 2**63 - 1, 2]))
    with pytest.raises(UsageError, match="beyond 2.53"):
        functools.reduce(operator.add, [Histogram.of(np.ones(1), np.array([2**52]))] * 3)


# --- Summaries of parts against NumPy on the whole column ---


ROWS_COLUMNSUMMARY = [None, float("nan"), *np.random.default_rng(0).gamma(9.0, size=1000).tolist(), -0.0, 0.0, None]
TOKENS = [7] * len(ROWS_COLUMNSUMMARY)


def summarise(rows: list[float | None], tokens: list[int]) -> ColumnSummary:
    column = ScoreColumn.read(pa.array(rows, pa.float64()), pa.array(tokens), name="x", weight_name="n_tokens")
    return ColumnSummary.of(column)


def test_stats_are_those_of_numpy() -> None:
    summary = summarise(ROWS_COLUMNSUMMARY, TOKENS)
    there = np.array([row for row in ROWS_COLUMNSUMMARY if row is not None and row == row])
    stats = summary.stats(Selection.start(summary.histogram, STAT_LEVELS))
    assert (stats["count"], stats["nulls"], stats["nan"]) == (1002, 2, 1)
    assert (stats["mean"], stats["std"]) == (pytest.approx(there.mean()), pytest.approx(there.std()))
    assert (stats["min"], stats["max"]) == (there.min(), there.max())
    assert list(stats["percentiles"]) == ["1", "5", "10", "25", "50", "75", "90", "95", "99"]
    assert list(stats["percentiles"].values()) == np.percentile(there, PERCENTS).tolist()


@pytest.mark.parametrize("parts", [1, 2, 7, 500])
def test_nothing_depends_on_parts_or_order(parts: int) -> None:
    pieces = [summarise(ROWS_COLUMNSUMMARY[part::parts], TOKENS[part::parts]) for part in range(parts)]
    found, whole = functools.reduce(operator.add, pieces[::-1]), summarise(ROWS_COLUMNSUMMARY, TOKENS)
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


# --- Columns of NumPy and PyArrow as float64, what is refused, and their exact sums against rational arit ---


BIG = 2**53 + 1
FLOATS_SCORECOLUMN = st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=30)


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
        (pa.array(["1", "2"]), "weight column w: weights are whole numbers, here are values of type string"),
        (pa.array([True, False]), "weight column w: weights are whole numbers, here are values of type bool"),
    ],
)
def test_weights_are_whole_and_not_negative(weights: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ScoreColumn.read(np.array([1.0, 2.0]), weights, name="x", weight_name="w")


def test_whole_floats_are_weights() -> None:
    read = ScoreColumn.read(np.array([1.0, 2.0]), np.array([3.0, 0.0]), name="x", weight_name="w")
    assert read.weights is not None and read.weights.tolist() == [3, 0]


# --- exact sums -------------------------------------------------------------------------------------------------------


@given(FLOATS_SCORECOLUMN)
def test_mean_and_std_are_those_of_rational_arithmetic_rounded_once(floats: list[float]) -> None:
    found = ExactSums.of(np.array(floats))
    assert found.mean == float(sum(map(Fraction, floats)) / len(floats))
    assert found.std == statistics.pstdev(map(Fraction, floats))


@given(FLOATS_SCORECOLUMN, st.integers(0, 30), st.integers(0, 30))
def test_parts_and_order_change_nothing(floats: list[float], first: int, second: int) -> None:
    values = np.array(floats)
    parts = [ExactSums.of(part) for part in np.split(values, sorted([first, second]))]
    assert parts[2] + (parts[0] + parts[1]) == ExactSums.of(values[::-1])


@pytest.mark.parametrize("value", [1.0 - 2**-53, -(2.0 - 2**-52), 1e300 / 3, 5e-324], ids=repr)
def test_many_equal_values_are_exact(value: float) -> None:
    n = 1003
    found = ExactSums.of(np.full(n, value))
    assert (found.mean, found.std) == (value, 0.0)
    mixed = ExactSums.of(np.concatenate((np.full(n, value), np.full(n, -value))))
    assert (mixed.mean, mixed.std) == (0.0, abs(value))


def test_the_last_bit_is_rounded_right() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):  # of a root that is cut off instead, 1 of 27 is wrong
        values = rng.random(rng.integers(2, 9))
        assert ExactSums.of(values).std == statistics.pstdev(map(Fraction, values.tolist()))


def test_many_values_far_from_zero() -> None:
    values = 1e9 + np.random.default_rng(0).random(10**5)
    exact = [Fraction(value) for value in values.tolist()]
    found = ExactSums.of(values)
    assert found.mean == float(sum(exact) / len(exact))
    assert found.std == statistics.pstdev(exact)
