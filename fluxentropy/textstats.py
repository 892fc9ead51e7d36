"""The statistics of a text's tokens put together from the rows of its windows, which come in any order."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from fluxentropy.batching import Row
from fluxentropy.estimators import TokenStats


class TextStats:
    """Holds the texts whose rows have not all come yet, and hands each on as soon as it is whole.

    `lengths` are the positions of each text; `done` gets a text's index and its (3, T) float32 entropy, varentropy and
    surprisal, the last surprisal being NaN.
    """

    def __init__(self, lengths: Sequence[int], done: Callable[[int, np.ndarray], None]) -> None:
        self.lengths = lengths
        self.done = done
        self.open: dict[int, tuple[np.ndarray, int]] = {}  # text -> its statistics, and how many positions are missing

    def add(self, batch: Sequence[Row], stats: TokenStats) -> None:
        """Take the statistics (N,) of the kept positions of a batch, row after row."""
        assert stats.surprisal is not None
        columns = np.stack([column.numpy() for column in (stats.entropy, stats.varentropy, stats.surprisal)])  # (3, N)
        start = 0
        for row in batch:
            n = len(row.ids) - row.keep_from
            length = self.lengths[row.text]
            values, missing = self.open.get(row.text) or (np.empty((3, length), columns.dtype), length)
            values[:, row.at : row.at + n] = columns[:, start : start + n]
            start += n
            self.open[row.text] = values, missing - n
            if missing == n:
                del self.open[row.text]
                self.done(row.text, values)
