"""Our own: no step longer than the range in which its effect on the entropy can be predicted.

    eta_star       s = min(1, max(fraction η*, √(negligible / q))),   q = |h''|/2,   η* = |h'|/q
    ghost_radius   s = min(1, fraction min π/Δ_a): within it the Taylor series of the entropy converges

(h', h'' derivatives of the entropy a token along d; Δ_a the range of ∇_d z over the vocabulary; `secondorder.py`.)
So the quadratic term s² q of the step s d is at most `fraction` of the linear one, or `negligible` nats a token.
Without the second, training would stop for good wherever the entropy is stationary along the step: η* is 0 there,
however tame the step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from fluxentropy.rl.controllers.base import Base
from fluxentropy.rl.stepview import StepView


@dataclass(frozen=True, kw_only=True)
class Guard(Base):
    """Which `range` (`both`: the smaller), the `fraction` of it, and the smallest factor of a step."""

    name: ClassVar[str] = "guard"
    adjusts: ClassVar[bool] = True
    range: Literal["eta_star", "ghost_radius", "both"] = "eta_star"
    fraction: float = 0.5
    negligible: float = 1e-3
    min_scale: float = 0.0

    def __post_init__(self) -> None:
        self.need("range", self.range in ("eta_star", "ghost_radius", "both"), "eta_star, ghost_radius or both")
        self.need("fraction", self.fraction > 0, "a positive number")
        self.need("negligible", self.negligible >= 0, "a number of at least 0")
        self.need("min_scale", 0 <= self.min_scale <= 1, "a factor from 0 to 1")

    def adjust(self, step: StepView) -> float:
        scale = 1.0
        if self.range != "ghost_radius":
            along = step.need("expansion").per_token
            quadratic = abs(along.second.value) / 2
            if quadratic > 0:
                scale = min(scale, max(self.fraction * along.eta_star, (self.negligible / quadratic) ** 0.5))
        if self.range != "eta_star":
            scale = min(scale, self.fraction * step.need("ghost_radius"))
        return max(scale, self.min_scale)
