"""Schedules that are permutations: every block exactly once in an epoch, in an order that follows the bins.

    increasing   0 0 1 1 2 2            folded, 2 cycles   0 1 2 0 1 2
    decreasing   2 2 1 1 0 0            zigzag, 2 cycles   0 1 2 2 1 0

Each gives cumulative targets as exact fractions of whole numbers, so that after all blocks every bin is used up to the
last one. Inside a bin blocks are shuffled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np

from fluxentropy.config.checks import Min, Options

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
