"""The entropy after a step, from responses of before it, by importance weights in float64.

With S_k(θ') and H_k(θ') after the step, w = exp(Σ_k S_k(θ') - S_k(θ)) and T the length:

    sequence weights   ĥ(θ') = Σ_i w_i Σ_k H_k(θ') / Σ_j w_j T_j
    prefix weights     H_k depends on t_<k alone, so w_<k = exp(Σ_{j<k} ...) does for it: E Σ_k w_<k H_k(θ') = 𝓗(θ')

The prefix form has the smaller variance, and E[w_<k] = 1 gives each position a control variate: its mean over the
other prompts. H must be taken at the shifted parameters, and the sum is normalised once. Nothing is clipped: the
effective sample size (Σw)²/Σw² is reported instead. To first order in the step, with ĥ and T_tot of the batch,

    δh₁ = (1/T_tot) Σ_i [Σ_k ∇_d H_k + Σ_k (H_k - ĥ) ∇_d S]        S the whole response's, or its first k-1 tokens'.

Source: RL studies, section on self-normalised importance sampling.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from fluxentropy.rl.estimate import Estimate, jackknife, without_each
from fluxentropy.rl.passes import SequenceStats

Reweighting = Literal["prefix", "sequence"]


@dataclass(frozen=True, kw_only=True)
class MeasuredChange:
    """Change of the entropy between two parameter vectors, measured on one batch.

    Attributes:
        per_sequence: 𝓗(θ') - 𝓗(θ), nats a sequence.
        per_token: h(θ') - h(θ), nats a token.
        after_per_token: h(θ') itself.
        effective_sample_size: of the whole responses' weights, out of `responses`.
        largest_weight: of one response, 1 where nothing changed.
        responses: B·G.
        without: per_sequence and per_token without each prompt in turn, (B, 2): what a difference to another estimate
            from the same prompts needs for its standard error.
    """

    per_sequence: Estimate
    per_token: Estimate
    after_per_token: float
    effective_sample_size: float
    largest_weight: float
    responses: int
    without: Tensor = field(repr=False, compare=False)


def others_mean(values: Tensor) -> Tensor:
    """The mean over all responses of the other prompts, (..., B, G, L) -> (..., B, 1, L), B >= 2."""
    B = values.shape[-3]
    own = values.mean(-2, keepdim=True)
    return (own.sum(-3, keepdim=True) - own) / (B - 1)


def before_position(values: Tensor) -> Tensor:
    """Σ_{j<k}, (..., L) -> (..., L); the first position has 0."""
    return values.cumsum(-1).roll(1, -1).index_fill(-1, torch.tensor([0], device=values.device), 0.0)


def reweighted(
    values: Tensor, log_ratio: Tensor, weights: Reweighting, baseline: Tensor | float = 0.0
) -> Tensor:  # (..., L) -> (...)
    """Σ_k of values after the step, weighted so that its expectation is that under the policy after it.

    `values` (..., L) are 0 after the end of a response, `log_ratio` = S_k(θ') - S_k(θ) (..., L). For "prefix" the
    term of position k is w_<k (value_k - b_k) + b_k with a `baseline` b that does not see the response itself.
    """
    if weights == "sequence":
        return log_ratio.sum(-1).exp() * values.sum(-1)
    return (before_position(log_ratio).exp() * (values - baseline) + baseline).sum(-1)


def measured_change(
    before: SequenceStats, after: SequenceStats, mask: Tensor, *, weights: Reweighting = "prefix"
) -> MeasuredChange:
    """The change from S_k and H_k (B, G, L) of the same responses before and after a step, and their mask. B >= 2

    "sequence" divides by Σ w (self-normalised, bias O(1/n)); "prefix" is unbiased per sequence. Standard errors are
    those of the paired difference, by the jackknife over prompts.
    """
    log_ratio, ones = after.logp - before.logp, mask.double()
    w = log_ratio.sum(-1).exp()  # (B, G)
    base_h, base_t = (others_mean(x) if weights == "prefix" else 0.0 for x in (after.entropy, ones))
    columns = torch.stack(
        [
            before.entropy.sum(-1),
            ones.sum(-1),
            reweighted(after.entropy, log_ratio, weights, base_h),
            reweighted(ones, log_ratio, weights, base_t),
            w if weights == "sequence" else torch.ones_like(w),
        ],
        -1,
    ).mean(1)  # (B, 5)

    def per_sequence(m: Tensor) -> Tensor:
        return m[..., 2] / m[..., 4] - m[..., 0]

    def per_token(m: Tensor) -> Tensor:
        return m[..., 2] / m[..., 3] - m[..., 0] / m[..., 1]

    others = without_each(columns)
    return MeasuredChange(
        per_sequence=jackknife(per_sequence, columns),
        per_token=jackknife(per_token, columns),
        after_per_token=float(columns[:, 2].mean() / columns[:, 3].mean()),
        effective_sample_size=float(w.sum() ** 2 / w.square().sum()),
        largest_weight=float(w.max()),
        responses=w.numel(),
        without=torch.stack([per_sequence(others), per_token(others)], -1),
    )


def linearised_change(
    value: SequenceStats, slope: SequenceStats, mask: Tensor, *, weights: Reweighting = "prefix"
) -> Estimate:
    """δh₁, nats a token: `measured_change(...).per_token` to first order, from the derivatives along the step. B >= 1

    `value` and `slope` are S_k, H_k (B, G, L) and their derivatives. With "sequence" it is the derivative of the
    self-normalised estimate on the very same responses; "prefix" leaves out terms of expectation 0.
    """
    reach = before_position(slope.logp) if weights == "prefix" else slope.logp.sum(-1, keepdim=True)
    ones = mask.double()
    columns = torch.stack(
        [value.entropy, ones, slope.entropy + reach * value.entropy, reach * ones], -1
    )  # (B, G, L, 4)
    return jackknife(lambda m: (m[..., 2] - m[..., 0] / m[..., 1] * m[..., 3]) / m[..., 1], columns.sum(2).mean(1))
