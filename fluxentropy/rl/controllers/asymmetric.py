"""Asymmetric clipping ("clip-higher"): the ratio is clipped to [1 - low, 1 + high] with high > low.

Source: DAPO, Yu et al. 2025, arXiv:2503.14476 (0.2 and 0.28). A token of small probability that did well may grow
further before it loses its gradient, which keeps entropy up; clipping from below raises it too (arXiv:2509.26114).
It acts only where a batch is used for several steps: at ratio 1 nothing is clipped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from fluxentropy.rl.controllers.base import Base
from fluxentropy.rl.updatebatch import TokenBatch, TokenPlan


@dataclass(frozen=True, kw_only=True)
class AsymmetricClip(Base):
    """Bounds of the ratio in place of the configuration's."""

    name: ClassVar[str] = "asymmetric_clip"
    low: float = 0.2
    high: float = 0.28

    def __post_init__(self) -> None:
        self.need("low", 0 < self.low <= 1, "a number above 0 and at most 1")
        self.need("high", self.high > 0, "a positive number")

    def plan(self, batch: TokenBatch, generator: torch.Generator) -> TokenPlan:  # noqa: ARG002
        return TokenPlan(clip=(self.low, self.high))
