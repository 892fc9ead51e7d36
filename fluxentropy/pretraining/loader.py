"""From a sampler to batches of tensors: a data set that is indexed by the step, and its DataLoader.

Lightning 2.6 checkpoints a loader of unknown length one batch ahead, keeps the state of rank 0's loader only, hangs on
an exhausted loader with max_epochs=-1, and replays epoch 0 from workers that are started again. Here none of this can
happen: the loader's length is that of the whole training, it has no state, its place is the step that it is made with,
and a batch is looked up by its number, in whatever process. Use it with `use_distributed_sampler=False`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from torch.utils.data import Sampler as Indices

from fluxentropy.errors import UsageError
from fluxentropy.schedules.dataset import BlockSet
from fluxentropy.schedules.sampler import Draws
from fluxentropy.schedules.schedule import Adaptive

# --- batches ----------------------------------------------------------------------------------------------------------


class BlockBatches(Dataset[dict[str, Any]]):
    """What one rank sees: item m is part m % parts of the batch of step m // parts, in `parts` accumulated parts.

    An item holds input_ids int64 (b, length+1), ids int64 (b,) of the blocks, and step; with `starts` also int64
    (b, length+1), where in its block each token's document begins, for attention that stays inside documents.
    """

    def __init__(
        self,
        blocks: BlockSet,
        sampler: Draws,
        *,
        rank: int = 0,
        world: int = 1,
        parts: int = 1,
        starts: bool = False,
    ) -> None:
        if not 0 <= rank < world or parts < 1:
            raise ValueError(f"rank {rank} of {world}, {parts} parts")
        for size in {int(sampler.plan.batches[0]), int(sampler.plan.batches[-1])}:
            if size < world * parts:
                raise UsageError(
                    f"a batch of {size} blocks cannot be shared by {world} ranks x {parts} accumulated parts: "
                    f"use another --batch-size, or fewer of them"
                )
        self.blocks, self.sampler, self.starts = blocks, sampler, starts
        self.rank, self.world, self.parts = rank, world, parts

    def __len__(self) -> int:
        return self.sampler.steps * self.parts

    def __getitem__(self, index: int) -> dict[str, Any]:
        step, part = divmod(index, self.parts)
        ids = self.sampler.rank_batch(step, self.rank, self.world, part, self.parts)
        item = {
            "input_ids": torch.from_numpy(self.blocks.gather(ids)),
            "ids": torch.from_numpy(ids),
            "step": step,
        }
        if self.starts:
            item["starts"] = torch.from_numpy(self.blocks.document_starts(ids))
        return item


class Steps(Indices[int]):
    """The items of a training from `start` on; the length is that of the whole training, as Lightning needs it."""

    def __init__(self, start: int, total: int) -> None:
        self.start, self.total = start, total

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start, self.total))

    def __len__(self) -> int:
        return self.total


def block_loader(
    batches: BlockBatches, *, start_step: int = 0, workers: int = 0, pin_memory: bool = False
) -> DataLoader[dict[str, Any]]:
    """A DataLoader over `batches` from `start_step`, a step of the optimizer, on; the same with any number of workers.

    Errors: `UsageError` with workers and an adaptive schedule, whose losses could not reach them.
    """
    if workers and isinstance(batches.sampler.plan.schedule, Adaptive):
        raise UsageError(f"--workers {workers} with an adaptive schedule: batches are drawn ahead of losses; use 0")
    return DataLoader(
        batches,
        batch_size=None,
        sampler=Steps(start_step * batches.parts, len(batches)),
        num_workers=workers,
        pin_memory=pin_memory,
    )


# --- short pieces first -----------------------------------------------------------------------------------------------
#
# length 8, from 2 over 100 tokens     tokens 0: 2     40: 4     80: 4     100 and more: 8


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


def cut_blocks(ids: Any, length: int) -> Any:
    """Blocks cut into pieces of `length` predictions. (B, L+1) -> (B * L // length, length+1), of arrays and tensors

    The last token of a piece is the first of the next: it is predicted once and read once.

    >>> cut_blocks(np.array([[0, 1, 2, 3, 4]]), 2).tolist()
    [[0, 1, 2], [2, 3, 4]]
    """
    if (ids.shape[1] - 1) % length:
        raise ValueError(f"pieces of {length} do not fill blocks of {ids.shape[1] - 1}")
    places = np.arange(0, ids.shape[1] - 1, length)[:, None] + np.arange(length + 1)
    return ids[:, places].reshape(-1, length + 1)
