"""Gradient of the entropy: which weights on ∇S_k and ∇H_k give it, and the variance of each choice.

    score     X_n = -(1/G) Σ_g (S_ng - b) ∇S_ng,  b the mean of the prompt's other responses, or a constant
    to-go     X_n = (1/G) Σ_g Σ_k [∇H_k + (G_{k+1} - μ_k) ∇S_k],   G_{k+1} = Σ_{k'>k} H_k'

Both have E[X_n] = ∇𝓗. Source: RL studies, section 2.3. In the to-go form the baseline of position k may depend on the
prompt and on t_<k only: b_k = H_k + μ_k, of which H_k cancels against the first term of Σ_{k'>=k} H_k'. A baseline that
has seen t_k is biased, and so is a running mean μ that contains the current responses: update it after use.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fluxentropy.errors import UsageError
from fluxentropy.rl.estimate import leave_one_out
from fluxentropy.rl.passes import ROWS, SequenceStats, Weights, prompt_gradients, sequence_stats
from fluxentropy.rl.policy import Parameters, Policy, flatten
from fluxentropy.rl.responses import Responses

Form = Literal["score", "to_go"]


@dataclass(frozen=True, kw_only=True)
class RunningBaseline:
    """μ_k of the to-go form, an exponential moving mean of G_{k+1} per position; `updated` gives the next one.

    Use it for a batch first, update it with that batch after. Positions never seen have μ_k = 0.
    """

    mean: Tensor  # (L,) nats
    seen: Tensor  # bool (L,)
    rate: float  # a: μ <- (1 - a) μ + a mean(G_{k+1}); the first time, the mean itself

    @staticmethod
    def empty(length: int, rate: float = 0.1, device: str | torch.device = "cpu") -> RunningBaseline:
        """A baseline of zeros for positions below `length`. Errors: `UsageError` for a rate outside (0, 1]."""
        if not 0 < rate <= 1:
            raise UsageError(f"rate {rate}: use a number above 0 and at most 1")
        zeros = torch.zeros(length, dtype=torch.float64, device=device)
        return RunningBaseline(mean=zeros, seen=zeros.bool(), rate=rate)

    def updated(self, entropy: Tensor, mask: Tensor) -> RunningBaseline:
        """The baseline after a batch with H_k and mask (..., L); over the responses that reach position k."""
        L = entropy.shape[-1]
        if len(self.mean) < L:
            raise UsageError(f"responses of {L} tokens, but the baseline was made for {len(self.mean)}")
        alive = mask.reshape(-1, L).sum(0)
        batch_mean = (entropy_to_go(entropy) * mask).reshape(-1, L).sum(0) / alive.clamp(min=1)
        mean, seen = self.mean.clone(), self.seen.clone()
        moved = torch.where(seen[:L], (1 - self.rate) * mean[:L] + self.rate * batch_mean, batch_mean)
        mean[:L] = torch.where(alive > 0, moved, mean[:L])
        seen[:L] |= alive > 0
        return RunningBaseline(mean=mean, seen=seen, rate=self.rate)


@dataclass(frozen=True, kw_only=True)
class GradientEstimate:
    """∇𝓗 (nats per unit of each parameter) and its noise.

    `covariance_trace` is tr Cov(X_n) between prompts; that of the mean, `gradient`, is 1/B of it. NaN for one prompt.
    """

    gradient: Parameters
    covariance_trace: float
    prompts: int


def entropy_to_go(entropy: Tensor) -> Tensor:
    """G_{k+1} = Σ_{k'>k} H_k', (..., L) -> (..., L), nats.

    >>> entropy_to_go(torch.tensor([1.0, 2.0, 3.0])).tolist()
    [5.0, 3.0, 0.0]
    """
    return entropy.flip(-1).cumsum(-1).flip(-1) - entropy


def score_weights(stats: SequenceStats, mask: Tensor, baseline: Tensor | float | None = None) -> Weights:
    """Weights of the score form from S_k and the mask (..., G, L): -(S_g - b) / G on every ∇S_k.

    `baseline` b is None for the leave-one-out mean, which needs G >= 2 (with it S - b = G/(G-1) (S - mean S): the
    factor is applied once), or a constant, or (..., G) that does not depend on the response itself.
    Errors: `UsageError` for G = 1 without a baseline.
    """
    S = stats.logp.sum(-1)
    G = S.shape[-1]
    if baseline is None and G < 2:
        raise UsageError(
            "1 response a prompt: the leave-one-out baseline needs at least 2; use the to-go form or give a baseline"
        )
    b = leave_one_out(S) if baseline is None else baseline
    return Weights((-(S - b) / G)[..., None] * mask)


def to_go_weights(
    stats: SequenceStats, mask: Tensor, baseline: Tensor | float = 0.0, *, per_token: bool = False
) -> Weights:
    """Weights of the to-go form from H_k and the mask (..., B, G, L): (G_{k+1} - μ_k) / G on ∇S_k and 1/G on ∇H_k.

    `baseline` is μ, a constant or broadcastable to (..., B, G, L), such as `RunningBaseline.mean` or `others_to_go`.
    With `per_token` the gradient is that of h = E[Σ H_k] / E[T], nats a token: the reward of a position is H_k - h, and
    all is divided by the mean length.
    """
    alive, scale, reward = mask.double(), torch.tensor(float(mask.shape[-2])), stats.entropy
    if per_token:
        lengths = alive.sum((-1, -2, -3), keepdim=True)
        reward = (reward - reward.sum((-1, -2, -3), keepdim=True) / lengths) * alive
        scale = lengths / mask.shape[-3]
    return Weights((entropy_to_go(reward) - baseline) * alive / scale, alive / scale)


def others_to_go(stats: SequenceStats, mask: Tensor) -> Tensor:
    """μ_k: mean G_{k+1} of the other prompts' responses that reach k. (..., B, G, L) -> (..., B, 1, L), B >= 2"""
    togo, alive = (entropy_to_go(stats.entropy) * mask).sum(-2, keepdim=True), mask.sum(-2, keepdim=True).double()
    others = alive.sum(-3, keepdim=True) - alive
    return (togo.sum(-3, keepdim=True) - togo) / others.clamp(min=1)


def update_weights(advantages: Tensor, mask: Tensor, norm: float) -> Weights:
    """Weights of the policy gradient Y_n = (1/GL) Σ_g A_g ∇S_g, ascent on the reward. A (..., G), mask (..., G, L)

    `norm` is L, the constant that token sums are divided by (Dr. GRPO: the generation limit; not the longest response).
    """
    check_norm(norm)
    return Weights((advantages.double() / (advantages.shape[-1] * norm))[..., None] * mask)


def check_norm(norm: float) -> None:
    """Raise `UsageError` for a norm that is no positive number."""
    if not 0 < norm < float("inf"):
        raise UsageError(f"norm {norm}: use the positive constant that the update divides sums over tokens by")


def entropy_gradient(
    policy: Policy,
    batch: Responses,
    *,
    form: Form = "to_go",
    baseline: Tensor | float | None = None,
    params: Parameters | None = None,
    rows: int = ROWS,
) -> GradientEstimate:
    """∇𝓗 of the policy that sampled `batch`, one backward pass a prompt, with the trace of its covariance.

    `baseline` None: leave-one-out over responses for "score", the other prompts' mean for "to_go" (0 for one prompt).
    Memory is one gradient beside the mean. Errors: `UsageError` for a truncating sampler, and G = 1 in the score form.
    """
    batch.need_whole_vocabulary("the gradient of the entropy")
    stats, mask = sequence_stats(policy, batch, params, rows=rows), batch.mask
    B = batch.shape[0]
    if form == "score":
        weights = score_weights(stats, mask, baseline)
    else:
        automatic = others_to_go(stats, mask) if B > 1 else 0.0
        weights = to_go_weights(stats, mask, automatic if baseline is None else baseline)
    total: Parameters = {}
    squares = 0.0
    for X in prompt_gradients(policy, batch, weights, params, rows=rows):
        total = {name: total[name] + x if total else x for name, x in X.items()}
        squares += float(flatten(X).square().sum())
    mean = {name: tensor / B for name, tensor in total.items()}
    trace = (squares - B * float(flatten(mean).square().sum())) / (B - 1) if B > 1 else float("nan")
    return GradientEstimate(gradient=mean, covariance_trace=trace, prompts=B)
