"""A curve that the entropy shall follow, in nats a token by optimizer step.

    constant      start
    linear        start + (end - start) u            u = min(step / steps, 1)
    exponential   start (end / start)^u

Without `start` the curve begins at the entropy of the first batch, so that "constant" alone keeps that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from fluxentropy.rl.controllers.base import Base, valid
from fluxentropy.rl.updatebatch import TokenBatch, TokenPlan

Curve = Literal["constant", "linear", "exponential"]


@dataclass(frozen=True, kw_only=True)
class Targeted(Base):
    """A controller with a target; it counts its own steps, so that a resumed run goes on along the curve.

    `curve`, `start`, `end`, `steps` as above; `tolerance`: how far below the target the entropy may be, nats a token.
    """

    curve: Curve = "constant"
    start: float | None = None
    end: float | None = None
    steps: int | None = None
    tolerance: float = 0.01

    def __post_init__(self) -> None:
        self.need("curve", self.curve in ("constant", "linear", "exponential"), "constant, linear or exponential")
        self.need("start", self.start is None or self.start > 0, "a positive entropy, or none for that of step 1")
        if self.curve == "constant":
            self.need("end", self.end is None, "none with a constant curve, or curve: linear")
            self.need("steps", self.steps is None, "none with a constant curve, or curve: linear")
        else:
            self.need("end", self.end is not None and self.end > 0, f"a positive entropy to end a {self.curve} curve")
            self.need("steps", self.steps is not None and self.steps > 0, "the number of steps until the curve ends")
        self.need("tolerance", self.tolerance >= 0, "a number of at least 0")

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
