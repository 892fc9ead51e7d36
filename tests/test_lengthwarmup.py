"""Sequence-length warm-up: lengths over the tokens, and pieces that lose no prediction."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fluxentropy.lengthwarmup import LengthWarmUp, cut_blocks


def test_lengths() -> None:
    warm_up = LengthWarmUp(length=1024, start=64, tokens=960)
    found = [warm_up.at(tokens) for tokens in range(1000)]
    linear = [64 + tokens for tokens in range(960)]
    assert found[:960] == [max(64 * 2**i for i in range(5) if 64 * 2**i <= length) for length in linear]
    assert found[959:] == [512, *[1024] * 40]
    assert LengthWarmUp(length=8, start=2, tokens=0).at(0) == 8


@pytest.mark.parametrize("start", [0, 3, 16])
def test_starts_that_do_not_fit(start: int) -> None:
    with pytest.raises(ValueError, match="divided by a power of two"):
        LengthWarmUp(length=8, start=start, tokens=10)


@pytest.mark.parametrize("length", [1, 2, 4, 8])
def test_pieces_hold_every_prediction_once(length: int) -> None:
    ids = np.arange(27).reshape(3, 9)
    found = cut_blocks(ids, length)
    pairs = sorted(zip(found[:, :-1].ravel().tolist(), found[:, 1:].ravel().tolist(), strict=True))
    assert pairs == sorted(zip(ids[:, :-1].ravel().tolist(), ids[:, 1:].ravel().tolist(), strict=True))
    np.testing.assert_array_equal(cut_blocks(torch.from_numpy(ids), length), found)
    with pytest.raises(ValueError, match="pieces of 3"):
        cut_blocks(ids, 3)
