"""Schedules that are permutations: every block exactly once in an epoch, in an order that follows the bins.

    increasing   0 0 1 1 2 2            folded, 2 cycles   0 1 2 0 1 2
    decreasing   2 2 1 1 0 0            zigzag, 2 cycles   0 1 2 2 1 0

Each gives cumulative targets as exact fractions of whole numbers, so that after all blocks every bin is used up to the
last one. Inside a bin blocks are shuffled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fluxentropy.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Permutation:
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

    cycles: int = 4

    def __post_init__(self) -> None:
        _at_least_one(self.cycles)

    def targets(self, x: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, int]:
        return passes(x, sizes, self.cycles)


@dataclass(frozen=True, kw_only=True)
class Zigzag(Permutation):
    """`cycles` passes, up and down by turns: folded without its jumps."""

    cycles: int = 4

    def __post_init__(self) -> None:
        _at_least_one(self.cycles)

    def targets(self, x: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, int]:
        return passes(x, sizes, self.cycles, falling=2)


def _at_least_one(cycles: int) -> None:
    if cycles < 1:
        raise UsageError(f"schedule.cycles {cycles}: use 1 or more")
