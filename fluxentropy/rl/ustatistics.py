"""Change of the entropy by an average step, from one batch, without the bias of using it twice.

One prompt, responses alone (leave two out):

    Û = 1/(G(G-1)) Σ_{i≠j} (S_i - S̄_{-ij}) K_ij A_j,     δ𝓗₁ = -(η/L) Û

Several prompts, X_n of `score_weights` or `to_go_weights` and Y_n of `update_weights`:

    U = 1/(B(B-1)) Σ_{n≠m} X_n · Y_m = B/(B-1) X̄·Ȳ - 1/(B(B-1)) Σ_n X_n·Y_n,     δ𝓗₁ = η U

U estimates ∇𝓗 · E[Y], the change by the *average* step. For the step that was taken see `twobatch.known_step`.
Hoeffding's decomposition over the units w_n = (prompt n, its responses), h(w, w') = (X·Y' + X'·Y)/2, gives

    Var(U) = (4/B) ζ₁ + 2/(B(B-1)) ζ₂.

Source: RL studies, section 2.3 and its appendix; signs, the factor of Var(Σ φ₂) and the units as corrected there.
All functions take any leading dimensions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fluxentropy.errors import UsageError


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
