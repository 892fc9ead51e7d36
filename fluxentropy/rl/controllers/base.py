"""What all controllers share: no change by default, a state that can be saved, and statistics over the mask."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from fluxentropy.errors import UsageError
from fluxentropy.rl.policy import Parameters
from fluxentropy.rl.stepview import StepView
from fluxentropy.rl.updatebatch import TokenBatch, TokenPlan


@dataclass(frozen=True, kw_only=True)
class Base:
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

    def need(self, option: str, holds: bool, use: str) -> None:
        """Refuse a value of an option, saying what to use instead."""
        if not holds:
            raise UsageError(f"{self.name}.{option} {getattr(self, option)}: use {use}")


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
