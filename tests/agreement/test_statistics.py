"""Agreement against SciPy, pandas and scikit-learn, brute force over drawn texts, and the published table."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from scoredruns import write_run
from sklearn.decomposition import PCA
from sklearn.metrics.pairwise import nan_euclidean_distances

from fluxentropy.agreement.agree import read_scores
from fluxentropy.agreement.matrix import unusable
from fluxentropy.agreement.statistics import (
    FEWEST,
    Agreement,
    TextSample,
    agreement,
    consensus_scores,
    log10_p,
    measure_agreement,
    write_consensus,
)
from fluxentropy.errors import UsageError
from fluxentropy.ordering.sort import sort_scores

SHARED = Path(os.environ.get("FLUXENTROPY_SHARED", "../shared"))


def draw(n: int = 60, models: int = 5, seed: int = 0, *, decimals: int | None = None) -> np.ndarray:
    rng = np.random.default_rng(seed)
    scores = 3 + rng.normal(size=(n, 1)) + 0.7 * rng.normal(size=(n, models)) * np.arange(1, models + 1)
    return scores if decimals is None else scores.round(decimals)


def measure(scores: np.ndarray, **options: int) -> Agreement:
    return measure_agreement(scores, [f"m{i}" for i in range(scores.shape[1])], **{"replicates": 0, **options})


def statistics(scores: np.ndarray, *counts: np.ndarray) -> list[dict[str, np.ndarray]]:
    return TextSample(scores).statistics(np.stack([np.asarray(row, np.uint8) for row in counts]))


@pytest.mark.parametrize("decimals", [None, 0], ids=["no ties", "ties"])
def test_the_matrices_are_those_of_scipy_and_scikit_learn(decimals: int | None) -> None:
    scores = draw(decimals=decimals)
    found = measure(scores)
    assert found.spearman == pytest.approx(scipy.stats.spearmanr(scores).statistic)
    assert found.pearson == pytest.approx(np.corrcoef(scores.T))
    assert found.euclidean == pytest.approx(np.linalg.norm(scores.T[:, None] - scores.T[None], axis=2))
    z = scipy.stats.zscore(scores).T
    assert found.euclidean_z == pytest.approx(np.linalg.norm(z[:, None] - z[None], axis=2), abs=1e-6)
    friedman = scipy.stats.friedmanchisquare(*scores.T)  # ranks models within texts
    by_text = measure(scores.T)  # what we call models are its blocks
    assert by_text.kendall_chi2 == pytest.approx(friedman.statistic)
    assert by_text.kendall_p == pytest.approx(friedman.pvalue)
    assert by_text.kendall_w == pytest.approx(friedman.statistic / (len(scores) * (scores.shape[1] - 1)))


def test_pca_is_that_of_scikit_learn_with_models_as_rows() -> None:
    scores = draw(n=40, models=6)
    pca = PCA().fit(scores.T)
    found = measure(scores)
    assert found.explained_variance_ratio == pytest.approx(pca.explained_variance_ratio_[:5])
    assert np.abs(found.coordinates) == pytest.approx(np.abs(pca.transform(scores.T)[:, :5]), abs=1e-6)
    assert (found.coordinates[np.abs(found.coordinates).argmax(axis=0), range(5)] > 0).all()


def test_quintiles_are_fifths_of_the_texts_by_mean_rank() -> None:
    scores = draw(n=100)
    ranks = np.apply_along_axis(scipy.stats.rankdata, 0, scores)
    fifths = np.array_split(np.argsort(ranks.mean(axis=1), kind="stable"), 5)
    assert measure(scores).rank_sd_by_quintile == pytest.approx([ranks.std(axis=1)[rows].mean() for rows in fifths])


def test_missing_scores_are_left_out_pairwise_and_counted() -> None:
    scores = draw(n=50, models=4)
    scores[:7, 1] = np.nan
    scores[5:20, 2] = np.nan
    found = measure(scores)
    frame = pd.DataFrame(scores)
    assert found.spearman == pytest.approx(frame.corr("spearman").to_numpy())
    assert found.pearson == pytest.approx(frame.corr().to_numpy())
    assert found.euclidean == pytest.approx(nan_euclidean_distances(scores.T))
    assert found.n_scored.tolist() == [50, 43, 35, 50]
    assert found.pair_counts[1].tolist() == [43, 43, 30, 43]
    assert found.n_complete == 30
    whole = measure(scores[np.isfinite(scores).all(axis=1)])
    assert found.kendall_w == pytest.approx(whole.kendall_w)
    assert found.explained_variance_ratio == pytest.approx(whole.explained_variance_ratio)


@pytest.mark.parametrize("gaps", [False, True])
def test_a_weighted_sample_gives_the_statistics_of_the_texts_written_out(gaps: bool) -> None:
    scores = draw(n=30, models=4, decimals=1)
    if gaps:
        scores[:4, 1] = scores[3:9, 2] = np.nan
    weights = np.random.default_rng(3).integers(0, 4, 30)
    written = np.repeat(scores, weights, axis=0)
    (found,) = statistics(scores, weights)
    (expected,) = statistics(written, np.ones(len(written)))
    for name, value in expected.items():
        if name in ("coordinates", "euclidean", "euclidean_z"):  # these are scaled to the number of texts
            value = value * np.sqrt(len(scores) / len(written))
        if name == "rank_sd_by_quintile":  # a text on a border may be cut at another copy of itself
            assert found[name] == pytest.approx(value, rel=0.05)
        else:
            assert found[name] == pytest.approx(value, abs=1e-9), name


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 4), st.integers(5, 40), st.sampled_from([0, 1, 8]), st.booleans(), st.integers(0, 10**6))
def test_every_replicate_of_a_block_has_the_numbers_of_its_texts_written_out(
    models: int, n: int, decimals: int, gaps: bool, seed: int
) -> None:
    """SciPy, pandas and NumPy on the drawn texts, with ties, repeated texts and missing scores; in both word sizes."""
    rng = np.random.default_rng(seed)
    scores = draw(n, models, seed, decimals=decimals)
    if gaps:
        scores[rng.random(scores.shape) < 0.2] = np.nan
    drawn = rng.integers(0, n, (9, n))
    counts = [np.bincount(rows, minlength=n) for rows in drawn]
    narrow = statistics(scores, *counts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fluxentropy.agreement.statistics.NARROW", 0)
        patch.setattr("fluxentropy.agreement.statistics.PART", 7)
        wide = statistics(scores, *counts)
    for rows, found, again in zip(drawn, narrow, wide, strict=True):
        for name in found:
            assert again[name] == pytest.approx(found[name], rel=1e-9, abs=1e-6, nan_ok=True), name
        sample = pd.DataFrame(scores[rows])
        whole = sample.dropna().to_numpy()
        pairs = [(i, j) for i in range(models) for j in range(models) if i != j and len(sample[[i, j]].dropna())]
        for i, j in pairs:
            x, y = sample[[i, j]].dropna().to_numpy().T
            assert found["euclidean"][i, j] == pytest.approx(np.linalg.norm(x - y) * np.sqrt(n / len(x)))
            if np.ptp(x) > 0 and np.ptp(y) > 0:
                assert found["spearman"][i, j] == pytest.approx(np.corrcoef(scipy.stats.rankdata([x, y], axis=1))[0, 1])
                assert found["pearson"][i, j] == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-6)
        if len(whole) and (np.ptp(whole, axis=0) > 0).any():
            ranks = scipy.stats.rankdata(whole, axis=0)
            most = sum(((column - column.mean()) ** 2).sum() for column in ranks.T) * models
            assert found["kendall_w"] == pytest.approx(
                ((ranks.sum(axis=1) - ranks.sum(axis=1).mean()) ** 2).sum() / most
            )


def by_quintile(scores: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The spread of ranks by sorting: every copy of a text a piece of length 1 on the axis that is cut in fifths."""
    written = np.repeat(np.arange(len(scores)), counts)
    ranks = scipy.stats.rankdata(scores[written], axis=0)
    order = np.lexsort((written, ranks.mean(axis=1)))
    spread, n = ranks.std(axis=1)[order], len(written)
    ends = [np.clip(np.linspace(0, n, 6)[place : place + 2, None] - np.arange(n), 0, 1) for place in range(5)]
    return np.array([(high - low) @ spread / (n / 5) for low, high in ends])


@pytest.mark.parametrize(("n", "decimals"), [(7, 8), (53, 0), (400, 1), (3000, 8)])
def test_quintiles_of_a_replicate_are_those_of_its_texts_sorted(n: int, decimals: int) -> None:
    scores = draw(n, 3, seed=n, decimals=decimals)
    counts = [np.bincount(rows, minlength=n) for rows in np.random.default_rng(n).integers(0, n, (5, n))]
    for times, found in zip(counts, statistics(scores, *counts), strict=True):
        assert found["rank_sd_by_quintile"] == pytest.approx(by_quintile(scores, times), rel=1e-12)


def test_the_lanes_of_a_word_do_not_spill_into_each_other() -> None:
    """A block of which one sample holds the lowest texts only, and the next the highest only."""
    n = 4000
    scores = np.random.default_rng(0).permutation(n)[:, None] + np.array([0.0, 0.25]) * np.arange(n)[:, None]
    order = np.argsort(scores[:, 0])
    counts = np.zeros((4, n), np.uint8)
    counts[0, order[: n // 2]] = counts[1, order[n // 2 :]] = 2
    counts[2, order[::2]], counts[3] = 2, 1
    for times, found in zip(counts, statistics(scores, *counts), strict=True):
        written = np.repeat(scores, times, axis=0)
        assert found["spearman"][0, 1] == pytest.approx(scipy.stats.spearmanr(written).statistic, rel=1e-12)


@pytest.mark.slow
def test_intervals_cover_the_truth_of_a_known_distribution() -> None:
    rho, covered, trials = 0.6, 0, 60
    truth = 6 / np.pi * np.arcsin(rho / 2)  # Spearman's of a bivariate normal
    for seed in range(trials):
        scores = np.random.default_rng(seed).multivariate_normal([0, 0], [[1, rho], [rho, 1]], 120)
        low, high = measure(scores, replicates=200, seed=seed).intervals["spearman"][0, 1]
        covered += low <= truth <= high
    assert scipy.stats.binomtest(covered, trials, 0.95).pvalue > 0.001


def test_the_bootstrap_depends_on_its_seed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = draw()
    first = measure(scores, replicates=50, seed=1).intervals
    monkeypatch.setattr("fluxentropy.agreement.statistics.THREADS", 1)
    again, other = measure(scores, replicates=50, seed=1).intervals, measure(scores, replicates=50, seed=2).intervals
    assert all(np.array_equal(first[name], again[name], equal_nan=True) for name in first)
    assert not np.array_equal(first["kendall_w"], other["kendall_w"])


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 5), st.integers(5, 8), st.integers(0, 100))
def test_small_and_gappy_tables_give_numbers_or_nan_and_never_fail(models: int, n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 3, (n + 5, models)).astype(float)
    scores[5:][rng.random((n, models)) < 0.3] = np.nan
    scores[0], scores[1] = 0, 1
    found = measure(scores, replicates=20)
    assert 0 <= found.kendall_w <= 1 + 1e-9
    assert np.isfinite(found.euclidean).all()
    assert set(found.order) == set(range(models))
    for name, limits in found.intervals.items():
        low, high = limits[..., 0], limits[..., 1]
        assert (np.isnan(low) | (low <= high)).all(), name


def test_p_values_below_every_float_keep_their_magnitude() -> None:
    assert log10_p(800.0, 150) == pytest.approx(scipy.stats.chi2.logsf(800.0, 150) / np.log(10))
    # from the continued fraction of the incomplete gamma function with 30 digits
    assert log10_p(3_000_000.0, 1_000_000) == pytest.approx(-195_737.404, abs=0.3)
    assert log10_p(5_000_000.0, 999_999) == pytest.approx(-519_108.162, abs=0.3)


def test_two_models_have_one_component() -> None:
    found = measure(draw(models=2))
    assert found.explained_variance_ratio.tolist() == [1.0, 0.0]
    assert found.coordinates.shape == (2, 2)
    assert abs(found.coordinates[0, 0] - found.coordinates[1, 0]) == pytest.approx(found.euclidean[0, 1])


def test_identical_models_agree_wholly() -> None:
    scores = np.repeat(draw(models=1), 3, axis=1)
    found = measure(scores, replicates=20)
    assert found.kendall_w == pytest.approx(1)
    assert (found.euclidean == 0).all()
    assert found.rank_sd_by_quintile.tolist() == [0] * 5


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (draw(models=1), "two models or more, here is m0"),
        (draw(n=2), "only 2 of 2 texts are scored by all 5 models: agreement needs 5 or more"),
        (np.c_[draw(models=2), np.full(60, 1.5)], "'m2' has the same score, 1.5, for all 60 texts.*--models m0,m1"),
        (np.c_[draw(models=2), np.full(60, np.nan)], "'m2' has not scored a single text"),
    ],
)
def test_what_cannot_be_compared_is_refused_by_name(scores: np.ndarray, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        measure(scores)


def test_unusable_names_every_column_without_an_order() -> None:
    scores = np.array([[1.0, 2.0, np.nan], [1.0, 3.0, np.nan]])
    assert list(unusable(scores, ["a", "b", "c"])) == ["a", "c"]


def test_scores_in_memory_of_every_kind_give_the_numbers_of_scipy() -> None:
    scores = draw(n=30, models=3)
    scores[4, 1] = np.nan
    names = ["a", "b", "<c>"]
    columns = dict(zip(names, scores.T, strict=True))
    whole = scores[np.isfinite(scores).all(axis=1)]
    chi2 = scipy.stats.friedmanchisquare(*whole).statistic  # of the models, which rank the texts
    table = pa.table({name: pa.array(column, from_pandas=True) for name, column in columns.items()})
    for matrix in (columns, pd.DataFrame(columns), table):
        found = agreement(matrix, replicates=0)
        assert found.models == tuple(names) and found.n_texts == 30 and found.intervals == {}
        assert found.spearman == pytest.approx(scipy.stats.spearmanr(scores, nan_policy="omit").statistic)
        assert found.kendall_w == pytest.approx(chi2 / (3 * 28))
        assert found.euclidean == pytest.approx(nan_euclidean_distances(scores.T))
    named = agreement(scores.T, names, replicates=20, seed=3)
    again = measure_agreement(scores, names, replicates=20, seed=3)
    assert np.array_equal(named.intervals["spearman"], again.intervals["spearman"])
    assert agreement(scores.T, replicates=0).models == ("model 0", "model 1", "model 2")
    assert list(named.pca["coordinates"]) == names
    page = ElementTree.fromstring(f"<div>{named._repr_html_()}</div>")
    head, *rows = ([cell.text for cell in row] for row in page.iter("tr"))
    assert head == ["Spearman", *names] and [row[0] for row in rows] == names
    assert np.array([row[1:] for row in rows], float) == pytest.approx(named.spearman, abs=5e-4)
    assert f"Kendall's W {named.kendall_w:.3f} [" in (page[0].text or "")


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.zeros(3), r"an array of shape \(3,\) is no matrix of scores: give one of \(models, texts\)"),
        ({"a": [1.0, 2.0], "b": [1.0]}, "b has 1 scores and a 2: give one for each text"),
        ({"a": [1.0, 2.0], "text": ["x", "y"]}, "scores of text are no numbers .*: leave this column out"),
        ({"a": [[1.0], [2.0]]}, "scores of a have the shape .*: give a number for each text"),
        ({}, "two models or more, here is none"),
        (pa.table({"a": [1.0, 2.0]}), "two models or more, here is a"),
    ],
)
def test_what_is_no_matrix_is_refused(matrix: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        agreement(matrix)
    with pytest.raises(UsageError, match="models x: the array has 2 rows, name each of them once"):
        agreement(np.ones((2, 9)), ["x"])


@pytest.mark.shared_data
@pytest.mark.skipif(not SHARED.is_dir(), reason="no shared data: set FLUXENTROPY_SHARED")
def test_the_published_table() -> None:
    with open(SHARED / "data" / "zoo" / "published_entropies.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    columns = [name for name in rows[0] if name.endswith("_Characteristic_Value")]
    found = measure_agreement(np.array([[float(row[name]) for name in columns] for row in rows]), columns)
    small, large = (
        next(i for i, name in enumerate(columns) if part in name) for part in ("SmolLM2-135M", "Qwen2.5-3B")
    )
    assert found.explained_variance_ratio[:2] == pytest.approx([0.905, 0.032], abs=5e-4)
    assert found.kendall_w == pytest.approx(0.799, abs=5e-4)
    assert found.mean_spearman == pytest.approx(0.770, abs=5e-4)
    assert found.euclidean[small, large] == pytest.approx(15.13, abs=5e-3)
    assert found.rank_sd_by_quintile == pytest.approx([14.0, 20.0, 24.3, 17.8, 7.7], abs=0.05)
    low, high = found.intervals["kendall_w"]
    assert low < 0.799 < high


def test_few_texts_have_no_bootstrap_intervals() -> None:
    """Percentiles of resamples of 7 texts cover less than they say, as those of few seeds."""
    scores = np.random.default_rng(0).normal(size=(FEWEST, 2))
    assert measure(scores, replicates=20).intervals and measure(scores, replicates=20).replicates == 20
    few = measure(scores[:-1], replicates=20)
    assert few.intervals == {} and few.replicates == 0 and np.isfinite(few.mean_spearman)


# --- The consensus order against its definition, and as a run that `sort` reads ---


def test_consensus_scores_are_mean_ranks_and_the_first_component_of_standardised_scores() -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(80, 1)) + rng.normal(size=(80, 4))
    scores[7, 2] = np.nan
    whole = np.delete(scores, 7, axis=0)
    found, share = consensus_scores(scores)
    ranks = np.apply_along_axis(scipy.stats.rankdata, 0, whole)
    pca = PCA().fit(scipy.stats.zscore(whole))
    component = pca.transform(scipy.stats.zscore(whole))[:, 0]
    component *= np.sign(np.corrcoef(component, whole.mean(axis=1))[0, 1])
    assert np.delete(found["mean_rank"], 7) == pytest.approx(ranks.mean(axis=1))
    assert np.delete(found["rank_sd"], 7) == pytest.approx(ranks.std(axis=1))
    assert np.delete(found["pc1"], 7) == pytest.approx(component)
    assert share == pytest.approx(pca.explained_variance_ratio_[0])
    assert all(np.isnan(found[name][7]) for name in ("mean_rank", "rank_sd", "pc1"))
    assert found["n_models"].tolist() == [4] * 7 + [3] + [4] * 72


def test_the_written_consensus_can_be_sorted_and_keeps_every_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fluxentropy.agreement.statistics.ROWS", 3)
    one = write_run(tmp_path / "one", [5.0, 4.0, None, 2.0, 1.0, 0.5, 6.0])
    two = write_run(tmp_path / "two", [50.0, 41.0, 30.0, 20.0, 10.0, 9.0, 60.0], part_rows=2)
    write_consensus(read_scores([str(one), str(two)]), tmp_path / "consensus", {"inputs": {}})
    assert len(list((tmp_path / "consensus" / "scores").glob("part-*.parquet"))) > 1
    sort_scores(str(tmp_path / "consensus"), tmp_path / "sorted.parquet", by="mean_rank")
    rows = pq.read_table(tmp_path / "sorted.parquet").to_pylist()
    assert [row["id"] for row in rows] == ["id-5", "id-4", "id-3", "id-1", "id-0", "id-6", "id-2"]
    assert [row["mean_rank"] for row in rows] == [1, 2, 3, 4, 5, 6, None]
    assert [row["status"] for row in rows] == ["ok"] * 6 + ["incomplete"]
    assert rows[0]["text"] == "text of id-5"
    assert rows[0]["n_tokens"] == 7
    assert "entropy_mean" not in rows[0]
