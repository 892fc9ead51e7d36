"""The scores of several models for the same texts, side by side.

            small   large
    id-1     2.31    1.97
    id-2      NaN    2.40       NaN: the model has no score for the text

`widetable.py` reads it from one table, `runscores.py` from runs of `score`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa

from fluxentropy.errors import UsageError
from fluxentropy.yamlfile import did_you_mean


@dataclass(frozen=True, kw_only=True)
class ScoreMatrix:
    """Scores (n, M) of M models, NaN where a model has none, and the texts that they belong to."""

    models: tuple[str, ...]
    scores: np.ndarray  # (n, M) float64
    measure: str  # what the scores are
    inputs: dict[str, str]  # model or file -> fingerprint of its scores
    absent: dict[str, int]  # model -> texts of the others that its run does not hold
    texts: Callable[[], Iterator[tuple[pa.Table, np.ndarray]]]
    """Yields every text once: the columns that describe it, and the rows of `scores` (k,) they belong to."""
    left_out: dict[str, str] = field(default_factory=dict)  # column of numbers that is no model -> why

    def select(self, names: Sequence[str]) -> ScoreMatrix:
        """Only the models `names`, in that order. UsageError names one that is not there."""
        for name in names:
            if name not in self.models:
                raise UsageError(f"--models {name}: no such model{did_you_mean(name, self.models)}")
        kept = [self.models.index(name) for name in dict.fromkeys(names)]
        models = tuple(self.models[column] for column in kept)
        absent = {model: self.absent.get(model, 0) for model in models}
        return replace(self, models=models, scores=self.scores[:, kept], absent=absent)
