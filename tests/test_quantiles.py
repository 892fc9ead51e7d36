"""Quantiles against `numpy.quantile`, for any parts, on the columns that break approximate ones, in bounded memory."""

from __future__ import annotations

import pickle
import tracemalloc
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fluxentropy.errors import RunError, UsageError
from fluxentropy.histogram import Histogram
from fluxentropy.quantiles import Selection, select, weighted_ranks
from fluxentropy.scorecolumn import as_floats

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
        patch.setattr("fluxentropy.histogram.CELLS", cells)
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
        patch.setattr("fluxentropy.histogram.CELLS", 40)
        patch.setattr("fluxentropy.histogram.BLOCK", 9)
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
        patch.setattr("fluxentropy.histogram.CELLS", 256)
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
        patch.setattr("fluxentropy.histogram.CELLS", 64)
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
