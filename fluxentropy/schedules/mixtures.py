"""Schedules that reweight: u = tokens seen / budget -> a distribution over the bins, at its own will.

`mixture(u, sizes)` takes u (n,) in [0, 1] and sizes (K,), blocks in each bin from low to high scores, and gives (n, K)
with rows that sum to 1. The corpus in the order of its bins is the interval [0, 1], of which bin k holds as much as
it has blocks; pools and windows are pieces of that interval, and a bin's weight is its share of the piece.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np

from fluxentropy.config.checks import Check, Options
from fluxentropy.config.yaml import did_you_mean
from fluxentropy.errors import UsageError

# --- pacing and waves -------------------------------------------------------------------------------------------------
#
# Every function takes u (n,) in [0, 1] and gives (n,) in [0, 1]. The pool lambda(u) is the share of the corpus, lowest
# scores first, that is drawn from; it starts at `start` and is the whole from u = `full` on:
#
#     lambda(u) = start + (1 - start) g(u / full),  g(0) = 0, g(1) = 1
#
# as Wu, Dyer and Neyshabur (2021, "When Do Curricula Work?") write it with their b and a.


TEN = 10.0  # the steepness of "exponential" and "logarithmic" in Wu et al.


# --- pools: the share of the corpus that is open ----------------------------------------------------------------------


def polynomial(v: np.ndarray, start: float, power: float = 1.0) -> np.ndarray:
    """start + (1 - start) v^p; p = 1/2, 1, 2 are the root, linear and quadratic pacing of Wu et al. (2021)."""
    return start + (1 - start) * v**power


def exponential(v: np.ndarray, start: float) -> np.ndarray:
    """start + (1 - start) (e^(10 v) - 1) / (e^10 - 1), of Wu et al. (2021)."""
    return start + (1 - start) * np.expm1(TEN * v) / np.expm1(TEN)


def logarithmic(v: np.ndarray, start: float) -> np.ndarray:
    """start + (1 - start) (1 + ln(v + e^-10) / 10), of Wu et al. (2021); it passes 1 by 5e-6 at v = 1, and is cut."""
    return start + (1 - start) * (1 + np.log(v + np.exp(-TEN)) / TEN)


def step(v: np.ndarray, start: float, steps: int = 1) -> np.ndarray:
    """start + (1 - start) floor(steps v) / steps; with one step that of Wu et al. (2021)."""
    return start + (1 - start) * np.floor(steps * v + 1e-12) / steps


def competence(v: np.ndarray, start: float, power: float = 2.0) -> np.ndarray:
    """(v (1 - start^p) + start^p)^(1/p): the competence of Platanios et al. (2019), c0 = start; p = 2 is their sqrt."""
    return (v * (1 - start**power) + start**power) ** (1 / power)


def root(v: np.ndarray, start: float, power: float = 3.0) -> np.ndarray:
    """The same with p = 3 at first: root-p in the survey of Wang, Chen and Zhu (2021)."""
    return competence(v, start, power)


# Name -> the function, and the parameter that it takes besides the start.
POOLS: dict[str, tuple[Callable[..., np.ndarray], str | None]] = {
    "polynomial": (polynomial, "power"),
    "exponential": (exponential, None),
    "logarithmic": (logarithmic, None),
    "step": (step, "steps"),
    "competence": (competence, "power"),
    "root": (root, "power"),
}


def pool(u: np.ndarray, pacing: str, *, start: float, full: float, **shape: float) -> np.ndarray:
    """lambda(u) of the pacing function of that name, a key of `POOLS`; `shape` is its power or its steps.

    >>> pool(np.array([0.0, 0.4, 0.8, 1.0]), "polynomial", start=0.2, full=0.8).round(9).tolist()
    [0.2, 0.6, 1.0, 1.0]
    """
    v = np.minimum(np.asarray(u) / full, 1)
    return np.where(v >= 1, 1.0, np.clip(POOLS[pacing][0](v, start, **shape), 0, 1))


# --- waves: positions that come back ----------------------------------------------------------------------------------


def cosine(phase: np.ndarray) -> np.ndarray:
    """(1 - cos(2 pi phase)) / 2: up and down once a cycle, slow at the turns."""
    return (1 - np.cos(2 * np.pi * phase)) / 2


def triangle(phase: np.ndarray) -> np.ndarray:
    """1 - |2 frac(phase) - 1|: up and down once a cycle, at an even pace."""
    return 1 - np.abs(2 * (phase % 1) - 1)


def sawtooth(phase: np.ndarray) -> np.ndarray:
    """frac(phase): up once a cycle, then back at once."""
    return phase % 1


WAVES = {"cosine": cosine, "triangle": triangle, "sawtooth": sawtooth}


# --- mixtures ---------------------------------------------------------------------------------------------------------


NARROW = 1e-9  # the least width of a piece: narrower ones are a point


@dataclass(frozen=True, kw_only=True)
class Reweighting(Options, prefix="schedule.", digits="g"):
    """What reweightings share."""

    kind: ClassVar[str] = "reweighting"

    def mixture(self, u: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        raise NotImplementedError


def overlap(low: np.ndarray, high: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Each bin's share of the pieces [low, high] (n,) of the corpus, in [0, 1]. -> (n, K), rows sum to 1

    >>> overlap(np.array([0.0]), np.array([0.75]), np.array([10, 10])).round(3).tolist()
    [[0.667, 0.333]]
    """
    ends = np.cumsum(sizes) / np.sum(sizes)
    middle, width = (low + high) / 2, np.maximum(high - low, NARROW)
    low = np.clip(middle - width / 2, 0, 1 - width)[:, None]
    high = low + width[:, None]
    found = np.maximum(np.minimum(high, ends) - np.maximum(low, np.append(0.0, ends[:-1])), 0)
    return found / found.sum(axis=1, keepdims=True)


def in_proportion(u: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Bins in proportion to their sizes at every u. -> (n, K)"""
    return np.broadcast_to(sizes / np.sum(sizes), (len(u), len(sizes)))


def within(low: float, high: float) -> Check:
    """A parameter in [low, high]."""
    return Check(lambda value: low <= value <= high, f"use {low:g} to {high:g}")


def above_0(high: float) -> Check:
    """A parameter in (0, high]."""
    return Check(lambda value: 0 < value <= high, f"use above 0 to {high:g}")


# --- pools and windows ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class GrowingPool(Reweighting):
    """The lowest lambda(u) of the corpus, in proportion: w_k = |bin k and [0, lambda(u)]| / lambda(u).

    Source: pacing functions of Wu et al. (2021), competence of Platanios et al. (2019); `descending` starts at the top.
    """

    pacing: str = "polynomial"
    start: Annotated[float, within(0, 1)] = 0.1
    full: Annotated[float, above_0(1)] = 0.8
    power: Annotated[float | None, above_0(100)] = None
    steps: Annotated[int | None, within(1, 10**6)] = None
    descending: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pacing not in POOLS:
            raise UsageError(f"schedule.pacing {self.pacing}{did_you_mean(self.pacing, POOLS)}")
        takes = POOLS[self.pacing][1]
        for name in self._shape:
            if name != takes:
                raise UsageError(
                    f"schedule.{name}: the pacing {self.pacing} takes {takes or 'neither power nor steps'}"
                )

    @property
    def _shape(self) -> dict[str, float]:
        return {name: value for name in ("power", "steps") if (value := getattr(self, name)) is not None}

    def mixture(self, u: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        open_ = pool(u, self.pacing, start=self.start, full=self.full, **self._shape)
        return _from_low(np.zeros_like(open_), open_, sizes, self.descending)


@dataclass(frozen=True, kw_only=True)
class SlidingWindow(Reweighting):
    """A window of a share `width` of the corpus, [u (1 - width), u (1 - width) + width].

    Width 0 is `increasing`, with what it forgets at once; width 1 is `random`.
    """

    width: Annotated[float, within(0, 1)] = 0.25
    descending: bool = False

    def mixture(self, u: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        return _window(np.asarray(u), self.width, sizes, self.descending)


@dataclass(frozen=True, kw_only=True)
class Periodic(Reweighting):
    """A sliding window whose place s = wave(C u) comes back: cosine, triangle or sawtooth, `cycles` C.

    Cosine and triangle go up and down once a cycle, like the cyclic learning rates of Smith (2017).
    """

    wave: str = "cosine"
    cycles: Annotated[int, within(1, 10**6)] = 4
    width: Annotated[float, within(0, 1)] = 0.25
    descending: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.wave not in WAVES:
            raise UsageError(f"schedule.wave {self.wave}{did_you_mean(self.wave, WAVES)}")

    def mixture(self, u: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        return _window(WAVES[self.wave](self.cycles * np.asarray(u)), self.width, sizes, self.descending)


def _window(place: np.ndarray, width: float, sizes: np.ndarray, descending: bool) -> np.ndarray:
    return _from_low(place * (1 - width), place * (1 - width) + width, sizes, descending)


def _from_low(low: np.ndarray, high: np.ndarray, sizes: np.ndarray, descending: bool) -> np.ndarray:
    """`overlap`, or with `descending` its mirror image."""
    return overlap(low, high, sizes[::-1])[:, ::-1] if descending else overlap(low, high, sizes)


# --- phases -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class WarmUp(Reweighting):
    """A sliding window from low to high for u < `until`, then bins in proportion to their sizes.

    Source: a curriculum as warm-up, Zhang et al. (2025, "Beyond Random Sampling"). `curriculum` is the permutation.
    """

    until: Annotated[float, above_0(1)] = 0.2
    width: Annotated[float, within(0, 1)] = 0.25
    descending: bool = False

    def mixture(self, u: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        u = np.asarray(u)
        first = _window(np.minimum(u / self.until, 1), self.width, sizes, self.descending)
        return np.where((u < self.until)[:, None], first, in_proportion(u, sizes))


@dataclass(frozen=True, kw_only=True)
class Anneal(Reweighting):
    """Bins in proportion to their sizes for u < `since`; then, over the rest, linearly towards the lowest or highest
    `width` of the corpus, which is all that is drawn at u = 1.

    Source: chosen data at the end of training, as in MiniCPM (Hu et al. 2024) and Blakeney et al. (2024).
    """

    since: Annotated[float, within(0, 1)] = 0.8
    width: Annotated[float, within(0, 1)] = 0.25
    target: Literal["low", "high"] = "low"

    def mixture(self, u: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        u = np.asarray(u)
        share = np.clip((u - self.since) / max(1 - self.since, NARROW), 0, 1)[:, None]
        end = _from_low(np.zeros(len(u)), np.full(len(u), self.width), sizes, self.target == "high")
        return (1 - share) * in_proportion(u, sizes) + share * end


@dataclass(frozen=True, kw_only=True)
class Tilt(Reweighting):
    """The exponential tilt w_k = n_k exp(beta z_k) / sum; beta goes linearly from betas[0] to betas[1].

    z_k in [-1, 1] is the place of the bin's middle in the corpus. Negative betas prefer low scores, 0 is `random`.
    Source: the exponential family through the sizes (Esscher 1932).
    """

    betas: tuple[float, ...] = (-3.0, 3.0)

    def __post_init__(self) -> None:
        if len(self.betas) != 2:
            raise UsageError(f"schedule.betas {list(self.betas)}: give two, of the start and of the end")
        for beta in self.betas:
            if not -500 <= beta <= 500:
                raise UsageError(f"schedule.betas {beta:g}: use -500 to 500")

    def mixture(self, u: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        middle = (np.cumsum(sizes) - sizes / 2) / np.sum(sizes)
        beta = self.betas[0] + (self.betas[1] - self.betas[0]) * np.asarray(u)
        powers = beta[:, None] * (2 * middle - 1)
        found = sizes * np.exp(powers - powers.max(axis=1, keepdims=True))
        return found / found.sum(axis=1, keepdims=True)


# --- stages -----------------------------------------------------------------------------------------------------------


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
        raise UsageError(
            f"schedule: stage {int((own.sum(axis=1) == 0).argmax()) + 1} of {stages} has no blocks: use fewer stages, "
            f"coarser bins (groups), or keep a larger share"
        )
    so_far = np.cumsum(own, axis=0)
    own, so_far = (rows / rows.sum(axis=1, keepdims=True) for rows in (own, so_far))
    before = np.concatenate([own[:1], so_far[:-1]])
    table = {"sequential": own, "cumulative": so_far, "hybrid": share * own + (1 - share) * before}[method]
    return table[np.minimum(np.searchsorted(ends, np.asarray(u), side="right"), stages - 1)]


@dataclass(frozen=True, kw_only=True)
class _Staged(Reweighting):
    method: Literal["sequential", "cumulative", "hybrid"] = "cumulative"
    share: Annotated[float, within(0, 1)] = 0.5
    ends: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
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

    stages: Annotated[int | None, within(1, 10**6)] = None
    descending: bool = False

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

    def mixture(self, u: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        if self.grid is None or len(self.grid) != 2 or self.grid[0] * self.grid[1] != len(sizes):
            raise UsageError("schedule.name grid: the bins are no grid: make them with `fluxentropy bin --grid 4x4`")
        i, j = np.divmod(np.arange(len(sizes)), self.grid[1])
        stage_of = {"first": i, "second": j, "diagonal": i + j}[self.axis]
        return staged(u, sizes, stage_of, self._ends(int(stage_of.max()) + 1), self.method, self.share)
