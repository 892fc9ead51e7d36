"""Our own controllers: they follow a target, or use the predicted change of the entropy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch

from fluxentropy.config.checks import Between, Check
from fluxentropy.rl.control.base import POSITIVE, Base, StepView, TokenBatch, TokenPlan, valid
from fluxentropy.rl.probe.policy import Parameters, dot

Curve = Literal["constant", "linear", "exponential"]
NOT_NEGATIVE = Check(lambda value: value >= 0, "use a number of at least 0")
FACTOR = Between(0, 1, "factor")


@dataclass(frozen=True, kw_only=True)
class Targeted(Base):
    """A curve that the entropy shall follow, in nats a token by optimizer step.

        constant      start
        linear        start + (end - start) u            u = min(step / steps, 1)
        exponential   start (end / start)^u

    Without `start` the curve begins at the entropy of the first batch, so that "constant" alone keeps that.

    A controller with a target; it counts its own steps, so that a resumed run goes on along the curve.

    `curve`, `start`, `end`, `steps` as above; `tolerance`: how far below the target the entropy may be, nats a token.
    """

    curve: Curve = "constant"
    start: Annotated[float | None, Check(lambda h: h > 0, "use a positive entropy, or none for that of step 1")] = None
    end: float | None = None
    steps: int | None = None
    tolerance: Annotated[float, NOT_NEGATIVE] = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.curve == "constant":
            self.need("end", self.end is None, "none with a constant curve, or curve: linear")
            self.need("steps", self.steps is None, "none with a constant curve, or curve: linear")
        else:
            self.need("end", self.end is not None and self.end > 0, f"a positive entropy to end a {self.curve} curve")
            self.need("steps", self.steps is not None and self.steps > 0, "the number of steps until the curve ends")

    def plan(self, batch: TokenBatch, generator: torch.Generator) -> TokenPlan:  # noqa: ARG002
        """Counts the step and notes the entropy of the batch, which is that before the step."""
        entropy = float(valid(batch, batch.entropy).mean())
        self.state["step"] = self.state.get("step", 0) + 1
        self.state.setdefault("start", entropy if self.start is None else self.start)
        self.state["error"] = self.target - entropy
        return TokenPlan(facts={"target": self.target})

    @property
    def target(self) -> float:
        """The entropy that the curve has after the current step."""
        start = float(self.state["start"])
        if self.end is None or self.steps is None:
            return start
        u = min(self.state["step"] / self.steps, 1.0)
        return start + (self.end - start) * u if self.curve == "linear" else start * (self.end / start) ** u

    @property
    def bound(self) -> float:
        """The lowest entropy that the current step may end at."""
        return self.target - self.tolerance


@dataclass(frozen=True, kw_only=True)
class Follow(Targeted):
    """Our own: follow a target curve with an entropy bonus from past errors and a step scaled by its predicted change.

        plan     e_t = target_t - H_t of the batch
                 c_t = c_{t-1} + proportional (e_t - e_{t-1}) + integral e_t + boost (1 - s_{t-1}), clamped
        adjust   where ∇h · d < 0:  δ = ∇h · d - guard SE,  s = (H - (target_t - tolerance)) / (-δ), in [min_scale, 1]

    Scaling slows a fall but raises nothing, so the two belong together: the factor keeps the step from ending below the
    tolerance, to first order, and the bonus turns the direction of later steps. A step that was not taken whole says
    that the bonus is too small: without `boost` the entropy stays at the edge of the tolerance, where e_t is small, and
    training stands still until the integral has grown. The incremental form stops adding up where c is at a limit.

    δ is the change of the step as taken, by any optimizer, measured on responses that the update did not use; its
    standard error makes the decision cautious, that of H does not enter. The parts are known (proportional-integral
    control of entropy: EntroPIC, Yang et al. 2025, arXiv:2511.15248, by weights of positive and negative responses);
    the prediction of the realised step is ours. The gains, in units of the bonus, are those of docs/rl-study.md, with
    standardised advantages, where larger ones overshot; larger advantages need larger ones.

    Gains per nat of error and per step not taken; limits of bonus and factor; `guard` in standard errors.

    A `min_bonus` below 0 also pushes an entropy down that is above its target.
    """

    name: ClassVar[str] = "follow"
    adjusts: ClassVar[bool] = True
    proportional: Annotated[float, NOT_NEGATIVE] = 0.2
    integral: Annotated[float, NOT_NEGATIVE] = 0.02
    boost: Annotated[float, NOT_NEGATIVE] = 0.02
    min_bonus: float = 0.0
    max_bonus: float = 1.0
    min_scale: Annotated[float, FACTOR] = 0.0
    guard: Annotated[float, NOT_NEGATIVE] = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.need("min_bonus", self.min_bonus <= self.max_bonus, f"at most max_bonus, {self.max_bonus}")

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


@dataclass(frozen=True, kw_only=True)
class Project(Targeted):
    """Our own: take out of the step what lowers the entropy below its target, and nothing else.

        d' = d + ((wanted - g · d) / (g · P g)) P g     where H + g · d < target - tolerance
        g = ∇h,   wanted = target - tolerance - H

    the smallest change of the step, in the metric P⁻¹, that keeps the bound to first order. P is 1 (`euclidean`), or
    what the optimizer scales gradients by (`optimizer`), as it would an entropy bonus in the loss. Where the entropy is
    already below the bound, wanted is positive and the projection raises it, which a factor cannot. `limit` bounds the
    length of the correction, to that share of the step's.

    g is estimated: noise does not bias g · d, but makes |g|² too large, so that the correction is too small by
    1 + tr Cov(g) / |∇h|² (later steps make up for it, as H falls below the bound), and adds a random
    direction to the step. It pays with enough responses in the entropy batch.

    The target, the `metric`, and the longest correction as a share `limit` of the step's length.
    """

    name: ClassVar[str] = "project"
    adjusts: ClassVar[bool] = True
    metric: Literal["euclidean", "optimizer"] = "euclidean"
    limit: Annotated[float, POSITIVE] = 1.0

    def adjust(self, step: StepView) -> float | Parameters:
        g, d = step.need("entropy_gradient"), step.need("direction")
        change, wanted = dot(g, d), self.bound - step.entropy_now
        if change >= wanted:
            return 1.0
        along = g
        if self.metric == "optimizer":
            P = step.need("preconditioner")
            along = {name: P[name] * tensor for name, tensor in g.items() if name in P}
        squared = dot(g, along)
        if squared <= 0:  # a gradient of zeros: nothing that a step could do
            return 1.0
        factor = (wanted - change) / squared
        most = self.limit * (dot(d, d) / dot(along, along)) ** 0.5
        factor = min(factor, most)
        return {name: d[name] + (factor * along[name]).to(d[name].dtype) if name in along else d[name] for name in d}


@dataclass(frozen=True, kw_only=True)
class Guard(Base):
    """Our own: no step longer than the range in which its effect on the entropy can be predicted.

        eta_star       s = min(1, max(fraction η*, √(negligible / q))),   q = |h''|/2,   η* = |h'|/q
        ghost_radius   s = min(1, fraction min π/Δ_a): within it the Taylor series of the entropy converges

    (h', h'' derivatives of the entropy a token along d; Δ_a the range of ∇_d z over the vocabulary; `change.py`.)
    So the quadratic term s² q of the step s d is at most `fraction` of the linear one, or `negligible` nats a token.
    Without the second, training would stop for good wherever the entropy is stationary along the step: η* is 0 there,
    however tame the step.

    Which `range` (`both`: the smaller), the `fraction` of it, and the smallest factor of a step.
    """

    name: ClassVar[str] = "guard"
    adjusts: ClassVar[bool] = True
    range: Literal["eta_star", "ghost_radius", "both"] = "eta_star"
    fraction: Annotated[float, POSITIVE] = 0.5
    negligible: Annotated[float, NOT_NEGATIVE] = 1e-3
    min_scale: Annotated[float, FACTOR] = 0.0

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
