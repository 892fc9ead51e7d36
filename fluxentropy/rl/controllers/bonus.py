"""Entropy bonus: the loss gets -c mean H_k.

The usual regulariser of policy gradients (Williams and Peng 1991; Mnih et al. 2016, arXiv:1602.01783). The gradient of
mean H_k at the sampled prefixes is not that of the policy's entropy: how the prefixes themselves change is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from fluxentropy.rl.controllers.base import Base
from fluxentropy.rl.updatebatch import TokenBatch, TokenPlan


@dataclass(frozen=True, kw_only=True)
class Bonus(Base):
    """A constant coefficient c; negative ones lower the entropy."""

    name: ClassVar[str] = "bonus"
    coefficient: float = 1e-3

    def plan(self, batch: TokenBatch, generator: torch.Generator) -> TokenPlan:  # noqa: ARG002
        return TokenPlan(bonus=self.coefficient)
