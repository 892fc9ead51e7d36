"""Our own: follow a target curve with an entropy bonus from past errors and a step scaled by its predicted change.

    plan     e_t = target_t - H_t of the batch
             c_t = c_{t-1} + proportional (e_t - e_{t-1}) + integral e_t + boost (1 - s_{t-1}), clamped
    adjust   where ∇h · d < 0:  δ = ∇h · d - guard SE,  s = (H - (target_t - tolerance)) / (-δ), in [min_scale, 1]

Scaling slows a fall but raises nothing, so the two belong together: the factor keeps the step from ending below the
tolerance, to first order, and the bonus turns the direction of later steps. A step that was not taken whole says that
the bonus is too small: without `boost` the entropy stays at the edge of the tolerance, where e_t is small, and training
stands still until the integral has grown. The incremental form stops adding up where c is at a limit.

δ is the change of the step as taken, by any optimizer, measured on responses that the update did not use; its standard
error makes the decision cautious, that of H does not enter. The parts are known (proportional-integral control of
entropy: EntroPIC, Yang et al. 2025, arXiv:2511.15248, by weights of positive and negative responses); the prediction of
the realised step is ours. The gains, in units of the bonus, are those of
docs/rl-study.md, with standardised advantages, where larger ones overshot; larger advantages need larger ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from fluxentropy.rl.controllers.target import Targeted
from fluxentropy.rl.stepview import StepView
from fluxentropy.rl.updatebatch import TokenBatch, TokenPlan


@dataclass(frozen=True, kw_only=True)
class Follow(Targeted):
    """Gains per nat of error and per step not taken; limits of bonus and factor; `guard` in standard errors.

    A `min_bonus` below 0 also pushes an entropy down that is above its target.
    """

    name: ClassVar[str] = "follow"
    adjusts: ClassVar[bool] = True
    proportional: float = 0.2
    integral: float = 0.02
    boost: float = 0.02
    min_bonus: float = 0.0
    max_bonus: float = 1.0
    min_scale: float = 0.0
    guard: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for gain in ("proportional", "integral", "boost", "guard"):
            self.need(gain, getattr(self, gain) >= 0, "a number of at least 0")
        self.need("min_bonus", self.min_bonus <= self.max_bonus, f"at most max_bonus, {self.max_bonus}")
        self.need("min_scale", 0 <= self.min_scale <= 1, "a factor from 0 to 1")

    def plan(self, batch: TokenBatch, generator: torch.Generator) -> TokenPlan:
        before = self.state.get("error", 0.0)
        facts = super().plan(batch, generator).facts or {}
        error = self.state["error"]
        stopped = 1.0 - self.state.get("scale", 1.0)
        bonus = self.state.get("bonus", 0.0) + self.proportional * (error - before) + self.integral * error
        bonus += self.boost * stopped
        self.state["bonus"] = min(max(bonus, self.min_bonus), self.max_bonus)
        return TokenPlan(bonus=self.state["bonus"], facts={**facts, "bonus": self.state["bonus"]})

    def adjust(self, step: StepView) -> float:
        change, se = step.need("first_order")
        scale = 1.0
        if change < 0:
            lowest = change - self.guard * (0.0 if math.isnan(se) else se)
            scale = min(max((step.entropy_now - self.bound) / -lowest, self.min_scale), 1.0)
        self.state["scale"] = scale
        return scale
