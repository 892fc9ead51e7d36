"""`fluxentropy agree`: how far models agree on the order of texts, in numbers, in plots, and as one consensus order."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fluxentropy.agreement import LEVEL, Agreement, check_scores, measure_agreement
from fluxentropy.config import AgreeConfig, to_yaml
from fluxentropy.consensus import write_consensus
from fluxentropy.errors import SourceError, UsageError
from fluxentropy.jsonvalues import plain
from fluxentropy.options import AgreementOptions
from fluxentropy.outcome import Outcome
from fluxentropy.progress import Progress
from fluxentropy.runscores import CONSENSUS, read_runs, run_folders
from fluxentropy.scorematrix import ScoreMatrix
from fluxentropy.store import RunDirectory, write_json
from fluxentropy.versions import versions
from fluxentropy.widetable import read_wide_table
from fluxentropy.yamlfile import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterator

UNITS = {"entropy": "nats", "varentropy": "nats²", "sqrt_varentropy": "nats", "surprisal": "nats"}
BY = AgreementOptions.by
RECORDED = (
    *("models", "n_texts", "n_complete", "n_scored", "pair_counts", "spearman", "mean_spearman", "pearson"),
    *("kendall_w", "kendall_chi2", "kendall_p", "kendall_log10_p", "euclidean", "euclidean_z", "pca"),
    "rank_sd_by_quintile",
)
SLOW = 20_000_000  # scores times replicates: above it the bootstrap takes seconds, and shows its progress

log = logging.getLogger(__name__)


def agree(config: AgreeConfig) -> Outcome:
    """Compare models from runs or from a table, and write the result into `config.out`."""
    matrix = read_scores(config.inputs, config.by)
    if config.models:
        matrix = matrix.select(config.models)
    if not len(matrix.scores):
        raise SourceError(f"{', '.join(config.inputs)}: there is no text in it, so there is nothing to compare")
    check_scores(matrix.scores, matrix.models)
    with RunDirectory(config.out, overwrite=config.overwrite, folder=CONSENSUS) as run:
        run.begin(_identity(matrix, config), to_yaml(config))
        outcome = write_agreement(matrix, config.out, config)
        run.finish({"models": list(matrix.models), "inputs": matrix.inputs, "versions": versions()})
    return outcome


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


def write_agreement(matrix: ScoreMatrix, out: Path, options: AgreementOptions) -> Outcome:
    """Measure how far the models agree; write `agreement.json`, the plots and the consensus order into `out`."""
    from fluxentropy.agreement_figures import draw_agreement
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
    data = to_record(result) | {
        "labels": dict(zip(matrix.models, labels, strict=True)),
        "measure": matrix.measure,
        "baseline": matrix.models[baseline],
        "absent": matrix.absent,
        "left_out": matrix.left_out,
        "consensus": {"scores": f"{CONSENSUS}/scores", "pc1_share": share},
    }
    write_json(out / "agreement.json", data)
    figures = draw_agreement(
        matrix.scores, labels, result, baseline=baseline, unit=_measure_in_words(matrix.measure), out=out
    )
    names = [path.name for path in figures]
    lines = [*summary(result, labels, matrix.measure), *_left_out(matrix), "", f"numbers    {out / 'agreement.json'}"]
    lines += [f"plots      {out}/: {', '.join(name for name in names if name.endswith('.png'))} (and .svg)"]
    lines += [f"consensus  {out / CONSENSUS}, for `fluxentropy sort {out / CONSENSUS} --by mean_rank`"]
    return Outcome(lines=lines, data={"out": str(out), "figures": names, **data})


def _left_out(matrix: ScoreMatrix) -> list[str]:
    """One line about the columns of numbers that were not taken for models."""
    told = ", ".join(f"{name!r} ({why})" for name, why in matrix.left_out.items())
    return [f"no models, left out: {told}"] if told else []


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
