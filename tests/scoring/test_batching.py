"""Batches and windows against brute force."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fluxentropy.scoring.batching import Row, plan_batches, windows


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
