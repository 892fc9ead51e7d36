"""Edges and bins against NumPy and brute force; what makes no bins is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxentropy.errors import UsageError
from fluxentropy.ordering.edges import BinEdges, Binning, Cut
from fluxentropy.ordering.quantiles import Histogram

FEW = st.floats(-2, 2) | st.integers(-2, 2).map(float)  # with many ties


def edges_of(cut: Cut, values: np.ndarray, weights: np.ndarray | None = None, by: str = "x") -> BinEdges:
    selection = cut.start(Histogram.of(values, weights))
    assert selection.done
    return cut.edges(by, selection)


def brute_force(edges: list[float], value: float) -> int:
    return -1 if value != value else sum(edge < value for edge in edges)


def test_without_ties_the_edges_are_the_quantiles() -> None:
    values = np.random.default_rng(0).gamma(9.0, size=1003)
    found = edges_of(Cut.equal(10), values)
    assert found.edges == tuple(np.quantile(values, np.arange(1, 10) / 10))
    assert found.note is None
    counts = np.bincount(found.assign(values))
    assert counts.min() >= 100 and counts.max() <= 101
    published = edges_of(Cut.percentiles([10, 25, 50, 75, 90]), values)
    assert published.edges == tuple(np.percentile(values, [10, 25, 50, 75, 90]))
    assert published.how == "percentiles 10,25,50,75,90"


@given(st.lists(FEW, min_size=1, max_size=40), st.integers(2, 12))
def test_only_empty_bins_are_left_out(rows: list[float], bins: int) -> None:
    values = np.array(rows)
    found = edges_of(Cut.equal(bins), values)
    all_edges = np.quantile(values, [number / bins for number in range(1, bins)])
    _, without_empty_ones = np.unique(np.searchsorted(all_edges, values), return_inverse=True)
    assert found.assign(values).tolist() == without_empty_ones.tolist()
    assert found.bins == without_empty_ones.max() + 1
    assert set(found.edges) <= set(all_edges.tolist())
    assert (found.note is None) == (found.bins == bins)


@given(st.lists(st.tuples(FEW, st.integers(0, 3)), min_size=1, max_size=40), st.integers(2, 12))
def test_equal_weights_likewise(rows: list[tuple[float, int]], bins: int) -> None:
    values, weights = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    weights[-1] += 1
    found = edges_of(Cut.equal(bins, "n_tokens"), values, weights)
    levels = [number / bins for number in range(1, bins)]
    all_edges = np.quantile(values, levels, weights=weights, method="inverted_cdf")
    _, without_empty_ones = np.unique(np.searchsorted(all_edges, values), return_inverse=True)
    assert found.assign(values).tolist() == without_empty_ones.tolist()
    assert found.how == f"{bins} bins of equal n_tokens"


def test_equal_tokens_are_equal_up_to_one_text() -> None:
    rng = np.random.default_rng(0)
    values, tokens = rng.gamma(9.0, size=5000), rng.integers(0, 513, 5000)
    found = edges_of(Cut.equal(8, "n_tokens"), values, tokens)
    sums = np.bincount(found.assign(values), weights=tokens)
    assert np.abs(sums - tokens.sum() / 8).max() <= 512


def test_fewer_distinct_values_than_bins_are_told() -> None:
    found = edges_of(Cut.equal(10), np.array([1.0, 2.0, 2.0, 3.0]))
    assert (found.bins, found.requested) == (3, 10)
    assert found.note == "x: 3 of 10 bins, as equal values are never parted and no bin is empty"
    assert found.edges == (1.3, 2.0)  # 1.6 and 1.9 cut where 1.3 does, 2.1, 2.4 and 2.7 where 2.0 does
    constant = edges_of(Cut.percentiles([50]), np.full(3, 4.0))
    assert (constant.edges, constant.bins) == ((), 1)
    assert constant.assign(np.array([4.0, 3.0, np.nan])).tolist() == [0, 0, -1]


@given(st.lists(st.integers(-9, 9), min_size=1, unique=True), st.lists(st.floats(-10, 10) | st.just(float("nan"))))
def test_assign_is_brute_force(edges: list[int], values: list[float]) -> None:
    found = BinEdges.fixed("x", sorted(edges))
    values += [float(edge) for edge in edges]
    expected = [brute_force([*map(float, sorted(edges))], value) for value in values]
    assert found.assign(np.array(values)).tolist() == expected
    assert found.assign(pa.array(values, from_pandas=True)).tolist() == expected  # NaN as null
    assert found.assign(np.array(values)).dtype == np.int32


def test_a_grid_counts_along_its_second_axis_first() -> None:
    rng = np.random.default_rng(0)
    one, two = rng.gamma(9.0, size=400), rng.normal(size=400)
    two[5] = one[6] = np.nan
    axes = (edges_of(Cut.equal(4), one[~np.isnan(one)]), edges_of(Cut.equal(3), two[~np.isnan(two)], by="y"))
    grid = Binning(axes=axes)
    found = grid.assign(one, pa.array(two))
    assert grid.bins == 12
    assert found[5:7].tolist() == [-1, -1]
    for row in range(400):
        if row not in (5, 6):
            place = brute_force(list(axes[0].edges), one[row]), brute_force(list(axes[1].edges), two[row])
            assert found[row] == place[0] * 3 + place[1]


@pytest.mark.parametrize(
    "axes",
    [
        (BinEdges.fixed("x", [0.1, 1 / 3]),),
        (BinEdges(by="x", edges=(), how="2 bins of equal counts", requested=2),),
        (BinEdges.fixed("x", [0.1]), BinEdges.fixed("y", [-5e-324, 1e300])),
    ],
    ids=["one axis", "one bin", "grid"],
)
def test_loaded_edges_cut_at_the_same_places(axes: tuple[BinEdges, ...], tmp_path: Path) -> None:
    file = tmp_path / "bins.json"
    written = Binning(axes=axes)
    file.write_text(json.dumps(written.to_json() | {"counts": [1, 2], "tokens": [3, 4], "stats": {}}))
    loaded = Binning.load(file)
    assert [axis.edges for axis in loaded.axes] == [axis.edges for axis in axes]
    assert [axis.by for axis in loaded.axes] == [axis.by for axis in axes]
    assert loaded.fingerprint == written.fingerprint
    assert all(axis.note is None for axis in loaded.axes)


def test_the_fingerprint_is_that_of_columns_and_edges() -> None:
    x = Binning(axes=(BinEdges.fixed("x", [0.1]),))
    assert x.fingerprint == Binning(axes=(BinEdges(by="x", edges=(0.1,), how="…", requested=9),)).fingerprint
    others = [BinEdges.fixed("y", [0.1]), BinEdges.fixed("x", [0.1 + 2**-56]), BinEdges.fixed("x", [0.1, 0.2])]
    assert len({x.fingerprint, *(Binning(axes=(other,)).fingerprint for other in others)}) == 4


def test_json_of_a_grid_holds_both_edges() -> None:
    grid = Binning(axes=(BinEdges.fixed("x", [0.0]), BinEdges.fixed("y", [1.0, 2.0])))
    found = grid.to_json()
    assert (found["by"], found["edges"], found["grid"]) == (["x", "y"], [[0.0], [1.0, 2.0]], [2, 3])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "bins.json: no such file"),
        ("[1]", "is no bins.json with `by` and `edges`"),
        ("{", "is no bins.json"),
        ('{"by": "x"}', "is no bins.json .*KeyError"),
        ('{"by": "x", "edges": 3}', "is no bins.json"),
        ('{"by": "x", "edges": ["a"]}', "is no bins.json"),
        ('{"by": ["x", "y"], "edges": [[1]]}', "is no bins.json"),
        (
            '{"by": ["x", "y", "z"], "edges": [[1], [1], [1]]}',
            "bins.json: edges of one column or two are possible, here are 3",
        ),
        ('{"by": "x", "edges": [2, 1]}', "bins.json: edges of x: 1.0 after 2.0, but they must be ascending"),
        ('{"by": "x", "edges": [NaN]}', "bins.json: edges of x: nan is not a finite number"),
        ('{"by": "x", "edges": [1], "fingerprint": "0"}', "bins.json: the edges do not fit the fingerprint"),
    ],
)
def test_files_without_edges_are_refused_by_name(text: str | None, message: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "bins.json").write_text(text)
    with pytest.raises(UsageError, match=message):
        Binning.load(tmp_path / "bins.json")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Cut.equal(1), "1 bins: from 2 to 10000 are possible"),
        (lambda: Cut.equal(10_001), "10001 bins: from 2 to 10000 are possible"),
        (lambda: Cut.percentiles([]), "no percentiles are given"),
        (lambda: Cut.percentiles([0, 50]), "percentile 0: percentiles are above 0 and below 100"),
        (lambda: Cut.percentiles([50, 100]), "percentile 100: percentiles are above 0 and below 100"),
        (lambda: Cut.percentiles([float("nan")]), "percentile nan: percentiles are above 0"),
        (lambda: Cut.percentiles([50, 25]), "percentiles: 25 after 50, but they must be ascending and different"),
        (lambda: BinEdges.fixed("x", []), "edges of x: none are given"),
        (lambda: BinEdges.fixed("x", [1, 1]), "edges of x: 1.0 after 1.0, but they must be ascending and different"),
        (lambda: BinEdges.fixed("x", [1, float("nan")]), "edges of x: nan is not a finite number"),
        (lambda: BinEdges.fixed("x", [1, float("inf")]), "edges of x: inf is not a finite number"),
        (lambda: Binning(axes=(BinEdges.fixed("x", [1]),) * 2), "a grid needs two columns, here is x twice"),
        (
            lambda: Binning(axes=(BinEdges.fixed("x", range(100)), BinEdges.fixed("y", range(100)))),
            "10201 bins: at most 10000 are possible",
        ),
    ],
)
def test_what_makes_no_bins_is_refused(make: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make()
