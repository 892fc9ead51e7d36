"""Which blocks are in the batch of a step: a pure function of the blocks, the plan, the seed and the step.

    sampler = Sampler("bins", make("periodic", cycles=4), batch_size=32, seed=0)
    DataLoader(sampler.blocks, batch_sampler=sampler.batches)        # or sampler=sampler: block by block

    batch t of bin k holds draws counts[t, k] to counts[t+1, k] - 1 of that bin
    draw j of bin k  is block  shuffle_{seed, k, epoch}[j mod n_k],  epoch = j // n_k
    of a bin of which only n_k blocks are kept, it is that of shuffle_{seed, k}; strata count as bins of their own
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
from fluxentropy.schedules.strata import Chosen, Strata, choose, parse_keep, read_strata

CHUNK = 4096  # blocks whose places are worked out together
DRAW, ORDER, KEEP = 1, 2, 3  # what a key is for


class Draws:
    """The batches of a plan over the bins of a set of blocks.

    counts: blocks of each bin; members: the bins that each bin of the plan is made of (default: one each), as
    `schedule.group_bins` gives them; fingerprint: of the blocks; chosen: which of the blocks (default: all).
    """

    def __init__(
        self,
        plan: Plan,
        counts: Sequence[int] | np.ndarray,
        *,
        seed: int,
        fingerprint: str,
        members: Sequence[Sequence[int]] | None = None,
        chosen: Chosen | None = None,
    ) -> None:
        counts = np.asarray(counts, np.int64)
        members = [[k] for k in range(len(counts))] if members is None else members
        chosen = choose(counts) if chosen is None else chosen
        self.plan, self.seed, self.fingerprint, self.chosen = plan, seed, fingerprint, chosen
        self.members = [list(group) for group in members]
        sizes = group_sizes(chosen, members).ravel()
        if not np.array_equal(sizes, plan.cell_sizes):
            raise UsageError(
                f"a plan for bins of {plan.cell_sizes.tolist()} blocks does not fit bins of {sizes.tolist()}"
            )
        self._starts = np.cumsum(sizes) - sizes
        # The bins of each stratum, side by side in the order of their groups.
        order = np.array([k for group in members for k in group], np.int64)
        there, kept = chosen.counts[:, order].ravel(), chosen.kept[:, order].ravel()
        before = np.cumsum(chosen.counts, axis=0) - chosen.counts + (np.cumsum(counts) - counts)
        self._ends = np.cumsum(kept)
        self._shift = before[:, order].ravel() - (self._ends - kept)
        self._there, self._cut = there, (kept > 0) & (kept < there)
        self._names = (np.arange(len(chosen.counts))[:, None] * len(counts) + order).ravel()  # of bins, for keys
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
            found = self.draws(first, last)
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

    def draws(self, first: int, last: int) -> np.ndarray:
        """The blocks of steps `first` to `last` - 1, all planned, each step's in their shuffled order. -> int64 (n,)"""
        table, sizes = self.plan.cells(first, last), self.plan.cell_sizes
        before, drawn = table[:-1], np.diff(table, axis=0)
        bins = np.repeat(np.tile(np.arange(len(sizes)), last - first), drawn.ravel())
        starts = np.repeat(before.ravel() - (np.cumsum(drawn) - drawn.ravel()), drawn.ravel())
        epoch, place = np.divmod(starts + np.arange(len(bins)), sizes[bins])
        shuffled = permuted(place, sizes[bins], keys(self.seed, DRAW, bins, epoch))
        numbers = self._blocks(self._starts[bins] + shuffled)
        batches = self.plan.batches[first:last]
        steps = np.repeat(np.arange(first, last), batches)
        inside = np.arange(len(steps)) - np.repeat(np.cumsum(batches) - batches, batches)
        return numbers[np.lexsort((keys(self.seed, ORDER, steps, inside), steps))]

    def _blocks(self, at: np.ndarray) -> np.ndarray:
        """The blocks at these places of all that are kept, side by side. (n,) -> (n,)"""
        piece = np.searchsorted(self._ends, at, side="right")
        numbers = at + self._shift[piece]
        if self._cut.any():
            cut = np.flatnonzero(self._cut[piece])
            of = piece[cut]
            begin = self._ends[of] - self.chosen.kept.ravel()[self._names[of]] + self._shift[of]
            key = keys(self.seed, KEEP, self._names[of])
            numbers[cut] = begin + permuted(numbers[cut] - begin, self._there[of], key)
        return numbers if self.chosen.strata is None else self.chosen.strata.numbers[numbers]

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
    budget of whole batches. The other options are those of `fluxentropy pretrain`, and those of its `schedule:` that
    every schedule has; stratify: a column, or the strata.

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
        stratify: str | Strata | None = None,
        keep: str | None = None,
        jitter: float | None = None,
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
        chosen = choose_blocks(blocks, stratify=stratify, keep=keep, batch_size=batch_size)
        sizes = group_sizes(chosen, members)
        plan = make_plan(
            schedule,
            sizes[0] if chosen.strata is None else sizes,
            blocks=None if tokens is None else tokens // blocks.length,
            batch_size=batch_size,
            exhausted=exhausted,
            static=static,
            drop_last=drop_last,
            strata=chosen.strata.names if chosen.strata else (),
            jitter=jitter,
            seed=seed,
            chosen=chosen.fingerprint,
        )
        super().__init__(plan, blocks.counts, seed=seed, fingerprint=blocks.fingerprint, members=members, chosen=chosen)
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


def group_sizes(chosen: Chosen, members: Sequence[Sequence[int]]) -> np.ndarray:
    """The blocks of each stratum in each group of bins that are drawn from. -> (S, groups)"""
    return np.stack([chosen.kept[:, list(group)].sum(axis=1) for group in members], axis=1)


def choose_blocks(blocks: BlockSet, *, stratify: str | Strata | None, keep: str | None, batch_size: int) -> Chosen:
    """What the options of a schedule leave of `blocks`. Errors: UsageError, RunError as of `read_strata`, `choose`;
    UsageError where a batch cannot hold each value."""
    if keep is not None:
        parse_keep(keep)  # before anything is read
    if stratify is None or not len(blocks):
        return choose(blocks.counts, keep=keep)
    strata = read_strata(blocks, stratify) if isinstance(stratify, str) else stratify
    if len(strata.names) > batch_size:
        raise UsageError(
            f"schedule.stratify {strata.column}: the blocks are of {len(strata.names):,} values, and a batch holds "
            f"{batch_size:,} blocks: name a column of fewer values, or raise --batch-size"
        )
    return choose(blocks.counts, keep=keep, strata=strata)


def open_sampler(options: BudgetOptions, blocks: BlockSet, strata: Strata | None = None) -> Sampler:
    """The sampler that the options of a command describe, with `stratify` of `strata` where these are given.

    Errors: as of `Sampler` and `make_schedule`.
    """
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
        stratify=strata or config.stratify,
        keep=config.keep,
        jitter=config.jitter,
    )
