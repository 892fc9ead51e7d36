"""AUC, its bootstrap, cross-validation and calibration against brute force and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict, cross_val_score

from fluxentropy.prediction import auc_interval, bootstrap_auc, calibrate, cross_validate, roc_auc, shares


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
