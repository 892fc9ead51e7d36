"""Group comparison, association, power and correction against textbook formulas, simulation and other libraries."""

from __future__ import annotations

import itertools

import mpmath
import numpy as np
import pytest
from scipy import stats
from scipy.special import expit

from fluxentropy.effects import (
    anova,
    correlations,
    detectable,
    holm,
    point_biserial,
    power_at,
    quartile_test,
    rows_needed,
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
