"""Learning-rate schedules over tokens: pure functions, tokens -> factor of the peak rate.

With u = tokens / budget, every schedule first rises linearly from 0 over the share `warmup` of the budget. Tokens
beyond the budget count as the budget. A step that takes the model from a to b tokens is best given its middle,
(a + b) / 2: then neither the first step nor the last is wasted at a factor of 0. From there on:

    constant    1
    cosine      floor + (1 - floor) (1 + cos(pi (u - warmup) / (1 - warmup))) / 2    (Loshchilov and Hutter 2017,
                arXiv:1608.03983, without restarts)
    trapezoid   1, and linearly down to `floor` over the last share `decay`          (warm-up, stable, decay: Hu et al.
                2024, arXiv:2404.06395)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from fluxentropy.errors import UsageError


def constant(tokens: float, budget: float, *, warmup: float = 0.0) -> float:
    """The peak rate after a warm-up.

    >>> [constant(tokens, 100, warmup=0.1) for tokens in (0, 5, 10, 100)]
    [0.0, 0.5, 1.0, 1.0]
    """
    u = _progress(tokens, budget)
    return u / warmup if u < warmup else 1.0


def cosine(tokens: float, budget: float, *, warmup: float = 0.0, floor: float = 0.0) -> float:
    """Half a cosine from the peak rate to the floor.

    >>> [round(cosine(tokens, 100, warmup=0.2, floor=0.1), 3) for tokens in (0, 10, 20, 60, 100)]
    [0.0, 0.5, 1.0, 0.55, 0.1]
    """
    u = _progress(tokens, budget)
    if u < warmup:
        return u / warmup
    done = (u - warmup) / (1 - warmup) if warmup < 1 else 0.0
    return floor + (1 - floor) * (1 + math.cos(math.pi * done)) / 2


def trapezoid(tokens: float, budget: float, *, warmup: float = 0.0, decay: float = 0.2, floor: float = 0.0) -> float:
    """Warm-up, stable, decay.

    >>> [round(trapezoid(tokens, 100, warmup=0.1, decay=0.4, floor=0.1), 3) for tokens in (0, 5, 10, 60, 80, 100)]
    [0.0, 0.5, 1.0, 1.0, 0.55, 0.1]
    """
    u = _progress(tokens, budget)
    if u < warmup:
        return u / warmup
    return floor + (1 - floor) * (1 - u) / decay if u > 1 - decay else 1.0


def _progress(tokens: float, budget: float) -> float:
    return min(max(tokens / budget, 0.0), 1.0)


@dataclass(frozen=True, kw_only=True)
class LRConfig:
    """A learning-rate schedule."""

    schedule: Literal["trapezoid", "cosine", "constant"] = "trapezoid"
    """How the rate falls: trapezoid (warm-up, stable, decay), cosine or constant."""
    warmup: float = 0.02
    """Share of the token budget over which the rate rises from 0."""
    decay: float = 0.4
    """Share of the token budget over which the trapezoid falls."""
    floor: float = 0.0
    """The lowest rate, as a share of the peak."""

    def __post_init__(self) -> None:
        for name in ("warmup", "decay", "floor"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise UsageError(f"{name} {value}: use a share from 0 to 1")
        if self.schedule == "trapezoid" and self.warmup + self.decay > 1:
            raise UsageError(
                f"warmup {self.warmup} and decay {self.decay} are more than the whole budget: let them sum to 1 or less"
            )

    def factor(self, tokens: float, budget: float) -> float:
        """The factor of every peak rate after `tokens` of `budget` tokens.

        >>> LRConfig(schedule="cosine", warmup=0.0).factor(50, 100)
        0.5
        """
        if self.schedule == "constant":
            return constant(tokens, budget, warmup=self.warmup)
        if self.schedule == "cosine":
            return cosine(tokens, budget, warmup=self.warmup, floor=self.floor)
        return trapezoid(tokens, budget, warmup=self.warmup, decay=self.decay, floor=self.floor)
