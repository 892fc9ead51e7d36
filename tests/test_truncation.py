"""Entropy from the top k: against the definition, and limits that hold for every distribution and are reached."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from fluxentropy.truncation import truncated_entropy


def draw(seed: int, vocabulary: int, sharpness: float) -> np.ndarray:
    logits = np.random.default_rng(seed).normal(size=(5, vocabulary)) * sharpness
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.sort(p / p.sum(axis=1, keepdims=True), axis=1)[:, ::-1]


@given(st.integers(0, 1000), st.integers(2, 60), st.integers(1, 60), st.floats(0, 20))
def test_the_limits_hold(seed: int, vocabulary: int, k: int, sharpness: float) -> None:
    p = draw(seed, vocabulary, sharpness)
    seen = truncated_entropy(p[:, :k], vocabulary)
    H = scipy.stats.entropy(p, axis=1)
    assert (seen.lower <= H + 1e-9).all()
    assert (seen.upper >= H - 1e-9).all()
    assert seen.tail_mass == pytest.approx(p[:, k:].sum(axis=1), abs=1e-12)
    kept = p[:, :k] / p[:, :k].sum(axis=1, keepdims=True)
    assert seen.entropy == pytest.approx(scipy.stats.entropy(kept, axis=1))
    surprise = -np.log(np.where(kept > 0, kept, 1))
    second = (kept * (surprise - seen.entropy[:, None]) ** 2).sum(axis=1)
    assert seen.varentropy == pytest.approx(second, abs=1e-9)


def test_a_flat_tail_reaches_the_upper_limit_and_a_steep_one_the_lower() -> None:
    flat = np.array([[0.4, 0.2, 0.1, 0.1, 0.1, 0.1]])
    assert truncated_entropy(flat[:, :2], 6).upper == pytest.approx(scipy.stats.entropy(flat, axis=1))
    steep = np.array([[0.4, 0.2, 0.2, 0.2, 0.0, 0.0]])
    assert truncated_entropy(steep[:, :2], 6).lower == pytest.approx(scipy.stats.entropy(steep, axis=1))


def test_the_whole_distribution_leaves_nothing_open() -> None:
    p = draw(0, 7, 2.0)
    seen = truncated_entropy(p, 7)
    assert (seen.tail_mass == 0).all()
    assert seen.lower == pytest.approx(scipy.stats.entropy(p, axis=1))
    assert seen.upper == pytest.approx(seen.lower)


def test_certainty_is_zero() -> None:
    seen = truncated_entropy(np.array([[1.0, 0.0]]), 50_000)
    assert [float(x[0]) for x in (seen.entropy, seen.varentropy, seen.tail_mass, seen.lower, seen.upper)] == [0.0] * 5
