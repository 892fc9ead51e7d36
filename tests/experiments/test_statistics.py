"""Statistics of paired runs, against scipy, statsmodels and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.power import TTestPower
from statsmodels.stats.weightstats import DescrStatsW

from fluxentropy.experiments.statistics import (
    FEWEST,
    Paired,
    area,
    bootstrap_interval,
    detectable,
    equivalence,
    forgetting,
    in_words,
    paired,
    percent,
    reached,
    same_runs,
    sd_limits,
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
    for value in (0.0, 2.0, 0.1):  # three seeds that agree by chance, as of a measure with few values, prove nothing
        same = paired([value] * 3)
        assert same.mean == pytest.approx(value) and np.isnan([same.t, same.p, same.low, same.detectable]).all()
    assert "all with the same difference; no verdict" in in_words(paired([2.0] * 3), "not judged", "up", "random")
    assert np.isnan(equivalence(paired([0.0] * 3), 0.5))


def test_bootstrap_intervals_need_eight_values() -> None:
    rng = np.random.default_rng(6)
    few, enough = paired(rng.normal(size=FEWEST - 1)), paired(rng.normal(size=FEWEST))
    assert math.isnan(few.bootstrap_low) and math.isfinite(few.low)
    assert enough.bootstrap_low < enough.mean < enough.bootstrap_high and FEWEST == 8


def test_what_is_detectable_is_as_uncertain_as_its_sd() -> None:
    """The interval of the detectable mean covers the one of the true SD in 95 % of samples."""
    rng, truth = np.random.default_rng(7), detectable(1.0, 5)
    samples = rng.normal(size=(20_000, 5)).std(axis=1, ddof=1)
    low, high = sd_limits(5)
    found = truth * samples  # detectable(sd, n) is in the unit of sd
    assert np.mean((low * found <= truth) & (truth <= high * found)) == pytest.approx(0.95, abs=0.006)
    one = paired([0.1, -0.2, 0.3, 0.05, 0.2])
    assert (one.detectable_low, one.detectable_high) == pytest.approx((low * one.detectable, high * one.detectable))
    assert one.detectable == pytest.approx(one.sd * truth)


def test_equivalence_is_that_of_statsmodels_and_holds_its_level() -> None:
    rng = np.random.default_rng(8)
    d = rng.normal(0.1, 0.3, 9)
    assert equivalence(paired(d), 0.5) == pytest.approx(DescrStatsW(d).ttost_mean(-0.5, 0.5)[0])
    at_the_margin = [equivalence(paired(sample), 0.5) < 0.05 for sample in rng.normal(0.5, 0.2, (3000, 5))]
    assert 0.04 < np.mean(at_the_margin) < 0.06


def test_runs_that_are_equal_number_for_number_are_one() -> None:
    def run(arm: str, seed: int, loss: float) -> dict[str, object]:
        return {"arm": arm, "seed": seed, "fingerprint": arm, "bpb": [4.0, loss]}

    runs = {
        "random": {0: run("random", 0, 2.0), 1: run("random", 1, 2.1)},
        "pool": {0: run("pool", 0, 2.0), 1: run("pool", 1, 2.1 + 1e-15)},
        "again": {1: run("again", 1, 2.1), 2: run("again", 2, 2.3)},
        "late": {5: run("late", 5, 2.0)},
        "none": {},
    }
    assert same_runs(runs) == {
        "random": "random", "pool": "pool", "again": "random", "late": "late", "none": "none"
    }  # fmt: skip


def test_verdicts() -> None:
    worse, better, none = paired([1.0, 1.2, 0.9]), paired([-1.0, -1.2, -0.9]), paired([0.1, -0.2, 0.3])
    assert word(worse, 0.04) == "worse" and word(better, 0.04) == "better"
    assert word(worse, 0.05) == "not distinguishable"
    assert word(paired([1.0]), math.nan) == "not judged"
    assert in_words(better, "better", "up", "random").startswith("up is better than random by 1.03 % [0.65, 1.41]")
    assert word(none, 0.4, 0.04) == "equal" and word(none, 0.4, 0.06) == "not distinguishable"
    assert word(worse, 0.04, 0.01) == "worse"
    text = in_words(none, "not distinguishable", "up", "random")
    assert f"effects from {none.detectable:.2f} % on ({none.detectable_low:.2f} to {none.detectable_high:.2f} %" in text
    assert "as the SD is that of 3 seeds) would have been seen with probability 0.8" in text
    text = in_words(none, "equal", "up", "random", margin=0.5)
    assert text.startswith("up is equal to random within 0.5 %: +0.07 % [")
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
