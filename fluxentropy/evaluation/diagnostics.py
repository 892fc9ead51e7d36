"""Does a metric predict a yes-or-no target? Everything that is fitted and tested, in one object.

    table = read_metric_table("items.parquet", "correct", ["entropy", "varentropy"])
    result = diagnose_table(table, choose_pairs(list(table.metrics)))
    result.models["entropy"].auc, result.models["entropy+varentropy"].against["entropy"].p

Pure: arrays in, numbers out. `to_record` in `evaluation/diagnose.py` makes the JSON of it.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from fluxentropy.config.yaml import did_you_mean
from fluxentropy.errors import UsageError
from fluxentropy.evaluation.logistic import Z95, LogitFit, Statistic, fit_logit, likelihood_ratio, variance_inflation
from fluxentropy.evaluation.statistics import (
    Anova,
    Calibration,
    Contingency,
    Correlation,
    CrossValidated,
    anova,
    auc_interval,
    bootstrap_auc,
    calibrate,
    correlations,
    cross_validate,
    detectable,
    holm,
    optimism,
    point_biserial,
    power_at,
    quartile_test,
    roc_auc,
    rows_needed,
)
from fluxentropy.evaluation.table import MetricTable

ROWS_PER_BIN, MOST_BINS = 30, 10  # of the calibration


@dataclass(frozen=True, kw_only=True)
class SampleSize:
    """What it takes to see one coefficient at p < 0.05, if the true effect is the estimated one."""

    rows_needed: float  # for 80 % power
    rows_needed_at_limits: tuple[float, float]  # at the ends of the 95 % interval; infinite where that holds zero
    power: float  # of the rows there are
    detectable_odds_ratio: float  # per standard deviation, the least that these rows show with 80 % power


@dataclass(frozen=True, kw_only=True)
class Model:
    """A logistic regression and how well it predicts. Where the fit failed, what needs it is None or empty."""

    fit: LogitFit
    inflation: Mapping[str, float]  # for each metric of a pair
    auc: float | None  # on the rows that it was fitted to
    auc_optimism: float | None = None  # what the fit to these rows adds to it; 0 for one metric
    auc_interval: tuple[float, float] | None = None  # 95 %, of the AUC on new rows: bootstrap, less the optimism
    cross: CrossValidated | None = None
    calibration: Calibration | None = None  # of the cross-validated probabilities
    sample_size: Mapping[str, SampleSize] = field(default_factory=dict)  # for each metric
    against: Mapping[str, Statistic] = field(default_factory=dict)  # a pair against each metric alone, by its name


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric by itself. A test is None where the metric is constant."""

    values: np.ndarray  # (n,)
    anova: Anova | None
    quartiles: Contingency | None
    point_biserial: Correlation | None


@dataclass(frozen=True, kw_only=True)
class Hypothesis:
    """What one test asks, with its p-value and Holm's; `subject` is the model or the metric that it is about."""

    kind: str  # model, added, anova or chi2
    subject: str
    beside: str | None  # for `added`: the metric that the model had before
    p: float
    p_holm: float = np.nan


@dataclass(frozen=True, kw_only=True)
class Diagnostics:
    """All results; models are keyed `entropy` and `entropy+varentropy`."""

    table: MetricTable
    balanced: bool
    seed: int
    replicates: int
    folds: int
    metrics: Mapping[str, Metric]
    models: Mapping[str, Model]
    variables: tuple[str, ...]  # of the correlation matrices: the metrics, then the target
    pearson: np.ndarray  # (k, k)
    spearman: np.ndarray  # (k, k)
    tests: tuple[Hypothesis, ...]

    @property
    def n(self) -> int:
        return self.table.n

    @property
    def rate(self) -> float:
        """The share of rows where the target is true."""
        return float(self.table.target.mean())

    def test(self, kind: str, subject: str, beside: str | None = None) -> Hypothesis | None:
        """The row of `tests` that this names; None where the test was not possible."""
        found = [row for row in self.tests if (row.kind, row.subject, row.beside) == (kind, subject, beside)]
        return found[0] if found else None


def diagnose_table(
    table: MetricTable,
    pairs: Sequence[tuple[str, str]] = (),
    *,
    balanced: bool = False,
    seed: int = 0,
    replicates: int = 2000,
    folds: int = 10,
    on_model: Callable[[], object] = lambda: None,
) -> Diagnostics:
    """Fit each metric alone and each of `pairs`, test them in every way there is, and correct for all of it.

    `balanced` only says that the table was balanced. The random numbers of a model come from `seed` and its name, so
    its results do not depend on which others there are. `on_model` is called after each model.
    """
    y = table.target
    metrics = {
        name: Metric(values=x, anova=anova(y, x), quartiles=quartile_test(y, x), point_biserial=point_biserial(y, x))
        for name, x in table.metrics.items()
    }
    models: dict[str, Model] = {}
    for names in [*((name,) for name in metrics), *pairs]:
        models["+".join(names)] = _model(table, names, models, seed=seed, replicates=replicates, folds=folds)
        on_model()
    columns = {**table.metrics, table.target_name: y}
    pearson, spearman = correlations(columns)
    return Diagnostics(
        table=table,
        balanced=balanced,
        seed=seed,
        replicates=replicates,
        folds=folds,
        metrics=metrics,
        models=models,
        variables=tuple(columns),
        pearson=pearson,
        spearman=spearman,
        tests=_corrected(_all_tests(metrics, models)),
    )


def _model(
    table: MetricTable, names: Sequence[str], singles: Mapping[str, Model], *, seed: int, replicates: int, folds: int
) -> Model:
    """Fit and judge the model of the metrics `names`; `singles` are the models of each alone, where this is a pair."""
    y = table.target
    metrics = {name: table.metrics[name] for name in names}
    fit = fit_logit(y, metrics, target=table.target_name)
    inflation = variance_inflation(metrics) if len(names) > 1 else {}
    if not fit.ok:
        auc = roc_auc(y, metrics[names[0]]) if fit.status == "separated" and len(names) == 1 else None
        return Model(fit=fit, inflation=inflation, auc=None if auc is None else max(auc, 1 - auc))
    log_odds = fit.log_odds(metrics)
    auc = roc_auc(y, log_odds)
    rng = np.random.default_rng([seed, zlib.crc32("+".join(names).encode())])
    sd = None
    if replicates > 1:
        sd = float(bootstrap_auc(y, log_odds, rng=rng, replicates=replicates).std(ddof=1))
    cross = cross_validate(y, np.column_stack(list(metrics.values())), folds=folds, seed=seed)
    bins = int(np.clip(len(y) // ROWS_PER_BIN, 2, MOST_BINS))
    alone = {name: singles[name].fit for name in names if len(names) > 1 and singles[name].fit.ok}
    return Model(
        fit=fit,
        auc=auc,
        auc_optimism=None if sd is None else optimism(auc, sd, len(names)),
        auc_interval=None if sd is None else auc_interval(auc, sd, len(names)),
        cross=cross,
        calibration=None if cross is None else calibrate(y, cross.probabilities, bins),
        sample_size=_sample_sizes(fit, float(y.mean()), inflation),
        inflation=inflation,
        against={name: likelihood_ratio(single, fit) for name, single in alone.items()},
    )


def _sample_sizes(fit: LogitFit, rate: float, inflation: Mapping[str, float]) -> dict[str, SampleSize]:
    sizes = {}
    errors = np.sqrt(np.diag(fit.standard_cov))
    for name, coefficient, error in zip(fit.names, fit.standard_params[1:], errors[1:], strict=True):
        effect, half = abs(coefficient), Z95 * error
        factor = inflation.get(name, 1.0)
        sizes[name] = SampleSize(
            rows_needed=rows_needed(effect, rate, factor),
            rows_needed_at_limits=(
                rows_needed(effect + half, rate, factor),
                rows_needed(max(effect - half, 0.0), rate, factor),
            ),
            power=power_at(effect, rate, fit.n, factor),
            detectable_odds_ratio=float(np.exp(detectable(rate, fit.n, factor))),
        )
    return sizes


def regimes(metrics: Sequence[str]) -> dict[str, list[str]]:
    """The metrics by the positions they speak of: those of the last token alone, and all others.

    >>> regimes(["entropy_mean", "entropy_last", "entropy"])
    {'aggregated': ['entropy_mean', 'entropy'], 'last token': ['entropy_last']}
    """
    last = [name for name in metrics if "last" in name.split("_")]
    found = {"aggregated": [name for name in metrics if name not in last], "last token": last}
    return {regime: names for regime, names in found.items() if names}


# --- which pairs ------------------------------------------------------------------------------------------------------


def choose_pairs(metrics: Sequence[str], asked: Sequence[str] | None = None) -> list[tuple[str, str]]:
    """The pairs to fit: those `asked` for as `a+b`, `all` of them, or `none`.

    By default each entropy is paired with the varentropy, and its square root, of the same kind:

    >>> choose_pairs(["entropy_mean", "varentropy_mean", "entropy_last", "sqrt_varentropy_last"])
    [('entropy_mean', 'varentropy_mean'), ('entropy_last', 'sqrt_varentropy_last')]

    Errors: `UsageError` for what is no pair of two of the metrics.
    """
    if asked is None:
        partners = [
            (name, prefix + name)
            for name in metrics
            if re.match(r"entropy(_|$)", name)
            for prefix in ("var", "sqrt_var")
        ]
        return [pair for pair in partners if pair[1] in metrics]
    if list(asked) == ["none"]:
        return []
    if list(asked) == ["all"]:
        return [(first, second) for place, first in enumerate(metrics) for second in metrics[place + 1 :]]
    return list(dict.fromkeys(_pair(text, metrics) for text in asked))


def _pair(text: str, metrics: Sequence[str]) -> tuple[str, str]:
    """`a+b` as two metrics; a name may hold a + itself."""
    pieces = text.split("+")
    splits = [("+".join(pieces[:place]), "+".join(pieces[place:])) for place in range(1, len(pieces))]
    for first, second in splits:
        if first in metrics and second in metrics and first != second:
            return first, second
    if len(splits) != 1 or splits[0][0] == splits[0][1]:
        raise UsageError(f"--pairs {text}: write two different metrics as a+b, or all, or none")
    odd = next(name for name in splits[0] if name not in metrics)
    raise UsageError(f"--pairs {text}: {odd or 'an empty name'} is not among the metrics{did_you_mean(odd, metrics)}")


# --- all tests together -----------------------------------------------------------------------------------------------


def _all_tests(metrics: Mapping[str, Metric], models: Mapping[str, Model]) -> list[Hypothesis]:
    """Every test, once: Wald's p of a coefficient repeats the likelihood-ratio test, point-biserial's the ANOVA."""
    rows = []
    for key, model in models.items():
        if model.fit.ok:
            rows.append(Hypothesis(kind="model", subject=key, beside=None, p=model.fit.llr_pvalue))
        rows += [Hypothesis(kind="added", subject=key, beside=name, p=test.p) for name, test in model.against.items()]
    for name, metric in metrics.items():
        if metric.anova is not None:
            rows.append(Hypothesis(kind="anova", subject=name, beside=None, p=metric.anova.p))
        if metric.quartiles is not None:
            rows.append(Hypothesis(kind="chi2", subject=name, beside=None, p=metric.quartiles.p))
    return rows


def _corrected(rows: Sequence[Hypothesis]) -> tuple[Hypothesis, ...]:
    adjusted = holm([row.p for row in rows])
    return tuple(replace(row, p_holm=float(p)) for row, p in zip(rows, adjusted, strict=True))
