"""What a controller may know of an optimizer step after it was taken, computed only where it asks."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from fluxentropy.errors import UsageError
from fluxentropy.rl.estimate import Estimate
from fluxentropy.rl.gradient import entropy_to_go
from fluxentropy.rl.passes import ROWS, SequenceStats, Weights, sequence_stats, weighted_gradient
from fluxentropy.rl.policy import Forward, Parameters, Policy
from fluxentropy.rl.responses import Responses
from fluxentropy.rl.secondorder import EntropyExpansion, expand, ghost_radius
from fluxentropy.rl.sequence_entropy import sequence_entropy
from fluxentropy.rl.snis import others_mean
from fluxentropy.rl.step import difference


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
