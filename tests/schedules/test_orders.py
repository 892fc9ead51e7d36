"""Shuffles: bijections, even, and the same for ever. Orders in phases, against lists of single blocks."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from fluxentropy.schedules.orders import SCALE, Curriculum, Saw, Segment, Stair, between, keys, mixed, permuted


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


# --- orders in phases -------------------------------------------------------------------------------------------------


def drawn(schedule: Any, sizes: np.ndarray) -> np.ndarray:
    """Cumulative targets, in blocks: float64 (N+1, K)."""
    found, whole = schedule.targets(np.arange(int(sizes.sum()) + 1), sizes)
    return np.asarray(found / whole)


def corpus(sizes: np.ndarray) -> list[int]:
    """The bin of each block, from low to high scores."""
    return np.repeat(np.arange(len(sizes)), sizes).tolist()


def running(order: list[int], bins: int) -> np.ndarray:
    """Cumulative counts of an order, (N+1, K)."""
    return np.concatenate([np.zeros((1, bins)), np.cumsum(np.eye(bins)[order], axis=0)])


def turning(blocks: list[int], cycles: int, back: bool) -> list[int]:
    """Every cycles-th of the blocks, from the first, then from the second, and so on; `back`: by turns reversed."""
    found: list[int] = []
    for number in range(cycles):
        part = blocks[number::cycles]
        found += part[::-1] if back and number % 2 else part
    return found


def in_sections(blocks: list[int], sections: int, transition: float, cycles: int, back: bool) -> list[int]:
    """The published orders, of single blocks."""
    total = len(blocks)
    radius, found = round(total * transition), []
    for section in range(1, sections):
        cut = round(total * section / sections)
        low, high = max(len(found), cut - radius), min(total, cut + radius)
        found += blocks[len(found) : low]
        found += turning(blocks[low:high], cycles, back)
    return found + blocks[len(found) :]


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=6).filter(any),
    st.integers(1, 5),
    st.floats(0, 0.6),
    st.integers(1, 4),
    st.booleans(),
    st.booleans(),
)
def test_sections_are_those_of_single_blocks(
    sizes: list[int], sections: int, transition: float, cycles: int, back: bool, descending: bool
) -> None:
    """Up to rounding: a pass takes a part of each bin, where theirs takes every n-th block."""
    kind = Saw if back else Stair
    schedule = kind(cycles=cycles, sections=sections, transition=transition, descending=descending)
    counts = np.array(sizes)
    blocks = corpus(counts[::-1] if descending else counts)
    theirs = running(in_sections(blocks, sections, transition, cycles, back), len(sizes))
    assert np.abs(drawn(schedule, counts) - (theirs[:, ::-1] if descending else theirs)).max() <= cycles


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Stair(cycles=2, sections=2, transition=0.25), "000" + "001" + "001" + "111"),
        (Saw(cycles=2, sections=2, transition=0.25), "000" + "001" + "100" + "111"),
        (Stair(cycles=2, sections=1), "000000011111"),
        (Saw(cycles=3, sections=2, transition=0.25, descending=True), "111" + "10" + "01" + "10" + "000"),
    ],
)
def test_sections_by_hand(schedule: Any, expected: str) -> None:
    sizes = np.array([7, 5]) if not schedule.descending else np.array([6, 6])
    np.testing.assert_allclose(drawn(schedule, sizes), running(list(map(int, expected)), 2))


def test_sections_by_default_are_as_published() -> None:
    assert (Stair().sections, Stair().transition, Stair().cycles) == (2, 0.225, 3)
    assert (Saw().sections, Saw().transition, Saw().cycles) == (3, 0.075, 2)
    assert (Segment().front, Segment().back, Segment().begin, Segment().target) == (0.1, 0.1, "low", "high")


def straight(parts: list[np.ndarray]) -> np.ndarray:
    """Targets of pieces (K,) that are each drawn evenly, (N+1, K)."""
    found = [np.zeros((1, len(parts[0])))]
    for part in filter(np.any, parts):
        steps = np.arange(1, part.sum() + 1)[:, None]
        found.append(found[-1][-1:] + steps * part / part.sum())
    return np.concatenate(found)


def of(blocks: list[int], bins: int) -> np.ndarray:
    return np.bincount(np.array(blocks, np.int64), minlength=bins)


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=6).filter(any),
    st.floats(0, 0.5),
    st.floats(0, 0.5),
    st.sampled_from(["low", "high"]),
    st.sampled_from(["low", "high"]),
)
def test_segments(sizes: list[int], front: float, back: float, begin: Any, target: Any) -> None:
    counts, blocks = np.array(sizes), corpus(np.array(sizes))
    total = len(blocks)
    found = drawn(Segment(front=front, back=back, begin=begin, target=target), counts)
    first = round(front * total)
    last = min(round(back * total), total - first)
    if begin == target:
        ends = of(blocks[: first + last] if begin == "low" else blocks[total - first - last :], len(sizes))
        assert np.abs(found[first] - ends * first / max(first + last, 1)).max() < 1  # shared out in proportion
        np.testing.assert_allclose(found[total - last] - found[first], counts - ends, atol=1e-6)
        middle = counts - ends
        for x in range(first, total - last + 1):
            even = middle * (x - first) / max(int(middle.sum()), 1)
            np.testing.assert_allclose(found[x] - found[first], even, atol=1e-6)
        return
    ends = [blocks[:first] if begin == "low" else blocks[total - first :]]
    ends += [blocks[:last] if target == "low" else blocks[total - last :]]
    one, other = (of(end, len(sizes)) for end in ends)
    np.testing.assert_allclose(found, straight([one, counts - one - other, other]), atol=1e-6)


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=6).filter(any),
    st.floats(0, 1),
    st.sampled_from(["all", "low", "high"]),
    st.booleans(),
)
def test_a_curriculum_then_random(sizes: list[int], until: float, begin: Any, descending: bool) -> None:
    counts, blocks = np.array(sizes), corpus(np.array(sizes))
    total = len(blocks)
    schedule = Curriculum(until=until, begin=begin, descending=descending)
    found, whole = schedule.targets(np.arange(total + 1), counts)
    first = round(until * total)
    warm = found[first] // SCALE
    assert whole == SCALE and warm.sum() == first and (found[first] == warm * SCALE).all()
    if begin == "all":
        assert (np.abs(warm - counts * first / total) < 1).all()  # every bin's share
    else:
        assert warm.tolist() == of(blocks[:first] if begin == "low" else blocks[total - first :], len(sizes)).tolist()
    order = corpus(warm)[::-1] if descending else corpus(warm)
    np.testing.assert_array_equal(found[: first + 1] / SCALE, running(order, len(sizes)))
    rest = straight([counts - warm])
    np.testing.assert_allclose((found[first:] - found[first]) / SCALE, rest, atol=1e-6)


def test_the_largest_corpus_does_not_overflow() -> None:
    sizes = np.array([2**30, 2**30 - 1])
    total = int(sizes.sum())
    x = np.array([0, 1, total // 3, total - 1, total])
    for schedule in (Segment(), Curriculum(), Stair(), Saw()):
        found, whole = schedule.targets(x, sizes)
        assert found.sum(axis=1).tolist() == (x * whole).tolist() and (np.diff(found, axis=0) >= 0).all()
        np.testing.assert_array_equal(found[-1], sizes * whole)


def test_blocks_between() -> None:
    sizes = np.array([4, 0, 2, 6])
    for low in range(13):
        for high in range(low, 13):
            assert between(low, high, sizes).tolist() == of(corpus(sizes)[low:high], 4).tolist()
