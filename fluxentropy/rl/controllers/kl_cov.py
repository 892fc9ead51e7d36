"""KL-Cov: tokens of the largest covariance are held where they are by a penalty.

    c_i as in Clip-Cov;  the max(1, ⌊ratio n⌋) tokens of the largest c_i get the loss -A ρ + β |ln ρ|

Source: Cui et al. 2025, arXiv:2505.22617. Checked against the code in verl (`kl_cov`), where β is 1 in the loss and 0.1
in the configuration's default. There the loss of *all other* tokens is -A ρ, without clipping, which the name does not
say: `keep_clip` keeps it. There tokens are chosen in each micro-batch, here over the whole batch.

|ln ρ| has its kink at ρ = 1 and torch gives it the gradient 0 there: with one step a batch, KL-Cov does nothing at all
but take the clip away. Not checked: the text of the paper beyond its abstract.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from fluxentropy.rl.controllers.base import Base, covariance, share, spread
from fluxentropy.rl.updatebatch import TokenBatch, TokenPlan


@dataclass(frozen=True, kw_only=True)
class KLCov(Base):
    """`ratio`: share of the tokens; `coefficient`: β; `keep_clip`: leave the other tokens' clip as it is."""

    name: ClassVar[str] = "kl_cov"
    ratio: float = 2e-4
    coefficient: float = 1.0
    keep_clip: bool = False

    def __post_init__(self) -> None:
        self.need("ratio", 0 < self.ratio <= 1, "a share above 0 and at most 1")
        self.need("coefficient", self.coefficient > 0, "a positive number")

    def plan(self, batch: TokenBatch, generator: torch.Generator) -> TokenPlan:  # noqa: ARG002
        c = covariance(batch)
        chosen = torch.zeros_like(c, dtype=torch.bool)
        chosen[c.argsort(descending=True, stable=True)[: max(1, int(self.ratio * len(c)))]] = True
        return TokenPlan(
            kl=spread(batch, self.coefficient * chosen.double(), outside=0.0),
            clip=None if self.keep_clip else (1.0, math.inf),
            facts={"penalised": share(chosen)},
        )
