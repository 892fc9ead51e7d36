"""What a controller sees of a step and may change, and what all controllers share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fluxentropy.config.checks import Check, Options
from fluxentropy.entropy import token_stats
from fluxentropy.errors import UsageError
from fluxentropy.rl.probe.change import EntropyExpansion, expand, ghost_radius, others_mean
from fluxentropy.rl.probe.estimate import Estimate, sequence_entropy
from fluxentropy.rl.probe.policy import (
    ROWS,
    Forward,
    Parameters,
    Policy,
    SequenceStats,
    Weights,
    sequence_stats,
    weighted_gradient,
)
from fluxentropy.rl.probe.samples import Responses, Sampler
from fluxentropy.rl.probe.step import difference, entropy_to_go

# --- the step, as controllers see it ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class StepView:
    """The step d = θ_after - θ_before, and how it changes the entropy of a batch that the update did not use.

    All entropies in nats a token. The functions are costly (one pass of forward mode, some, or a backward pass), are
    called at most once each, and describe the policy at θ_before; a view need not have those that its controller does
    not call.

    Attributes:
        step: number of this optimizer step, from 1.
        entropy_now: entropy before the step.
        first_order: ∇h · d with its standard error between prompts.
        expansion: first and second order along d.
        ghost_radius: the range within which the expansion converges, in units of d (1 is the step itself).
        entropy_gradient: ∇h by parameter.
        direction: d by parameter.
        preconditioner: P by parameter, as the optimizer scaled the gradient (`AdamWSplit.preconditioner`).
    """

    step: int
    entropy_now: float
    first_order: Callable[[], Estimate] | None = None
    expansion: Callable[[], EntropyExpansion] | None = None
    ghost_radius: Callable[[], float] | None = None
    entropy_gradient: Callable[[], Parameters] | None = None
    direction: Callable[[], Parameters] | None = None
    preconditioner: Callable[[], Parameters] | None = None

    def need(self, name: str) -> Any:
        """What the function `name` gives. Errors: `UsageError` where the view has no such function."""
        function = getattr(self, name)
        if function is None:
            raise UsageError(f"this controller needs {name} of the step, which the trainer did not give")
        return function()


def view_step(
    module: nn.Module,
    batch: Responses,
    before: Parameters,
    *,
    step: int,
    preconditioner: Callable[[], Parameters] | None = None,
    rows: int = ROWS,
    forward: Forward | None = None,
) -> StepView:
    """The view of the step that took `module` from `before`, by responses that it sampled before and did not train on.

    Every function computes its answer once, when it is first called: `first_order` one forward-mode pass, `expansion`
    a nested one, `entropy_gradient` one backward pass. Call them before
    the parameters move again. `entropy_gradient` · d is `first_order`, to rounding.
    Errors: `UsageError` for fewer than 2 prompts, a truncating sampler, or another module's parameters.
    """
    batch.need(prompts=2, reason="the view of a step")
    batch.need_whole_vocabulary("a change of the entropy")
    policy, d = Policy(module, forward=forward), difference(module, before)
    stats = sequence_stats(policy, batch, before, rows=rows)

    @functools.cache
    def expansion(order: int = 2) -> EntropyExpansion:
        return expand(policy, batch, d, order=order, params=before, rows=rows)

    return StepView(
        step=step,
        entropy_now=sequence_entropy(stats, batch.mask).per_token.value,
        first_order=lambda: expansion(1).per_token.first,
        expansion=expansion,
        ghost_radius=functools.cache(lambda: float(ghost_radius(policy, batch, d, params=before, rows=rows).min())),
        entropy_gradient=functools.cache(
            lambda: weighted_gradient(policy, batch, token_weights(stats, batch), before, rows=rows)
        ),
        direction=lambda: d,
        preconditioner=preconditioner,
    )


def token_weights(stats: SequenceStats, batch: Responses) -> Weights:
    """Weights whose gradient is that of h = E[Σ H_k] / E[T], nats a token, with the baselines of `expand`.

    To-go form: the reward of position k is (H_k - b_k) - h (1_k - a_k), b and a the other prompts' means of H_k and of
    the share of responses that reach k; positions after the end of a response have H_k = 0 = 1_k.
    """
    alive = batch.mask.double()
    rate = stats.entropy.sum() / alive.sum()
    reward = stats.entropy - others_mean(stats.entropy) - rate * (alive - others_mean(alive))
    scale = alive.sum() / alive.shape[0]
    return Weights(entropy_to_go(reward) * alive / scale, alive / scale)


# --- tokens of a step -------------------------------------------------------------------------------------------------
#
# A controller sees the whole batch of an optimizer step at once, however many micro-batches its gradient is summed
# over,
# and answers with a `TokenPlan`: how each token's loss is to be changed. Shape legend: N rows (responses), L positions.


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenBatch:
    """What is known of each token before the step; all detached, float32 or better, 0 outside the mask.

    Attributes:
        mask: bool (N, L), true where a token was chosen.
        logp: (N, L) log-probability of the token under the policy now, nats.
        old_logp: (N, L) the same under the policy that sampled it.
        entropy: (N, L) H_k of the distribution that it was drawn from, under the policy now, nats.
        advantages: (N,) of each response.
        expected_sensitivity: (N, L) E_{i~p} S*_i with S*_i = p_i (H + ln p_i), where a controller asks for it.
        nucleus_entropy: (N, L) entropy of the renormalised top-p 0.8 distribution, where a controller asks for it.
        clip: (low, high) of the configuration: the loss clips the ratio to [1 - low, 1 + high]; None for no clipping.
    """

    mask: Tensor
    logp: Tensor
    old_logp: Tensor
    entropy: Tensor
    advantages: Tensor
    expected_sensitivity: Tensor | None = None
    nucleus_entropy: Tensor | None = None
    clip: tuple[float, float] | None = None

    @property
    def sensitivity(self) -> Tensor:
        """(N, L) S*_a = p_a (H + ln p_a): minus the derivative of H in the logit of the token that was chosen."""
        return torch.where(self.mask, self.logp.exp() * (self.entropy + self.logp), 0.0)

    @property
    def ratio(self) -> Tensor:
        """(N, L) importance ratio rho = pi / pi_old of each token, 1 outside the mask."""
        return torch.where(self.mask, (self.logp - self.old_logp).exp(), 1.0)

    @property
    def clipped(self) -> Tensor:
        """Bool (N, L), tokens without a gradient because their ratio is clipped: it went the way A pushes it."""
        if self.clip is None:
            return torch.zeros_like(self.mask)
        A, (low, high) = self.advantages[:, None], self.clip
        return self.mask & ((A > 0) & (self.ratio > 1 + high) | (A < 0) & (self.ratio < 1 - low))


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenPlan:
    """How a controller changes the loss of each token; the default changes nothing.

    Attributes:
        weight: (N, L) factor of the token's policy-gradient loss; 0 leaves it out of the sum, not of the normaliser.
        kl: (N, L) beta > 0 where the token's loss is -A rho + beta |ln rho| instead of the clipped one, else 0.
        bonus: coefficient c of the entropy bonus: the loss gets -c mean H_k, averaged over tokens as the loss is.
        target: (mask bool (N, L), anchor, strength): the loss gets strength (mean of H_k over the mask - anchor)^2.
        nucleus: that mean is one of nucleus entropies instead of H_k.
        clip: (low, high) instead of those of the configuration: the loss clips the ratio to [1 - low, 1 + high].
        facts: numbers for the row of metrics of this step, such as the fraction of tokens left out.
    """

    weight: Tensor | None = None
    kl: Tensor | None = None
    bonus: float = 0.0
    target: tuple[Tensor, float, float] | None = None
    nucleus: bool = False
    clip: tuple[float, float] | None = None
    facts: dict[str, float] | None = None


# --- controllers ------------------------------------------------------------------------------------------------------


POSITIVE = Check(lambda value: value > 0, "use a positive number")


@dataclass(frozen=True, kw_only=True)
class Base(Options):
    """Changes nothing. The fields of a controller are its options; what it remembers between steps is in `state`.

    Attributes:
        name: as in the configuration.
        statistics: which of "expected_sensitivity" and "nucleus_entropy" the batch must have.
        adjusts: whether `adjust` looks at the step; otherwise neither a copy of the parameters nor an entropy batch is
            needed.
    """

    name: ClassVar[str]
    statistics: ClassVar[frozenset[str]] = frozenset()
    adjusts: ClassVar[bool] = False
    state: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def plan(self, batch: TokenBatch, generator: torch.Generator) -> TokenPlan:  # noqa: ARG002
        """How the loss of this step's tokens changes; once an optimizer step.

        The batch has at least one token; `generator` is one of the CPU.
        """
        return TokenPlan()

    def adjust(self, step: StepView) -> float | Parameters:  # noqa: ARG002
        """After the optimizer: s in θ = before + s (after - before), or another step in place of after - before."""
        return 1.0

    def state_dict(self) -> dict[str, Any]:
        """A copy of the state: numbers, None and booleans."""
        return dict(self.state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.state.clear()
        self.state.update(state)

    def flag(self, name: str) -> str:
        return f"{self.name}.{name}"

    def need(self, option: str, holds: bool, use: str) -> None:
        """Refuse a value of an option, saying what to use instead."""
        if not holds:
            raise UsageError(f"{self.flag(option)} {getattr(self, option)}: use {use}")


def valid(batch: TokenBatch, values: Tensor | None, name: str = "") -> Tensor:
    """The values at the tokens of the mask, row by row, float64 (n,); (N,) values are those of the rows.

    Errors: `UsageError` for a missing statistic.
    """
    if values is None:
        raise UsageError(f"the batch lacks {name}: compute the statistics that the controller names")
    return (values[:, None].expand(batch.mask.shape) if values.ndim == 1 else values)[batch.mask].double()


def spread(batch: TokenBatch, values: Tensor, outside: float = 1.0) -> Tensor:
    """Values (n,) of the tokens of the mask at their places, `outside` elsewhere. -> (N, L), the dtype of `logp`."""
    found = torch.full_like(batch.logp, outside)
    found[batch.mask] = values.to(found.dtype)
    return found


def without(batch: TokenBatch, dropped: Tensor) -> TokenPlan:
    """The plan that leaves the tokens `dropped`, bool (n,), out of the policy gradient."""
    return TokenPlan(weight=spread(batch, (~dropped).double()), facts={"dropped": share(dropped)})


def share(chosen: Tensor) -> float:
    """Fraction of tokens that are chosen."""
    return float(chosen.double().mean())


def covariance(batch: TokenBatch) -> Tensor:
    """c_i = (A_i - mean A)(ln π_i - mean ln π), means over the tokens of the mask. -> (n,)"""
    A, logp = valid(batch, batch.advantages), valid(batch, batch.logp)
    return (A - A.mean()) * (logp - logp.mean())


# --- statistics of tokens ---------------------------------------------------------------------------------------------
#
#     S*_a = p_a (H + ln p_a) = -∂H/∂z_a          how much the entropy falls if the logit of token a grows
#     E_{i~p} S*_i = Σ_i p_i² (H + ln p_i)        what it is for a token drawn from p, on average
#
# A policy-gradient step on token a, δz = α (e_a - p), changes the entropy by -α (S*_a - E_{i~p} S*_i) to first order.
# Source: Wang et al. 2026, arXiv:2602.03392. Logits are already divided by the temperature; -inf is probability 0.


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
