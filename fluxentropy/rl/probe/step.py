"""What a step did to the parameters, whatever the optimizer: a snapshot before, the difference after.

    δ𝓗₁ = ∇𝓗 · d,    d = θ_after - θ_before

exact to first order for every optimizer, gradient clipping, LoRA and weight decay. Source: RL studies, section 2.1.

For AdamW (decoupled decay λ, gradient g of the loss, c the factor of gradient clipping) d splits exactly, with the
second moments v̂_t of after the step held fixed:

    decay     -ηλ θ
    momentum  -η β₁ m_{t-1} / (1-β₁^t) / (√v̂_t + ε)
    batch     -η (1-β₁) c g / (1-β₁^t) / (√v̂_t + ε)

(ε outside the root, as torch has it.) Source: RL studies, section on AdamW.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fluxentropy.errors import UsageError
from fluxentropy.rl.probe.estimate import leave_one_out
from fluxentropy.rl.probe.policy import (
    ROWS,
    Parameters,
    Policy,
    SequenceStats,
    Weights,
    flatten,
    prompt_gradients,
    sequence_stats,
)
from fluxentropy.rl.probe.samples import Responses

# --- the step ---------------------------------------------------------------------------------------------------------


def snapshot(module: nn.Module) -> Parameters:
    """Copies of the trainable parameters."""
    return {name: tensor.detach().clone() for name, tensor in module.named_parameters() if tensor.requires_grad}


def difference(module: nn.Module, before: Parameters) -> Parameters:
    """d = θ_now - θ_before by name, in the parameters' own precision. Errors: `UsageError` for other parameters."""
    now = {name: tensor.detach() for name, tensor in module.named_parameters() if name in before}
    if missing := before.keys() - now.keys():
        raise UsageError(f"the module has no parameter {min(missing)} any more: take the snapshot of the same module")
    return {name: now[name] - before[name] for name in before}


def clip_factor(total_norm: Tensor | float, max_norm: float) -> float:
    """c = min(1, max_norm / (norm + 1e-6)), what `clip_grad_norm_` (which returns the norm) multiplied gradients by.

    >>> round(clip_factor(2.0, 1.0), 6)
    0.5
    """
    return min(1.0, max_norm / (float(total_norm) + 1e-6))


@dataclass(frozen=True, kw_only=True)
class AdamWSplit:
    """The three parts of an AdamW step, in the units of the parameters; their sum is the step.

    `preconditioner` P_α = η (1-β₁) / (1-β₁^t) / (√v̂_t + ε): -P times this batch's clipped gradient is `batch`.
    """

    batch: Parameters
    momentum: Parameters
    decay: Parameters
    preconditioner: Parameters


def can_split(optimizer: torch.optim.Optimizer | None) -> bool:
    """Whether `AdamWRecorder` knows the parts of this optimizer's steps: AdamW, or Adam without weight decay."""
    if isinstance(optimizer, torch.optim.AdamW):
        return True
    return isinstance(optimizer, torch.optim.Adam) and all(g["weight_decay"] == 0 for g in optimizer.param_groups)


def learning_rates(module: nn.Module, optimizer: torch.optim.Optimizer) -> Parameters:
    """The preconditioner of plain SGD: its learning rate for every parameter, 0 for those it does not train.

    With momentum it is that of this batch's part of the step. Errors: `UsageError` for another optimizer, and for
    Nesterov's form or dampening.
    """
    groups = optimizer.param_groups
    if not isinstance(optimizer, torch.optim.SGD) or any(g["nesterov"] or g["dampening"] for g in groups):
        raise UsageError(
            f"{type(optimizer).__name__} with its options: how it scales the update's gradient is known for AdamW, for "
            "Adam without weight decay, and for SGD without Nesterov and dampening; leave out the parts of the update"
        )
    rate = {id(p): float(group["lr"]) for group in groups for p in group["params"]}
    named = {name: p for name, p in module.named_parameters() if p.requires_grad}
    return {name: torch.full_like(p.detach(), rate.get(id(p), 0.0)) for name, p in named.items()}


class AdamWRecorder:
    """Remembers parameters, first moments and options before a step; `split` after it.

        recorder = AdamWRecorder(module, optimizer)
        loss.backward(); clip_grad_norm_(...); optimizer.step()
        parts = recorder.split()          # before zero_grad: it reads the clipped gradients

    Works with `torch.optim.AdamW` and with `Adam` without weight decay, any parameter groups, `amsgrad` and `maximize`.
    Errors: `UsageError` for another optimizer, and where the parts do not add up to the step.
    """

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        if not can_split(optimizer):
            raise UsageError(
                f"{type(optimizer).__name__} with its options has no split here: use AdamW (or Adam without weight "
                "decay), or the whole step alone, which is exact for every optimizer"
            )
        self._module, self._optimizer = module, optimizer
        self.before = snapshot(module)
        self._moments = {n: self._state(p, "exp_avg").clone() for n, p in self._named()}
        self._steps = {n: float(optimizer.state.get(p, {}).get("step", 0)) for n, p in self._named()}
        self._groups = {id(p): dict(group) for group in optimizer.param_groups for p in group["params"]}

    def _named(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, p) for name, p in self._module.named_parameters() if name in self.before]

    def _state(self, parameter: nn.Parameter, key: str) -> Tensor:
        state: dict[str, Any] = self._optimizer.state.get(parameter, {})
        return state[key].detach() if key in state else torch.zeros_like(parameter.detach())

    def split(self) -> AdamWSplit:
        """The parts of the step just taken. Errors: `UsageError` where there was none, or gradients are gone."""
        parts: dict[str, list[Tensor]] = {}
        for name, p in self._named():
            taken = float(self._optimizer.state.get(p, {}).get("step", 0)) - self._steps[name]
            if taken > 1:
                raise UsageError(f"{taken:.0f} steps were taken since the recorder was made: make one for every step")
            group = self._groups.get(id(p))
            if group is None or taken == 0:  # the optimizer did not touch it
                parts[name] = [torch.zeros_like(self.before[name])] * 4
            elif p.grad is None:
                raise UsageError(f"the gradient of {name} is gone: call split() before zero_grad()")
            else:
                parts[name] = self._parts(name, p, p.grad.detach(), group)
        if all(not float(self._optimizer.state.get(p, {}).get("step", 0)) - self._steps[n] for n, p in self._named()):
            raise UsageError("no optimizer step was taken since the recorder was made")
        columns = zip(*parts.values(), strict=True)
        batch, momentum, decay, preconditioner = (dict(zip(parts, column, strict=True)) for column in columns)
        self._check(batch, momentum, decay)
        return AdamWSplit(batch=batch, momentum=momentum, decay=decay, preconditioner=preconditioner)

    def _check(self, *parts: Parameters) -> None:
        """Refuse parts whose sum is not the step, beyond what rounding the parameters explains."""
        step = difference(self._module, self.before)
        left = flatten({name: sum(part[name] for part in parts) - step[name] for name in step}).norm()
        rounding = max(torch.finfo(tensor.dtype).eps for tensor in step.values()) * flatten(self.before).norm()
        if left > 0.01 * flatten(step).norm() + rounding:
            raise UsageError(
                f"AdamW's parts miss the step by {float(left):.3g} of {float(flatten(step).norm()):.3g}: gradients or "
                "options were changed around it; make the recorder just before step(), and call split() just after"
            )

    def _parts(self, name: str, p: nn.Parameter, gradient: Tensor, group: dict[str, Any]) -> list[Tensor]:
        """[batch, momentum, decay, preconditioner] of one parameter, computed in float64."""
        eta, (beta1, beta2), t = float(group["lr"]), map(float, group["betas"]), self._steps[name] + 1
        v = self._state(p, "max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq").double()
        scale = eta / (1 - beta1**t) / ((v / (1 - beta2**t)).sqrt() + group["eps"])
        g = gradient.double() * (-1 if group["maximize"] else 1)
        P = scale * (1 - beta1)
        parts = [-P * g, -scale * beta1 * self._moments[name].double()]
        decay = -eta * group["weight_decay"] * self.before[name].double()
        return [part.to(p.dtype) for part in (*parts, decay, P)]


# --- the gradient of the entropy --------------------------------------------------------------------------------------
#
#     score     X_n = -(1/G) Σ_g (S_ng - b) ∇S_ng,  b the mean of the prompt's other responses, or a constant
#     to-go     X_n = (1/G) Σ_g Σ_k [∇H_k + (G_{k+1} - μ_k) ∇S_k],   G_{k+1} = Σ_{k'>k} H_k'
#
# Both have E[X_n] = ∇𝓗. Source: RL studies, section 2.3. In the to-go form the baseline of position k may depend on the
# prompt and on t_<k only: b_k = H_k + μ_k, of which H_k cancels against the first term of Σ_{k'>=k} H_k'. A baseline
# that has seen t_k is biased, and so is a running mean μ that contains the current responses: update it after use.


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
