"""Clip-Cov: leave out a few tokens whose covariance of advantage and log-probability is large.

    c_i = (A_i - mean A)(ln π_i - mean ln π);  of the n tokens draw max(1, ⌊ratio n⌋) uniformly from {low < c_i < high}

without those that the loss clips already, and give them no gradient. Under natural gradient on free logits the
entropy changes by -η Cov(ln π, A), so these tokens lower it most. Source: Cui et al. 2025, arXiv:2505.22617.

Checked against the code in verl (`clip_cov`): means over all tokens, the bounds exclusive, at least one token. There
all of it is done in each micro-batch, so that the share and the means depend on how a batch is split, and "at least one
token" becomes one a micro-batch; here it is one draw over the batch of the optimizer step. Not checked: the text of the
paper beyond its abstract.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from fluxentropy.rl.controllers.base import Base, covariance, valid, without
from fluxentropy.rl.updatebatch import TokenBatch, TokenPlan


@dataclass(frozen=True, kw_only=True)
class ClipCov(Base):
    """`ratio`: share of the tokens to leave out; `low`, `high`: covariances that they may have, nats."""

    name: ClassVar[str] = "clip_cov"
    ratio: float = 2e-4
    low: float = 1.0
    high: float = 5.0

    def __post_init__(self) -> None:
        self.need("ratio", 0 < self.ratio <= 1, "a share above 0 and at most 1")
        self.need("low", self.low < self.high, f"a number below high, {self.high}")

    def plan(self, batch: TokenBatch, generator: torch.Generator) -> TokenPlan:
        c, clipped = covariance(batch), valid(batch, batch.clipped) > 0
        candidates = ((c > self.low) & (c < self.high) & ~clipped).nonzero()[:, 0]
        order = torch.randperm(len(candidates), generator=generator).to(candidates.device)
        dropped = torch.zeros_like(clipped)
        dropped[candidates[order[: max(1, int(self.ratio * len(c)))]]] = True
        return without(batch, dropped)
