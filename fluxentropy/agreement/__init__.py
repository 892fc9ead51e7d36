"""How far models agree on texts, and the order that they have in common.

    matrix.py      runs, or a wide table -> the scores of all models, side by side
    statistics.py  rank correlations, distances, PCA, with intervals; the consensus
    figures.py     the pictures
    agree.py       `fluxentropy agree`, and `fluxentropy zoo`, which scores first

`fluxentropy.agreement(matrix)` measures the agreement of a matrix of scores.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from fluxentropy.config.checks import Min, Options, Separated, Some
from fluxentropy.config.options import INPUT, MODEL, OUTPUT, SWITCH, WORK, SourceOptions
from fluxentropy.doors import door
from fluxentropy.scoring.options import ScoringOptions

__getattr__, __dir__ = door(
    __name__,
    {
        "Agreement": "statistics",
        "ScoreMatrix": "matrix",
        "read_runs": "matrix",
        "read_wide_table": "matrix",
    },
    call="statistics:agreement",
)


@dataclass(frozen=True, kw_only=True)
class AgreementOptions(Options):
    """How models are compared: what `zoo` and `agree` share."""

    by: Annotated[str, WORK] = "entropy_mean"
    """Score to compare, of runs; what the numbers of a table are, for its plots."""
    models: Annotated[tuple[str, ...] | None, MODEL, Separated()] = None
    """Only these models, separated by commas."""
    baseline: Annotated[str | None, MODEL] = None
    """Model whose order the plots follow. Default: the first."""
    bootstrap: Annotated[int, WORK, Min(0)] = 1000
    """Samples of the texts that the confidence intervals rest on; 0 for none."""
    seed: Annotated[int, WORK, Min(0)] = 0
    """Seed of the bootstrap."""


SCORED = Some("name run directories, a folder that zoo wrote, or a table", opening="no input: ")


@dataclass(frozen=True, kw_only=True)
class ScoredOptions(Options):
    """Which scores."""

    inputs: Annotated[tuple[str, ...], INPUT, SCORED] = field(kw_only=False)
    """Run directories of score, a folder that zoo wrote, or one wide table (.csv, .parquet) with a column for each \
model, or with columns NAME_Characteristic_Value."""


@dataclass(frozen=True, kw_only=True)
class ZooConfig(AgreementOptions, ScoringOptions, SourceOptions):
    """Options of `fluxentropy zoo`."""

    zoo: Annotated[Path, MODEL]
    """YAML file of the models, or the name of one that comes with the package: offline, small, published."""
    out: Annotated[Path, OUTPUT]
    """Folder to write: a run directory for each model, and the comparison. The same command again resumes it."""


@dataclass(frozen=True, kw_only=True)
class AgreeConfig(AgreementOptions, ScoredOptions):
    """Options of `fluxentropy agree`."""

    out: Annotated[Path, OUTPUT]
    """Folder to write."""
    overwrite: Annotated[bool, SWITCH, OUTPUT] = False
    """Start afresh, even where --out holds another comparison."""
