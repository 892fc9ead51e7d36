"""Logistic regression against other ways to the same numbers, its coverage, and data that no model fits."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Mapping

import mpmath
import numpy as np
import pytest
from scipy import stats
from scipy.optimize import minimize
from scipy.special import expit
from statsmodels.stats.outliers_influence import variance_inflation_factor

from fluxentropy.evaluation.logistic import fit_logit, likelihood_ratio, separates, variance_inflation

TRUTH = np.array([0.4, -0.7, 0.5])  # const, a, b


def sample(n: int, rng: np.random.Generator, correlation: float = 0.5) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    a, noise = rng.normal(size=(2, n))
    b = correlation * a + np.sqrt(1 - correlation**2) * noise
    y = rng.random(n) < expit(TRUTH[0] + TRUTH[1] * a + TRUTH[2] * b)
    return y, {"a": a, "b": b}


def design(metrics: Mapping[str, np.ndarray]) -> np.ndarray:
    columns = list(metrics.values())
    return np.column_stack([np.ones(len(columns[0])), *columns])


def test_against_the_likelihood_itself() -> None:
    y, metrics = sample(300, np.random.default_rng(0))
    X = design(metrics)

    def loss(beta: np.ndarray) -> float:
        eta = X @ beta
        return float(np.sum(np.logaddexp(0, eta)) - np.sum(eta[y]))

    best = minimize(loss, np.zeros(3), method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12, "maxiter": 5000})
    fit = fit_logit(y, metrics)
    assert fit.ok and fit.terms == ("const", "a", "b") and fit.n == 300
    np.testing.assert_allclose(fit.params, best.x, atol=1e-5)
    assert fit.llf == pytest.approx(-best.fun, abs=1e-8)
    rate = y.mean()
    assert fit.llnull == pytest.approx(300 * (rate * np.log(rate) + (1 - rate) * np.log(1 - rate)))
    p = expit(X @ best.x)
    bread = np.linalg.inv((X * (p * (1 - p))[:, None]).T @ X)
    meat = (X * (y - p)[:, None] ** 2).T @ X
    np.testing.assert_allclose(fit.cov, bread, rtol=1e-4)
    np.testing.assert_allclose(fit.cov_robust, bread @ meat @ bread, rtol=1e-4)
    np.testing.assert_allclose(fit.pvalues, 2 * stats.norm.sf(abs(best.x / np.sqrt(np.diag(bread)))), rtol=1e-3)
    assert fit.llr_pvalue == pytest.approx(stats.chi2.sf(2 * (fit.llf - fit.llnull), 2))
    assert fit.pseudo_r2 == pytest.approx(1 - fit.llf / fit.llnull)


def test_two_groups_have_the_odds_of_their_table() -> None:
    x = np.repeat([0.0, 1.0], [40, 60])
    y = np.concatenate([np.arange(40) < 10, np.arange(60) < 45])
    fit = fit_logit(y, {"x": x})
    assert np.exp(fit.params[1]) == pytest.approx((45 / 15) / (10 / 30))
    assert fit.bse[1] == pytest.approx(np.sqrt(1 / 10 + 1 / 30 + 1 / 45 + 1 / 15))
    np.testing.assert_allclose(fit.predict({"x": np.array([0.0, 1.0])}), [10 / 40, 45 / 60])
    ratio, low, high = fit.odds_ratios[0]
    assert ratio == pytest.approx(9 ** x.std(ddof=1))
    assert np.log([low, high]) == pytest.approx(
        (np.log(9) + np.array([-1.959964, 1.959964]) * fit.bse[1]) * x.std(ddof=1)
    )


@pytest.mark.parametrize(("scale", "shift"), [(1e-8, 0.0), (1e8, 0.0), (1.0, 1e4), (1e-4, 1.0)])
def test_units_do_not_matter(scale: float, shift: float) -> None:
    y, metrics = sample(400, np.random.default_rng(1))
    plain, scaled = fit_logit(y, metrics), fit_logit(y, {"a": shift + scale * metrics["a"], "b": metrics["b"]})
    assert scaled.ok
    np.testing.assert_allclose(scaled.params[1:] * [scale, 1], plain.params[1:], rtol=1e-4)
    np.testing.assert_allclose(scaled.bse[1:] * [scale, 1], plain.bse[1:], rtol=1e-4)
    np.testing.assert_allclose(scaled.odds_ratios, plain.odds_ratios, rtol=1e-4)


def in_eighty_digits(y: np.ndarray, X: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Coefficients, their standard errors and their robust ones, by Newton's method in 80 digits."""
    with mpmath.workdps(80):
        rows, b = mpmath.matrix(X.tolist()), mpmath.zeros(X.shape[1], 1)
        for step in range(60):
            eta = rows * b
            p = [1 / (1 + mpmath.exp(-eta[i])) for i in range(len(y))]
            weighted = mpmath.matrix([[p[i] * (1 - p[i]) * X[i, j] for j in range(X.shape[1])] for i in range(len(y))])
            bread = (rows.T * weighted) ** -1
            residuals = mpmath.matrix([int(y[i]) - p[i] for i in range(len(y))])
            change = bread * (rows.T * residuals)
            b += change
            if step and max(abs(change[j] / b[j]) for j in range(len(b))) < mpmath.mpf(10) ** -30:
                break
        scores = mpmath.matrix([[residuals[i] * X[i, j] for j in range(X.shape[1])] for i in range(len(y))])
        robust = bread * (scores.T * scores) * bread
        errors = [[float(mpmath.sqrt(cov[j, j])) for j in range(len(b))] for cov in (bread, robust)]
        return np.array([float(value) for value in b]), *map(np.array, errors)


@pytest.mark.parametrize(
    "columns",
    [
        {"a": lambda a, b: a},
        {"a": lambda a, b: 1e8 + a},
        {"a": lambda a, b: 1e-8 * a, "b": lambda a, b: 1e8 * b},
        {"a": lambda a, b: -1e8 + 3 * a, "b": lambda a, b: 1e4 + b},
        {"a": lambda a, b: a, "b": lambda a, b: a + 1e-4 * b},  # nearly collinear
        {"a": lambda a, b: 1e6 + a, "b": lambda a, b: 1e6 + a + 1e-2 * b},
        {"a": lambda a, b: 1e-20 * a},
    ],
)
def test_metrics_far_from_zero_tiny_or_nearly_collinear(columns: dict[str, Callable[..., np.ndarray]]) -> None:
    """Against 80 digits: 8 of ours, where statsmodels on the metrics as they are has none left."""
    rng = np.random.default_rng(12)
    a, b = rng.normal(size=(2, 40))
    y = rng.random(40) < expit(0.5 * a - 0.3 * b)
    metrics = {name: column(a, b) for name, column in columns.items()}
    fit = fit_logit(y, metrics)
    params, errors, robust = in_eighty_digits(y, design(metrics))
    assert fit.ok
    np.testing.assert_allclose(fit.params, params, rtol=1e-8)
    np.testing.assert_allclose(fit.bse, errors, rtol=1e-8)
    np.testing.assert_allclose(fit.bse_robust, robust, rtol=1e-8)
    np.testing.assert_allclose(fit.pvalues, 2 * stats.norm.sf(abs(params / errors)), rtol=1e-6)
    low, high = fit.band(metrics)
    assert ((low < fit.predict(metrics)) & (fit.predict(metrics) < high)).all()
    if len(metrics) == 1:  # what is printed is what was found
        printed = next(line for line in fit.summary.splitlines() if line.startswith("a  ")).split()
        assert float(printed[1]) == pytest.approx(params[1], rel=1e-3, abs=1e-4)
        assert float(printed[4]) == pytest.approx(fit.pvalues[1], abs=5e-4)


def test_a_metric_that_varies_by_its_rounding_is_constant() -> None:
    y = np.arange(20) % 3 == 0
    fit = fit_logit(y, {"x": np.where(y, 0.3, 0.1 + 0.2)})
    assert fit.status == "constant" and "0.3 up to rounding in every row" in fit.message


def test_one_row_apart_is_a_separation_beside_another_metric_too() -> None:
    """The coefficient of a metric that is 1 in one row alone is infinite, however small per standard deviation."""
    rng = np.random.default_rng(13)
    y = rng.random(3000) < 0.5
    alone = (np.arange(3000) == np.flatnonzero(y)[0]).astype(float)
    assert fit_logit(y, {"a": rng.normal(size=3000), "alone": alone}).status == "separated"


def test_intervals_and_band_cover_the_truth() -> None:
    runs, n = 250, 400
    rng = np.random.default_rng(2)
    points = {"a": np.array([-2.0, 0.0, 1.0]), "b": np.array([0.0, 1.0, -1.0])}
    curve = expit(design(points) @ TRUTH)
    covered = np.zeros((3, 3))  # plain intervals, robust intervals, the band at three points
    for _ in range(runs):
        y, metrics = sample(n, rng)
        fit = fit_logit(y, metrics)
        band = fit.band(points)
        covered[:2] += np.abs(fit.params - TRUTH) <= stats.norm.ppf(0.975) * np.stack([fit.bse, fit.bse_robust])
        covered[2] += (band[0] <= curve) & (curve <= band[1])
    low, high = stats.binom.ppf([0.0005, 0.9995], runs, 0.95)
    assert (covered >= low).all() and (covered <= high).all(), covered / runs


def test_p_values_are_uniform_where_there_is_no_effect() -> None:
    rng = np.random.default_rng(3)
    fits = [fit_logit(rng.random(300) < 0.4, {"x": rng.exponential(size=300)}) for _ in range(150)]
    assert stats.kstest([fit.llr_pvalue for fit in fits], "uniform").pvalue > 0.001
    assert stats.kstest([fit.pvalues[1] for fit in fits], "uniform").pvalue > 0.001


def test_robust_errors_hold_where_the_curve_is_wrong() -> None:
    rng = np.random.default_rng(4)
    found = []
    for _ in range(150):
        x = rng.normal(size=400)
        truth = np.where(x > 2, 0.05, np.where(x > -0.5, 0.95, 0.05))  # up, and down again
        fit = fit_logit(rng.random(400) < truth, {"x": x})
        found.append([fit.params[1], fit.bse[1], fit.bse_robust[1]])
    slopes, plain, robust = np.array(found).T
    assert robust.mean() == pytest.approx(slopes.std(), rel=0.15)
    assert plain.mean() < 0.7 * slopes.std()


# --- data without a fit -----------------------------------------------------------------------------------------------

X = np.arange(20.0)
NOISE = np.random.default_rng(6).normal(size=20)
ODD = X % 2 == 1


@pytest.mark.parametrize(
    ("y", "metrics", "status", "message"),
    [
        (X > 9, {"x": X}, "separated", "x separates the two outcomes"),
        (X < 9, {"x": X}, "separated", "x separates"),
        (X > 9, {"x": np.maximum(X, 9.0)}, "separated", "up to ties"),
        (X > 9, {"x": X, "noise": NOISE}, "separated", "x and noise together separate"),
        (X + 50 * NOISE > 9, {"x": X, "noise": NOISE}, "separated", "x and noise together separate the two"),
        ((X >= 10) & ODD, {"half": (X >= 10) * 1.0, "noise": NOISE}, "separated", "infinite"),
        (ODD, {"x": X, "twice": 2 * X + 1}, "singular", "x and twice determine each other exactly: drop one"),
        (ODD, {"x": X, "flat": np.full(20, 3.5)}, "constant", "flat is 3.5 in every row"),
        (ODD, {"flat": np.zeros(20)}, "constant", "flat is 0 in every row, so it predicts nothing"),
        (
            ODD[:3],
            {"x": X[:3], "noise": NOISE[:3]},
            "too_few_rows",
            "3 rows cannot settle 3 parameters: give at least 4",
        ),
        (ODD[:2], {"x": X[:2]}, "too_few_rows", "give at least 3"),
    ],
)
def test_what_cannot_be_fitted_says_why(
    y: np.ndarray, metrics: dict[str, np.ndarray], status: str, message: str
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit = fit_logit(y, metrics)
        assert (fit.status, fit.ok) == (status, False)
        assert message in fit.message and message in fit.summary
        for values in (fit.params, fit.bse, fit.pvalues, fit.bse_robust, fit.odds_ratios, [fit.llf, fit.pseudo_r2]):
            assert np.isnan(values).all()


def test_a_steep_slope_is_no_separation() -> None:
    x = np.concatenate([np.linspace(-1, 1, 400), [0.02, -0.02]])
    y = np.concatenate([np.linspace(-1, 1, 400) > 0, [False, True]])
    fit = fit_logit(y, {"x": x, "noise": np.random.default_rng(7).normal(size=402)})
    assert fit.ok and fit.params[1] * x.std() > 50


def test_separation_of_points_by_a_line_against_all_lines() -> None:
    rng = np.random.default_rng(8)
    seen = set()
    for _ in range(150):
        x, y = rng.integers(0, 4, size=(7, 2)).astype(float), rng.random(7) < 0.5
        if y.all() or not y.any() or np.linalg.matrix_rank(np.column_stack([np.ones(7), x])) < 3:
            continue
        seen.add(separates(y, x))
        assert separates(y, x) == any(
            _one_side(y, x, first, second) for first, second in itertools.combinations(np.unique(x, axis=0), 2)
        )
    assert seen == {False, True}


def _one_side(y: np.ndarray, x: np.ndarray, first: np.ndarray, second: np.ndarray) -> bool:
    """Whether the line through two points has one class on or left of it, the other on or right of it, or nearly so.

    A separating line can be turned until it goes through two points; on it, the points may still be mixed.
    """
    along = second - first
    side = (x - first) @ np.array([-along[1], along[0]])
    for sign in (1, -1):
        s = sign * side
        if not ((s[y] >= 0).all() and (s[~y] <= 0).all()):
            continue
        if (s != 0).any():
            return True
    return False


# --- between models ---------------------------------------------------------------------------------------------------


def test_likelihood_ratio_of_nested_models() -> None:
    y, metrics = sample(300, np.random.default_rng(9))
    small, large = fit_logit(y, {"a": metrics["a"]}), fit_logit(y, metrics)
    found = likelihood_ratio(small, large)
    assert found.statistic == pytest.approx(2 * (large.llf - small.llf)) and found.dof == 1
    assert found.p == pytest.approx(stats.chi2.sf(found.statistic, 1))
    wald = (large.params[2] / large.bse[2]) ** 2
    assert found.statistic == pytest.approx(wald, rel=0.1)


def test_variance_inflation() -> None:
    _, metrics = sample(500, np.random.default_rng(10), correlation=0.82)
    found = variance_inflation(metrics)
    r = np.corrcoef(metrics["a"], metrics["b"])[0, 1]
    assert found == pytest.approx({"a": 1 / (1 - r**2), "b": 1 / (1 - r**2)})
    metrics["c"] = np.random.default_rng(11).normal(size=500) + metrics["a"]
    X = design(metrics)
    for place, value in enumerate(variance_inflation(metrics).values(), start=1):
        assert value == pytest.approx(variance_inflation_factor(X, place))
    assert variance_inflation({"a": metrics["a"], "b": 3 - 2 * metrics["a"]}) == {"a": np.inf, "b": np.inf}
