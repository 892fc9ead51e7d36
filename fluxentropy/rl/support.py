"""The entropy of a distribution split into a support A (top-k or top-p) and its tail.

With Z = logsumexp(z), Z_A that over the support, s = e^(Z_A - Z) its mass and ε = 1 - s,

    H = s H_A + ε H_tail - s ln s - ε ln ε,    0 <= ε H_tail <= ε ln(V - |A|)

Source: RL studies, section 2.2.5, with the renormalisation done once: H_A is the entropy of the renormalised
distribution on A. The tail is bounded, not assumed small.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fluxentropy.estimators import token_stats
from fluxentropy.rl.responses import Sampler


class SupportEntropy(NamedTuple):
    """Per position (...), float64. `lower` <= H <= `upper`, all entropies in nats, masses are probabilities."""

    support_entropy: Tensor  # H_A
    support_mass: Tensor  # s
    tail_mass: Tensor  # ε, exact also where s rounds to 1
    lower: Tensor  # s H_A - s ln s - ε ln ε
    upper: Tensor  # lower + ε ln(V - |A|)


def support_entropy(logits: Tensor, sampler: Sampler) -> SupportEntropy:
    """Bounds of the entropy of softmax(z / τ) from the support that `sampler` keeps. (..., V) -> (...)

    `lower` to `upper` is what is known of H without the tail's logits; use it where only the top of the distribution
    was stored. Tokens of logit -inf belong to neither part.

    >>> both = support_entropy(torch.tensor([2.0, 1.0, 0.0, 0.0]), Sampler(top_k=2))
    >>> [round(x.item(), 3) for x in both]
    [0.582, 0.835, 0.165, 0.934, 1.049]
    """
    z = logits.double() / sampler.temperature
    kept = sampler.restrict(logits.double()) > -torch.inf
    inside, outside = z.masked_fill(~kept, -torch.inf), z.masked_fill(kept, -torch.inf)
    total = z.logsumexp(-1)
    s, tail = (inside.logsumexp(-1) - total).exp(), (outside.logsumexp(-1) - total).exp()
    support = token_stats(inside).entropy
    lower = s * support + torch.special.entr(s) + torch.special.entr(tail)
    size = (outside > -torch.inf).sum(-1).clamp(min=1)
    return SupportEntropy(support, s, tail, lower, lower + tail * size.double().log())
