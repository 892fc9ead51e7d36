"""Two independent batches: E measures the entropy's gradient, U makes the update.

    δ𝓗₁ = η X̄_E · Ȳ_U
    Var = η² ( μ_X Σ_Y μ_X / B_U + μ_Y Σ_X μ_Y / B_E + tr(Σ_X Σ_Y) / (B_E B_U) )
    V_X = 1/(B_E(B_E-1)) Σ_n (Ȳ·(X_n - X̄))²,    V_Y = 1/(B_U(B_U-1)) Σ_m (X̄·(Y_m - Ȳ))²

E[V_X + V_Y] exceeds Var/η² by tr/(B_E B_U). For the step that was really taken the update is no random variable: only
V_X counts, and the numbers X_n · d come from one forward-mode pass, without a gradient per prompt.
Source: RL studies, section on the two-batch estimator, prefactors and η² as corrected there.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fluxentropy.errors import UsageError
from fluxentropy.rl.estimate import Estimate, mean_estimate
from fluxentropy.rl.gradient import Form, others_to_go, score_weights, to_go_weights, update_weights
from fluxentropy.rl.passes import ROWS, SequenceStats, Weights, derivatives, weighted_gradient
from fluxentropy.rl.policy import Parameters, Policy
from fluxentropy.rl.responses import Responses


class TwoBatch(NamedTuple):
    """The change (nats) and the terms of its variance (nats²), with η² in all of them. Tensors of leading dimensions.

    `entropy_variance` η² V_X, `update_variance` η² V_Y; `trace_term` η² tr(Σ_X Σ_Y)/(B_E B_U), NaN where only sums
    were given. Their sum is conservative by the trace term; `variance` = V_X + V_Y - trace is unbiased.
    """

    value: Tensor
    entropy_variance: Tensor
    update_variance: Tensor
    trace_term: Tensor

    @property
    def conservative_variance(self) -> Tensor:
        """η² (V_X + V_Y)."""
        return self.entropy_variance + self.update_variance

    @property
    def variance(self) -> Tensor:
        """The unbiased variance, which a small batch may make negative."""
        return self.conservative_variance - self.trace_term


def two_batch(dots: Tensor, *, lr: float = 1.0) -> TwoBatch:
    """The change from all products X_n · Y_m, (..., B_E, B_U). Errors: `UsageError` for fewer than 2 prompts in one."""
    BE, BU = dots.shape[-2:]
    if min(BE, BU) < 2:
        raise UsageError(
            f"{BE} and {BU} prompts: the variance of the two-batch estimate needs at least 2 in each batch"
        )
    sums = two_batch_from_sums(dots.mean(-1), dots.mean(-2), lr=lr)
    centred = dots - dots.mean(-1, keepdim=True) - dots.mean(-2, keepdim=True) + dots.mean((-1, -2), keepdim=True)
    trace = centred.square().sum((-1, -2)) / ((BE - 1) * (BU - 1))
    return sums._replace(trace_term=lr**2 * trace / (BE * BU))


def two_batch_from_sums(x_ybar: Tensor, y_xbar: Tensor, *, lr: float = 1.0) -> TwoBatch:
    """The change from X_n · Ȳ (..., B_E) and Y_m · X̄ (..., B_U); both have the mean X̄ · Ȳ."""
    BE, BU = x_ybar.shape[-1], y_xbar.shape[-1]
    if min(BE, BU) < 2:
        raise UsageError(
            f"{BE} and {BU} prompts: the variance of the two-batch estimate needs at least 2 in each batch"
        )
    value = lr * x_ybar.mean(-1)
    vx, vy = lr**2 * x_ybar.var(-1) / BE, lr**2 * y_xbar.var(-1) / BU
    return TwoBatch(value, vx, vy, torch.full_like(value, torch.nan))


def entropy_weights(stats: SequenceStats, mask: Tensor, form: Form) -> Weights:
    """X_n's weights with the baseline of the batch itself: other responses ("score", G >= 2) or other prompts."""
    if form == "score":
        return score_weights(stats, mask)
    return to_go_weights(stats, mask, others_to_go(stats, mask))


def known_step(
    policy: Policy,
    batch: Responses,
    step: Parameters,
    *,
    form: Form = "to_go",
    params: Parameters | None = None,
    rows: int = ROWS,
) -> Estimate:
    """∇𝓗 · d for a step d that was taken, nats a sequence, with its standard error between prompts.

    One forward-mode pass gives ∇_d S_k and ∇_d H_k of the batch (B, G, L) and with them every X_n · d. `params` are
    those that sampled the batch, before the step. Errors: `UsageError` for a truncating sampler, B < 2, and G = 1 in
    the score form.
    """
    batch.need_whole_vocabulary("a change of the entropy")
    batch.need(prompts=2, reason="a standard error between prompts")
    value, slope = derivatives(policy, batch, step, order=1, params=params, rows=rows)
    return mean_estimate(entropy_weights(value, batch.mask, form).apply(slope))


def update_change(
    policy: Policy,
    batch: Responses,
    update: Responses,
    *,
    norm: float,
    lr: float = 1.0,
    preconditioner: Parameters | None = None,
    form: Form = "to_go",
    params: Parameters | None = None,
    rows: int = ROWS,
) -> TwoBatch:
    """The two-batch change by the step lr · P · Ȳ of policy-gradient ascent, with both variances.

    Two backward passes (X̄, Ȳ) and two forward-mode passes (X_n · PȲ, Y_m · PX̄); `preconditioner` is P, taken as
    constant, 1 where None. `update` needs advantages; the batches must be independent.
    """
    batch.need_whole_vocabulary("a change of the entropy")
    update.need_whole_vocabulary("a change of the entropy")
    if update.advantages is None:
        raise UsageError("the update's responses have no advantages: give them to responses(..., advantages=)")
    (value,) = derivatives(policy, batch, {}, order=0, params=params, rows=rows)
    X, Y = entropy_weights(value, batch.mask, form), update_weights(update.advantages, update.mask, norm)
    xbar = weighted_gradient(policy, batch, X, params, rows=rows)
    ybar = weighted_gradient(policy, update, Y, params, rows=rows)
    if preconditioner is not None:
        xbar, ybar = ({n: preconditioner[n] * g[n] for n in g if n in preconditioner} for g in (xbar, ybar))
    slope_x = derivatives(policy, batch, ybar, order=1, params=params, rows=rows)[1]
    slope_y = derivatives(policy, update, xbar, order=1, params=params, rows=rows)[1]
    return two_batch_from_sums(X.apply(slope_x), Y.apply(slope_y), lr=lr)
