"""Whole numbers from targets: the sums, the order, and the bound on the deviation, over random schedules."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fluxentropy.quotas import SCALE, capped_targets, counts_of, increments, largest_remainder


def cumulative(weights: np.ndarray, blocks: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros((1, weights.shape[1]), np.int64), np.cumsum(increments(weights, blocks), axis=0)])


@st.composite
def mixtures(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """weights (T, K), from even to one bin at a time, and the blocks of each step (T,)."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    bins, steps = draw(st.integers(1, 12)), draw(st.integers(1, 80))
    weights = rng.dirichlet(np.full(bins, draw(st.sampled_from([0.02, 0.2, 1.0, 20.0]))), size=steps)
    if draw(st.booleans()):  # pure bins among mixtures
        pure = rng.random(steps) < 0.5
        weights[pure] = np.eye(bins)[rng.integers(0, bins, pure.sum())]
    return weights, rng.integers(1, draw(st.sampled_from([2, 9, 600])), size=steps)


@settings(max_examples=150, deadline=None)
@given(mixtures())
def test_the_bound(case: tuple[np.ndarray, np.ndarray]) -> None:
    weights, blocks = case
    targets = cumulative(weights, blocks)
    counts = counts_of(targets)
    np.testing.assert_array_equal(counts.sum(axis=1), np.append(0, np.cumsum(blocks)))
    assert (np.diff(counts, axis=0) >= 0).all()
    assert (np.abs(counts - targets / SCALE) < 1).all()


def test_why_each_step_cannot_be_rounded_on_its_own() -> None:
    """Largest remainders of each row alone would take back what they gave; the quotas never do."""
    rng = np.random.default_rng(0)
    targets = cumulative(rng.dirichlet(np.full(6, 0.5), size=200), np.full(200, 1))
    alone = np.array([largest_remainder(int(row.sum()) // SCALE, row) if row.any() else row for row in targets])
    assert (np.diff(alone, axis=0) < 0).any()
    assert (np.diff(counts_of(targets), axis=0) >= 0).all()


def greedy(targets: np.ndarray, denominator: int) -> np.ndarray:
    """One block a step, to the bin that lags most: what one would do without looking ahead."""
    counts = np.zeros_like(targets)
    for t in range(1, len(targets)):
        counts[t] = counts[t - 1]
        counts[t, (targets[t] - denominator * counts[t]).argmax()] += 1
    return counts


def test_looking_ahead_is_needed() -> None:
    """Each step feeds only bins that the greedy rule has not served yet: the last one then lags by 1/6 + ... + 1/2."""
    steps = [[60 // (6 - t) * (k >= t) for k in range(6)] for t in range(6)]
    targets = np.cumsum([[0] * 6, *steps], axis=0)
    assert np.abs(greedy(targets, 60) - targets / 60).max() == pytest.approx(1.45)
    assert np.abs(counts_of(targets, 60) - targets / 60).max() < 1


def test_the_nearest_last_step_goes_before_the_largest_remainder() -> None:
    """In tenths of a block. Bin 0 has as large a remainder after step 1 as bin 3, which is due two steps later."""
    targets = np.array([[0, 0, 0, 0], [3, 2, 2, 3], [3, 7, 7, 3], [3, 7, 10, 10], [11, 9, 10, 10]])
    counts = counts_of(targets, 10)
    assert counts.tolist() == [[0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 1], [1, 0, 1, 1], [1, 1, 1, 1]]
    assert (np.abs(10 * counts - targets) < 10).all()


def test_whole_targets_are_met() -> None:
    targets = np.array([[0, 0], [2, 0], [2, 2], [4, 2]])
    np.testing.assert_array_equal(counts_of(7 * targets, 7), targets)


@given(st.integers(0, 10**12), st.lists(st.integers(0, 10**9), min_size=1, max_size=9).filter(any))
def test_largest_remainder(total: int, sizes: list[int]) -> None:
    found = largest_remainder(total, np.array(sizes))
    assert found.sum() == total
    assert all(
        abs(total * size - int(count) * sum(sizes)) < sum(sizes) for size, count in zip(sizes, found, strict=True)
    )


@settings(max_examples=100, deadline=None)
@given(mixtures(), st.integers(0, 2**32))
def test_capped_targets(case: tuple[np.ndarray, np.ndarray], seed: int) -> None:
    """No bin gets more than it has, each step gets all it asked for, and nothing moves before a bin is full."""
    weights, blocks = case
    bins, total = weights.shape[1], int(blocks.sum())
    room = np.random.default_rng(seed).multinomial(total + 3, np.full(bins, 1 / bins))
    found = capped_targets(weights, blocks, room)
    np.testing.assert_array_equal(found.sum(axis=1), np.append(0, np.cumsum(blocks)) * SCALE)
    assert (np.diff(found, axis=0) >= 0).all() and (found <= room * SCALE).all()
    free = cumulative(weights, blocks)
    before = int((free > room * SCALE).any(axis=1).argmax()) if (free > room * SCALE).any() else len(free)
    if (room > 0).all():
        np.testing.assert_array_equal(found[:before], free[:before])
    assert (counts_of(found) <= room).all()


def test_a_full_bins_share_goes_to_the_others_in_proportion() -> None:
    weights = np.tile([0.5, 0.25, 0.25, 0.0], (4, 1))
    found = capped_targets(weights, np.full(4, 8), np.array([8, 100, 50, 9])) / SCALE
    assert found.tolist() == [[0, 0, 0, 0], [4, 2, 2, 0], [8, 4, 4, 0], [8, 8, 8, 0], [8, 12, 12, 0]]


def test_where_only_bins_without_weight_are_left() -> None:
    found = capped_targets(np.tile([1.0, 0.0, 0.0], (3, 1)), np.full(3, 4), np.array([4, 6, 3])) / SCALE
    assert found[1].tolist() == [4, 0, 0]
    assert found[-1] == pytest.approx([4, 8 * 6 / 9, 8 * 3 / 9])
