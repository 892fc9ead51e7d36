"""Schedules in stages: of bins in one order, and of the cells of a grid of entropy and varentropy."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fluxentropy.errors import UsageError
from fluxentropy.mixtures import Reweighting, within


def staged(
    u: np.ndarray, sizes: np.ndarray, stage_of: np.ndarray, ends: np.ndarray, method: str, share: float
) -> np.ndarray:
    """The mixture of a training in S stages. -> (n, K), rows sum to 1

    stage_of: (K,) the stage that each bin belongs to, 0 to S-1; ends: (S,) the u at which each stage ends, the last 1.
    sequential: bins of the stage now; cumulative: of it and all before; hybrid: `share` of it, the rest of all before.
    Bins that are together are in proportion to their sizes.
    """
    stages = len(ends)
    own = np.stack([np.where(stage_of == stage, sizes, 0.0) for stage in range(stages)])  # (S, K)
    if (own.sum(axis=1) == 0).any():
        raise UsageError(f"schedule: stage {int((own.sum(axis=1) == 0).argmax()) + 1} of {stages} has no blocks")
    so_far = np.cumsum(own, axis=0)
    own, so_far = (rows / rows.sum(axis=1, keepdims=True) for rows in (own, so_far))
    before = np.concatenate([own[:1], so_far[:-1]])
    table = {"sequential": own, "cumulative": so_far, "hybrid": share * own + (1 - share) * before}[method]
    return table[np.minimum(np.searchsorted(ends, np.asarray(u), side="right"), stages - 1)]


@dataclass(frozen=True, kw_only=True)
class _Staged(Reweighting):
    method: Literal["sequential", "cumulative", "hybrid"] = "cumulative"
    share: float = 0.5
    ends: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.method not in ("sequential", "cumulative", "hybrid"):
            raise UsageError(f"schedule.method {self.method}: use sequential, cumulative or hybrid")
        within("share", self.share, 0, 1)
        if self.ends is not None and not all(a < b for a, b in itertools.pairwise((0.0, *self.ends, 1.0))):
            raise UsageError(f"schedule.ends {list(self.ends)}: give where stages end, ascending, above 0 and below 1")

    def _ends(self, stages: int) -> np.ndarray:
        """Where the stages end: as said, else equally long."""
        if self.ends is not None and len(self.ends) != stages - 1:
            raise UsageError(f"schedule.ends {list(self.ends)}: {stages} stages need {stages - 1}, the last ends at 1")
        return np.append(self.ends, 1.0) if self.ends else np.arange(1, stages + 1) / stages


@dataclass(frozen=True, kw_only=True)
class Stages(_Staged):
    """The bins in `stages` stages of neighbours (4, or one a bin if these are fewer), from low to high.

    Source: one-pass (sequential, Bengio et al. 2009) and baby steps (cumulative, Spitkovsky, Alshawi and Jurafsky
    2010), as Cirik, Hovy and Morency (2016) and the survey of Soviany et al. (2022) tell them apart.
    """

    stages: int | None = None
    descending: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        within("stages", self.stages if self.stages is not None else 1, 1, 10**6)

    def mixture(self, u: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        stages = self.stages if self.stages is not None else min(4, len(sizes))
        if stages > len(sizes):
            raise UsageError(f"schedule.stages {stages}: there are only {len(sizes)} bins")
        parts = np.array_split(np.arange(len(sizes)), stages)
        stage_of = np.repeat(np.arange(stages), [len(part) for part in parts])
        stage_of = stage_of[::-1] if self.descending else stage_of
        return staged(u, sizes, stage_of, self._ends(stages), self.method, self.share)


@dataclass(frozen=True, kw_only=True)
class GridStages(_Staged):
    """Stages over a grid of two scores, such as entropy and varentropy: cell (i, j) is bin i * columns + j.

    first: a stage for each i; second: for each j; diagonal: for each i + j, from low in both to high in both.
    `grid` is (rows, columns); the command reads it from bins.json.
    """

    axis: Literal["first", "second", "diagonal"] = "diagonal"
    grid: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.axis not in ("first", "second", "diagonal"):
            raise UsageError(f"schedule.axis {self.axis}: use first, second or diagonal")

    def mixture(self, u: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        if self.grid is None or len(self.grid) != 2 or self.grid[0] * self.grid[1] != len(sizes):
            raise UsageError("schedule.name grid: the bins are no grid: make them with `fluxentropy bin --grid 4x4`")
        i, j = np.divmod(np.arange(len(sizes)), self.grid[1])
        stage_of = {"first": i, "second": j, "diagonal": i + j}[self.axis]
        return staged(u, sizes, stage_of, self._ends(int(stage_of.max()) + 1), self.method, self.share)
