"""A plan: how many blocks of each bin each batch of a training holds, from the first to the last.

    counts (T+1, K), cumulative      [[0, 0], [3, 1], [5, 3], [6, 6]]
    batch t has of bin k             counts[t+1, k] - counts[t, k]

It is made once, before the training; a seek to any step is a look into the table. Only an adaptive schedule is planned
piece by piece: `plan.after(losses)` is the plan with one more piece.

With strata, each has a plan of its own, over its own blocks, and the steps of the whole are theirs together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from fluxentropy.errors import UsageError
from fluxentropy.schedules.mixtures import Reweighting
from fluxentropy.schedules.orders import SCALE, Permutation, keys, largest_remainder, permuted
from fluxentropy.schedules.schedule import Adaptive, Schedule

# --- whole numbers from shares ----------------------------------------------------------------------------------------
#
#     targets of 2 bins, step by step   [[0, 0], [1.5, 0.5], [3.0, 1.0]]
#     counts                            [[0, 0], [2, 0],     [3, 1]]
#
# `counts_of` rounds cumulative targets Q (T+1, K), whose rows sum to whole numbers x_t, to whole numbers C that never
# fall, sum to x_t as well, and are Q rounded down or up: |C - Q| < 1 for every bin after every step.
#
# Why that can be (the chairman assignment problem, Tijdeman 1980). Unit i of bin k is what lifts C_k from i - 1 to i.
# The bound holds if and only if it is drawn not before the first step with Q_k > i - 1, and not after the first with
# Q_k >= i. Step t draws x_t - x_(t-1) units. Let each step pour to each unit the part of the target that grows in it:
# (Q_k(t-1), Q_k(t)] cut with (i-1, i]. This fills all steps exactly, and every unit that has a last step; units open
# at the end are filled in part. So the flow steps -> units has a fractional solution, hence, as its capacities are
# whole
# numbers, one in whole numbers. Units are single jobs with a first and a last step, and for these, taking at each step
# those whose last step is nearest finds a solution where there is one (Steiner and Yeomans 1993, for level schedules).
# Among equal last steps the largest remainder goes first. What a step holds of Q is integer arithmetic throughout.


def increments(weights: np.ndarray, blocks: np.ndarray) -> np.ndarray:
    """The target of each step in parts of a block: weights (T, K), rows sum to 1; blocks (T,) -> int64 (T, K).

    Rows sum to blocks * SCALE; what is lost in rounding, at most K parts, goes to the largest weight.
    """
    total = blocks.astype(np.int64) * SCALE
    parts = np.floor(weights * total[:, None]).astype(np.int64)
    parts[np.arange(len(parts)), weights.argmax(axis=1)] += total - parts.sum(axis=1)
    return parts


def capped_targets(weights: np.ndarray, blocks: np.ndarray, room: np.ndarray) -> np.ndarray:
    """Cumulative targets, int64 (T+1, K) in parts of a block, that never exceed `room` (K,) blocks.

    What a full bin would have got goes to the others in proportion to their weights, or, where these are all zero, to
    the blocks they have. The rows of weights sum to 1, and blocks (T,) to at most the sum of `room`.
    """
    limit = room.astype(np.int64) * SCALE
    found = np.zeros((len(weights) + 1, len(room)), np.int64)
    start = 0
    while start < len(weights):
        steps = increments(_redirected(weights[start:], limit - found[start]), blocks[start:])
        ahead = found[start] + np.cumsum(steps, axis=0)
        over = (ahead > limit).any(axis=1)
        stop = int(over.argmax()) if over.any() else len(steps)
        found[start + 1 : start + 1 + stop] = ahead[:stop]
        start += stop
        if start < len(weights):  # in this step a bin becomes full
            found[start + 1] = _fill(found[start], steps[stop], weights[start], limit)
            start += 1
    return found


def _redirected(weights: np.ndarray, room: np.ndarray) -> np.ndarray:
    """`weights` (T, K) without the full bins, those of no `room` (K,); rows sum to 1 again."""
    kept = np.where(room > 0, weights, 0.0)
    kept[kept.sum(axis=1) <= 0] = np.maximum(room, 0)
    sums = kept.sum(axis=1, keepdims=True)
    return np.divide(kept, sums, out=np.full_like(kept, 1 / len(room)), where=sums > 0)


def _fill(now: np.ndarray, step: np.ndarray, weights: np.ndarray, limit: np.ndarray) -> np.ndarray:
    """`now + step` (K,), with what exceeds `limit` handed on to bins that still have room."""
    found = now + step
    while (excess := int(np.maximum(found - limit, 0).sum())) > 0:
        found = np.minimum(found, limit)
        share = _redirected(weights[None], limit - found)
        parts = np.floor(share[0] * excess).astype(np.int64)
        parts[share[0].argmax()] += excess - int(parts.sum())
        found = found + parts
    return found


def counts_of(targets: np.ndarray, denominator: int = SCALE) -> np.ndarray:
    """Cumulative counts C, int64 (T+1, K), of the cumulative targets `targets` / `denominator`: |C - Q| < 1.

    targets: int64 (T+1, K), the first row 0, each column never falling, each row's sum a multiple of `denominator`.

    >>> counts_of(np.array([[0, 0], [3, 1], [6, 2]]), 2).tolist()
    [[0, 0], [2, 0], [3, 1]]
    """
    whole, rest = np.divmod(targets, denominator)
    spare = targets.sum(axis=1) // denominator - whole.sum(axis=1)  # units to draw before their last step
    if not spare.any():
        return whole
    last = np.stack([np.searchsorted(column, column, side="right") for column in whole.T], axis=1)
    last[rest == 0] = len(whole) + 1  # its next unit is not open yet
    order = np.lexsort((-rest, last), axis=1)
    stays = np.zeros(whole.shape, bool)
    stays[1:] = whole[1:] == whole[:-1]
    counts, early = whole.copy(), np.zeros(whole.shape[1], bool)
    for t in range(1, len(whole)):
        early &= stays[t]
        if (more := int(spare[t]) - int(np.count_nonzero(early))) > 0:
            ranked = order[t]
            early[ranked[~early[ranked]][:more]] = True
        counts[t] += early
    return counts


# --- jitter -----------------------------------------------------------------------------------------------------------
#
#     bins in order, window 4      0 0 0 0 | 0 0 1 1 | 1 1 1 1
#     shuffled in their windows    0 0 0 0 | 1 0 0 1 | 1 1 1 1
#
# What moves are the bins: the i-th draw of a bin stays the i-th, so that blocks are shuffled inside bins as before, and
# a block is drawn in the window that it would have been drawn in. The table says all of it; a seek stays a look.


PIECE = 2**20  # blocks whose windows are shuffled together
INSIDE, WINDOW = 1, 2  # what a key is for


def jitter_share(schedule: Schedule, jitter: float, total: int) -> float:
    """The window as a share of an epoch of `total` blocks. Errors: `UsageError` says what a window may be."""
    if not isinstance(schedule, Permutation):
        raise UsageError(
            f"schedule.jitter {jitter:g}: it shuffles the order of schedules that draw each block once an epoch; leave "
            f"it out, a mixture has no such order"
        )
    if not 0 < jitter <= total or (jitter >= 1 and jitter != int(jitter)):
        raise UsageError(
            f"schedule.jitter {jitter:g}: use a share of an epoch, above 0 and below 1, or a whole number of blocks up "
            f"to the {total:,} of an epoch"
        )
    return jitter if jitter < 1 else jitter / total


def jittered(counts: np.ndarray, sizes: np.ndarray, window: int, key: np.ndarray) -> np.ndarray:
    """The counts (T+1, K) of the same draws, shuffled within each `window` blocks of an epoch, the last maybe shorter.

    In a step the order of bins is shuffled first, an epoch's before those of the next. So no draw moves by `window`
    places or more, and every window, and every epoch, holds what it held. key: uint64 (1,), which names the shuffles.

    Source: "jittering ordering" of Dai et al. (2026, arXiv:2605.30334), which shuffles texts in windows.

    >>> jittered(np.array([[0, 0], [1, 0], [2, 0], [2, 1], [2, 2]]), np.array([2, 2]), 4, keys(0)).tolist()
    [[0, 0], [0, 1], [1, 1], [2, 1], [2, 2]]
    """
    total, bins, epoch = int(counts[-1].sum()), counts.shape[1], int(sizes.sum())
    ends = np.arange(epoch, total, epoch)  # of all epochs but the last
    places = np.searchsorted(counts.sum(axis=1), ends)
    table = np.insert(counts, places, ends[:, None] // epoch * sizes, axis=0)  # no step is of two epochs
    x, drawn = table.sum(axis=1), np.diff(table, axis=0)
    found = np.zeros_like(table)
    for start in range(0, total, epoch):
        stop = min(start + epoch, total)
        for low in range(start, stop, most := max(PIECE // window, 1) * window):
            high = min(low + most, stop)
            first, last = int(np.searchsorted(x, low, "right")) - 1, int(np.searchsorted(x, high))
            place = np.arange(low, high)
            step = np.searchsorted(x, place, side="right") - 1
            in_order = np.repeat(np.tile(np.arange(bins), last - first), drawn[first:last].ravel())
            mixed = permuted(place - x[step], drawn[step].sum(axis=1), keys(key, INSIDE, step))
            here = in_order[x[step] - x[first] + mixed]
            opens = place - (place - start) % window
            moved = permuted(place - opens, np.minimum(window, stop - opens), keys(key, WINDOW, opens))
            cell = (step - first) * bins + here[opens + moved - low]
            found[first + 1 : last + 1] += np.bincount(cell, minlength=(last - first) * bins).reshape(-1, bins)
    return np.delete(np.cumsum(found, axis=0), places + np.arange(len(places)), axis=0)


# --- plans ------------------------------------------------------------------------------------------------------------


MAX_BLOCKS = 2**31 - 1  # targets are counted in 2^-32 of a block, in int64
Exhausted = Literal["reshuffle", "redistribute", "stop"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """Cumulative counts of a training over K bins in T steps."""

    schedule: Schedule
    sizes: np.ndarray  # (K,) blocks in each bin that are drawn from
    batches: np.ndarray  # (T,) blocks in each batch; only the last may be smaller, but those of a stratum vary
    counts: np.ndarray  # (known+1, K) int64
    exhausted: Exhausted
    history: tuple[tuple[float, ...], ...] = ()  # losses that an adaptive schedule was told
    carried: np.ndarray | None = None  # (K,) blocks that the last piece of an adaptive plan owes
    strata: tuple[Plan, ...] = ()  # whose counts are parts of these
    chosen: str = ""  # a fingerprint of what decides which blocks there are to draw, where these are not all alike

    @property
    def steps(self) -> int:
        """Batches of the whole training."""
        return len(self.batches)

    @property
    def known(self) -> int:
        """Batches that are planned; fewer than `steps` only while an adaptive schedule waits for losses."""
        return len(self.counts) - 1

    @property
    def blocks(self) -> int:
        """Blocks of the whole training."""
        return int(self.batches.sum())

    @property
    def marginal(self) -> np.ndarray:
        """Each bin's share of all that is planned, (K,)."""
        return self.counts[-1] / max(int(self.counts[-1].sum()), 1)

    @property
    def epochs(self) -> np.ndarray:
        """How often each bin is drawn, (K,); 0 for a bin without blocks."""
        return self.counts[-1] / np.maximum(self.sizes, 1)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the table; of an adaptive plan, whose table follows from its losses, of its parameters."""
        adaptive = isinstance(self.schedule, Adaptive)
        facts = (self.sizes.tolist(), self.batches.tolist()[-1:], self.steps, self.exhausted)
        digest = hashlib.sha256(repr((*facts, self.schedule if adaptive else None)).encode())
        digest.update(b"" if adaptive else np.ascontiguousarray(self.counts, "<i8").tobytes())
        for part in self.strata:
            digest.update(part.fingerprint.encode())
        digest.update(self.chosen.encode())
        return digest.hexdigest()

    @property
    def parts(self) -> tuple[Plan, ...]:
        """The plans of the strata, or this one alone."""
        return self.strata or (self,)

    @property
    def cell_sizes(self) -> np.ndarray:
        """Blocks of each stratum in each bin, those of a stratum side by side. (S * K,)"""
        return np.concatenate([part.sizes for part in self.parts])

    def cells(self, first: int, last: int) -> np.ndarray:
        """Cumulative counts of each stratum in each bin, before steps `first` to `last`. (last - first + 1, S * K)"""
        return np.concatenate([part.counts[first : last + 1] for part in self.parts], axis=1)

    def cuts(self, pieces: int) -> np.ndarray:
        """The steps at which `pieces` equal parts of what is planned begin and end. (pieces+1,)"""
        return np.round(np.linspace(0, self.known, pieces + 1)).astype(np.int64)

    def realised(self, pieces: int) -> np.ndarray:
        """The mixture in each of `pieces` equal parts of what is planned. -> (pieces, K), NaN without steps"""
        drawn = np.diff(self.counts[self.cuts(pieces)], axis=0).astype(np.float64)
        totals = drawn.sum(axis=1, keepdims=True)
        return np.divide(drawn, totals, out=np.full_like(drawn, np.nan), where=totals > 0)

    def after(self, losses: Sequence[float]) -> Plan:
        """This plan with the piece that follows once the bins' `losses` (K,) are known; for adaptive schedules."""
        if not isinstance(self.schedule, Adaptive):
            raise UsageError("losses are for an adaptive schedule only")
        if self.strata:
            return _joined(self, [part.after(losses) for part in self.strata])
        return _extended(replace(self, history=(*self.history, tuple(map(float, losses)))), self.schedule)


def make_plan(
    schedule: Schedule,
    sizes: Sequence[int] | np.ndarray,
    *,
    blocks: int | None = None,
    batch_size: int,
    exhausted: Exhausted = "reshuffle",
    static: bool = False,
    drop_last: bool = False,
    strata: Sequence[str] = (),
    jitter: float | None = None,
    seed: int = 0,
    chosen: str = "",
) -> Plan:
    """The plan of a training on bins of `sizes` (K,) blocks, with a budget of `blocks` (default: all, once).

    static: the whole time the mixture that the plan would have over the budget. drop_last: leave out a last batch that
    is smaller than the others. strata: their names, where `sizes` is (S, K). jitter: the window of `jittered`, as a
    share of an epoch (below 1) or a number of blocks, with a `seed`; a static plan has none. chosen: see `Plan`.

    Strata have plans of their own. After each step a stratum has had its share of all blocks, n_s / N, rounded up or
    down (`counts_of`), and of these each of its bins what the schedule says, likewise. Jitter moves blocks inside
    their stratum.

    Errors: `UsageError` where the budget does not suit the schedule or the policy, and names a stratum that does not.
    """
    table = np.atleast_2d(np.asarray(sizes, np.int64))
    total = int(table.sum())
    blocks = total if blocks is None else blocks
    _check_budget(schedule, total, blocks, batch_size, exhausted, drop_last)
    batches = np.full(blocks // batch_size, batch_size, np.int64)
    if blocks % batch_size and not drop_last:
        batches = np.append(batches, blocks % batch_size)
    window = None if jitter is None else jitter_share(schedule, jitter, total)
    plan = Plan(
        schedule=schedule,
        sizes=table.sum(axis=0),
        batches=batches,
        counts=np.zeros((1, table.shape[1]), np.int64),
        exhausted=exhausted,
        chosen=chosen,
    )
    if not strata:
        return _planned(plan, static, window, keys(seed, 0))
    x = np.append(0, np.cumsum(batches))
    shares = np.diff(counts_of(x[:, None] * table.sum(axis=1), total), axis=0)  # (T, S)
    parts = []
    for number, name in enumerate(strata):
        part = replace(plan, sizes=table[number], batches=shares[:, number], chosen="")
        try:
            parts.append(_planned(part, static, window, keys(seed, number)))
        except UsageError as error:
            raise UsageError(f"schedule.stratify, the blocks of {name}: {error}") from error
    return _joined(plan, parts)


def _check_budget(
    schedule: Schedule, total: int, blocks: int, batch_size: int, exhausted: Exhausted, drop_last: bool
) -> None:
    """Errors: `UsageError`, as of `make_plan`."""
    if total == 0:
        raise UsageError("the bins hold no block: they are empty, or need a smaller --block-length than their texts")
    if blocks < 1 or (drop_last and blocks < batch_size):
        raise UsageError(f"a budget of {blocks:,} blocks is less than one batch of {batch_size:,}: raise --tokens")
    if blocks > MAX_BLOCKS:
        raise UsageError(f"a budget of {blocks:,} blocks: at most {MAX_BLOCKS:,} are possible; use longer blocks")
    if exhausted == "redistribute" and blocks > total:
        raise UsageError(
            f"a budget of {blocks:,} blocks with --exhausted redistribute: the bins hold {total:,}, and no block is "
            f"drawn twice; lower --tokens, or use --exhausted reshuffle"
        )
    if isinstance(schedule, Permutation) and blocks > total and blocks % total:
        raise UsageError(
            f"a budget of {blocks:,} blocks: a schedule that draws each block once an epoch needs whole epochs of "
            f"{total:,} blocks, or less than one"
        )


def _planned(plan: Plan, static: bool, window: float | None, key: np.ndarray) -> Plan:
    """`plan` with its counts; `window`: of the jitter, as a share of an epoch."""
    schedule, sizes = plan.schedule, plan.sizes
    if isinstance(schedule, Adaptive):
        return _extended(plan, schedule)
    x = np.append(0, np.cumsum(plan.batches))
    blocks = int(x[-1])
    if not blocks:  # a stratum that is too small for the budget
        return replace(plan, counts=np.zeros((len(x), len(sizes)), np.int64))
    if isinstance(schedule, Permutation):
        counts = _permutation_counts(schedule, sizes, x, blocks)
        if window is not None and not static:
            counts = jittered(counts, sizes, max(round(window * int(sizes.sum())), 1), key)
    else:
        counts = _reweighting_counts(schedule, sizes, x, blocks, plan.exhausted)
    plan = _stopped(replace(plan, counts=counts))
    if static:
        counts = plan.counts
        plan = replace(plan, counts=counts_of(x[: len(counts), None] * counts[-1], int(counts[-1].sum())))
    return plan


def _joined(plan: Plan, parts: Sequence[Plan]) -> Plan:
    """`plan` as the sum of its strata's plans, up to where the first of them stops."""
    steps = min(part.steps for part in parts)
    known = min(steps, *(part.known for part in parts))
    parts = [replace(part, batches=part.batches[:steps], counts=part.counts[: known + 1]) for part in parts]
    return replace(
        plan,
        batches=plan.batches[:steps],
        counts=np.sum([part.counts for part in parts], axis=0),
        history=parts[0].history,
        strata=tuple(parts),
    )


def _permutation_counts(schedule: Permutation, sizes: np.ndarray, x: np.ndarray, blocks: int) -> np.ndarray:
    """Counts (T+1, K) of a part of an epoch, in which bins have their share, or of whole epochs."""
    total = int(sizes.sum())
    if blocks <= total:
        return counts_of(*schedule.targets(x, largest_remainder(blocks, sizes)))
    epoch, inside = np.divmod(x, total)
    found, denominator = schedule.targets(inside, sizes)
    return counts_of(found + epoch[:, None] * sizes * denominator, denominator)


def _reweighting_counts(
    schedule: Reweighting, sizes: np.ndarray, x: np.ndarray, blocks: int, exhausted: Exhausted
) -> np.ndarray:
    """Counts (T+1, K): the target of a step is the mixture in its middle."""
    weights = _on_blocks(schedule.mixture((x[:-1] + x[1:]) / 2 / blocks, sizes), sizes)
    return counts_of(_targets(weights, np.diff(x), sizes if exhausted == "redistribute" else None))


def _on_blocks(weights: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """`weights` (n, K) without the bins that have no block; rows sum to 1."""
    kept = np.where(sizes > 0, weights, 0.0)
    sums = kept.sum(axis=1, keepdims=True)
    if (sums <= 0).any():
        raise UsageError(
            "schedule: at some time it draws only from bins that hold no block; make coarser bins of them (groups)"
        )
    return kept / sums


def _targets(weights: np.ndarray, batches: np.ndarray, room: np.ndarray | None) -> np.ndarray:
    """Cumulative targets (T+1, K) in parts of a block."""
    if room is not None:
        return capped_targets(weights, batches, room)
    return np.concatenate([np.zeros((1, weights.shape[1]), np.int64), np.cumsum(increments(weights, batches), axis=0)])


def _extended(plan: Plan, schedule: Adaptive) -> Plan:
    """`plan` with the steps up to the next update. What bins are owed from before is spread over the piece.

    Rounding then does not add up: counts are less than 1 from the targets at the end of a piece, less than 2 inside it,
    as long as no bin has had more in advance than it is to get.
    """
    batches = plan.batches[plan.known : plan.known + schedule.every]
    if not len(batches):
        return plan
    weights = _on_blocks(schedule.weights(plan.sizes, plan.history)[None], plan.sizes)[0]
    owed = plan.carried if plan.carried is not None else np.zeros(len(weights))
    wanted = np.maximum(weights * batches.sum() + owed, 0)
    wanted = wanted if wanted.sum() > 0 else weights  # a stratum without blocks in this piece
    room = plan.sizes - plan.counts[-1] if plan.exhausted == "redistribute" else None
    targets = _targets(np.tile(wanted / wanted.sum(), (len(batches), 1)), batches, room)
    counts = counts_of(targets)
    return _stopped(
        replace(
            plan,
            counts=np.concatenate([plan.counts, plan.counts[-1] + counts[1:]]),
            carried=targets[-1] / SCALE - counts[-1],
        )
    )


def _stopped(plan: Plan) -> Plan:
    """With the policy stop: the plan up to the step in which a bin would be drawn again."""
    over = (plan.counts > plan.sizes).any(axis=1)
    if plan.exhausted != "stop" or isinstance(plan.schedule, Permutation) or not over.any():
        return plan
    steps = int(over.argmax()) - 1
    if steps < 1:
        raise UsageError("--exhausted stop: the first batch already needs more blocks of a bin than it holds")
    return replace(plan, counts=plan.counts[: steps + 1], batches=plan.batches[:steps])
