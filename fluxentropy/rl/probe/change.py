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

from fluxentropy.rl.probe.estimate import Estimate, jackknife, mean_estimate, without_each
from fluxentropy.rl.probe.policy import ROWS, Parameters, Policy, SequenceStats, derivatives, logit_range
from fluxentropy.rl.probe.samples import Responses

# --- importance weights -----------------------------------------------------------------------------------------------


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


# --- second order -----------------------------------------------------------------------------------------------------
#
#     φ(η) = E[Σ_k w_<k(η) H_k(θ + ηv)],   C_k = Σ_{j<k} S_j,   b_k a constant,   ' = ∇_v
#     φ'(0)  = E[Σ_k H'_k + C'_k (H_k - b_k)]
#     φ''(0) = E[Σ_k H''_k + 2 C'_k (H'_k - b'_k) + (H_k - b_k)(C''_k + C'_k²)]
#
# (over all positions up to the limit, H_k = 0 after the end of a response). With whole-sequence weights C is S and the
# sums of H stand in one bracket: vᵀ∇²𝓗v = E[∇²H + 2 ∇S ∇H + (H - b)(∇²S + (∇S)²)]. The constants b and b' are free, for
# E[C'_k] = 0 = E[C''_k + C'_k²]; the means of H_k and H'_k over the other prompts cut the variance many times. The
# remainder of 𝓗(θ+ηv) - 𝓗 - ηφ' - η²φ''/2 is O(η³). Source: RL studies, section on the second order.


@dataclass(frozen=True, kw_only=True)
class Expansion:
    """Entropy along the step: value + first·η + second·η²/2, η = 1 the whole step. Nats a sequence, or a token.

    `quadratic` is the predicted change at η = 1 to second order, with its own standard error; `eta_star` =
    2 |first| / |second| is the η at which the quadratic term is as large as the linear one. It is small wherever the
    linear term happens to vanish: read both terms with it. `without`: first and quadratic without each prompt in turn,
    (B, 2), or None; see `MeasuredChange`.
    """

    value: float
    first: Estimate
    second: Estimate
    quadratic: Estimate
    without: Tensor | None = field(default=None, repr=False, compare=False)

    @property
    def eta_star(self) -> float:
        """2 |φ'| / |φ''|, in steps."""
        return 2 * abs(self.first.value) / abs(self.second.value) if self.second.value else float("inf")


@dataclass(frozen=True, kw_only=True)
class EntropyExpansion:
    """The expansions of both entropies along one direction; `second` and `quadratic` are NaN at order 1."""

    per_sequence: Expansion
    per_token: Expansion


def expansion_terms(
    y: tuple[Tensor, Tensor, Tensor],
    s: tuple[Tensor, Tensor],
    weights: Reweighting,
    baselines: tuple[Tensor | float, Tensor | float] = (0.0, 0.0),
) -> tuple[Tensor, Tensor]:
    """One response's terms of φ'(0) and φ''(0). (..., L) -> (...), (...)

    `y`: values at each position with their first and second derivative, 0 after the end; `s`: first and second
    derivative of S_k. `baselines` b and b' (broadcastable to (..., L)) must not see the response itself.
    """
    (value, value1, value2), (s1, s2) = y, s
    if weights == "sequence":  # one term: whole sums
        value, value1, value2, s1, s2 = (x.sum(-1, keepdim=True) for x in (value, value1, value2, s1, s2))
        c1, c2 = s1, s2
    else:
        c1, c2 = before_position(s1), before_position(s2)
    centred = value - baselines[0]
    first = value1 + c1 * centred
    second = value2 + 2 * c1 * (value1 - baselines[1]) + centred * (c2 + c1.square())
    return first.sum(-1), second.sum(-1)


def expand(
    policy: Policy,
    batch: Responses,
    direction: Parameters,
    *,
    order: int = 2,
    weights: Reweighting = "prefix",
    params: Parameters | None = None,
    rows: int = ROWS,
) -> EntropyExpansion:
    """The entropy along `direction` to first or second order, by (nested) forward-mode differentiation.

    `params` are those that sampled the batch. With the step itself as direction, η = 1 is the step. Baselines are the
    other prompts' means. Errors: `UsageError` for a truncating sampler and for B < 2.
    """
    batch.need_whole_vocabulary("a change of the entropy")
    batch.need(prompts=2, reason="a standard error between prompts")
    stats = derivatives(policy, batch, direction, order=order, params=params, rows=rows)
    if order == 1:
        stats.append(SequenceStats(*(torch.full_like(x, torch.nan) for x in stats[0])))
    return expansion(stats, batch.mask, weights)


def expansion(stats: list[SequenceStats], mask: Tensor, weights: Reweighting = "prefix") -> EntropyExpansion:
    """The expansions from [value, first, second] of S_k and H_k (B, G, L)."""
    value, one, two = stats
    ones = mask.double()
    zeros = torch.zeros_like(ones)
    columns = [value.entropy.sum(-1), ones.sum(-1)]
    for y in ((value.entropy, one.entropy, two.entropy), (ones, zeros, zeros)):
        b, b1 = (others_mean(x if weights == "prefix" else x.sum(-1, keepdim=True)) for x in y[:2])
        columns += expansion_terms(y, (one.logp, two.logp), weights, (b, b1))
    H, T, H1, H2, T1, T2 = (column.mean(1) for column in columns)  # (B,) each
    means = torch.stack([H, T, H1, H2, T1, T2], 1)

    def first(m: Tensor) -> Tensor:
        return (m[..., 2] - m[..., 0] / m[..., 1] * m[..., 4]) / m[..., 1]

    def second(m: Tensor) -> Tensor:
        rate = m[..., 0] / m[..., 1]
        return (m[..., 3] - 2 * first(m) * m[..., 4] - rate * m[..., 5]) / m[..., 1]

    def quadratic(m: Tensor) -> Tensor:
        return first(m) + second(m) / 2

    others = without_each(means)
    return EntropyExpansion(
        per_sequence=Expansion(
            value=float(H.mean()),
            first=mean_estimate(H1),
            second=mean_estimate(H2),
            quadratic=mean_estimate(H1 + H2 / 2),
            without=torch.stack([others[:, 2], others[:, 2] + others[:, 3] / 2], -1),
        ),
        per_token=Expansion(
            value=float(H.mean() / T.mean()),
            first=jackknife(first, means),
            second=jackknife(second, means),
            quadratic=jackknife(quadratic, means),
            without=torch.stack([first(others), quadratic(others)], -1),
        ),
    )


def ghost_radius(
    policy: Policy, batch: Responses, direction: Parameters, *, params: Parameters | None = None, rows: int = ROWS
) -> Tensor:
    """π / Δ_a of every chosen token, Δ_a the range over the vocabulary of a = ∇_v z / τ. -> (B, G, L), in steps

    Within the smallest of them the entropy's Taylor series converges if logits are linear in η: the nearest complex
    zero of Σ e^(z + ηa) lies at least that far (for two tokens at √(δ² + π²)/Δ_a, δ their logits' difference). inf
    after the end of a response and where the step moves no logit. Source: RL studies, range of validity.
    """
    return torch.pi / logit_range(policy, batch, direction, params=params, rows=rows)
