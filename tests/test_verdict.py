"""Statistics of paired runs, against scipy, statsmodels and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.power import TTestPower

from fluxentropy.verdict import (
    Paired,
    area,
    bootstrap_interval,
    detectable,
    forgetting,
    in_words,
    paired,
    percent,
    reached,
    word,
)


@pytest.mark.parametrize("n", [2, 5, 30])
def test_paired_is_the_t_test_of_scipy(n: int) -> None:
    rng = np.random.default_rng(n)
    ours, theirs = rng.normal(3.1, 0.1, n), rng.normal(3.0, 0.1, n)
    found, oracle = paired(ours - theirs), stats.ttest_rel(ours, theirs)
    assert (found.t, found.p) == pytest.approx((oracle.statistic, oracle.pvalue))
    limits = oracle.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((limits.low, limits.high))
    assert found.sd == pytest.approx((ours - theirs).std(ddof=1))


@pytest.mark.parametrize("n", [2, 3, 5, 12, 60])
def test_detectable_is_that_of_statsmodels(n: int) -> None:
    oracle = TTestPower().solve_power(nobs=n, alpha=0.05, power=0.8, alternative="two-sided")
    assert detectable(2.5, n) == pytest.approx(2.5 * oracle, rel=1e-6)


def test_a_true_mean_that_is_detectable_is_detected_with_its_power() -> None:
    rng = np.random.default_rng(0)
    samples = rng.normal(detectable(1.0, 5), 1.0, (20_000, 5))
    significant = stats.ttest_1samp(samples, 0, axis=1).pvalue < 0.05
    assert significant.mean() == pytest.approx(0.8, abs=0.015)


def test_intervals_cover_the_true_mean() -> None:
    """t at its level; the expanded percentiles of five values nearly (plain ones cover about 0.84)."""
    rng = np.random.default_rng(1)
    samples = rng.normal(0.3, 1.0, (1500, 5))
    half = stats.t.ppf(0.975, 4) * samples.std(axis=1, ddof=1) / math.sqrt(5)
    assert np.mean(abs(samples.mean(axis=1) - 0.3) < half) == pytest.approx(0.95, abs=0.02)
    limits = np.array([bootstrap_interval(d, resamples=4000) for d in samples])
    covered = np.mean((limits[:, 0] <= 0.3) & (limits[:, 1] >= 0.3))
    assert 0.89 < covered < 0.97


def test_bootstrap_of_many_values_is_that_of_scipy() -> None:
    d = np.random.default_rng(2).exponential(1.0, 400)
    oracle = stats.bootstrap((d,), np.mean, method="percentile", rng=np.random.default_rng(3)).confidence_interval
    assert bootstrap_interval(d) == pytest.approx((oracle.low, oracle.high), abs=0.01)


def test_few_pairs_and_equal_pairs() -> None:
    one, none = paired([1.5]), paired([])
    assert (one.n, one.mean) == (1, 1.5) and math.isnan(one.p) and math.isnan(one.detectable)
    assert none.n == 0 and math.isnan(none.mean)
    assert paired([1.0, math.nan, 3.0]).n == 2
    same = paired([0.0] * 4)
    assert (same.p, same.low, same.high, same.detectable) == (1.0, 0.0, 0.0, 0.0)
    assert paired([2.0] * 4).p == 0.0


def test_verdicts() -> None:
    worse, better, none = paired([1.0, 1.2, 0.9]), paired([-1.0, -1.2, -0.9]), paired([0.1, -0.2, 0.3])
    assert word(worse, 0.04) == "worse" and word(better, 0.04) == "better"
    assert word(worse, 0.05) == "not distinguishable"
    assert word(paired([1.0]), math.nan) == "not judged"
    assert in_words(better, "better", "up", "random").startswith("up is better than random by 1.03 % [0.65, 1.41]")
    text = in_words(none, "not distinguishable", "up", "random")
    assert f"effects from {none.detectable:.2f} % on" in text
    assert "of 1 seed; no verdict" in in_words(paired([1.0]), "not judged", "up", "random")


def test_percent_is_of_theirs() -> None:
    assert percent([1.1, 0.5], [1.0, 1.0]).tolist() == pytest.approx([10, -50])
    assert isinstance(paired(percent([1.1, 0.5], [1.0, 1.0])), Paired)


def test_area_and_reached_on_a_dense_grid() -> None:
    rng = np.random.default_rng(4)
    tokens = np.cumsum(rng.integers(1, 100, 12))
    loss = np.sort(rng.uniform(1, 8, 12))[::-1] + rng.uniform(-1, 1, 12)
    dense = np.linspace(tokens[0], tokens[-1], 200_001)
    curve = np.interp(dense, tokens, loss)
    assert area(tokens, loss) == pytest.approx(curve.mean(), rel=1e-3)
    for target in np.linspace(loss.min(), loss.max(), 7):
        first = dense[np.flatnonzero(curve <= target + 1e-9)[0]]
        assert reached(tokens, loss, target) == pytest.approx(first, abs=0.01)
    assert reached(tokens, loss, loss.min() - 0.1) is None
    assert reached(tokens, loss, 100.0) == tokens[0]


def test_forgetting_is_against_the_best_before() -> None:
    assert forgetting(np.array([[5.0, 4.0], [2.0, 3.0], [3.0, 1.0], [2.5, 2.0]])).tolist() == [0.5, 1.0]
    assert np.isnan(forgetting(np.array([[1.0, 2.0]]))).all()
