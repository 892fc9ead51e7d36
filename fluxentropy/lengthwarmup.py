"""Sequence-length warm-up: short pieces of blocks first, whole blocks later, whatever the schedule draws.

length 8, from 2 over 100 tokens     tokens 0: 2     40: 4     80: 4     100 and more: 8
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class LengthWarmUp:
    """The length grows from `start` to `length` over the first `tokens` tokens, in doublings.

    The linear pacing of Li, Zhang and He (2022, "The Stability-Efficiency Dilemma"), rounded down to start * 2^i. They
    drop the rest of a block; here it is cut into pieces, so that every prediction but none twice is trained on, and
    budgets, schedules and batches in tokens stay as they are.
    """

    length: int
    start: int
    tokens: int

    def __post_init__(self) -> None:
        ratio = self.length // max(self.start, 1)
        if self.start < 1 or self.start * ratio != self.length or ratio & (ratio - 1):
            raise ValueError(f"start {self.start}: use {self.length} divided by a power of two")

    def at(self, tokens: int) -> int:
        """The length that is used after so many tokens.

        >>> [LengthWarmUp(length=8, start=2, tokens=100).at(tokens) for tokens in (0, 40, 80, 100)]
        [2, 4, 4, 8]
        """
        share = min(tokens / self.tokens, 1.0) if self.tokens else 1.0
        reached = self.start + share * (self.length - self.start)
        return self.start << (int(reached // self.start).bit_length() - 1)


def cut_blocks(ids: np.ndarray, length: int) -> np.ndarray:
    """Blocks cut into pieces of `length` predictions. (B, L+1) -> (B * L // length, length+1), of arrays and tensors

    The last token of a piece is the first of the next: it is predicted once and read once.

    >>> cut_blocks(np.array([[0, 1, 2, 3, 4]]), 2).tolist()
    [[0, 1, 2], [2, 3, 4]]
    """
    if (ids.shape[1] - 1) % length:
        raise ValueError(f"pieces of {length} do not fill blocks of {ids.shape[1] - 1}")
    places = np.arange(0, ids.shape[1] - 1, length)[:, None] + np.arange(length + 1)
    return ids[:, places].reshape(-1, length + 1)
