"""Batches and windows against brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fluxentropy.scoring.batching import Row, plan_batches, probed_budget, windows


@given(st.lists(st.integers(1, 60), max_size=80), st.integers(1, 200))
def test_batches_hold_every_row_once_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = plan_batches(lengths, budget)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget
    flat = [lengths[i] for batch in batches for i in batch]
    assert flat == sorted(lengths, reverse=True)


@given(st.integers(1, 60), st.integers(2, 12), st.data())
def test_windows_keep_each_position_once_with_its_target_and_context(
    length: int, size: int, data: st.DataObject
) -> None:
    n_prefix = data.draw(st.integers(0, min(1, size - 1)))
    stride = data.draw(st.integers(1, size - n_prefix))
    ids = np.arange(100, 100 + length + n_prefix)
    ids[:n_prefix] = 7
    kept, targets = [], []
    for row in windows(3, ids, size, stride, n_prefix):
        assert len(row.ids) <= size
        assert row.text == 3
        assert row.ids[:n_prefix].tolist() == [7] * n_prefix
        body = row.ids[n_prefix:]
        assert body.tolist() == list(range(body[0], body[0] + len(body)))  # contiguous text
        if kept:
            context = row.keep_from - n_prefix
            assert context >= min(size - n_prefix - stride, int(body[0]) - 100 - n_prefix + context)
        kept += row.ids[row.keep_from :].tolist()
        targets += row.targets.tolist()
    assert kept == ids.tolist()
    assert targets == [*ids[1:].tolist(), -1]


def test_a_text_that_fits_is_one_whole_row() -> None:
    (row,) = windows(0, np.arange(5), 8, 4, 0)
    assert (row.ids.tolist(), row.keep_from, row.next_id) == ([0, 1, 2, 3, 4], 0, None)
    assert Row(text=0, ids=np.array([5])).targets.tolist() == [-1]


class Card:
    """A stand-in for the memory of a GPU: `total` bytes, of which the model holds some, and batches so many a token."""

    def __init__(self, total: int, *, held: int = 0, a_token: float = 1.0, fixed: int = 0) -> None:
        self.total, self.held, self.a_token, self.fixed = total, held, a_token, fixed
        self.batches: list[int] = []
        self.highest = 0

    def run(self, tokens: int) -> None:
        self.batches.append(tokens)
        need = self.fixed + round(self.a_token * tokens)
        if need > self.total - self.held:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.highest = max(self.highest, need)

    def free(self) -> int:
        return self.total - self.held

    def peak(self, work) -> int:
        self.highest = 0
        work()
        return self.highest


@given(st.integers(1, 10**6), st.integers(0, 10**5), st.floats(0.1, 50), st.integers(0, 12), st.integers(0, 20))
def test_a_probed_budget_fits_and_twice_as_much_might_not(
    total: int, fixed: int, a_token: float, first: int, most: int
) -> None:
    card = Card(total, a_token=a_token, fixed=fixed)
    first, most = 2**first, 2**most
    found = probed_budget(card.run, card, first=first, most=most)
    assert found == first or found <= most
    assert max(card.batches) == found  # nothing that does not fit is tried, but for the smallest
    if found > first:
        assert fixed + a_token * found <= 0.8 * total + 1
    if found * 2 <= most and fixed + a_token * first <= total:
        assert 2 * (fixed + a_token * found) >= 0.8 * total - 2
    again = Card(total, a_token=a_token, fixed=fixed)
    assert probed_budget(again.run, again, first=first, most=most) == found


def test_memory_that_grows_faster_than_the_tokens_ends_the_probe() -> None:
    card = Card(1000, a_token=0.1)
    run = card.run

    def steep(tokens: int) -> None:
        card.a_token = 0.1 if tokens < 256 else 10.0
        run(tokens)

    assert probed_budget(steep, card, first=64, most=2**16) == 128
    assert card.batches == [64, 64, 128, 256]


def test_an_error_that_is_not_about_memory_is_not_swallowed() -> None:
    def broken(_: int) -> None:
        raise RuntimeError("an illegal instruction")

    with pytest.raises(RuntimeError, match="illegal"):
        probed_budget(broken, Card(10), first=1, most=8)
