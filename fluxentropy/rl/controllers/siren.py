"""SIREN: hold the entropy of the most uncertain tokens, within the nucleus, at what it was at the first step.

    Ĥ_k = entropy of the renormalised top-p 0.8 distribution
    M = {k: Ĥ_k > the `quantile` of Ĥ over its own response},   loss + strength (mean_M Ĥ_k - anchor)²

with the anchor mean_M Ĥ_k of the first step, kept from then on. Source: Jiang et al. 2025, arXiv:2509.25133; checked
against its code (`Linn3a/siren`): quantile and strict inequality per response, the anchored square. There means and
squares are taken of each micro-batch, and the square of a mean does not add up over them; here it is that of the batch.
The code's nucleus ends before the token that crosses 0.8 (as far as read), here that token belongs to it, as in
top-p sampling; and the code's mask may count padding, here it cannot.

strength (m - anchor)² has the gradient 2 strength (m - anchor) ∇m: with m known, micro-batches may sum that instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from fluxentropy.rl.controllers.base import Base, share, valid
from fluxentropy.rl.updatebatch import TokenBatch, TokenPlan


@dataclass(frozen=True, kw_only=True)
class Siren(Base):
    """`quantile` of a response's entropies above which tokens count; `strength` of the square."""

    name: ClassVar[str] = "siren"
    statistics: ClassVar[frozenset[str]] = frozenset({"nucleus_entropy"})
    quantile: float = 0.8
    strength: float = 5e-3

    def __post_init__(self) -> None:
        self.need("quantile", 0 <= self.quantile < 1, "a share of at least 0 and below 1")
        self.need("strength", self.strength > 0, "a positive number")

    def plan(self, batch: TokenBatch, generator: torch.Generator) -> TokenPlan:  # noqa: ARG002
        H = valid(batch, batch.nucleus_entropy, "nucleus_entropy")
        rows = torch.full(batch.mask.shape, torch.nan, dtype=torch.float64, device=H.device)
        rows[batch.mask] = H
        bound = torch.stack([row.nanquantile(self.quantile) for row in rows])  # torch limits the size of one call
        peaks = (rows > bound[:, None]) & batch.mask
        if not peaks.any():  # every response has one entropy only
            return TokenPlan()
        mean = float(rows[peaks].mean())
        anchor = self.state.setdefault("anchor", mean)
        facts = {"peaks": share(peaks[batch.mask]), "peak_entropy": mean, "anchor": anchor}
        return TokenPlan(target=(peaks, anchor, self.strength), nucleus=True, facts=facts)
