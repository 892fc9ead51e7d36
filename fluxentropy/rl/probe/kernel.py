"""The Fisher kernel between responses, and how it carries an update to the entropy.

    K₁(t|p, t'|p') = ∇S(t|p) · ∇S(t'|p'),    K^P = Σ_α P_α ∂_α S ∂_α S'     (P a diagonal preconditioner)
    δ𝓗₁ = -η E_{p,t} (1/BG) Σ_{m,g} (1/L) (S(t|p) - S̄_p) K(t|p, t_mg|p_m) A_mg

for the step of plain ascent d = η (1/BG) Σ (A/L) ∇S. Source: RL studies, section 2.1, with the expectation over *all*
prompts: the terms between prompts are part of the change, often the larger one. L is a constant (see `update_weights`).

Natural gradient makes the kernel diagonal, K = δ_tt' / π, and then and only then δ𝓗₁ = -η Cov(S, A / L) (Cui et al.).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fluxentropy.errors import UsageError
from fluxentropy.rl.probe.estimate import Estimate, leave_one_out, mean_estimate
from fluxentropy.rl.probe.policy import (
    ROWS,
    Parameters,
    Policy,
    SequenceStats,
    Weights,
    derivatives,
    flatten,
    row_gradients,
    weighted_gradient,
)
from fluxentropy.rl.probe.samples import Responses
from fluxentropy.rl.probe.step import Form, check_norm, others_to_go, score_weights, to_go_weights, update_weights

# --- the kernel -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class KernelSplit:
    """A change Σ_ij x_i K_ij y_j by which pairs carry it; the three parts sum to `total`. Nats, times the step's η.

    `identical`: the same response to the same prompt; `same_prompt`: another response; `cross_prompt`: another prompt.
    """

    total: float
    identical: float
    same_prompt: float
    cross_prompt: float

    @property
    def diagonal_share(self) -> float:
        """The part of the change that a diagonal kernel would explain, identical / total; NaN where total is 0."""
        return self.identical / self.total if self.total else float("nan")


@dataclass(frozen=True, kw_only=True)
class KernelStatistics:
    """Means and root mean squares of a symmetric kernel by kind of pair (NaN where there is none), and its spectrum.

    Pairs of equal responses to a prompt count as same-prompt pairs unless they are the same row. `eigenvalues` (N,)
    descend; `effective_rank` = (Σ λ)² / Σ λ².
    """

    diagonal_mean: float
    same_prompt_mean: float
    same_prompt_rms: float
    cross_prompt_mean: float
    cross_prompt_rms: float
    eigenvalues: Tensor
    effective_rank: float


def fisher_gradients(
    policy: Policy,
    batch: Responses,
    *,
    preconditioner: Parameters | None = None,
    sketch: int | None = None,
    seed: int = 0,
    params: Parameters | None = None,
    rows: int = ROWS,
) -> Tensor:
    """Features F of every response with K = F Fᵀ. -> (N, P) exact, or (N, sketch)

    Exact: √P_α ∂_α S by vmap, for small models. With `sketch`, a Johnson-Lindenstrauss projection on that many random
    signs r: F_i = ∇_(√P r) S / √sketch, one forward-mode pass over the batch each and no gradients in memory. K is then
    unbiased; the relative standard deviation of its diagonal is about √(2/sketch). The same seed gives the same signs,
    so features of two batches may be multiplied.

    Errors: `UsageError` for a sketch below 1 and for a negative preconditioner.
    """
    theta = policy.parameters() if params is None else params
    root = {name: torch.ones_like(tensor) for name, tensor in theta.items()}
    if preconditioner is not None:
        if any((p < 0).any() for p in preconditioner.values()):
            raise UsageError("a preconditioner has negative entries: K^P needs them to be 0 or more")
        root = {name: preconditioner[name].sqrt() if name in preconditioner else 0 * theta[name] for name in theta}
    if sketch is None:
        gradients = row_gradients(policy, batch, Weights(batch.mask.double()), theta, rows=rows)
        return gradients.flatten(0, 1).double() * flatten(root)
    if sketch < 1:
        raise UsageError(f"sketch {sketch}: use a whole number of at least 1, or None for the exact kernel")
    rng = torch.Generator().manual_seed(seed)
    columns = []
    for _ in range(sketch):
        signs = {name: torch.randint(0, 2, tensor.shape, generator=rng) * 2 - 1 for name, tensor in theta.items()}
        direction = {name: root[name] * sign.to(root[name]) for name, sign in signs.items()}
        first = derivatives(policy, batch, direction, order=1, params=theta, rows=rows)[1]
        columns.append(first.logp.sum(-1).flatten())
    return torch.stack(columns, 1) / sketch**0.5


def pairs(a: Responses, b: Responses) -> tuple[Tensor, Tensor]:
    """(same prompt, same prompt and same response) of the rows of two batches, bool (N_a, N_b), by token ids."""
    prompts = torch.tensor([[a.prompt(n) == b.prompt(m) for m in range(b.shape[0])] for n in range(a.shape[0])])
    same_prompt = prompts.repeat_interleave(a.shape[1], 0).repeat_interleave(b.shape[1], 1)
    rows = [_responses(batch) for batch in (a, b)]
    same = torch.tensor([[left == right for right in rows[1]] for left in rows[0]])
    return same_prompt, same_prompt & same


def _responses(batch: Responses) -> list[tuple[int, ...]]:
    rows = zip(batch.tokens.flatten(0, 1).tolist(), batch.lengths.flatten().tolist(), strict=True)
    return [tuple(tokens[:length]) for tokens, length in rows]


def kernel_change(kernel: Tensor, x: Tensor, y: Tensor, same_prompt: Tensor, identical: Tensor) -> KernelSplit:
    """Σ_ij x_i K_ij y_j split by kind of pair. kernel (N, M), x (N,), y (M,), pairs bool (N, M)

    For the change of a policy-gradient step: x from `entropy_side`, y from `update_side`, times η where K has no
    preconditioner. Sampled estimates need two batches: rows of one batch on both sides are correlated.
    """
    same_prompt, identical = same_prompt.to(kernel.device), identical.to(kernel.device)
    terms = x[:, None] * kernel * y[None, :]
    parts = (terms * identical, terms * (same_prompt & ~identical), terms * ~same_prompt)
    same, prompt, cross = (float(part.sum()) for part in parts)
    return KernelSplit(total=float(terms.sum()), identical=same, same_prompt=prompt, cross_prompt=cross)


def entropy_side(logp: Tensor) -> Tensor:
    """x_i = -(S_i - mean of the prompt's other responses) / (BG) from S (B, G): Σ x_i ∇S_i estimates ∇𝓗. -> (N,)"""
    return (-(logp - leave_one_out(logp)) / logp.numel()).flatten()


def update_side(advantages: Tensor, norm: float) -> Tensor:
    """y_j = A_j / (BGL), so that the step is d = η Σ y_j ∇S_j. (B, G) -> (N,)"""
    check_norm(norm)
    return (advantages.double() / (advantages.numel() * norm)).flatten()


def covariance_change(logp: Tensor, advantages: Tensor, norm: float = 1.0, *, relative: bool = True) -> float:
    """-mean of (S - mean of the prompt's S) A / norm: the diagonal-kernel formula of Cui et al., for this update.

    logp S and advantages (B, G), nats, G >= 2; `norm` is what the update divides sums over tokens by. Times η it is
    the first-order change by the *natural* gradient step η (1/BG) Σ (A/norm) ∇S on free logits. It depends on A/norm
    alone. Advantages `relative` to their group sum to 0 in it, so that any mean of S would do, and nothing is left to
    correct: the value is that of this very step, for A of any kind. Those of each response alone are not; there the
    mean is of the other responses, G/(G-1) times as much, and the value unbiased for -Cov(S, A) / norm.

    Errors: `UsageError` for G < 2, and a norm that is not positive.

    >>> S, r = torch.tensor([[-1.0, -3.0]]), torch.tensor([[1.0, 0.0]])
    >>> covariance_change(S, r - r.mean(), 2.0), covariance_change(S, (r - r.mean()) / 2, 1.0)
    (-0.25, -0.25)
    """
    check_norm(norm)
    others = logp - leave_one_out(logp)
    G = logp.shape[-1]
    return -float((others * ((G - 1) / G if relative else 1.0) * advantages / norm).mean())


def kernel_statistics(kernel: Tensor, prompts: Tensor) -> KernelStatistics:
    """Statistics of K (N, N) in blocks of equal `prompts` (N,), any labels."""
    same = (prompts[:, None] == prompts[None, :]).to(kernel.device)
    off = ~torch.eye(len(kernel), dtype=torch.bool, device=kernel.device)
    inside, between = kernel[same & off], kernel[~same]
    values = torch.linalg.eigvalsh((kernel + kernel.T) / 2).flip(0)
    return KernelStatistics(
        diagonal_mean=float(kernel.diagonal().mean()),
        same_prompt_mean=float(inside.mean()),
        same_prompt_rms=float(inside.square().mean().sqrt()),
        cross_prompt_mean=float(between.mean()),
        cross_prompt_rms=float(between.square().mean().sqrt()),
        eigenvalues=values,
        effective_rank=float(values.sum() ** 2 / values.square().sum()),
    )


# --- two batches ------------------------------------------------------------------------------------------------------
#
#     δ𝓗₁ = η X̄_E · Ȳ_U
#     Var = η² ( μ_X Σ_Y μ_X / B_U + μ_Y Σ_X μ_Y / B_E + tr(Σ_X Σ_Y) / (B_E B_U) )
#     V_X = 1/(B_E(B_E-1)) Σ_n (Ȳ·(X_n - X̄))²,    V_Y = 1/(B_U(B_U-1)) Σ_m (X̄·(Y_m - Ȳ))²
#
# E[V_X + V_Y] exceeds Var/η² by tr/(B_E B_U). For the step that was really taken the update is no random variable: only
# V_X counts, and the numbers X_n · d come from one forward-mode pass, without a gradient per prompt.
# Source: RL studies, section on the two-batch estimator, prefactors and η² as corrected there.


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


# --- U-statistics -----------------------------------------------------------------------------------------------------
#
# One prompt, responses alone (leave two out):
#
#     Û = 1/(G(G-1)) Σ_{i≠j} (S_i - S̄_{-ij}) K_ij A_j,     δ𝓗₁ = -(η/L) Û
#
# Several prompts, X_n of `score_weights` or `to_go_weights` and Y_n of `update_weights`:
#
#     U = 1/(B(B-1)) Σ_{n≠m} X_n · Y_m = B/(B-1) X̄·Ȳ - 1/(B(B-1)) Σ_n X_n·Y_n,     δ𝓗₁ = η U
#
# U estimates ∇𝓗 · E[Y], the change by the *average* step. For the step that was taken see `twobatch.known_step`.
# Hoeffding's decomposition over the units w_n = (prompt n, its responses), h(w, w') = (X·Y' + X'·Y)/2, gives
#
#     Var(U) = (4/B) ζ₁ + 2/(B(B-1)) ζ₂.
#
# Source: RL studies, section 2.3 and its appendix; signs, the factor of Var(Σ φ₂) and the units as corrected there.
# All functions take any leading dimensions.


class UStatistic(NamedTuple):
    """U and its variance; tensors of the leading dimensions. Nats (times η: nats), and their squares.

    `zeta1_plugin` = Σ (r_n - U)²/(B-1) over row means r_n, biased; `zeta1_jackknife` is ((B-1)/(B-2))² times it,
    identically, so the two confirm nothing about each other; E = ζ₁ + ζ₂/(B-2). `zeta1` and `zeta2` are unbiased (and
    may be negative), from the mean square of h. `variance` = 4/B zeta1 + 2/(B(B-1)) zeta2 is then unbiased too, while
    `jackknife_variance` = 4/B zeta1_jackknife is too large by 2ζ₂/((B-1)(B-2)) on average. The last three need B >= 4
    and all pairs; NaN otherwise.
    """

    value: Tensor
    zeta1_plugin: Tensor
    zeta1_jackknife: Tensor
    jackknife_variance: Tensor
    zeta1: Tensor
    zeta2: Tensor
    variance: Tensor


def leave_one_out_advantages(rewards: Tensor) -> Tensor:
    """A_j = r_j - mean of the prompt's other rewards, (..., G) -> (..., G).

    >>> leave_one_out_advantages(torch.tensor([2.0, 0.0, 0.0, 0.0, 0.0])).tolist()
    [2.0, -0.5, -0.5, -0.5, -0.5]
    """
    G = rewards.shape[-1]
    if G < 2:
        raise UsageError("1 response a prompt: a group-relative advantage needs at least 2")
    return (rewards - rewards.mean(-1, keepdim=True)) * (G / (G - 1))


def one_prompt_u(logp: Tensor, kernel: Tensor, advantages: Tensor) -> Tensor:
    """Û of one prompt from S (..., G), K (..., G, G) and A (..., G). -> (...), nats; δ𝓗₁ = -(η/L) Û

    Unbiased for advantages that depend on their own response only, or that are leave-one-out (S̄ leaves out both i and
    j, so that A_j's use of r_i meets a centred S_i). With group-mean advantages r - r̄ = (G-1)/G of those, multiply by
    G/(G-1). Advantages divided by the group's standard deviation have no unbiased form here: use `multi_prompt_u`.
    Leaving out only i instead would scale the expectation by 1 + 1/(G-1)² with leave-one-out advantages.

    Errors: `UsageError` for G < 3.
    """
    G = logp.shape[-1]
    if G < 3:
        raise UsageError(f"{G} responses a prompt: the one-prompt U-statistic leaves two out and needs at least 3")
    pair_mean = (logp.sum(-1)[..., None, None] - logp[..., :, None] - logp[..., None, :]) / (G - 2)  # (..., i, j)
    terms = (logp[..., :, None] - pair_mean) * kernel * advantages[..., None, :]
    return (terms.sum((-1, -2)) - terms.diagonal(dim1=-2, dim2=-1).sum(-1)) / (G * (G - 1))


def multi_prompt_u(dots: Tensor) -> UStatistic:
    """U from all products X_n · Y_m, (..., B, B) -> (...). Unbiased for any advantages within groups.

    Errors: `UsageError` for B < 3.

    >>> float(multi_prompt_u(torch.tensor([[9.0, 1, 2], [3, 9, 4], [5, 6, 9]])).value)
    3.5
    """
    B = dots.shape[-1]
    h = (dots + dots.mT) / 2
    diagonal = h.diagonal(dim1=-2, dim2=-1)
    row_means = (h.sum(-1) - diagonal) / (B - 1) if B > 1 else diagonal
    squares = (h.square().sum((-1, -2)) - diagonal.square().sum(-1)) / (B * (B - 1)) if B > 1 else diagonal.sum(-1)
    return _from_row_means(row_means, squares)


def multi_prompt_u_from_sums(x_ybar: Tensor, y_xbar: Tensor, xy: Tensor) -> UStatistic:
    """U from X_n · Ȳ, Y_n · X̄ and X_n · Y_n, each (..., B): two means and a second pass, no pairs. -> (...)

    Row means are r_n = (B (X_n·Ȳ + Y_n·X̄) - 2 X_n·Y_n) / (2(B-1)). ζ₂ needs all pairs and is NaN.
    Errors: `UsageError` for B < 3.
    """
    B = xy.shape[-1]
    return _from_row_means((B * (x_ybar + y_xbar) - 2 * xy) / (2 * max(B - 1, 1)), None)


def _from_row_means(r: Tensor, mean_square: Tensor | None) -> UStatistic:
    B = r.shape[-1]
    if B < 3:
        raise UsageError(f"{B} prompts: the variance of a U-statistic needs at least 3")
    U = r.mean(-1)
    plugin = r.var(-1)
    jackknife = plugin * ((B - 1) / (B - 2)) ** 2
    unknown = torch.full_like(U, torch.nan)
    zeta1, zeta2, variance = unknown, unknown, unknown
    if mean_square is not None and B > 3:
        # E[plugin] = ((B-2)² ζ₁ + (B-2) ζ₂)/(B-1)²;  E[mean h² - U²] = (2 - 4/B) ζ₁ + (1 - 2/(B(B-1))) ζ₂
        a, b, c, d = (B - 2) ** 2 / (B - 1) ** 2, (B - 2) / (B - 1) ** 2, 2 - 4 / B, 1 - 2 / (B * (B - 1))
        spread = mean_square - U.square()
        zeta1, zeta2 = (d * plugin - b * spread) / (a * d - b * c), (a * spread - c * plugin) / (a * d - b * c)
        variance = 4 / B * zeta1 + 2 / (B * (B - 1)) * zeta2
    return UStatistic(U, plugin, jackknife, 4 / B * jackknife, zeta1, zeta2, variance)
