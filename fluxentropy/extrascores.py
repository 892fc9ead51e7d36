"""The columns that `score --scores` adds to those of every run, made while the texts go through the model."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from fluxentropy.encoding import Encoded
from fluxentropy.registry import REGISTRY
from fluxentropy.textscores import TextFacts


class ExtraScores:
    """Fills the columns `names` text by text, as `Scorer.score_encoded(on_text=extra.add)` tells of them.

    A text that is never told of, because it has no tokens, has no scores; a score that is not finite is none.
    """

    def __init__(
        self,
        names: Sequence[str],
        texts: Sequence[str | None],
        encoded: Sequence[Encoded],
        *,
        vocabulary: int,
        log_frequency: np.ndarray | None = None,
    ) -> None:
        self.texts, self.encoded = texts, encoded
        self.vocabulary, self.log_frequency = vocabulary, log_frequency
        self.found: dict[str, list[float | None]] = {name: [None] * len(texts) for name in names}

    def add(self, index: int, stats: np.ndarray) -> None:
        """Score the text at `index`; stats (3, T) are its entropy, varentropy and surprisal."""
        entropy, varentropy, surprisal = stats.astype(np.float64)
        facts = TextFacts(
            text=self.texts[index] or "",
            ids=self.encoded[index].ids,
            entropy=entropy,
            varentropy=varentropy,
            surprisal=surprisal[:-1],
            vocabulary=self.vocabulary,
            log_frequency=self.log_frequency,
        )
        for name, column in self.found.items():
            function = REGISTRY[name].function
            assert function is not None
            value = function(facts)
            column[index] = value if value is not None and math.isfinite(value) else None

    def columns(self) -> dict[str, pa.Array]:
        """The scores as columns, by name."""
        return {name: pa.array(column, type=pa.float64()) for name, column in self.found.items()}
