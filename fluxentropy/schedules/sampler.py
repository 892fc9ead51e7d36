"""Which blocks are in the batch of a step: a pure function of the blocks, the plan, the seed and the step.

    sampler = Sampler("bins", make("periodic", cycles=4), batch_size=32, seed=0)
    DataLoader(sampler.blocks, batch_sampler=sampler.batches)        # or sampler=sampler: block by block

    batch t of bin k holds draws counts[t, k] to counts[t+1, k] - 1 of that bin
    draw j of bin k  is block  shuffle_{seed, k, epoch}[j mod n_k],  epoch = j // n_k
    the batch is in a shuffled order, by the seed and t

No step depends on another, so any step can be looked up at once; its state is the step. Ranks, and the parts of an
accumulated batch, are slices of the one global batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fluxentropy.errors import RunError, UsageError
from fluxentropy.runs.directory import difference
from fluxentropy.schedules.dataset import BlockSet
from fluxentropy.schedules.mixtures import GridStages
from fluxentropy.schedules.options import BudgetOptions
from fluxentropy.schedules.orders import keys, permuted
from fluxentropy.schedules.plan import Exhausted, Plan, make_plan
from fluxentropy.schedules.schedule import Groups, Schedule, group_bins, make, make_schedule

CHUNK = 4096  # blocks whose places are worked out together
DRAW, ORDER = 1, 2  # what a key is for


class Draws:
    """The batches of a plan over the bins of a set of blocks.

    counts: blocks of each bin; members: the bins that each bin of the plan is made of (default: one each), as
    `schedule.group_bins` gives them; fingerprint: of the blocks.
    """

    def __init__(
        self,
        plan: Plan,
        counts: Sequence[int] | np.ndarray,
        *,
        seed: int,
        fingerprint: str,
        members: Sequence[Sequence[int]] | None = None,
    ) -> None:
        counts = np.asarray(counts, np.int64)
        members = [[k] for k in range(len(counts))] if members is None else members
        order = np.array([k for group in members for k in group], np.int64)
        self.plan, self.seed, self.fingerprint = plan, seed, fingerprint
        self._ends = np.cumsum(counts[order])  # of the bins, side by side in the order of their groups
        self._shift = (np.cumsum(counts) - counts)[order] - (self._ends - counts[order])
        sizes = np.array([counts[list(group)].sum() for group in members], np.int64)
        if not np.array_equal(sizes, plan.sizes):
            raise UsageError(f"a plan for bins of {plan.sizes.tolist()} blocks does not fit bins of {sizes.tolist()}")
        self._starts = np.cumsum(sizes) - sizes
        self._chunk: tuple[int, int, np.ndarray] = (0, 0, np.zeros(0, np.int64))  # first step, last, their blocks

    @property
    def steps(self) -> int:
        """Batches of the whole training."""
        return self.plan.steps

    def batch(self, step: int) -> np.ndarray:
        """The numbers of the blocks of the global batch at `step`, from 0. -> int64 (B,)

        Errors: IndexError where there is no such step; `UsageError` where an adaptive schedule still waits for losses.
        """
        if not 0 <= step < self.steps:
            raise IndexError(f"step {step}: the plan has {self.steps}")
        if step >= self.plan.known:
            raise UsageError(f"step {step}: the mixture after step {self.plan.known} needs the losses of the bins")
        first, last, found = self._chunk
        if not first <= step < last:
            first = step
            last = min(step + max(CHUNK // int(self.plan.batches[0]), 1), self.plan.known)
            found = self._draws(first, last)
            self._chunk = (first, last, found)
        at = int(self.plan.batches[first:step].sum())
        return found[at : at + int(self.plan.batches[step])]

    def rank_batch(self, step: int, rank: int, world: int, part: int = 0, parts: int = 1) -> np.ndarray:
        """What `rank` of `world` takes of the batch, in part `part` of `parts` accumulated ones.

        For any world and parts, the slices in the order (part, rank) are the global batch.
        """
        ids = self.batch(step)
        place, pieces = part * world + rank, parts * world
        return ids[len(ids) * place // pieces : len(ids) * (place + 1) // pieces]

    def _draws(self, first: int, last: int) -> np.ndarray:
        """The blocks of steps first to last - 1, each step's in their shuffled order."""
        before = self.plan.counts[first:last]
        drawn = self.plan.counts[first + 1 : last + 1] - before
        bins = np.repeat(np.tile(np.arange(len(self.plan.sizes)), last - first), drawn.ravel())
        starts = np.repeat(before.ravel() - (np.cumsum(drawn) - drawn.ravel()), drawn.ravel())
        epoch, place = np.divmod(starts + np.arange(len(bins)), self.plan.sizes[bins])
        shuffled = permuted(place, self.plan.sizes[bins], keys(self.seed, DRAW, bins, epoch))
        at = self._starts[bins] + shuffled
        numbers = at + self._shift[np.searchsorted(self._ends, at, side="right")]
        sizes = self.plan.batches[first:last]
        steps = np.repeat(np.arange(first, last), sizes)
        inside = np.arange(len(steps)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        return numbers[np.lexsort((keys(self.seed, ORDER, steps, inside), steps))]

    # --- state --------------------------------------------------------------------------------------------------------

    def state(self, step: int) -> dict[str, Any]:
        """What a checkpoint after `step` whole steps keeps, as JSON; free of ranks, workers and prefetched batches."""
        return {
            "step": step,
            "blocks": self.fingerprint,
            "plan": self.plan.fingerprint,
            "batch_size": int(self.plan.batches[0]),
            "seed": self.seed,
            "losses": [list(losses) for losses in self.plan.history],
        }

    def resume(self, state: Mapping[str, Any], *, allow_changed: bool = False) -> int:
        """Take up an adaptive schedule's losses from `state`, and return the step to go on at.

        Errors: `RunError` names what differs from the run of `state`, unless `allow_changed`.
        """
        here = self.state(0)
        fixed = [name for name in here if name not in ("step", "losses")]
        found = difference({name: state.get(name) for name in fixed}, {name: here[name] for name in fixed})
        if found and not allow_changed:
            raise RunError(
                f"the checkpoint belongs to other data: {found}. Use the bins and the schedule that it was trained "
                f"with, or accept other batches from here on with --allow-changed-bins"
            )
        for losses in state.get("losses", [])[len(self.plan.history) :]:
            self.learn(losses)
        return int(state["step"])

    def learn(self, losses: Sequence[float]) -> None:
        """Tell an adaptive schedule the losses of the bins (K,), so that the plan goes on by one piece."""
        self.plan = self.plan.after(losses)


class Sampler(Draws):
    """The blocks of bins in the order of a schedule, as any DataLoader takes them: `pretrain` draws the same.

    It is iterated over the numbers of blocks, for `sampler=`; `batches` has a list of them for each step, for
    `batch_sampler=`. `blocks`, a data set, has the block of each number. Nothing is to be told about epochs: the one
    pass is the whole training, of `tokens` tokens (default: all blocks once). `rank` of `world` gets its slice of each
    batch.

    bins: a folder that `bin … --tokenize` wrote, or its blocks; schedule: a name, or what `make` made; drop_last: a
    budget of whole batches. The other options are those of `fluxentropy pretrain`.

    Errors: UsageError where the schedule, the budget, the bins and the ranks do not suit each other.
    """

    def __init__(
        self,
        bins: str | Path | BlockSet,
        schedule: str | Schedule = "random",
        *,
        tokens: int | None = None,
        batch_size: int = 32,
        seed: int = 0,
        exhausted: Exhausted = "reshuffle",
        groups: Groups = None,
        static: bool = False,
        drop_last: bool = False,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        blocks = bins if isinstance(bins, BlockSet) else BlockSet.open(Path(bins))
        members = group_bins(groups, blocks.bins)
        if isinstance(schedule, str):
            schedule = make(schedule, bins=len(members))
        if isinstance(schedule, GridStages) and schedule.grid is None:
            schedule = dataclasses.replace(schedule, grid=blocks.grid)
        if len(getattr(schedule, "labels", members)) != len(members):
            raise UsageError(f"schedule: a control made for other bins: give make bins={len(members)}")
        if tokens is not None and tokens < blocks.length:
            raise UsageError(f"--tokens {tokens}: one block has {blocks.length}")
        plan = make_plan(
            schedule,
            [int(blocks.counts[group].sum()) for group in members],
            blocks=None if tokens is None else tokens // blocks.length,
            batch_size=batch_size,
            exhausted=exhausted,
            static=static,
            drop_last=drop_last,
        )
        super().__init__(plan, blocks.counts, seed=seed, fingerprint=blocks.fingerprint, members=members)
        if not 0 <= rank < world:
            raise UsageError(f"rank {rank} of {world}: use 0 to {world - 1}")
        for size in plan.batches[[0, -1]].tolist():
            if size % world:
                raise UsageError(
                    f"a batch of {size} blocks has no equal share for {world} ranks: use another batch_size"
                    + (", or drop_last=True" if size != plan.batches[0] else "")
                )
        self.blocks, self.rank, self.world, self.start = blocks, rank, world, 0

    def __iter__(self) -> Iterator[int]:
        for batch in self.batches:
            yield from batch

    def __len__(self) -> int:
        """The blocks that this rank still gets."""
        return int(self.plan.batches[self.start :].sum()) // self.world

    @property
    def batches(self) -> Batches:
        """A list of numbers for each step, from `start` on."""
        return Batches(self)

    def resume(self, state: Mapping[str, Any], *, allow_changed: bool = False) -> int:
        """Go on after the steps of `state(step)`; see `Draws.resume`."""
        self.start = super().resume(state, allow_changed=allow_changed)
        return self.start


class Batches:
    """The batches of a sampler, as PyTorch's `batch_sampler` takes them."""

    def __init__(self, sampler: Sampler) -> None:
        self.sampler = sampler

    def __iter__(self) -> Iterator[list[int]]:
        one = self.sampler
        for step in range(one.start, one.steps):
            yield one.rank_batch(step, one.rank, one.world).tolist()

    def __len__(self) -> int:
        return self.sampler.steps - self.sampler.start


def open_sampler(options: BudgetOptions, blocks: BlockSet) -> Sampler:
    """The sampler that the options of a command describe. Errors: as of `Sampler` and `make_schedule`."""
    config = options.schedule
    members = group_bins(config.groups, blocks.bins)
    return Sampler(
        blocks,
        make_schedule(config, len(members), blocks.grid),
        tokens=options.tokens,
        batch_size=options.batch_size,
        seed=options.seed,
        exhausted=options.exhausted,
        groups=config.groups,
        static=config.static,
    )
