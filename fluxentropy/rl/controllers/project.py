"""Our own: take out of the step what lowers the entropy below its target, and nothing else.

    d' = d + ((wanted - g · d) / (g · P g)) P g     where H + g · d < target - tolerance
    g = ∇h,   wanted = target - tolerance - H

the smallest change of the step, in the metric P⁻¹, that keeps the bound to first order. P is 1 (`euclidean`), or what
the optimizer scales gradients by (`optimizer`), as it would an entropy bonus in the loss. Where the entropy is already
below the bound, wanted is positive and the projection raises it, which a factor cannot. `limit` bounds the length of
the correction, to that share of the step's.

g is estimated: noise does not bias g · d, but makes |g|² too large, so that the correction is too small by
1 + tr Cov(g) / |∇h|² (later steps make up for it, as H falls below the bound), and adds a random
direction to the step. It pays with enough responses in the entropy batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from fluxentropy.rl.controllers.target import Targeted
from fluxentropy.rl.policy import Parameters, dot
from fluxentropy.rl.stepview import StepView


@dataclass(frozen=True, kw_only=True)
class Project(Targeted):
    """The target, the `metric`, and the longest correction as a share `limit` of the step's length."""

    name: ClassVar[str] = "project"
    adjusts: ClassVar[bool] = True
    metric: Literal["euclidean", "optimizer"] = "euclidean"
    limit: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.need("metric", self.metric in ("euclidean", "optimizer"), "euclidean or optimizer")
        self.need("limit", self.limit > 0, "a positive number")

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
