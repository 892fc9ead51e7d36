"""Options of `fluxentropy grpo-study`.

Annotations are evaluated here, not kept as text, as in `options.py`.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from fluxentropy.errors import UsageError
from fluxentropy.options import INPUT, OUTPUT, WORK, at_least


@dataclass(frozen=True, kw_only=True)
class GRPOStudyConfig:
    """Options of `fluxentropy grpo-study`."""

    runs: Annotated[tuple[str, ...], INPUT] = field(kw_only=False)
    """Finished runs of grpo with --probe.every, or folders that hold some, such as that of a grpo-compare."""
    unit: Annotated[Literal["sequence", "token"], WORK] = "sequence"
    """Of measured and predicted changes and the optimizer's parts: nats a sequence, or a token."""
    tolerance: Annotated[float, WORK] = 0.1
    """A prediction is good enough whose relative error is below this share of the measured change."""
    rare: Annotated[Literal["entropy", "median"], WORK] = "entropy"
    """Which tokens are rare: ln p < -H of their own distribution, where natural gradient changes sign, or below the \
median log-probability of the step's tokens."""
    bootstrap: Annotated[int, WORK] = 2000
    """Resamples of blocks of steps, and of runs, that the intervals of one run, and of eight or more, are made of."""
    seed: Annotated[int, WORK] = 0
    """Of the resamples."""
    out: Annotated[Path, OUTPUT]
    """Folder to write: study.md, study.json and figures."""

    def __post_init__(self) -> None:
        if not self.runs:
            raise UsageError("no run: name runs of grpo with probes, or a folder that holds some")
        at_least(100, self, "bootstrap")
        at_least(0, self, "seed")
        if not 0 < self.tolerance < float("inf"):
            raise UsageError(f"--tolerance {self.tolerance:g}: use a positive share, such as 0.1")
