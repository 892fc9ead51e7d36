"""Questions answered by a model, and whether its uncertainty predicts which answers are right.

questions.py    records -> multiple-choice questions, by the tasks in `configs/questions/`
answering.py    questions -> log-likelihoods of endings, and entropies
hellaswag.py    `fluxentropy hellaswag`: a row a question
table.py        a table of items -> metrics and a target
logistic.py     logistic regression, by statsmodels
statistics.py   effects, associations, power, AUC, calibration
diagnostics.py  all that is fitted and tested, in one object
diagnose.py     `fluxentropy diagnose`, and what it found in words
figures.py      its pictures
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from fluxentropy.config.checks import Min, Options, Separated
from fluxentropy.config.options import INPUT, MODEL, OUTPUT, SWITCH, WORK, ModelOptions, PlaceOptions
from fluxentropy.doors import door

__getattr__, __dir__ = door(
    __name__,
    {
        "Diagnostics": "diagnostics",
        "Question": "questions",
        "diagnose_table": "diagnostics",
        "fit_logit": "logistic",
        "open_questions": "questions",
    },
)


@dataclass(frozen=True, kw_only=True)
class HellaswagConfig(PlaceOptions, ModelOptions):
    """Options of `fluxentropy hellaswag`."""

    data: Annotated[str | None, INPUT] = None
    """Questions with ctx, endings and label: .jsonl[.gz|.zst], .parquet, .arrow, a folder or glob, - for JSONL on \
stdin, or hf://datasets/OWNER/NAME[/CONFIG][:SPLIT]. Default: the task's own data set on the Hub."""
    task: Annotated[str, INPUT] = "hellaswag"
    """How records become questions: hellaswag, arc_easy, arc_challenge, piqa, winogrande, or a YAML file."""
    limit: Annotated[int | None, INPUT, Min(1)] = None
    """Stop after this many questions."""
    max_tokens: Annotated[int | None, MODEL] = None  # type: ignore[assignment]
    """Longest context with one ending, in tokens; longer ones lose their beginning. Default: the model's window."""
    batch_tokens: Annotated[int | None, WORK, Min(1)] = None
    """Tokens in a batch, padding included. Default: what fits the device."""
    threads: Annotated[int | None, WORK, Min(1)] = None
    """Threads on a CPU, each with questions of its own. Default: one for each core that this process may use. The \
numbers do not depend on it."""
    out: Annotated[Path, OUTPUT]
    """Run directory. The same command again resumes it."""
    overwrite: Annotated[bool, SWITCH, OUTPUT] = False
    """Start afresh, even where --out holds a run."""


@dataclass(frozen=True, kw_only=True)
class DiagnoseConfig(Options):
    """Options of `fluxentropy diagnose`."""

    table: Annotated[str, INPUT] = field(kw_only=False)
    """Table of items (.csv, .tsv, .parquet, .arrow, .jsonl[.gz|.zst]), a folder of such files, or a run directory."""
    target: Annotated[str, INPUT]
    """Column to predict: True and False, yes and no, or 1 and 0."""
    metrics: Annotated[tuple[str, ...] | None, INPUT, Separated(None)] = None
    """Columns to predict it from, separated by commas. Default: every column with a known metric. sqrt_varentropy is \
made from varentropy where the table lacks it."""
    pairs: Annotated[tuple[str, ...] | None, WORK, Separated(None)] = None
    """Pairs of metrics to fit together, as a+b and separated by commas; or all, or none. Default: each entropy with \
the varentropy of its kind."""
    balance: Annotated[bool, SWITCH, WORK] = False
    """Use a random sample of the larger class, as large as the smaller one."""
    bootstrap: Annotated[int, WORK, Min(0)] = 2000
    """Samples of the rows that the confidence interval of the AUC rests on; 0 for none."""
    folds: Annotated[int, WORK, Min(2)] = 10
    """Folds of the cross-validation."""
    seed: Annotated[int, WORK, Min(0)] = 0
    """Seed of the balancing, the bootstrap and the folds."""
    out: Annotated[Path, OUTPUT]
    """Folder to write."""
    overwrite: Annotated[bool, SWITCH, OUTPUT] = False
    """Start afresh, even where --out holds another diagnosis."""
