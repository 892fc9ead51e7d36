"""Entropy of a policy's responses, per sequence and per token.

    naive             -(1/BG) Σ S(t_ng),       S = Σ_k log π(t_k | t_<k, p)
    Rao-Blackwellised  (1/BG) Σ Σ_k H_k,       H_k the entropy of the distribution that t_k was drawn from

Both are unbiased for 𝓗 = -E[S] (nats a sequence). Source: RL studies, section 2.2. Rao-Blackwellising lowers the
variance of each position's term, Var(H_k) <= Var(-S_k), but not always that of the sum:

    Var(-S) = Var(Σ H_k) + Σ_k E Var(-S_k | t_<k) + 2 Σ_{j<k} Cov(H_k, -S_j - H_j)

and the last term may be negative. The ratio of the measured variances is therefore reported, not promised.

Per token the entropy is a ratio of sums, E[Σ H_k] / E[T]: the mean of Σ H_k / T has another expectation than that of
-S / T, because the length is random.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fluxentropy.rl.estimate import Estimate, jackknife, mean_estimate
from fluxentropy.rl.passes import SequenceStats


@dataclass(frozen=True, kw_only=True)
class SequenceEntropy:
    """Entropy estimates of one batch, with standard errors between prompts (NaN for one prompt).

    Attributes:
        naive: -mean S, nats a sequence.
        rao_blackwell: mean Σ_k H_k, nats a sequence.
        per_token: Σ Σ_k H_k / Σ T, nats a token.
        variance_ratio: Var(Σ_k H_k) / Var(-S) over all responses; above 1 where the naive estimate is the better one
            (inf where -S does not vary but Σ H_k does, NaN where neither does).
        mean_length: tokens a response.
    """

    naive: Estimate
    rao_blackwell: Estimate
    per_token: Estimate
    variance_ratio: float
    mean_length: float


def sequence_entropy(stats: SequenceStats, mask: Tensor) -> SequenceEntropy:
    """Entropies of a batch from S_k and H_k (B, G, L), float64 nats, and the mask (B, G, L).

    >>> half = torch.full((2, 1, 1), 0.5, dtype=torch.float64).log()
    >>> sequence_entropy(SequenceStats(half, -half), torch.ones(2, 1, 1, dtype=torch.bool)).per_token
    Estimate(value=0.6931471805599453, se=0.0)
    """
    surprisal, entropy = -stats.logp.sum(-1), stats.entropy.sum(-1)  # (B, G)
    length = mask.sum(-1).double()
    columns = torch.stack([entropy.mean(1), length.mean(1)], 1)
    return SequenceEntropy(
        naive=mean_estimate(surprisal.mean(1)),
        rao_blackwell=mean_estimate(entropy.mean(1)),
        per_token=jackknife(lambda means: means[..., 0] / means[..., 1], columns),
        variance_ratio=float(entropy.var(correction=0) / surprisal.var(correction=0)),
        mean_length=float(length.mean()),
    )
