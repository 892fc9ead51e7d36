"""Schedules that reweight: u = tokens seen / budget -> a distribution over the bins, at its own will.

`mixture(u, sizes)` takes u (n,) in [0, 1] and sizes (K,), blocks in each bin from low to high scores, and gives (n, K)
with rows that sum to 1. The corpus in the order of its bins is the interval [0, 1], of which bin k holds as much as
it has blocks; pools and windows are pieces of that interval, and a bin's weight is its share of the piece.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from fluxentropy.errors import UsageError
from fluxentropy.pacing import POOLS, WAVES, pool
from fluxentropy.yamlfile import did_you_mean

NARROW = 1e-9  # the least width of a piece: narrower ones are a point


@dataclass(frozen=True, kw_only=True)
class Reweighting:
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


def within(name: str, value: float, low: float, high: float, *, open_low: bool = False) -> None:
    """UsageError where a parameter is not in [low, high], or with `open_low` (low, high]."""
    if not (low < value <= high if open_low else low <= value <= high):
        raise UsageError(f"schedule.{name} {value:g}: use {'above ' if open_low else ''}{low:g} to {high:g}")


# --- pools and windows ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class GrowingPool(Reweighting):
    """The lowest lambda(u) of the corpus, in proportion: w_k = |bin k and [0, lambda(u)]| / lambda(u).

    Source: pacing functions of Wu et al. (2021), competence of Platanios et al. (2019); `descending` starts at the top.
    """

    pacing: str = "polynomial"
    start: float = 0.1
    full: float = 0.8
    power: float | None = None
    steps: int | None = None
    descending: bool = False

    def __post_init__(self) -> None:
        if self.pacing not in POOLS:
            raise UsageError(f"schedule.pacing {self.pacing}{did_you_mean(self.pacing, POOLS)}")
        within("start", self.start, 0, 1)
        within("full", self.full, 0, 1, open_low=True)
        within("power", self.power if self.power is not None else 1, 0, 100, open_low=True)
        within("steps", self.steps if self.steps is not None else 1, 1, 10**6)
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

    width: float = 0.25
    descending: bool = False

    def __post_init__(self) -> None:
        within("width", self.width, 0, 1)

    def mixture(self, u: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        return _window(np.asarray(u), self.width, sizes, self.descending)


@dataclass(frozen=True, kw_only=True)
class Periodic(Reweighting):
    """A sliding window whose place s = wave(C u) comes back: cosine, triangle or sawtooth, `cycles` C.

    Cosine and triangle go up and down once a cycle, like the cyclic learning rates of Smith (2017).
    """

    wave: str = "cosine"
    cycles: int = 4
    width: float = 0.25
    descending: bool = False

    def __post_init__(self) -> None:
        if self.wave not in WAVES:
            raise UsageError(f"schedule.wave {self.wave}{did_you_mean(self.wave, WAVES)}")
        within("cycles", self.cycles, 1, 10**6)
        within("width", self.width, 0, 1)

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

    Source: a curriculum as warm-up, Zhang et al. (2025, "Beyond Random Sampling").
    """

    until: float = 0.2
    width: float = 0.25
    descending: bool = False

    def __post_init__(self) -> None:
        within("until", self.until, 0, 1, open_low=True)
        within("width", self.width, 0, 1)

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

    since: float = 0.8
    width: float = 0.25
    target: Literal["low", "high"] = "low"

    def __post_init__(self) -> None:
        within("since", self.since, 0, 1)
        within("width", self.width, 0, 1)
        if self.target not in ("low", "high"):
            raise UsageError(f"schedule.target {self.target}: use low or high")

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
            within("betas", beta, -500, 500)

    def mixture(self, u: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        middle = (np.cumsum(sizes) - sizes / 2) / np.sum(sizes)
        beta = self.betas[0] + (self.betas[1] - self.betas[0]) * np.asarray(u)
        powers = beta[:, None] * (2 * middle - 1)
        found = sizes * np.exp(powers - powers.max(axis=1, keepdims=True))
        return found / found.sum(axis=1, keepdims=True)
