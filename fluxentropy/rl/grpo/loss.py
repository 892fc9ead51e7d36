"""The loss of GRPO: pure functions of log-probabilities, entropies and advantages. Shape legend: N rows, L positions.

With rho = pi / pi_old of a token (or their geometric mean over the response), advantage A and the normaliser f:

    loss = sum_t f_t (w_t P_t + beta K_t - c H_t) + strength (mean of H over a mask - anchor)^2
    P = -min(rho A, clip(rho, 1 - low, 1 + high) A)      Schulman et al. 2017, arXiv:1707.06347; asymmetric as in
                                                         DAPO (Yu et al. 2025, arXiv:2503.14476)
    P = -A rho + b |ln rho|                              where a controller's plan asks for it (b its `kl`)
    K = q - ln q - 1 >= 0, q = pi_ref / pi               k3 (Schulman 2020), as GRPO has it
    sequence ratio                                       GSPO (Zheng et al. 2025, arXiv:2507.18071)

f is 1 / (tokens of the whole batch of the optimizer step), 1 / (N T_i) or 1 / (N L_max): a batch may be summed in any
number of parts. w, b, c and the target are those of a `TokenPlan`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call

from fluxentropy.entropy import token_stats
from fluxentropy.errors import UsageError
from fluxentropy.rl.control.base import TokenPlan, expected_sensitivity, nucleus_entropy
from fluxentropy.rl.probe.estimate import leave_one_out
from fluxentropy.rl.probe.policy import Parameters
from fluxentropy.rl.probe.samples import Responses

# --- the loss ---------------------------------------------------------------------------------------------------------


Average = Literal["tokens", "responses", "constant"]
RatioOf = Literal["token", "sequence"]


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What is fixed: see the module. `beta` may change from step to step."""

    ratio: RatioOf = "token"
    clip: tuple[float, float] = (0.2, 0.2)
    beta: float = 0.0
    entropy_bonus: float = 0.0


class TokenLoss(NamedTuple):
    """Per token (n, L), 0 outside the mask: the loss before the normaliser, whether its ratio was clipped, and k3."""

    loss: Tensor
    clipped: Tensor
    kl: Tensor


def normaliser(mask: Tensor, average: Average, max_tokens: int) -> Tensor:
    """f_t of the mask (N, L) of the whole batch. -> float32 (N, L), 0 outside the mask

    >>> normaliser(torch.tensor([[True, True], [True, False]]), "responses", 4).tolist()
    [[0.25, 0.25], [0.5, 0.0]]
    """
    ones = mask.float()
    if average == "tokens":
        return ones / ones.sum()
    if average == "constant":
        return ones / (len(mask) * max_tokens)
    return ones / (len(mask) * ones.sum(1, keepdim=True))


def ratios(logp: Tensor, old_logp: Tensor, mask: Tensor, of: RatioOf) -> tuple[Tensor, Tensor]:
    """ln rho and rho, (n, L) each: of the tokens, or the mean over each response's tokens, at all of them."""
    log_ratio = torch.where(mask, logp - old_logp, 0.0)
    if of == "sequence":
        log_ratio = (log_ratio.sum(1, keepdim=True) / mask.sum(1, keepdim=True)).expand_as(logp)
    return log_ratio, log_ratio.exp()


def k3(logp: Tensor, ref_logp: Tensor) -> Tensor:
    """q - ln q - 1 with q = pi_ref / pi: unbiased for KL(pi || pi_ref) of tokens drawn from pi, and never negative.

    >>> round(float(k3(torch.tensor(-1.0), torch.tensor(-2.0))), 4)  # e^-1 + 1 - 1
    0.3679
    """
    log_q = ref_logp - logp
    return torch.expm1(log_q) - log_q


def token_loss(
    logp: Tensor,
    old_logp: Tensor,
    entropy: Tensor,
    advantages: Tensor,
    mask: Tensor,
    objective: Objective,
    *,
    ref_logp: Tensor | None = None,
    plan: TokenPlan | None = None,
    rows: slice = slice(None),
) -> TokenLoss:
    """The loss of each token of some rows: all (n, L) but the advantages (n,); the plan is of all rows.

    `old_logp` and `ref_logp` are constants. The target of a plan is no sum over tokens: see `target_loss`.
    """
    plan = plan or TokenPlan()
    low, high = plan.clip or objective.clip
    log_rho, rho = ratios(logp, old_logp, mask, objective.ratio)
    A = advantages[:, None].to(logp.dtype)
    surrogate = torch.minimum(rho * A, rho.clamp(1 - low, 1 + high) * A)
    clipped = mask & (((A > 0) & (rho > 1 + high)) | ((A < 0) & (rho < 1 - low)))
    loss = -surrogate
    if plan.kl is not None:
        b = plan.kl[rows].to(logp.dtype)
        loss = torch.where(b > 0, -A * rho + b * log_rho.abs(), loss)
        clipped = clipped & (b == 0)
    if plan.weight is not None:
        loss = loss * plan.weight[rows].to(logp.dtype)
    kl = torch.zeros_like(logp) if ref_logp is None else torch.where(mask, k3(logp, ref_logp), 0.0)
    if objective.beta:
        loss = loss + objective.beta * kl
    if bonus := objective.entropy_bonus + plan.bonus:
        loss = loss - bonus * entropy
    return TokenLoss(torch.where(mask, loss, 0.0), clipped, kl.detach())


class Target(NamedTuple):
    """strength (h - anchor)^2 with h the mean of H over a mask, as a sum over tokens that has its gradient.

    `weights` (N, L): 2 strength (h - anchor) / (tokens in the mask); `loss` its value. h is that of the policy now.
    """

    weights: Tensor
    loss: float


def target_loss(plan: TokenPlan | None, entropy: Tensor) -> Target | None:
    """The target of a plan, from H_k (N, L) of the whole batch under the policy now; None where it has none.

    Where the plan says `nucleus`, the entropies are those of nuclei, here and under the weights.
    """
    if plan is None or plan.target is None:
        return None
    mask, anchor, strength = plan.target
    count = mask.sum()
    if not count:
        return Target(torch.zeros_like(entropy), 0.0)
    gap = float(entropy[mask].double().mean()) - anchor
    return Target(mask.to(entropy.dtype) * (2 * strength * gap / float(count)), strength * gap * gap)


def adapted_beta(beta: float, kl: float, target: float) -> float:
    """The next beta: larger where the divergence was above its target, smaller where below (Ziegler et al. 2019,
    arXiv:1909.08593: the error within ±0.2, times 0.1).

    >>> adapted_beta(1.0, 0.2, 0.1), adapted_beta(1.0, 0.1, 0.1)
    (1.02, 1.0)
    """
    return beta * (1 + 0.1 * min(max(kl / target - 1, -0.2), 0.2))


# --- advantages -------------------------------------------------------------------------------------------------------
#
#     standardised    (r - mean) / (sd + eps), sd over the group       GRPO (Shao et al. 2024, arXiv:2402.03300)
#     centred         r - mean                                          Dr. GRPO (Liu et al. 2025, arXiv:2503.20783)
#     leave_one_out   r - mean of the others = G/(G-1) (r - mean)       RLOO (Ahmadian et al. 2024, arXiv:2402.14740)
#
# A group whose rewards are all the same has advantages of exactly 0.


Advantage = Literal["standardised", "centred", "leave_one_out"]
EPS = 1e-4


def advantages(rewards: Tensor, kind: Advantage, *, eps: float = EPS) -> Tensor:
    """Advantages of rewards (B, G), G >= 2, in their dtype; the standard deviation is that of the group itself (1/G).

    Errors: UsageError for one response a prompt.

    >>> import torch
    >>> advantages(torch.tensor([[0.0, 1.0], [3.0, 3.0]]), "leave_one_out").tolist()
    [[-1.0, 1.0], [0.0, 0.0]]
    """
    if rewards.shape[-1] < 2:
        raise UsageError("advantages within a group need at least 2 responses a prompt")
    if kind == "leave_one_out":
        found = rewards - leave_one_out(rewards)
    else:
        found = rewards - rewards.mean(-1, keepdim=True)
        if kind == "standardised":
            found = found / (rewards.std(-1, correction=0, keepdim=True) + eps)
    same = rewards.amax(-1, keepdim=True) == rewards.amin(-1, keepdim=True)
    return found.masked_fill(same, 0.0)


# --- values of tokens -------------------------------------------------------------------------------------------------
#
# `rl/probe/policy.py` has them in float64 and for every kind of derivative; here the model runs as it is trained,
# logits are
# float32, and rows are cut to their own width. Shape legend: N rows, L positions of the longest response, V vocabulary.


STATISTICS: dict[str, Callable[[Tensor], Tensor]] = {
    "expected_sensitivity": expected_sensitivity,
    "nucleus_entropy": nucleus_entropy,
}


class TokenValues(NamedTuple):
    """Of each chosen token, (n, L), 0 after the end of a response: log-probability and entropy in nats, and what else
    was asked for by name."""

    logp: Tensor
    entropy: Tensor
    extra: dict[str, Tensor]


def token_values(
    model: Any, batch: Responses, rows: slice, *, params: Parameters | None = None, extra: Collection[str] = ()
) -> TokenValues:
    """Values of some rows of a batch, differentiable in the model's parameters, or at other `params`.

    `extra`: of `STATISTICS`.
    """
    G = batch.shape[1]
    tokens, mask = batch.tokens.flatten(0, 1)[rows], batch.mask.flatten(0, 1)[rows]  # (n, L)
    starts = batch.prompt_lengths.repeat_interleave(G)[rows]
    width = int((starts + mask.sum(1)).max())
    ids = batch.ids.flatten(0, 1)[rows, :width]
    logits = all_logits(model, ids, params)
    places = (starts[:, None] - 1 + torch.arange(tokens.shape[1], device=ids.device)).clamp(max=width - 1)
    chosen = logits.gather(1, places[..., None].expand(-1, -1, logits.shape[-1]))
    z = batch.sampler.restrict(chosen if chosen.dtype == torch.float64 else chosen.float())
    stats = token_stats(z, tokens, temperature=batch.sampler.temperature)
    assert stats.surprisal is not None
    return TokenValues(
        logp=torch.where(mask, -stats.surprisal, 0.0),
        entropy=torch.where(mask, stats.entropy, 0.0),
        extra={name: torch.where(mask, STATISTICS[name](z / batch.sampler.temperature), 0.0) for name in extra},
    )


def all_logits(model: Any, ids: Tensor, params: Parameters | None = None) -> Tensor:
    """Next-token logits of rows with padding on the right, at the model's parameters or others. (n, W) -> (n, W, V)"""
    options = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
    output = model(ids, **options) if params is None else functional_call(model, params, (ids,), options)
    logits: Tensor = getattr(output, "logits", output)
    return logits


def all_values(
    model: Any, batch: Responses, *, rows: int, params: Parameters | None = None, extra: Collection[str] = ()
) -> TokenValues:
    """The same of all N rows, without gradients, `rows` at a time."""
    N = batch.lengths.numel()
    with torch.no_grad():
        parts = [
            token_values(model, batch, slice(first, first + rows), params=params, extra=extra)
            for first in range(0, N, rows)
        ]
    return TokenValues(
        logp=torch.cat([part.logp for part in parts]),
        entropy=torch.cat([part.entropy for part in parts]),
        extra={name: torch.cat([part.extra[name] for part in parts]) for name in extra},
    )
