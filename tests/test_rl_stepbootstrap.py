"""Statistics over steps: weights against rows that are repeated, and intervals against known truths."""

from __future__ import annotations

import numpy as np
import pytest

from fluxentropy.rl.stepbootstrap import StepBootstrap, block_weights


def test_every_statistic_is_that_of_the_rows_drawn_again():
    boot = StepBootstrap([7, 5], 30, seed=1)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=12) + 3, rng.normal(size=12) + 2
    answers = {
        "mean": lambda a, b: a.mean(),
        "ratio": lambda a, b: a.sum() / b.sum(),
        "root_ratio": lambda a, b: np.sqrt(a.sum() / b.sum()),
        "median": lambda a, b: np.median(a),
        "correlation": lambda a, b: np.corrcoef(a, b)[0, 1],
        "slope": lambda a, b: np.polyfit(a, b, 1)[0],
        "intercept": lambda a, b: np.polyfit(a, b, 1)[1],
        "share": lambda a, b: np.sqrt(a.sum()) / (np.sqrt(a.sum()) + np.sqrt(b.sum())),
    }
    slope, intercept = boot.line(x, y)
    found = {
        "mean": boot.mean(x), "ratio": boot.ratio(x, y), "root_ratio": boot.root_ratio(x, y), "median": boot.median(x),
        "correlation": boot.correlation(x, y), "slope": slope, "intercept": intercept,
        "share": boot.root_shares([x, y])[0],
    }  # fmt: skip
    for name, answer in answers.items():
        values = []
        for weights in boot.weights.astype(int):
            values.append(answer(np.repeat(x, weights), np.repeat(y, weights)))
        low, high = np.quantile(values[1:], [0.025, 0.975])
        expected = {"value": values[0], "low": low, "high": high}
        assert found[name] == pytest.approx(expected), name


def test_blocks_stay_together_and_runs_are_drawn_whole():
    weights = block_weights([27, 8], 200, seed=3)
    assert (weights[0] == 1).all() and set(weights[1:, :27].sum(1)) <= {0, 27, 54}
    alone = block_weights([27], 200)[1:]
    together = ((alone > 0) & (np.roll(alone, -1, axis=1) > 0)).sum() / (alone > 0).sum()
    single = (np.random.default_rng(0).multinomial(27, np.full(27, 1 / 27), 200) > 0).mean()
    assert (alone.sum(1) == 27).all() and together > single + 0.1  # blocks of 3


@pytest.mark.parametrize("runs", [1, 4])
def test_intervals_of_correlated_steps_cover_the_mean(runs):
    rng = np.random.default_rng(2)
    hits = []
    for seed in range(150):
        noise = rng.normal(size=(runs, 80))
        for step in range(1, 80):
            noise[:, step] += 0.4 * noise[:, step - 1]
        found = StepBootstrap([80] * runs, 200, seed).mean(noise.ravel())
        hits.append(found["low"] <= 0 <= found["high"])
    assert 0.85 <= np.mean(hits) <= 0.99


def test_what_is_not_known_is_passed_over():
    x = np.array([1.0, np.nan, 3.0, 5.0, 7.0])
    assert StepBootstrap([5], 50).mean(x)["value"] == 4
    few = StepBootstrap([3], 50).mean(x[2:])
    assert few["value"] == 5 and np.isnan(few["low"])
    unsure = StepBootstrap([40], 200).ratio(np.ones(40), np.random.default_rng(0).normal(size=40))
    assert np.isnan(unsure["value"])
    assert np.isnan(StepBootstrap([2], 50).median(np.full(2, np.nan))["value"])
