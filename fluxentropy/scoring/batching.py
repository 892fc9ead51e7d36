"""Which rows go through the model together: batches of similar lengths under a budget of padded tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from fluxentropy.entropy import TokenStats

# --- batches ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Row:
    """One row of a batch: a whole text, or a window of a long one.

    `ids` int64 (t,); statistics are kept for positions `keep_from`..t-1. `next_id` is the token that follows the
    row's last position in the text, None at the text's end. `text` is the index of the text it belongs to, and `at`
    the number of the text's positions that rows before this one keep.
    """

    text: int
    ids: np.ndarray
    keep_from: int = 0
    next_id: int | None = None
    at: int = 0

    @property
    def targets(self) -> np.ndarray:
        """The next token of each kept position, int64; -1 where there is none."""
        following = -1 if self.next_id is None else self.next_id
        return np.append(self.ids[1:], following)[self.keep_from :]


def windows(text: int, ids: np.ndarray, size: int, stride: int, n_prefix: int) -> Iterator[Row]:
    """Rows that cover a text of any length, each position kept once, with at least size - stride tokens of context.

    Each window after the first starts with the text's `n_prefix` special tokens again, so that a model that expects
    a BOS finds one. Requires n_prefix < size and 1 <= stride <= size - n_prefix.

    >>> [(row.ids.tolist(), row.keep_from) for row in windows(0, np.arange(7), 4, 2, 0)]
    [([0, 1, 2, 3], 0), ([2, 3, 4, 5], 2), ([4, 5, 6], 2)]
    """
    prefix, body = ids[:n_prefix], ids[n_prefix:]
    width = size - n_prefix
    end = 0
    while end < len(body):
        kept = end  # the first position of the body that no window has kept yet
        end = min(len(body), width if end == 0 else end + stride)
        begin = max(0, kept - (width - stride))
        yield Row(
            text=text,
            ids=np.concatenate([prefix, body[begin:end]]),
            keep_from=0 if kept == 0 else n_prefix + kept - begin,
            next_id=int(body[end]) if end < len(body) else None,
            at=0 if kept == 0 else n_prefix + kept,
        )


def plan_batches(lengths: Sequence[int], budget: int, *, padded: bool = True) -> list[list[int]]:
    """Indices of rows, longest first, in batches of at most `budget` tokens (a longer row goes alone).

    `padded`: the padding of shorter rows counts.

    >>> plan_batches([3, 9, 4, 3], budget=9)
    [[1], [2, 0], [3]]
    >>> plan_batches([3, 9, 4, 2], budget=9, padded=False)
    [[1], [2, 0, 3]]
    """
    batches: list[list[int]] = []
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    taken = width = 0
    for index in order:
        more = width if padded else lengths[index]
        if batches and taken + more <= budget:
            batches[-1].append(index)
            taken += more
        else:
            batches.append([index])
            taken = width = lengths[index]
    return batches


# --- statistics gathered by text --------------------------------------------------------------------------------------


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
