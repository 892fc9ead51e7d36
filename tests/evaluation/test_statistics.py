"""Group comparison, association, power and correction against textbook formulas, simulation and other libraries."""

from __future__ import annotations

import itertools

import mpmath
import numpy as np
import pytest
from scipy import stats
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict, cross_val_score

from fluxentropy.evaluation.statistics import (
    anova,
    auc_interval,
    bootstrap_auc,
    calibrate,
    correlations,
    cross_validate,
    detectable,
    holm,
    point_biserial,
    power_at,
    quartile_test,
    roc_auc,
    rows_needed,
    shares,
)


@pytest.fixture
def data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.gamma(3, size=500)
    return rng.random(500) < expit(0.5 - 0.2 * x), x


def test_anova_is_the_squared_t_test(data: tuple[np.ndarray, np.ndarray]) -> None:
    y, x = data
    found, t = anova(y, x), stats.ttest_ind(x[y], x[~y])
    assert found is not None
    assert (found.F, found.p) == pytest.approx((t.statistic**2, t.pvalue))
    between = sum(len(part) * (part.mean() - x.mean()) ** 2 for part in (x[y], x[~y]))
    assert found.eta_squared == pytest.approx(between / np.sum((x - x.mean()) ** 2))


def test_point_biserial_has_the_p_of_the_anova(data: tuple[np.ndarray, np.ndarray]) -> None:
    y, x = data
    found, groups = point_biserial(y, x), anova(y, x)
    assert found is not None and groups is not None
    p, q, n = y.mean(), 1 - y.mean(), len(y)
    assert found.r == pytest.approx((x[y].mean() - x[~y].mean()) / x.std() * np.sqrt(p * q))
    assert found.p == pytest.approx(groups.p)
    assert found.r**2 == pytest.approx(groups.eta_squared)
    assert (found.low, found.high) == pytest.approx(
        np.tanh(np.arctanh(found.r) + np.array([-1, 1]) * 1.959964 / np.sqrt(n - 3))
    )


@pytest.mark.parametrize(("shift", "scale"), [(1e8, 1.0), (-1e12, 1.0), (0.0, 1e-8), (0.0, 1e-170), (1e4, 1e-6)])
def test_neither_unit_nor_zero_of_a_metric_matter(
    data: tuple[np.ndarray, np.ndarray], shift: float, scale: float
) -> None:
    """F, and Pearson's r with another column, of the numbers as they are stored, in 60 digits."""
    y, x = data[0][:100], shift + scale * data[1][:100]
    other = np.sqrt(data[1][:100])
    with mpmath.workdps(60):
        X = [mpmath.mpf(float(value)) for value in x]
        groups = [[value for value, side in zip(X, y, strict=True) if side == which] for which in (False, True)]
        means, whole = [mpmath.fsum(group) / len(group) for group in groups], mpmath.fsum(X) / len(X)
        between = mpmath.fsum(len(group) * (mean - whole) ** 2 for group, mean in zip(groups, means, strict=True))
        within = mpmath.fsum((v - mean) ** 2 for group, mean in zip(groups, means, strict=True) for v in group)
        ratio = float(between / within * (len(X) - 2))
        Y = [mpmath.mpf(float(value)) for value in other]
        centre = mpmath.fsum(Y) / len(Y)
        cross = mpmath.fsum((v - whole) * (o - centre) for v, o in zip(X, Y, strict=True))
        sizes = mpmath.fsum((v - whole) ** 2 for v in X) * mpmath.fsum((o - centre) ** 2 for o in Y)
        r = float(cross / mpmath.sqrt(sizes))
    found, biserial = anova(y, x), point_biserial(y, x)
    assert found is not None and biserial is not None
    assert abs(found.F / ratio - 1) < 1e-10
    assert biserial.p == pytest.approx(found.p, rel=1e-9) and biserial.r**2 == pytest.approx(found.eta_squared)
    assert correlations({"x": x, "other": other})[0][0, 1] == pytest.approx(r, rel=1e-10)


def test_what_is_constant_up_to_rounding_has_no_effect() -> None:
    y = np.arange(30) % 3 == 0
    x = np.where(y, 0.3, 0.1 + 0.2)
    assert point_biserial(y, x) is None and anova(y, x) is None
    assert np.isnan(correlations({"x": x, "y": y})[0][0]).all()


def test_quartiles(data: tuple[np.ndarray, np.ndarray]) -> None:
    y, x = data
    found = quartile_test(y, x)
    assert found is not None and found.table.sum(axis=0).tolist() == [125] * 4
    order = np.argsort(x)
    assert found.table[1].tolist() == [int(y[part].sum()) for part in np.split(order, 4)]
    expected = np.outer([np.sum(~y), np.sum(y)], [0.25] * 4)
    statistic = np.sum((found.table - expected) ** 2 / expected)
    assert (found.statistic, found.dof, found.least_expected) == pytest.approx((statistic, 3, expected.min()))
    assert found.p == pytest.approx(stats.chi2.sf(statistic, 3))
    assert found.cramers_v == pytest.approx(np.sqrt(statistic / 500))


def test_ties_leave_fewer_bins() -> None:
    y = np.array([True, False, True, False, False, True, True, False])
    found = quartile_test(y, np.array([0, 0, 0, 0, 0, 0, 1, 2.0]))
    assert found is not None and found.edges == [0.25] and found.dof == 1
    assert found.table.sum(axis=0).tolist() == [6, 2]
    assert quartile_test(y, np.ones(8)) is None
    assert anova(y, np.ones(8)) is None and point_biserial(y, np.ones(8)) is None


def test_correlation_matrices(data: tuple[np.ndarray, np.ndarray]) -> None:
    y, x = data
    pearson, spearman = correlations({"x": x, "square": x**2, "flat": np.ones(500), "y": y})
    kept = [0, 1, 3]
    np.testing.assert_allclose(pearson[np.ix_(kept, kept)], np.corrcoef([x, x**2, y]))
    np.testing.assert_allclose(spearman[0, 3], stats.spearmanr(x, y).statistic)
    assert spearman[0, 1] == pytest.approx(1)
    assert np.isnan(pearson[2]).all() and np.isnan(spearman[:, 2]).all()


@pytest.mark.parametrize(("rate", "effect"), [(0.5, 0.25), (0.2, 0.4)])
def test_power_is_that_of_simulated_studies(rate: float, effect: float) -> None:
    n = round(rows_needed(effect, rate))
    rng = np.random.default_rng(1)
    shift = np.log(rate / (1 - rate))
    x = rng.normal(size=(2000, n))
    y = rng.random((2000, n)) < expit(shift + effect * x)
    r = np.einsum("ij,ij->i", x - x.mean(axis=1, keepdims=True), y) / (n * x.std(axis=1) * y.std(axis=1))
    found = np.mean(np.abs(r) * np.sqrt(n) > stats.norm.ppf(0.975))  # the score test of the slope
    assert found == pytest.approx(0.8, abs=0.04)
    assert power_at(effect, rate, n) == pytest.approx(0.8, abs=0.005)
    assert detectable(rate, n) == pytest.approx(effect, rel=0.01)


def test_power_at_the_ends() -> None:
    assert power_at(0.0, 0.5, 100) == pytest.approx(0.05)
    assert rows_needed(0.0, 0.5) == np.inf
    assert rows_needed(0.1, 0.5, inflation=3.0) == pytest.approx(3 * rows_needed(-0.1, 0.5))
    assert power_at(0.1, 0.5, 3000, inflation=3.0) == pytest.approx(power_at(0.1, 0.5, 1000))


def test_holm_rejects_what_every_bonferroni_test_of_a_subset_rejects() -> None:
    """Holm's procedure is the closed one of Bonferroni's tests, enumerated here over all subsets."""
    p = np.append(np.random.default_rng(2).random(7) ** 3, [0.01, 0.01, np.nan])
    tested = np.flatnonzero(np.isfinite(p))
    subsets = [subset for size in range(1, 10) for subset in itertools.combinations(tested, size)]
    expected = [max(min(1, len(s) * p[list(s)].min()) for s in subsets if i in s) for i in tested]
    np.testing.assert_allclose(holm(p.tolist()), [*expected, np.nan])
    assert np.isnan(holm([np.nan, np.nan])).all()
    assert holm([]).tolist() == [] and holm([0.4]).tolist() == [0.4] and holm([0.9, 0.8]).tolist() == [1, 1]


# --- AUC, its bootstrap, cross-validation and calibration against brute force and scikit-learn ---


def sample(n: int, seed: int, slope: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n)
    return rng.random(n) < expit(slope * x - 0.4), x


@pytest.mark.parametrize("digits", [0, 1, 9])
def test_auc_counts_pairs(digits: int) -> None:
    y, x = sample(120, 0)
    score = x.round(digits)
    pairs = score[y][:, None] - score[~y]
    assert roc_auc(y, score) == pytest.approx(np.mean((pairs > 0) + 0.5 * (pairs == 0)))
    assert roc_auc(y, score) == pytest.approx(roc_auc_score(y, score))


def test_bootstrap_spreads_as_delong_says() -> None:
    y, x = sample(400, 1)
    score = x.round(1)
    drawn = bootstrap_auc(y, score, rng=np.random.default_rng(0), replicates=4000)
    wins = (score[y][:, None] > score[~y]) + 0.5 * (score[y][:, None] == score[~y])
    variance = wins.mean(axis=1).var(ddof=1) / y.sum() + wins.mean(axis=0).var(ddof=1) / (~y).sum()
    assert drawn.std() == pytest.approx(np.sqrt(variance), rel=0.05)
    assert drawn.mean() == pytest.approx(roc_auc(y, score), abs=4 * np.sqrt(variance / 4000))


def test_a_bootstrap_sample_is_an_auc_of_drawn_rows() -> None:
    y, score = np.array([True, False, True, False, False]), np.array([3.0, 1.0, 1.0, 2.0, 3.0])
    drawn = bootstrap_auc(y, score, rng=np.random.default_rng(0), replicates=200)
    rng = np.random.default_rng(0)
    for found in drawn:
        plus = np.sort(score[y])[rng.integers(2, size=2, dtype=np.int32)]
        minus = np.sort(score[~y])[rng.integers(3, size=3, dtype=np.int32)]
        again = roc_auc_score([1, 1, 0, 0, 0], [*plus, *minus])
        assert found == pytest.approx(again)


def test_bootstrap_interval_covers_the_true_auc() -> None:
    truth = stats.norm.cdf(0.8 / np.sqrt(2))  # of two normals, 0.8 standard deviations apart
    rng = np.random.default_rng(2)
    hits = 0
    for _ in range(150):
        y = np.arange(150) < 60
        drawn = bootstrap_auc(y, rng.normal(size=150) + 0.8 * y, rng=rng, replicates=300)
        low, high = np.quantile(drawn, [0.025, 0.975])
        hits += low <= truth <= high
    assert stats.binom.ppf(0.0005, 150, 0.95) <= hits <= 150


@pytest.mark.parametrize(
    ("rows", "shift"), [(200, (0.0, 0.0)), (300, (0.15, 0.1)), (120, (0.6, 0.0)), (60, (0.9, 0.0))]
)
def test_interval_of_a_fitted_pair_covers_its_auc_on_new_rows(rows: int, shift: tuple[float, float]) -> None:
    """Two normals with a correlation of 0.8 in both classes, so the AUC of a direction is known; fitted by Fisher's.

    The SD is DeLong's, which is that of the bootstrap.
    """
    rng, runs = np.random.default_rng(8), 800
    cov, d = np.array([[1, 0.8], [0.8, 1]]), np.array(shift)
    root = np.linalg.cholesky(cov)
    y = np.arange(rows) % 2 == 0
    hits = np.zeros(2)
    for _ in range(runs):
        x = rng.normal(size=(rows, 2)) @ root.T + d * y[:, None]
        within = np.cov(x[y], rowvar=False) + np.cov(x[~y], rowvar=False)
        w = np.linalg.solve(within, x[y].mean(axis=0) - x[~y].mean(axis=0))
        truth = stats.norm.cdf(w @ d / np.sqrt(2 * w @ cov @ w))
        wins = (x[y] @ w)[:, None] > x[~y] @ w
        auc = float(wins.mean())
        sd = np.sqrt(2 / rows * (wins.mean(axis=1).var(ddof=1) + wins.mean(axis=0).var(ddof=1)))
        low, high = auc_interval(auc, sd, 2)
        hits += [low <= truth <= high, abs(auc - truth) < 1.96 * sd]
    corrected, plain = hits / runs
    assert 0.92 <= corrected <= 0.97
    if not d.any():
        assert plain < 0.88


def test_a_single_metric_has_no_optimism() -> None:
    low, high = auc_interval(0.6, 0.02, 1)
    assert (low, high) == pytest.approx((0.5602, 0.6385), abs=2e-4)  # 0.6 ± 1.96 · 0.02, on the scale of log odds
    assert auc_interval(0.5, 0.02, 2) == pytest.approx((0.4608, 0.5392), abs=2e-4)


def test_cross_validation_is_that_of_scikit_learn() -> None:
    y, x = sample(300, 3)
    columns = np.column_stack([x, np.random.default_rng(4).normal(size=300)])
    found = cross_validate(y, columns, folds=5, seed=7)
    folds = StratifiedKFold(5, shuffle=True, random_state=7)
    model = LogisticRegression(C=np.inf, tol=1e-8)
    assert found is not None
    np.testing.assert_allclose(found.auc, cross_val_score(model, columns, y, cv=folds, scoring="roc_auc"), atol=1e-9)
    again = cross_val_predict(model, columns, y, cv=folds, method="predict_proba")[:, 1]
    np.testing.assert_allclose(found.probabilities, again, atol=1e-4)


def test_cross_validation_sees_through_a_fit_to_noise() -> None:
    rng = np.random.default_rng(5)
    y, noise = rng.random(100) < 0.5, rng.normal(size=(100, 20))
    inside = roc_auc(y, LogisticRegression(C=np.inf).fit(noise, y).decision_function(noise))
    found = cross_validate(y, noise, folds=10, seed=0)
    assert found is not None and inside > 0.7 and abs(found.auc.mean() - 0.5) < 0.15


def test_fewer_rows_of_a_class_than_folds() -> None:
    x = np.arange(12.0)[:, None]
    found = cross_validate(np.arange(12) % 4 == 0, x, folds=10, seed=0)
    assert found is not None and len(found.auc) == 3
    assert cross_validate(np.arange(12) == 5, x, folds=10, seed=0) is None
    separated = cross_validate(np.arange(12) > 5, x, folds=3, seed=0)
    assert separated is not None and separated.auc.tolist() == [1, 1, 1]


def test_shares_cut_at_quantiles() -> None:
    y, x = sample(1000, 6)
    found = shares(y, x, 10)
    assert [share.n for share in found] == [100] * 10
    order = np.argsort(x)
    assert [share.true for share in found] == [int(y[order[k : k + 100]].sum()) for k in range(0, 1000, 100)]
    assert [share.at for share in found] == pytest.approx([x[order[k : k + 100]].mean() for k in range(0, 1000, 100)])
    p, z = found[0].rate, stats.norm.ppf(0.975)
    middle, half = (p + z**2 / 200) / (1 + z**2 / 100), z * np.sqrt(p * (1 - p) / 100 + z**2 / 40000) / (1 + z**2 / 100)
    assert (found[0].low, found[0].high) == pytest.approx((middle - half, middle + half))


def test_few_values_are_a_bin_each() -> None:
    y, x = np.arange(30) % 3 == 0, np.repeat([0.0, 1.0, 2.0], [27, 2, 1])
    assert [(share.at, share.n) for share in shares(y, x, 10)] == [(0, 27), (1, 2), (2, 1)]
    assert sum(share.n for share in shares(y, x, 2)) == 30


def test_calibration() -> None:
    rng = np.random.default_rng(7)
    p = rng.uniform(0.1, 0.9, 20_000)
    y = rng.random(20_000) < p
    good, bad = calibrate(y, p, 10), calibrate(y, np.clip(p + 0.2, 0, 1), 10)
    assert good.brier == pytest.approx(brier_score_loss(y, p))
    assert good.brier_base_rate == pytest.approx(brier_score_loss(y, np.full(20_000, y.mean())))
    assert good.expected_error < 0.02 and bad.expected_error == pytest.approx(0.19, abs=0.02)
    assert all(share.low < share.at < share.high for share in good.bins[::3])
