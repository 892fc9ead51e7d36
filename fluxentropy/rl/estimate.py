"""A number with its standard error, from independent prompts.

Prompts are the independent units: responses to one prompt share it, so standard errors are always between prompts.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import NormalDist
from typing import NamedTuple

from torch import Tensor

from fluxentropy.errors import UsageError


class Estimate(NamedTuple):
    """A value and its standard error, in the same units; the error is NaN where one prompt gives none.

    >>> [round(end, 3) for end in Estimate(1.0, 0.5).interval(0.95)]
    [0.02, 1.98]
    """

    value: float
    se: float

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """The normal interval of confidence `level`, too narrow for few prompts.

        Errors: `UsageError` for a level outside (0, 1).
        """
        if not 0 < level < 1:
            raise UsageError(f"confidence level {level}: use a number between 0 and 1")
        half = NormalDist().inv_cdf((1 + level) / 2) * self.se
        return self.value - half, self.value + half


def mean_estimate(values: Tensor) -> Estimate:
    """Mean and standard error of one value a prompt, (B,)."""
    return Estimate(float(values.mean()), float(values.std() / len(values) ** 0.5) if len(values) > 1 else float("nan"))


def jackknife(f: Callable[[Tensor], Tensor], columns: Tensor) -> Estimate:
    """f of the means of columns (B, q) over prompts, with the delete-one-prompt standard error.

    f maps (..., q) -> (...). SE² = (B-1)/B Σ_n (f_(-n) - mean f_(-))²: for a linear f the usual one of a mean.

    >>> jackknife(lambda m: m[..., 0] / m[..., 1], Tensor([[1.0, 2.0], [3.0, 4.0], [2.0, 2.0]])).value
    0.75
    """
    value = float(f(columns.mean(0)))
    if len(columns) < 2:
        return Estimate(value, float("nan"))
    return Estimate(value, jackknife_error(f(without_each(columns))))


def without_each(columns: Tensor) -> Tensor:
    """The means of columns (B, q) without each prompt in turn. -> (B, q), B >= 2"""
    return (columns.sum(0) - columns) / (len(columns) - 1)


def jackknife_error(without: Tensor) -> float:
    """The standard error of an estimate from its values without each prompt, (B,)."""
    B = len(without)
    return float(((B - 1) / B * (without - without.mean()).square().sum()).sqrt())


def leave_one_out(values: Tensor, dim: int = -1) -> Tensor:
    """The mean of the other values along `dim`, at each place; at least two values.

    >>> leave_one_out(Tensor([1.0, 2.0, 6.0])).tolist()
    [4.0, 3.5, 1.5]
    """
    n = values.shape[dim]
    if n < 2:
        raise UsageError("a leave-one-out mean needs at least 2 values: sample more, or use the to-go form")
    return (values.sum(dim, keepdim=True) - values) / (n - 1)
