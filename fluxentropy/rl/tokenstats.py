"""Statistics of next-token distributions that controllers of the entropy ask for, from logits, (..., V) -> (...).

    S*_a = p_a (H + ln p_a) = -∂H/∂z_a          how much the entropy falls if the logit of token a grows
    E_{i~p} S*_i = Σ_i p_i² (H + ln p_i)        what it is for a token drawn from p, on average

A policy-gradient step on token a, δz = α (e_a - p), changes the entropy by -α (S*_a - E_{i~p} S*_i) to first order.
Source: Wang et al. 2026, arXiv:2602.03392. Logits are already divided by the temperature; -inf is probability 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fluxentropy.estimators import token_stats
from fluxentropy.rl.responses import Sampler

NUCLEUS = 0.8  # the mass of the nucleus in the code of SIREN


def expected_sensitivity(logits: Tensor) -> Tensor:
    """E_{i~p} S*_i = Σ_i p_i² (H + ln p_i) of p = softmax(logits), nats. (..., V) -> (...)

    float32, or float64 of float64 logits; differentiable. 0 for a uniform distribution and for a certain token.

    >>> round(float(expected_sensitivity(torch.tensor([0.9, 0.1]).log())), 4)
    0.1582
    """
    logp = _wide(logits).log_softmax(-1)
    p = logp.exp()
    finite = logp.masked_fill(p == 0, 0.0)
    entropy = -(p * finite).sum(-1, keepdim=True)
    return (p.square() * (entropy + finite)).sum(-1)


def nucleus_entropy(logits: Tensor, top_p: float = NUCLEUS) -> Tensor:
    """Entropy of the nucleus, renormalised: the most likely tokens that reach the mass `top_p`, nats. (..., V) -> (...)

    The token that crosses the mass belongs to the nucleus; which tokens do is a constant to gradients.
    Errors: `UsageError` for a `top_p` outside (0, 1].

    >>> round(float(nucleus_entropy(torch.tensor([0.5, 0.4, 0.1]).log())), 4)  # of 5/9 and 4/9
    0.687
    """
    return token_stats(Sampler(top_p=top_p).restrict(_wide(logits))).entropy


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()
