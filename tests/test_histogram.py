"""Histograms against counting prefixes one by one, for any parts and any order of adding them."""

from __future__ import annotations

import functools
import operator
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxentropy.errors import UsageError
from fluxentropy.histogram import Histogram, from_ordered_bits, ordered_bits

FLOATS = st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from([0.0, -0.0, 5e-324, 1.0, 1 + 2**-52])
ROWS = st.lists(st.tuples(FLOATS, st.integers(0, 9)), max_size=40)


def same(one: Histogram, other: Histogram) -> bool:
    pairs = ((one.keys, other.keys), (one.counts, other.counts), (one.weights, other.weights))
    return one.depth == other.depth and all(
        a is b is None or (np.array_equal(a, b) and a.dtype == b.dtype)  # type: ignore[arg-type, union-attr]
        for a, b in pairs
    )


def columns(rows: list[tuple[float, int]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([row[0] for row in rows], float), np.array([row[1] for row in rows], np.int64)


@given(st.lists(FLOATS))
def test_ordered_bits_have_the_order_of_the_numbers_and_lead_back(floats: list[float]) -> None:
    values = np.array(floats)
    bits = ordered_bits(values)
    assert np.array_equal(values[:, None] < values, bits[:, None] < bits)
    assert np.array_equal(from_ordered_bits(bits), values)


@given(ROWS, st.integers(2, 9))
def test_a_histogram_counts_the_longest_prefixes_that_fit(rows: list[tuple[float, int]], cells: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fluxentropy.histogram.CELLS", cells)
        patch.setattr("fluxentropy.histogram.BLOCK", 7)
        found = Histogram.of(*columns(rows))
    bits = [int(bit) for bit in ordered_bits(columns(rows)[0])]
    depth = max(depth for depth in range(65) if len({bit >> 64 - depth for bit in bits}) <= cells)
    counts, weights = Counter[int](), Counter[int]()
    for bit, (_, weight) in zip(bits, rows, strict=True):
        counts[bit >> 64 - depth << 64 - depth] += 1
        weights[bit >> 64 - depth << 64 - depth] += weight
    assert found.depth == depth
    assert found.keys.tolist() == sorted(counts)
    assert found.counts.tolist() == [counts[key] for key in sorted(counts)]
    assert found.weights is not None
    assert found.weights.tolist() == [weights[key] for key in sorted(counts)]


def test_a_difference_of_ones_only_is_not_rounded_up() -> None:
    bits = np.array([8 << 60, (9 << 60) - 1, 12 << 60], np.uint64)  # top bits 1000, 1000 and 1100
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fluxentropy.histogram.CELLS", 2)
        assert Histogram.of(from_ordered_bits(bits)).depth == 4


@given(ROWS, st.lists(st.integers(0, 40)), st.integers(2, 9), st.randoms(use_true_random=False), st.booleans())
def test_the_sum_over_parts_is_that_of_the_whole(
    rows: list[tuple[float, int]], borders: list[int], cells: int, random: object, weighted: bool
) -> None:
    values, weights = columns(rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fluxentropy.histogram.CELLS", cells)
        whole = Histogram.of(values, weights if weighted else None)
        parts = [
            Histogram.of(value, weight if weighted else None)
            for value, weight in zip(np.split(values, sorted(borders)), np.split(weights, sorted(borders)), strict=True)
        ]
        while len(parts) > 1:  # any two, in any order
            random.shuffle(parts)  # type: ignore[attr-defined]
            parts.append(parts.pop() + parts.pop())
    assert same(parts[0], whole)


@given(ROWS, st.integers(1, 64), st.lists(FLOATS, min_size=1, max_size=4), st.booleans())
def test_within_prefixes_only_their_values_are_counted(
    rows: list[tuple[float, int]], depth: int, sought: list[float], weighted: bool
) -> None:
    values, weights = columns(rows)
    shift = np.uint64(64 - depth)
    prefixes = np.unique(ordered_bits(np.array(sought)) >> shift << shift)
    mine = np.isin(ordered_bits(values) >> shift << shift, prefixes)
    found = Histogram.of(values, weights if weighted else None, within=(depth, prefixes))
    assert same(found, Histogram.of(values[mine], weights[mine] if weighted else None))


def test_weights_are_exact_up_to_2_53_and_refused_beyond() -> None:
    ones = np.ones(3)
    assert Histogram.of(ones, np.array([2**53 - 2, 1, 1])).weight == 2**53
    with pytest.raises(UsageError, match="the weights add up to 9.007e\\+15: beyond 2.53"):
        Histogram.of(ones, np.array([2**53, 2, 1]))
    with pytest.raises(UsageError, match="beyond 2.53"):
        Histogram.of(ones, np.array([2**63 - 1, 2**63 - 1, 2]))
    with pytest.raises(UsageError, match="beyond 2.53"):
        functools.reduce(operator.add, [Histogram.of(np.ones(1), np.array([2**52]))] * 3)
