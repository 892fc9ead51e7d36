"""Schedules that are permutations: every block exactly once in an epoch, in an order that follows the bins.

    increasing   0 0 1 1 2 2            folded, 2 cycles   0 1 2 0 1 2
    decreasing   2 2 1 1 0 0            zigzag, 2 cycles   0 1 2 2 1 0
    segment      0 ? ? ? ? 2            curriculum         0 1 2 ? ? ?        ?: any that are left

`stair` and `saw` are increasing, but folded or zigzagged around their cuts. Each gives cumulative targets as fractions
of whole numbers, so that after all blocks every bin is used up to the last one. Inside a bin blocks are shuffled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np

from fluxentropy.config.checks import Between, Min, Options
from fluxentropy.errors import UsageError

# --- whole numbers and parts of them ----------------------------------------------------------------------------------


SCALE = 2**32  # parts of a block in which targets are kept that are no whole numbers of anything larger


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


def between(low: int, high: int, sizes: np.ndarray) -> np.ndarray:
    """How many of the blocks `low` to `high` - 1 of the corpus, in the order of its bins, each bin holds. -> (K,)

    >>> between(3, 8, np.array([4, 2, 6]))
    array([1, 2, 2])
    """
    ends = np.cumsum(sizes)
    return np.asarray(np.clip(ends, low, high) - np.clip(ends - sizes, low, high))


# --- permutations -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Permutation(Options, prefix="schedule."):
    """What permutations share. `targets(x, sizes)` is Q as numerators int64 (n, K) and their denominator.

    x: (n,) blocks drawn so far, at most the sum of sizes; sizes: (K,) blocks in each bin; Q_k(sum of sizes) = sizes_k.
    """

    kind: ClassVar[str] = "permutation"

    def targets(self, x: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, int]:
        raise NotImplementedError

    def mixture(self, u: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """The share of each bin in the block after the part u (n,) of an epoch. -> (n, K), rows sum to 1"""
        total = int(sizes.sum())
        x = np.minimum((np.asarray(u) * total).astype(np.int64), total - 1)
        (after, whole), (before, _) = self.targets(x + 1, sizes), self.targets(x, sizes)
        return (after - before) / whole


@dataclass(frozen=True, kw_only=True)
class Random(Permutation):
    """Bins in proportion to their sizes, all the time: w_k = n_k / N. The baseline of every study."""

    def targets(self, x: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, int]:
        return x[:, None] * sizes, int(sizes.sum())


def passes(x: np.ndarray, sizes: np.ndarray, cycles: int, falling: int = 0) -> tuple[np.ndarray, int]:
    """Targets of `cycles` passes over the bins, each over every cycles-th part of each bin. -> (n, K), denominator

    Passes run from low to high scores. falling: 1 to run down instead, 2 to run up and down by turns.
    """
    total = int(sizes.sum())
    ends = np.cumsum(sizes)
    number, inside = np.divmod(x * cycles, total)  # inside: in parts of 1 / cycles of a block
    up = np.clip(inside[:, None] - (ends - sizes), 0, sizes)
    down = np.clip(inside[:, None] - (total - ends), 0, sizes)
    is_down = number % 2 == 1 if falling == 2 else np.full(len(x), bool(falling))
    return number[:, None] * sizes + np.where(is_down[:, None], down, up), cycles


@dataclass(frozen=True, kw_only=True)
class Increasing(Permutation):
    """One pass from low to high scores: the curriculum of Bengio et al. (2009), block by block."""

    def targets(self, x: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, int]:
        return passes(x, sizes, 1)


@dataclass(frozen=True, kw_only=True)
class Decreasing(Permutation):
    """One pass from high to low scores: the anti-curriculum of Wu et al. (2021)."""

    def targets(self, x: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, int]:
        return passes(x, sizes, 1, falling=1)


@dataclass(frozen=True, kw_only=True)
class Folded(Permutation):
    """`cycles` C passes from low to high: at u the quantile frac(C u). The folding of Dai et al. (2025, DELT)."""

    cycles: Annotated[int, Min(1)] = 4

    def targets(self, x: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, int]:
        return passes(x, sizes, self.cycles)


@dataclass(frozen=True, kw_only=True)
class Zigzag(Permutation):
    """`cycles` passes, up and down by turns: folded without its jumps."""

    cycles: Annotated[int, Min(1)] = 4

    def targets(self, x: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, int]:
        return passes(x, sizes, self.cycles, falling=2)


# --- permutations in phases -------------------------------------------------------------------------------------------
#
# One piece of the corpus after another, each in an order of its own. Their numbers of blocks add up to the bins' sizes.


Draw = Callable[[np.ndarray, np.ndarray], np.ndarray]  # x (n,), sizes (K,) of the piece -> numerators (n, K)


def in_phases(x: np.ndarray, pieces: Sequence[tuple[np.ndarray, Draw]], bins: int) -> np.ndarray:
    """Targets of the pieces, each given by its blocks in each bin (K,) and how it is drawn. -> numerators (n, K)"""
    found, start = np.zeros((len(x), bins), np.int64), 0
    for sizes, draw in pieces:
        if length := int(sizes.sum()):
            found += draw(np.clip(x - start, 0, length), sizes)
        start += length
    return found


def evenly(x: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Targets in proportion to `sizes` (K,), in parts of SCALE. -> int64 (n, K), rows sum to x * SCALE

    What is lost in rounding, at most K parts, goes to the largest bin, which grows by more with each block.
    """
    length = int(sizes.sum())
    whole, rest = np.divmod(x[:, None] * sizes, length)
    parts = whole * SCALE + rest * SCALE // length
    parts[:, sizes.argmax()] += x * SCALE - parts.sum(axis=1)
    return np.asarray(parts)


@dataclass(frozen=True, kw_only=True)
class _Sections(Permutation):
    cycles: Annotated[int, Min(1)] = 2
    sections: Annotated[int, Min(1)] = 2
    transition: Annotated[float, Between(0, 1)] = 0.1
    descending: bool = False

    turns: ClassVar[int] = 0  # what `passes` calls falling

    def targets(self, x: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, int]:
        if self.descending:
            return self._rising(x, sizes[::-1])[:, ::-1], self.cycles
        return self._rising(x, sizes), self.cycles

    def _rising(self, x: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        total, at = int(sizes.sum()), 0
        radius = round(total * self.transition)
        pieces: list[tuple[np.ndarray, Draw]] = []
        for section in range(1, self.sections):
            cut = round(total * section / self.sections)
            low, high = max(at, cut - radius), min(total, cut + radius)
            pieces += [(between(at, low, sizes), self._sorted), (between(low, high, sizes), self._turning)]
            at = high
        pieces.append((between(at, total, sizes), self._sorted))
        return in_phases(x, pieces, len(sizes))

    def _sorted(self, x: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        return passes(x, sizes, 1)[0] * self.cycles

    def _turning(self, x: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        return passes(x, sizes, self.cycles, falling=self.turns)[0]


@dataclass(frozen=True, kw_only=True)
class Stair(_Sections):
    """Increasing, but folded around the cuts between `sections` S: STR, stair ordering.

    With N blocks in ascending order, the blocks [iN/S - R, iN/S + R) for i = 1 to S - 1, R = `transition` N, are drawn
    in `cycles` passes, each from low to high over its share of them; all else in order. Where two such regions meet the
    later one begins where the earlier ends. `descending` is the mirror image.

    Source: Dai et al. (2026, "Demystifying Data Organization for Enhanced LLM Training", arXiv:2605.30334), whose code
    (microsoft/data-efficacy) has S = 2, R = 0.225 N and 3 passes, as here. There a pass takes every third text of the
    sorted region; here a third of each of its bins, shuffled within the bin. A region inside one bin changes nothing.
    """

    cycles: Annotated[int, Min(1)] = 3
    sections: Annotated[int, Min(1)] = 2
    transition: Annotated[float, Between(0, 1)] = 0.225


@dataclass(frozen=True, kw_only=True)
class Saw(_Sections):
    """Increasing, but zigzagged around the cuts between `sections`: SAW, saw ordering.

    As `stair`, with the passes over a region up and down by turns. Source: as of `stair`; its code has S = 3,
    R = 0.075 N and 2 passes, as here. There a pass takes every second text; here half of each bin, as `stair` does.
    """

    cycles: Annotated[int, Min(1)] = 2
    sections: Annotated[int, Min(1)] = 3
    transition: Annotated[float, Between(0, 1)] = 0.075

    turns: ClassVar[int] = 2


@dataclass(frozen=True, kw_only=True)
class Segment(Permutation):
    """Chosen ends, and a random middle: SEG, segment ordering.

    The first round(`front` N) blocks are of the `begin` (low or high) end of the corpus, the last round(`back` N) of
    the `target` end, all else lies between; each of the three in proportion to its bins. With both from one end, that
    end's round(`front` N) + round(`back` N) blocks are shared out in proportion.

    Source: Dai et al. (2026, arXiv:2605.30334), whose code has a tenth for each end, low first and high last, as here.
    It rounds down, and shrinks ends that overlap; here these are refused. There each segment is shuffled; here it has
    an even share of its bins all along, and is shuffled within them.
    """

    front: Annotated[float, Between(0, 1)] = 0.1
    back: Annotated[float, Between(0, 1)] = 0.1
    begin: Literal["low", "high"] = "low"
    target: Literal["low", "high"] = "high"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.front + self.back > 1:
            raise UsageError(
                f"schedule.front {self.front:g} and schedule.back {self.back:g} are more than the corpus: use shares "
                f"that sum to at most 1"
            )

    def targets(self, x: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, int]:
        total = int(sizes.sum())
        first = round(self.front * total)
        last = min(round(self.back * total), total - first)
        if self.begin == self.target:
            ends = _end(self.begin, first + last, sizes)
            front = largest_remainder(first, ends) if first else np.zeros_like(sizes)
            back = ends - front
        else:
            front, back = _end(self.begin, first, sizes), _end(self.target, last, sizes)
        return in_phases(x, [(part, evenly) for part in (front, sizes - front - back, back)], len(sizes)), SCALE


@dataclass(frozen=True, kw_only=True)
class Curriculum(Permutation):
    """A curriculum as warm-up, then random: each block once an epoch. `warmup`, a reweighting, may repeat blocks.

    The first n = round(`until` N) blocks are in order, from low to high or with `descending` back. They are a random
    draw of the corpus, n n_k / N of bin k in whole numbers (`begin: all`), or its lowest or highest n (low, high). Then
    come the other blocks, in proportion to what is left of each bin.

    Source: Zhang et al. (2025, "Beyond Random Sampling", arXiv:2506.11300), who order the texts of a first phase by a
    difficulty such as the compression ratio, MTLD or Flesch reading ease, go on with standard random sampling, and
    find lasting gains. Here a bin is shuffled, and the two phases are one epoch without repetition.
    """

    until: Annotated[float, Between(0, 1)] = 0.2
    begin: Literal["all", "low", "high"] = "all"
    descending: bool = False

    def targets(self, x: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, int]:
        blocks = round(self.until * int(sizes.sum()))
        first = largest_remainder(blocks, sizes) if self.begin == "all" else _end(self.begin, blocks, sizes)
        return in_phases(x, [(first, self._ordered), (sizes - first, evenly)], len(sizes)), SCALE

    def _ordered(self, x: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        return passes(x, sizes, 1, falling=int(self.descending))[0] * SCALE


def _end(which: str, blocks: int, sizes: np.ndarray) -> np.ndarray:
    """The lowest or the highest `blocks` of the corpus, by bin. -> (K,)"""
    total = int(sizes.sum())
    return between(0, blocks, sizes) if which == "low" else between(total - blocks, total, sizes)


# --- orders by a seed -------------------------------------------------------------------------------------------------
#
#     permuted([0, 1, 2, 3], size=4, key) -> [2, 0, 3, 1]
#
# A shuffle of n elements is a Feistel network on the smallest square of a power of two that holds n (Luby and Rackoff
# 1988), walked along its cycle until it falls below n (Black and Rogaway 2002). It holds only integers of 64 bits, so
# it is the same on every machine and with every version of NumPy, which its generators do not promise.


ROUNDS = 10  # more than the 4 that proofs ask for: small squares mix slowly


def mixed(values: np.ndarray) -> np.ndarray:
    """Hashes of uint64 values: the finalizer of SplitMix64 (Steele, Lea and Flood 2014). A bijection."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def keys(*parts: int | np.ndarray) -> np.ndarray:
    """Hashes of tuples of whole numbers, which broadcast: `keys(seed, bins, epochs)` -> uint64 (n,).

    >>> bool(keys(1, np.array([2, 3]))[0] == keys(1, 2)[0]), bool(keys(1, 2)[0] == keys(2, 1)[0])
    (True, False)
    """
    found = np.zeros(1, np.uint64)
    for part in parts:
        found = mixed(found ^ mixed(np.atleast_1d(np.asarray(part)).astype(np.uint64)))
    return found


def permuted(places: np.ndarray, sizes: np.ndarray, key: np.ndarray) -> np.ndarray:
    """The element at each of `places` (n,) of a shuffle of range(size). -> int64 (n,)

    sizes: (n,) or one, each above its place; key: uint64 (n,) or one, which names the shuffle.

    >>> sorted(permuted(np.arange(5), np.array([5]), keys(0)).tolist())
    [0, 1, 2, 3, 4]
    """
    values, sizes, key = np.broadcast_arrays(places.astype(np.uint64), sizes.astype(np.uint64), key)
    values = values.copy()
    half = (
        np.maximum(np.ceil(np.log2(np.maximum(sizes, 2).astype(np.float64))), 4).astype(np.uint64) + np.uint64(1)
    ) // np.uint64(2)
    open_ = np.flatnonzero(sizes > 1)
    while len(open_):
        values[open_] = _feistel(values[open_], half[open_], key[open_])
        open_ = open_[values[open_] >= sizes[open_]]
    return values.astype(np.int64)


def _feistel(values: np.ndarray, half: np.ndarray, key: np.ndarray) -> np.ndarray:
    """A bijection of the numbers of 2 * `half` bits."""
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = values >> half, values & mask
    for number in range(ROUNDS):
        left, right = right, left ^ (mixed(right ^ mixed(key + np.uint64(number))) & mask)
    return (left << half) | right
