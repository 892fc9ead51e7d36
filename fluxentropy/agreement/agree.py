"""`fluxentropy agree`: how far models agree on the order of texts, in numbers, in plots, and as one consensus order."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import logging
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fluxentropy.agreement import AgreeConfig, AgreementOptions, ZooConfig
from fluxentropy.agreement.matrix import ScoreMatrix, read_runs, read_wide_table, unusable
from fluxentropy.agreement.statistics import (
    LEVEL,
    Agreement,
    check_scores,
    measure_agreement,
    write_consensus,
)
from fluxentropy.config.options import SourceOptions
from fluxentropy.config.results import Result, command
from fluxentropy.config.yaml import did_you_mean, to_plain, to_yaml
from fluxentropy.corpus.corpus import open_corpus
from fluxentropy.errors import SourceError, UsageError
from fluxentropy.models.zoo import ZooEntry, read_zoo, zoo_path
from fluxentropy.runs.directory import RunDirectory
from fluxentropy.runs.files import plain, versions, write_json
from fluxentropy.runs.find import CONSENSUS, run_folders
from fluxentropy.runs.progress import Progress, debugging
from fluxentropy.scoring.options import ScoreConfig, ScoringOptions
from fluxentropy.scoring.scores import SCORE_NAMES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fluxentropy.scoring.score import ScoreResult


# --- `fluxentropy agree` ----------------------------------------------------------------------------------------------


UNITS = {"entropy": "nats", "varentropy": "nats²", "sqrt_varentropy": "nats", "surprisal": "nats"}
BY = AgreementOptions.by

RECORDED = (
    *("models", "n_texts", "n_complete", "n_scored", "pair_counts", "spearman", "mean_spearman", "pearson"),
    *("kendall_w", "kendall_chi2", "kendall_p", "kendall_log10_p", "euclidean", "euclidean_z", "pca"),
    "rank_sd_by_quintile",
)

SLOW = 20_000_000  # scores times replicates: above it the bootstrap takes seconds, and shows its progress
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class AgreeResult(Result):
    """How far models agree. `agreement` has all numbers as arrays, and is what a notebook shows."""

    out: Path
    consensus: Path  # a run of the common order, to sort by mean_rank
    figures: tuple[str, ...]  # names of files in `out`
    agreement: Agreement = field(repr=False)
    mean_spearman: float  # over all pairs of models
    kendall_w: float
    record: Mapping[str, Any] = field(repr=False)  # what agreement.json has

    def lines(self) -> list[str]:
        plots = ", ".join(name for name in self.figures if name.endswith(".png"))
        told = ", ".join(f"{name!r} ({why})" for name, why in self.record["left_out"].items())
        return [
            *summary(self.agreement, list(self.record["labels"].values()), self.record["measure"]),
            *([f"no models, left out: {told}"] if told else []),  # columns of numbers
            "",
            f"numbers    {self.out / 'agreement.json'}",
            f"plots      {self.out}/: {plots} (and .svg)",
            f"consensus  {self.consensus}, for `fluxentropy sort {self.consensus} --by mean_rank`",
        ]

    def to_dict(self) -> dict[str, Any]:
        return {"out": str(self.out), "figures": list(self.figures), **self.record}

    def _repr_html_(self) -> str:
        return self.agreement._repr_html_()


@command
def agree(config: AgreeConfig) -> AgreeResult:
    """Compare models from runs or from a table, and write the result into `config.out`."""
    matrix = read_scores(config.inputs, config.by)
    if config.models:
        matrix = matrix.select(config.models)
    if not len(matrix.scores):
        raise SourceError(f"{', '.join(config.inputs)}: there is no text in it, so there is nothing to compare")
    check_scores(matrix.scores, matrix.models)
    with RunDirectory(config.out, overwrite=config.overwrite, folder=CONSENSUS) as run:
        run.begin(_identity(matrix, config), to_yaml(config))
        result = write_agreement(matrix, config.out, config)
        run.finish({"models": list(matrix.models), "inputs": matrix.inputs, "versions": versions()})
    return result


def read_scores(inputs: Sequence[str], by: str = BY) -> ScoreMatrix:
    """The scores in one wide table (.csv, .parquet), or those named `by` in run directories or a folder of them.

    A table does not say what its scores are: `by` does, unless it is the default.

    Errors: UsageError, SourceError and RunError name the table, row, column or run that is wrong.
    """
    paths = [Path(name).expanduser() for name in inputs]
    for path in paths:
        if not path.exists():
            raise SourceError(f"{path}: no such file or folder; give run directories, a folder of them, or a table")
    tables = [path for path in paths if path.is_file()]
    if len(tables) == len(paths) == 1:
        matrix = read_wide_table(tables[0])
        return matrix if by == BY else dataclasses.replace(matrix, measure=by)
    if tables:
        raise UsageError(f"{tables[0]} is a table: give one table alone, or run directories only")
    return read_runs([run for path in paths for run in run_folders(path)], by)


def write_agreement(matrix: ScoreMatrix, out: Path, options: AgreementOptions) -> AgreeResult:
    """Measure how far the models agree; write `agreement.json`, the plots and the consensus order into `out`."""
    from fluxentropy.agreement.figures import draw_agreement
    from fluxentropy.figures import short_labels

    baseline = _baseline(matrix.models, options.baseline)
    for model, count in matrix.absent.items():
        if count:
            log.warning(f"{model}: its run does not hold {count:,} of the {len(matrix.scores):,} texts")
    with _progress(matrix.scores.size, options.bootstrap) as advance:
        result = measure_agreement(
            matrix.scores, matrix.models, replicates=options.bootstrap, seed=options.seed, on_replicate=advance
        )
    labels = short_labels(matrix.models)
    share = write_consensus(matrix, out / CONSENSUS, _identity(matrix, options))
    record = to_record(result) | {
        "labels": dict(zip(matrix.models, labels, strict=True)),
        "measure": matrix.measure,
        "baseline": matrix.models[baseline],
        "absent": matrix.absent,
        "left_out": matrix.left_out,
        "consensus": {"scores": f"{CONSENSUS}/scores", "pc1_share": share},
    }
    write_json(out / "agreement.json", record)
    figures = draw_agreement(
        matrix.scores, labels, result, baseline=baseline, unit=_measure_in_words(matrix.measure), out=out
    )
    return AgreeResult(
        out=out,
        consensus=out / CONSENSUS,
        figures=tuple(path.name for path in figures),
        agreement=result,
        mean_spearman=float(result.mean_spearman),
        kendall_w=float(result.kendall_w),
        record=record,
    )


def _identity(matrix: ScoreMatrix, options: AgreementOptions) -> dict[str, Any]:
    chosen = {"by": options.by, "models": list(matrix.models), "bootstrap": options.bootstrap, "seed": options.seed}
    return {"inputs": matrix.inputs, "baseline": options.baseline, **chosen}


def _baseline(models: Sequence[str], name: str | None) -> int:
    """The column of the baseline. It may be named in part where that is clear."""
    if name is None:
        return 0
    found = [place for place, model in enumerate(models) if name == model]
    found = found or [place for place, model in enumerate(models) if name.lower() in model.lower()]
    if len(found) != 1:
        raise UsageError(
            f"--baseline {name}: {'several models have' if found else 'no model has'} this name"
            f"{did_you_mean(name, [models[place] for place in found] or models)}"
        )
    return found[0]


def _measure_in_words(measure: str) -> str:
    """A score's name as a label with its unit.

    >>> _measure_in_words("entropy_mean"), _measure_in_words("perplexity")
    ('mean entropy (nats)', 'perplexity')
    """
    for name, unit in sorted(UNITS.items(), key=lambda item: -len(item[0])):
        if measure == name or measure.startswith(name + "_"):
            how = {"mean": "mean ", "sum": "summed ", "last": "last-token "}.get(measure.removeprefix(name + "_"), "")
            return f"{how}{name.replace('sqrt_', '√')} ({unit})"
    return measure.replace("_", " ")


@contextlib.contextmanager
def _progress(size: int, replicates: int) -> Iterator[Any]:
    """A progress line of the bootstrap's replicates, where they take a while."""
    if size * replicates < SLOW:
        yield None
        return
    with Progress(replicates, unit="replicates") as line:
        yield lambda: line.update(1)


# --- the result, for programs and for people --------------------------------------------------------------------------


def to_record(result: Agreement) -> dict[str, Any]:
    """`agreement.json`: plain lists and numbers; what is not defined is null."""
    record = {name: getattr(result, name) for name in RECORDED} | {
        "order": [result.models[place] for place in result.order],
        "bootstrap": {"replicates": result.replicates, "level": LEVEL, "intervals": result.intervals},
    }
    values: dict[str, Any] = plain(record)
    return values


def summary(result: Agreement, labels: Sequence[str], measure: str) -> list[str]:
    """The result in some lines for a person."""
    m, limits = len(labels), result.intervals
    spearman = _with_limits(result.mean_spearman, limits.get("mean_spearman"))
    distances = result.euclidean + np.diag(np.full(m, np.nan))

    def distance(pair: tuple[int, int]) -> str:
        return f"{distances[pair]:.2f} between {labels[pair[0]]} and {labels[pair[1]]}"

    close, far = (divmod(int(pick(distances)), m) for pick in (np.nanargmin, np.nanargmax))
    shares = ", ".join(f"{share:.1%}" for share in result.explained_variance_ratio[: min(m - 1, 3)])
    spread = ", ".join(f"{value:.1f}" for value in result.rank_sd_by_quintile)
    lines = [
        f"{m} models, {result.n_texts:,} texts, {result.n_complete:,} of them scored by all; {measure}",
        f"Spearman, mean of {m * (m - 1) // 2} pairs  {spearman}",
        f"Kendall's W  {_with_limits(result.kendall_w, limits.get('kendall_w'))}, p = {_p(result.kendall_log10_p)}",
        "Euclidean distance  " + ", ".join(dict.fromkeys(map(distance, (close, far)))),
        f"PCA, models as points  {shares} of the variance",
        f"SD of a text's rank over the models, by quintile of its mean rank from the lowest  {spread}",
    ]
    if result.n_complete < result.n_texts:
        missing = ", ".join(
            f"{label} {result.n_texts - count:,}"
            for label, count in zip(labels, result.n_scored, strict=True)
            if count < result.n_texts
        )
        lines.append(f"texts without a score, left out pairwise: {missing}")
    return lines


def _with_limits(value: float, limits: np.ndarray | None) -> str:
    return f"{value:.3f}" + (f" [{limits[0]:.3f}, {limits[1]:.3f}]" if limits is not None else "")


def _p(log10_p: float) -> str:
    """A p-value by its logarithm.

    >>> _p(-1.2), _p(-116.4)
    ('0.063', '4e-117')
    """
    if log10_p > -4:
        return f"{10**log10_p:.2g}"
    exponent = int(np.floor(log10_p))
    return f"{10 ** (log10_p - exponent):.0f}e{exponent}"


# --- `fluxentropy zoo` ------------------------------------------------------------------------------------------------


LATER = {"scores": (), "columns": None, "drop": ()}  # options of which folders from before them say nothing


@dataclass(frozen=True, kw_only=True)
class ZooResult(Result):
    """The runs of the models that have scored the texts, and how far they agree."""

    out: Path
    runs: Mapping[str, ScoreResult]  # by model
    failed: Mapping[str, str]  # models, and what went wrong
    agreement: AgreeResult | None  # None: see `why`
    why: str = field(default="", repr=False)  # there is no comparison

    @property
    def exit_code(self) -> int:
        return 1 if self.failed else 0

    def lines(self) -> list[str]:
        lines = [f"{name}: {run.lines()[0]}" for name, run in self.runs.items()]
        lines += ["", *self.agreement.lines()] if self.agreement else [self.why]
        if self.failed:
            lines += ["", f"{len(self.failed)} of {len({**self.runs, **self.failed})} models failed:"]
            lines += [f"  {name}: {reason}" for name, reason in self.failed.items()]
        return lines

    def to_dict(self) -> dict[str, Any]:
        runs = {name: run.to_dict() for name, run in self.runs.items()}
        compared = {"agreement": self.agreement.to_dict()} if self.agreement else {}
        return {"out": str(self.out), "runs": runs, "failed": dict(self.failed), **compared}


@command
def zoo(config: ZooConfig) -> ZooResult:
    """Score the sources with one model after the other, each an ordinary run of `score`, then compare the runs.

    A model that cannot be had, does not fit or fails is reported at the end, with exit code 1; the others count.
    """
    entries = _entries(config)
    spool = config.out / "input" / "stdin.jsonl"
    with RunDirectory(config.out, overwrite=config.overwrite, folder=CONSENSUS) as run:
        sources = _check_sources(config, spool)
        run.begin(_zoo_identity(config), to_yaml(config), last=True)
        scored: dict[str, ScoreResult] = {}
        failed: dict[str, str] = {}
        for place, name in enumerate(entries, 1):
            log.info(f"model {place} of {len(entries)}: {name}")
            result = _score(_score_config(config, name, sources), failed)
            if result is not None:
                scored[name] = result
        compared = _compare(config, scored, failed)
        agreed, why = (None, compared) if isinstance(compared, str) else (compared, "")
        done = agreed is not None
        run.finish({"models": list(scored), "failed": failed, "compared": done, "versions": versions()})
    return ZooResult(out=config.out, runs=scored, failed=failed, agreement=agreed, why=why)


def _entries(config: ZooConfig) -> dict[str, ZooEntry]:
    path = zoo_path(config.zoo)
    entries = read_zoo(path)
    for name in config.models or ():
        if name not in entries:
            raise UsageError(f"--models {name}: no such model in {path}{did_you_mean(name, entries)}")
    chosen = {name: entry for name, entry in entries.items() if config.models is None or name in config.models}
    if config.by not in (names := (*SCORE_NAMES, *config.scores)):
        raise UsageError(f"--by {config.by}: no such score{did_you_mean(config.by, names)}")
    return chosen


def _check_sources(config: ZooConfig, spool: Path) -> tuple[str, ...]:
    """Open the corpus once, so that a bad source fails before any model is loaded; standard input is kept in a file."""
    open_corpus(
        config.sources,
        text_field=config.text_field,
        id_field=config.id_field,
        on_error=config.on_error,
        limit=config.limit,
        spool=spool,
        offline=config.offline,
        reserved=(*SCORE_NAMES, *config.scores),
        scans=None,
        columns=config.columns,
        drop=config.drop,
    )
    return tuple(str(spool) if source == "-" else source for source in config.sources)


def _score_config(config: ZooConfig, name: str, sources: tuple[str, ...]) -> ScoreConfig:
    shared = {
        field.name: getattr(config, field.name)
        for cls in (ScoringOptions, SourceOptions)
        for field in dataclasses.fields(cls)
    }
    return ScoreConfig(**{**shared, "sources": sources, "model": name, "zoo": config.zoo, "out": config.out / name})


def _score(config: ScoreConfig, failed: dict[str, str]) -> ScoreResult | None:
    """Score with one model. Whatever goes wrong with it is this model's failure, by name, and not the zoo's."""
    from fluxentropy.scoring.score import ScoreResult, score  # loads torch, which `agree` does without

    try:
        result = score(config)
    except Exception as error:  # models may run any code, and run out of any memory
        if debugging():
            traceback.print_exc()
        failed[config.model] = " ".join(str(error).split()) or type(error).__name__
        log.warning(f"{config.model}: {failed[config.model]}")
        return None
    finally:
        _free_memory()
    if result.exit_code:
        failed[config.model] = result.lines()[-1]
        return None
    assert isinstance(result, ScoreResult)  # neither a rank's share nor a plan
    return result


def _free_memory() -> None:
    """Let go of the last model before the next one is loaded."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _zoo_identity(config: ZooConfig) -> dict[str, Any]:
    """What all runs of the folder share. Models may join later; each run looks after its own model and inputs."""
    options = [
        field.name
        for cls in (SourceOptions, ScoringOptions)
        for field in dataclasses.fields(cls)
        if field.name not in ("overwrite", "offline", "device")
        and not (field.name in LATER and getattr(config, field.name) == LATER[field.name])
    ]
    return {"kind": "zoo", **{name: to_plain(getattr(config, name)) for name in options}}


def _compare(config: ZooConfig, scored: Mapping[str, Any], failed: dict[str, str]) -> AgreeResult | str:
    """The comparison of the models that have scored the texts, or why there is none."""
    names = list(scored)
    if names:
        matrix = read_runs([config.out / name for name in names], config.by)
        if not len(matrix.scores):
            return "no comparison: the sources have no text"
        bad = unusable(matrix.scores, names)
        failed |= {name: f"{config.by} {reason}" for name, reason in bad.items()}
        names = [name for name in names if name not in bad]
    if len(names) < 2:
        return f"no comparison: it needs two models, and {', '.join(names) or 'none'} could be used"
    chosen = matrix.select(names)
    try:
        check_scores(chosen.scores, names)
    except UsageError as error:  # such as too few texts: the scores are what there is
        return f"no comparison: {error}"
    return write_agreement(chosen, config.out, config)
