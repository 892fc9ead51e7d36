"""Targets that are fractions -> whole numbers of blocks: cumulative quotas that stay within one block of the targets.

    targets of 2 bins, step by step   [[0, 0], [1.5, 0.5], [3.0, 1.0]]
    counts                            [[0, 0], [2, 0],     [3, 1]]

`counts_of` rounds cumulative targets Q (T+1, K), whose rows sum to whole numbers x_t, to whole numbers C that never
fall, sum to x_t as well, and are Q rounded down or up: |C - Q| < 1 for every bin after every step.

Why that can be (the chairman assignment problem, Tijdeman 1980). Unit i of bin k is what lifts C_k from i - 1 to i. The
bound holds if and only if it is drawn not before the first step with Q_k > i - 1, and not after the first with
Q_k >= i. Step t draws x_t - x_(t-1) units. Let each step pour to each unit the part of the target that grows in it:
(Q_k(t-1), Q_k(t)] cut with (i-1, i]. This fills all steps exactly, and every unit that has a last step; units open
at the end are filled in part. So the flow steps -> units has a fractional solution, hence, as its capacities are whole
numbers, one in whole numbers. Units are single jobs with a first and a last step, and for these, taking at each step
those whose last step is nearest finds a solution where there is one (Steiner and Yeomans 1993, for level schedules).
Among equal last steps the largest remainder goes first. What a step holds of Q is integer arithmetic throughout.
"""

from __future__ import annotations

import numpy as np

SCALE = 2**32  # parts of a block in which targets are kept


def largest_remainder(total: int, sizes: np.ndarray) -> np.ndarray:
    """Whole numbers (K,) that sum to `total`, in proportion to `sizes` (K,): Hamilton's method, ties to the first.

    >>> largest_remainder(5, np.array([1, 1, 2]))
    array([1, 1, 3])
    """
    whole_of = int(np.sum(sizes))
    products = [total * int(size) for size in sizes]  # of any size
    found = np.array([product // whole_of for product in products], np.int64)
    order = sorted(range(len(sizes)), key=lambda k: -(products[k] % whole_of))
    found[order[: total - int(found.sum())]] += 1
    return found


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
