"""Shuffles: bijections, as even as a shuffle must be, and the same for ever."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from scipy.stats import chisquare

from fluxentropy.schedules.orders import keys, mixed, permuted


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 15, 16, 17, 63, 64, 65, 255, 256, 257, 1000, 4097])
def test_bijection(size: int) -> None:
    found = permuted(np.arange(size), np.array([size]), keys(3, size))
    np.testing.assert_array_equal(np.sort(found), np.arange(size))


def test_any_element_on_its_own() -> None:
    sizes, seeds = np.array([5, 1000, 77, 5]), keys(1, np.array([0, 1, 2, 3]))
    together = permuted(np.array([4, 999, 0, 4]), sizes, seeds)
    alone = [
        permuted(np.array([place]), sizes[i : i + 1], seeds[i : i + 1])[0] for i, place in enumerate((4, 999, 0, 4))
    ]
    assert together.tolist() == alone


def test_all_orders_are_equally_likely() -> None:
    found = permuted(np.tile(np.arange(4), 2400), np.array([4]), keys(5, np.repeat(np.arange(2400), 4)))
    orders = Counter(map(tuple, found.reshape(-1, 4).tolist()))
    assert len(orders) == math.factorial(4)
    assert chisquare(list(orders.values())).pvalue > 1e-3


@pytest.mark.parametrize("size", [100, 1000])
def test_places_are_independent(size: int) -> None:
    """Where two neighbours go: uniform, and without correlation, over many shuffles."""
    seeds = keys(9, np.arange(4000))
    first, second = (permuted(np.full(4000, place), np.full(4000, size), seeds) for place in (0, 1))
    assert (first != second).all()
    assert chisquare(np.histogram(first, bins=20, range=(0, size))[0]).pvalue > 1e-3
    assert abs(np.corrcoef(first, second)[0, 1]) < 4 / math.sqrt(4000)


def test_never_changes() -> None:
    """A checkpoint is resumed with another NumPy, on another machine: these numbers must stay."""
    assert [hex(value) for value in mixed(np.array([0, 1], np.uint64)).tolist()] == [
        "0xe220a8397b1dcdaf",  # the first outputs of SplitMix64 with seeds 0 and 1, as published
        "0x910a2dec89025cc1",
    ]
    assert permuted(np.arange(10), np.array([10]), keys(0, 1, 2)).tolist() == [1, 9, 2, 7, 4, 3, 8, 0, 5, 6]
