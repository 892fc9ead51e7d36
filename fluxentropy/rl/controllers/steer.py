"""STEER: tokens that would change the entropy much weigh less.

    Ω = (A/π_old) π (1 - π)(ln π + H)
    linear        w falls from `high` at the smallest |Ω| of the batch to `low` at the largest
    exponential   w = e^(-k|Ω|), k = -ln(low) / max(max |Ω|, 0.02), so that w is in [low, 1]

Source: Hao et al. 2025, arXiv:2510.10150 (its abstract names the four factors: clipping, advantage, probability,
entropy; a summary has the exponential form). Ω, the linear form as default, 0.8 and 1.2 are those of the code; there
Ω is taken from a micro-batch, here from the whole batch, and entropies are those of sampling, here those of now.

Checked: the change of H when the logit of the token alone moves by η A ρ (1 - π) is -η A ρ π (1 - π)(ln π + H), that
is -η Ω π: the code's Ω is larger by 1/π, and so ranks rare tokens higher. `exact` uses the change itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fluxentropy.rl.controllers.base import Base, spread, valid
from fluxentropy.rl.updatebatch import TokenBatch, TokenPlan

FLOOR = 0.02  # |Ω| below which the exponential form does not stretch its range


@dataclass(frozen=True, kw_only=True)
class Steer(Base):
    """`form` of the weights, their bounds `low` and `high` (the exponential form ends at 1), and `exact` for Ω π."""

    name: ClassVar[str] = "steer"
    form: Literal["linear", "exponential"] = "linear"
    low: float = 0.8
    high: float = 1.2
    exact: bool = False

    def __post_init__(self) -> None:
        self.need("form", self.form in ("linear", "exponential"), "linear or exponential")
        self.need("low", 0 < self.low <= 1, "a weight above 0 and at most 1")
        self.need("high", self.high >= 1, "a weight of at least 1")

    def plan(self, batch: TokenBatch, generator: torch.Generator) -> TokenPlan:  # noqa: ARG002
        weight = self.weights(self.change(batch))
        return TokenPlan(
            weight=spread(batch, weight), facts={"weight_mean": float(weight.mean()), "weight_low": float(weight.min())}
        )

    def change(self, batch: TokenBatch) -> Tensor:
        """|Ω| of the tokens of the mask, (n,)."""
        A, logp, H = (valid(batch, x) for x in (batch.advantages, batch.logp, batch.entropy))
        omega = A * valid(batch, batch.ratio) * (1 - logp.exp()) * (logp + H)  # π/π_old = ρ
        return (omega * logp.exp() if self.exact else omega).abs()

    def weights(self, change: Tensor) -> Tensor:
        """(n,) -> (n,)"""
        if self.form == "exponential":
            k = -math.log(self.low) / max(float(change.max()), FLOOR)
            return (-k * change).exp()
        least, most = change.min(), change.max()
        if most == least:
            return torch.ones_like(change)
        return (self.high - (self.high - self.low) * (change - least) / (most - least)).clamp(self.low, self.high)
