"""Which rows go through the model together: batches of similar lengths under a budget of padded tokens.

On a GPU the budget is what was seen to fit into its memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch

from fluxentropy.entropy import TokenStats
from fluxentropy.models.weights import is_out_of_memory

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


# --- the budget of a GPU ----------------------------------------------------------------------------------------------


MARGIN = 0.8  # of the free memory: what a batch may be expected to take


class Memory(Protocol):
    """The memory of a device."""

    def free(self) -> int:
        """Bytes that this process could still take."""
        ...

    def peak(self, work: Callable[[], object]) -> int:
        """The most bytes that `work` held at once beyond what was held before it."""
        ...


class CudaMemory:
    """The memory of a GPU. What PyTorch keeps for reuse counts as free."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def free(self) -> int:
        kept = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return torch.cuda.mem_get_info(self.device)[0] + kept

    def peak(self, work: Callable[[], object]) -> int:
        before = torch.cuda.memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        work()
        return torch.cuda.max_memory_allocated(self.device) - before


def probed_budget(run: Callable[[int], object], memory: Memory, *, first: int, most: int) -> int:
    """Padded tokens of a batch that fit: `first`, doubled up to `most` while twice the last batch's peak is free.

    `run` sends a batch of so many tokens through the model. Memory grows at most in proportion to the tokens, so that
    a batch which is expected to fit does; where one does not fit after all, the last that did is taken. `first` is
    taken in any case: whatever is too large is halved when it comes.
    """
    tokens = first
    try:
        run(first)  # workspaces and compiled kernels come with the first batch, and stay
        peak = memory.peak(partial(run, first))
        while tokens * 2 <= most and peak * 2 <= MARGIN * memory.free():
            peak = memory.peak(partial(run, tokens * 2))
            tokens *= 2
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        torch.cuda.empty_cache()  # does nothing without CUDA
    return tokens


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
