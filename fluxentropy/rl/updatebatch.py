"""The tokens of one optimizer step, and what a controller makes of them.

A controller sees the whole batch of an optimizer step at once, however many micro-batches its gradient is summed over,
and answers with a `TokenPlan`: how each token's loss is to be changed. Shape legend: N rows (responses), L positions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenBatch:
    """What is known of each token before the step; all detached, float32 or better, 0 outside the mask.

    Attributes:
        mask: bool (N, L), true where a token was chosen.
        logp: (N, L) log-probability of the token under the policy now, nats.
        old_logp: (N, L) the same under the policy that sampled it.
        entropy: (N, L) H_k of the distribution that it was drawn from, under the policy now, nats.
        advantages: (N,) of each response.
        expected_sensitivity: (N, L) E_{i~p} S*_i with S*_i = p_i (H + ln p_i), where a controller asks for it.
        nucleus_entropy: (N, L) entropy of the renormalised top-p 0.8 distribution, where a controller asks for it.
        clip: (low, high) of the configuration: the loss clips the ratio to [1 - low, 1 + high]; None for no clipping.
    """

    mask: Tensor
    logp: Tensor
    old_logp: Tensor
    entropy: Tensor
    advantages: Tensor
    expected_sensitivity: Tensor | None = None
    nucleus_entropy: Tensor | None = None
    clip: tuple[float, float] | None = None

    @property
    def sensitivity(self) -> Tensor:
        """(N, L) S*_a = p_a (H + ln p_a): minus the derivative of H in the logit of the token that was chosen."""
        return torch.where(self.mask, self.logp.exp() * (self.entropy + self.logp), 0.0)

    @property
    def ratio(self) -> Tensor:
        """(N, L) importance ratio rho = pi / pi_old of each token, 1 outside the mask."""
        return torch.where(self.mask, (self.logp - self.old_logp).exp(), 1.0)

    @property
    def clipped(self) -> Tensor:
        """Bool (N, L), tokens without a gradient because their ratio is clipped: it went the way A pushes it."""
        if self.clip is None:
            return torch.zeros_like(self.mask)
        A, (low, high) = self.advantages[:, None], self.clip
        return self.mask & ((A > 0) & (self.ratio > 1 + high) | (A < 0) & (self.ratio < 1 - low))


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenPlan:
    """How a controller changes the loss of each token; the default changes nothing.

    Attributes:
        weight: (N, L) factor of the token's policy-gradient loss; 0 leaves it out of the sum, not of the normaliser.
        kl: (N, L) beta > 0 where the token's loss is -A rho + beta |ln rho| instead of the clipped one, else 0.
        bonus: coefficient c of the entropy bonus: the loss gets -c mean H_k, averaged over tokens as the loss is.
        target: (mask bool (N, L), anchor, strength): the loss gets strength (mean of H_k over the mask - anchor)^2.
        nucleus: that mean is one of nucleus entropies instead of H_k.
        clip: (low, high) instead of those of the configuration: the loss clips the ratio to [1 - low, 1 + high].
        facts: numbers for the row of metrics of this step, such as the fraction of tokens left out.
    """

    weight: Tensor | None = None
    kl: Tensor | None = None
    bonus: float = 0.0
    target: tuple[Tensor, float, float] | None = None
    nucleus: bool = False
    clip: tuple[float, float] | None = None
    facts: dict[str, float] | None = None
