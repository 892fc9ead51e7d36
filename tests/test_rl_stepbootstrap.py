"""Statistics over steps: weights against rows that are repeated, and intervals against known truths."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from fluxentropy.rl.stepanswers import StepBootstrap, block_weights


@pytest.mark.parametrize("lengths", [[12], [5, 3, 4], [2, 1, 1, 2, 1, 1, 2, 2]], ids=["blocks", "t", "runs"])
def test_every_statistic_is_that_of_the_rows_drawn_again(lengths):
    """Of rows that are repeated; of three runs of the rows without each of them."""
    boot = StepBootstrap(lengths, 30, seed=1)
    run = np.repeat(np.arange(len(lengths)), lengths)
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
        for weights in [np.ones(12, int), *(run != k for k in range(3))] if len(lengths) == 3 else boot.weights:
            values.append(answer(np.repeat(x, weights.astype(int)), np.repeat(y, weights.astype(int))))
        if len(lengths) == 3:
            half = stats.t.ppf(0.975, 2) * np.sqrt(2 / 3 * np.sum((values[1:] - np.mean(values[1:])) ** 2))
            low, high = values[0] - half, values[0] + half
            low = max(low, 0) if name in ("root_ratio", "share") else low
        else:
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


@pytest.mark.parametrize("runs", [1, 3, 5, 10])
def test_intervals_of_correlated_steps_cover_the_mean(runs):
    """Runs differ more than their steps, but where there is one: that speaks about itself alone."""
    rng = np.random.default_rng(2)
    hits, drawn, n = [], [], 80 if runs == 1 else 40
    for seed in range(200):
        noise = rng.normal(size=(runs, n))
        for step in range(1, n):
            noise[:, step] += 0.4 * noise[:, step - 1]
        noise += rng.normal(size=(runs, 1)) * (runs > 1)
        boot = StepBootstrap([n] * runs, 200, seed)
        found = boot.mean(noise.ravel())
        hits.append(found["low"] <= 0 <= found["high"])
        low, high = np.quantile(boot.weights[1:] @ noise.ravel() / (n * runs), [0.025, 0.975])
        drawn.append(low <= 0 <= high)
    assert (0.91 if 1 < runs < 8 else 0.85) <= np.mean(hits) <= 0.99
    assert runs != 3 or np.mean(drawn) < 0.83  # runs and steps drawn again


def test_a_number_that_one_of_the_runs_has_is_of_its_steps():
    x = np.concatenate([np.full(20, np.nan), np.random.default_rng(0).normal(size=20)])
    found, alone = StepBootstrap([20, 20], 100).mean(x), StepBootstrap([20], 100).mean(x[20:])
    assert found == pytest.approx(alone)


def test_what_is_not_known_is_passed_over():
    x = np.array([1.0, np.nan, 3.0, 5.0, 7.0])
    assert StepBootstrap([5], 50).mean(x)["value"] == 4
    few = StepBootstrap([3], 50).mean(x[2:])
    assert few["value"] == 5 and np.isnan(few["low"])
    unsure = StepBootstrap([40], 200).ratio(np.ones(40), np.random.default_rng(0).normal(size=40))
    assert np.isnan(unsure["value"])
    assert np.isnan(StepBootstrap([2], 50).median(np.full(2, np.nan))["value"])
