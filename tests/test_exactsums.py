"""Means and standard deviations against the rational arithmetic of the standard library."""

from __future__ import annotations

import statistics
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxentropy.exactsums import ExactSums

FLOATS = st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=30)


@given(FLOATS)
def test_mean_and_std_are_those_of_rational_arithmetic_rounded_once(floats: list[float]) -> None:
    found = ExactSums.of(np.array(floats))
    assert found.mean == float(sum(map(Fraction, floats)) / len(floats))
    assert found.std == statistics.pstdev(map(Fraction, floats))


@given(FLOATS, st.integers(0, 30), st.integers(0, 30))
def test_parts_and_order_change_nothing(floats: list[float], first: int, second: int) -> None:
    values = np.array(floats)
    parts = [ExactSums.of(part) for part in np.split(values, sorted([first, second]))]
    assert parts[2] + (parts[0] + parts[1]) == ExactSums.of(values[::-1])


@pytest.mark.parametrize("value", [1.0 - 2**-53, -(2.0 - 2**-52), 1e300 / 3, 5e-324], ids=repr)
def test_a_full_block_of_the_largest_fractions_is_exact(value: float) -> None:
    n = 2**17 + 3
    found = ExactSums.of(np.full(n, value))
    assert (found.mean, found.std) == (value, 0.0)
    mixed = ExactSums.of(np.concatenate((np.full(n, value), np.full(n, -value))))
    assert (mixed.mean, mixed.std) == (0.0, abs(value))


def test_the_last_bit_is_rounded_right() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):  # of a root that is cut off instead, 1 of 27 is wrong
        values = rng.random(rng.integers(2, 9))
        assert ExactSums.of(values).std == statistics.pstdev(map(Fraction, values.tolist()))


def test_many_values_far_from_zero() -> None:
    values = 1e9 + np.random.default_rng(0).random(10**5)
    exact = [Fraction(value) for value in values.tolist()]
    found = ExactSums.of(values)
    assert found.mean == float(sum(exact) / len(exact))
    assert found.std == statistics.pstdev(exact)
