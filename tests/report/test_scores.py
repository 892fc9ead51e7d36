"""reportscores"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fluxentropy.errors import RunError
from fluxentropy.report.scores import PERCENTS, SHOWN, summarise_scores

numbers = st.one_of(st.none(), st.floats(-1e6, 1e6), st.sampled_from([0.0, 1.0, float("nan"), float("inf")]))


@settings(max_examples=30, deadline=None)
@given(values=st.lists(numbers, min_size=1, max_size=80), part=st.integers(1, 30), group=st.integers(1, 10))
def test_as_numpy_has_it(
    tmp_path_factory: pytest.TempPathFactory, values: list[float | None], part: int, group: int
) -> None:
    folder = tmp_path_factory.mktemp("run")
    table = pa.table({
        "id": [f"id-{row}" for row in range(len(values))],
        "text": [f"text {row}" for row in range(len(values))],
        "entropy_mean": pa.array(values, pa.float64()),
    })  # fmt: skip
    files = [folder / f"{start:03d}.parquet" for start in range(0, len(values), part)]
    for file, start in zip(files, range(0, len(values), part), strict=True):
        pq.write_table(table.slice(start, part), file, row_group_size=group)
    found = summarise_scores(files, text_field="text")
    rows = [row for row, value in enumerate(values) if value is not None and np.isfinite(value)]
    known = np.array([values[row] for row in rows], np.float64) + 0.0
    order = [rows[place] for place in np.argsort(known, kind="stable")]
    assert found.rows == len(values)
    half = len(order) // 2
    low, high = order[:half][:SHOWN], order[half:][::-1][:SHOWN]
    assert [(row.id, row.text) for row in found.lowest] == [(f"id-{row}", f"text {row}") for row in low]
    assert [(row.id, row.text) for row in found.highest] == [(f"id-{row}", f"text {row}") for row in high]
    if not len(known):
        assert found.distributions == []
        return
    (one,) = found.distributions
    assert (one.count, one.missing) == (len(known), len(values) - len(known))
    assert (one.minimum, one.maximum) == (known.min(), known.max())
    assert one.mean == pytest.approx(known.mean(), abs=1e-9)
    quantiles = np.quantile(known, np.array(PERCENTS) / 100, method="inverted_cdf")
    assert one.quantiles == pytest.approx(quantiles)
    assert one.counts.sum() <= len(known)


def test_many_values_keep_their_shape_and_nearly_their_quantiles(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(3, 1, 100_000)
    pq.write_table(pa.table({"id": np.arange(len(values)).astype(str), "entropy_mean": values}), tmp_path / "a.parquet")
    found = summarise_scores([tmp_path / "a.parquet"], text_field="text")
    (one,) = found.distributions
    assert one.quantiles == pytest.approx(np.quantile(values, np.array(PERCENTS) / 100), abs=1e-3)
    drawn, _ = np.histogram(values, one.edges)
    assert np.abs(one.counts - drawn).max() <= 60  # a cell may fall beside an edge
    assert found.lowest[0].text is None and found.lowest[0].scores == {"entropy_mean": values.min()}


def test_a_column_that_a_part_lacks_is_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": ["a"], "entropy_mean": [1.0]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"id": ["a"]}), tmp_path / "b.parquet")
    with pytest.raises(RunError, match="b.parquet has no column entropy_mean"):
        summarise_scores([tmp_path / "a.parquet", tmp_path / "b.parquet"], text_field="text")


def test_columns_of_other_types_are_passed_over(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": ["a"], "entropy_mean": ["x"], "perplexity": [2.0]}), tmp_path / "a.parquet")
    found = summarise_scores([tmp_path / "a.parquet"], text_field="text")
    assert [one.name for one in found.distributions] == ["perplexity"] and found.by == "perplexity"
