"""A schedule that follows the model: bins with more excess loss get more weight.

Its state is the list of what it was told, so that whoever has the list has the schedule:

    weights of steps [0, every)              n_k / N
    weights of steps [s every, (s+1) every)  after the s-th loss vector
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fluxentropy.errors import UsageError
from fluxentropy.mixtures import within


@dataclass(frozen=True, kw_only=True)
class Adaptive:
    """w <- (1 - floor) normalised(w exp(rate max(loss - reference, 0))) + floor / K, every `every` steps.

    The multiplicative update of DoReMi (Xie et al. 2023), with its smoothing, where no bin falls below floor / K; there
    the excess is cut at 0 token by token, here it is that of a bin's mean loss. losses and
    reference are in nats per token, one a bin; without a reference it is 0, and the loss itself counts. Bins without
    blocks keep weight 0.
    """

    every: int = 100
    rate: float = 1.0
    floor: float = 0.1
    reference: tuple[float, ...] | None = None

    kind: ClassVar[str] = "reweighting"

    def __post_init__(self) -> None:
        within("every", self.every, 1, 10**9)
        within("rate", self.rate, 0, 1000)
        within("floor", self.floor, 0, 1)

    def start(self, sizes: np.ndarray) -> np.ndarray:
        """The weights before the first losses. -> (K,)"""
        return sizes / np.sum(sizes)

    def update(self, weights: np.ndarray, losses: Sequence[float] | np.ndarray) -> np.ndarray:
        """The weights (K,) after per-bin `losses` (K,); those of bins without weight may be NaN.

        Errors: `UsageError` where they are not K, or not finite.

        >>> Adaptive(floor=0.0).update(np.array([0.5, 0.5]), [0.0, np.log(3)]).round(3).tolist()
        [0.25, 0.75]
        """
        found = np.asarray(losses, np.float64)
        reference = np.zeros(len(weights)) if self.reference is None else np.asarray(self.reference)
        for name, values in (("losses", found), ("reference", reference)):
            if values.shape != weights.shape or not np.isfinite(values[weights > 0]).all():
                raise UsageError(f"schedule: {name} {values.tolist()}: give {len(weights)} finite numbers, one a bin")
        powers = np.where(weights > 0, self.rate * np.maximum(found - reference, 0), 0)
        raised = weights * np.exp(powers - powers.max())
        smooth = (weights > 0) / np.count_nonzero(weights)
        return (1 - self.floor) * raised / raised.sum() + self.floor * smooth

    def weights(self, sizes: np.ndarray, history: Sequence[Sequence[float]]) -> np.ndarray:
        """The weights (K,) after all losses of `history` (S, K), oldest first."""
        weights = self.start(sizes)
        for losses in history:
            weights = self.update(weights, losses)
        return weights
