"""What a controller may know of an optimizer step after it was taken, computed only where it asks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fluxentropy.errors import UsageError
from fluxentropy.rl.estimate import Estimate
from fluxentropy.rl.policy import Parameters
from fluxentropy.rl.secondorder import EntropyExpansion


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
