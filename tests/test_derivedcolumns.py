"""`bin --by EXPRESSION` end to end: the values, their bins and what is written of them, as NumPy finds them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_binning import bins_of, corpus, folders, read, run, snapshot, write_files

from fluxentropy.cli import main

__all__ = ["run"]  # the fixture


def column(table: pa.Table, name: str) -> np.ndarray:
    return np.array([np.nan if x is None else x for x in table[name].to_pylist()], float)


def by_hand(table: pa.Table, values: np.ndarray, edges: list[float]) -> dict[str, int | None]:
    bins = [None if np.isnan(x) else int(sum(x > edge for edge in edges)) for x in values]
    return dict(zip(table["id"].to_pylist(), bins, strict=True))


def test_bins_by_an_expression(run: Any, tmp_path: Path) -> None:
    table = corpus(tmp_path / "in")
    by = "entropy_mean - 0.5*varentropy_mean"
    values = column(table, "entropy_mean") - 0.5 * column(table, "varentropy_mean")
    edges = np.quantile(values[~np.isnan(values)], [0.25, 0.5, 0.75]).tolist()
    command = (tmp_path / "in", "--by", by, "--bins", 4)
    code, data, _ = run(*command, "--out", tmp_path / "out")
    name = "entropy_mean_minus_0_5_times_varentropy_mean"
    assert (code, data["by"], data["edges"], data["columns"], data["standards"]) == (0, by, edges, {by: name}, {})
    assert bins_of(tmp_path / "out") == by_hand(table, values, edges)
    whole = pa.concat_tables(map(read, folders(tmp_path / "out")))
    assert whole.column_names == [*table.column_names, name, "bin"]
    found = dict(zip(whole["id"].to_pylist(), column(whole, name), strict=True))
    np.testing.assert_array_equal([found[key] for key in table["id"].to_pylist()], values)
    assert main(["verify", str(tmp_path / "out")]) == 0
    before = snapshot(tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "data" / "bin=01")
    assert run(*command, "--out", tmp_path / "out")[0] == 0  # makes what is missing
    assert snapshot(tmp_path / "out") == before
    write_files(tmp_path / "one", table, 1)
    assert (
        run(tmp_path / "one", "--by", by, "--bins", 4, "--workers", 2, "--out", tmp_path / "same")[1]["edges"] == edges
    )
    assert bins_of(tmp_path / "same") == bins_of(tmp_path / "out")


def test_standardised_columns_and_their_edges_for_another_corpus(run: Any, tmp_path: Path) -> None:
    table = corpus(tmp_path / "in")
    by = "z(entropy_mean) + z(2*n_tokens)"
    parts = [column(table, "entropy_mean"), 2 * column(table, "n_tokens")]
    standards = [(np.nanmean(x), np.nanstd(x)) for x in parts]
    values = sum((x - mean) / deviation for x, (mean, deviation) in zip(parts, standards, strict=True))
    code, data, _ = run(tmp_path / "in", "--by", by, "--bins", 3, "--order", "score", "--out", tmp_path / "out")
    assert (code, data["columns"][by]) == (0, "z_entropy_mean_plus_z_2_times_n_tokens")
    assert data["edges"] == pytest.approx(np.quantile(values[~np.isnan(values)], [1 / 3, 2 / 3]))
    assert data["standards"]["2*n_tokens"] == pytest.approx(standards[1])
    assert bins_of(tmp_path / "out") == by_hand(table, values, data["edges"])
    ordered = column(read(tmp_path / "out" / "data" / "bin=01"), data["columns"][by])
    assert len(ordered) > 100 and (np.diff(ordered) >= 0).all()
    assert main(["verify", str(tmp_path / "out")]) == 0

    second = corpus(tmp_path / "other", rows=200, seed=5)  # its own means are others: those of the edges count
    code, again, _ = run(tmp_path / "other", "--edges", tmp_path / "out" / "bins.json", "--out", tmp_path / "cut")
    assert (code, again["standards"]) == (0, data["standards"])
    x, y = (column(second, name) for name in ("entropy_mean", "n_tokens"))
    (m, d), (n, e) = data["standards"]["entropy_mean"], data["standards"]["2*n_tokens"]
    assert bins_of(tmp_path / "cut") == by_hand(second, (x - m) / d + (2 * y - n) / e, data["edges"])


def test_learnability_of_two_runs(run: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    loss = {name: rng.normal(3, 1, 500) for name in ("small", "large")}
    small = corpus(tmp_path / "small", bits_per_byte=loss["small"])
    ids = small["id"].to_pylist()
    (tmp_path / "large").mkdir()
    pq.write_table(pa.table({"id": ids[:490], "bits_per_byte": loss["large"][:490]}), tmp_path / "large" / "l.parquet")
    command = (tmp_path / "small", "--by", "learnability", "--bins", 4)
    code, data, _ = run(*command, "--scores", tmp_path / "large", "--out", tmp_path / "out")
    values = np.append(loss["small"][:490] - loss["large"][:490], [np.nan] * 10)
    assert (code, data["unscored"], data["columns"]) == (0, 10, {"learnability": "learnability"})
    assert data["edges"] == np.quantile(values[:490], [0.25, 0.5, 0.75]).tolist()
    assert bins_of(tmp_path / "out") == by_hand(small, values, data["edges"])
    grid = ("--by", "learnability,entropy_mean", "--grid", "2x2", "--scores", tmp_path / "large")
    code, data, _ = run(tmp_path / "small", *grid, "--out", tmp_path / "grid")
    assert (code, data["by"]) == (0, ["learnability", "entropy_mean"])
    assert main(["verify", str(tmp_path / "grid")]) == 0
    code, data, _ = run(*command, "--out", tmp_path / "alone")
    assert (code, "bits_per_byte_joined in " in data["error"], "--scores" in data["error"]) == (2, True, True)


def test_surprisal_minus_entropy_from_the_columns_of_a_run(run: Any, tmp_path: Path) -> None:
    """The positions that have both are all but the last: 2 tokens with entropies 1 and 5 have the one of 1."""
    columns = {"surprisal_mean": [3.0, None, 2.5], "entropy_sum": [6.0, 4.0, 5.0], "entropy_last": [5.0, 4.0, 1.0]}
    table = pa.table({"id": ["a", "b", "c"], "n_tokens": [2, 1, 3], **columns})
    write_files(tmp_path / "in", table, 1)
    code, data, err = run(
        tmp_path / "in", "--by", "surprisal_minus_entropy", "--bins", 2, "--order", "source", "--out", tmp_path / "out"
    )
    assert (code, data["edges"], data["unscored"]) == (0, [1.25], 1)
    assert bins_of(tmp_path / "out") == {"a": 1, "b": None, "c": 0}
    assert "no finite result" not in err  # b has no surprisal in the first place


def test_a_result_that_is_not_finite_is_no_score(run: Any, tmp_path: Path) -> None:
    table = corpus(tmp_path / "in", kind=[0.0, 1.0, 2.0, 4.0] * 125)
    code, data, err = run(tmp_path / "in", "--by", "1/kind", "--bins", 2, "--out", tmp_path / "out")
    assert (code, data["unscored"], data["edges"]) == (0, 125, [0.5])
    assert "125 rows have all columns of the expression, but no finite result" in err
    assert bins_of(tmp_path / "out") == by_hand(table, np.array([np.nan, 1.0, 0.5, 0.25] * 125), [0.5])


def test_a_column_with_the_name_of_a_result(run: Any, tmp_path: Path) -> None:
    corpus(tmp_path / "in", z_kind=[7] * 500, kind=[1, 2] * 250, **{"odd-name": range(500), "a-b": [2, 1] * 250})
    code, data, _ = run(tmp_path / "in", "--by", "z(kind)", "--bins", 2, "--out", tmp_path / "out")
    assert (code, data["columns"]) == (0, {"z(kind)": "z_kind_2"})
    code, data, _ = run(tmp_path / "in", "--by", "`odd-name`/2", "--bins", 2, "--out", tmp_path / "odd")
    assert (code, data["edges"], data["columns"]) == (0, [124.75], {"`odd-name`/2": "odd_name_over_2"})
    code, data, _ = run(tmp_path / "in", "--by", "a-b", "--bins", 2, "--out", tmp_path / "plain")  # a column it is
    assert (code, data["edges"], "columns" in data) == (0, [1.5], False)
