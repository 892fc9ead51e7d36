"""`fluxentropy diagnose`: does a metric predict a yes-or-no outcome? Numbers, summaries and plots in one folder."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from fluxentropy.config.results import Result, command, html_table
from fluxentropy.config.yaml import to_yaml
from fluxentropy.errors import RunError
from fluxentropy.evaluation import DiagnoseConfig
from fluxentropy.evaluation.diagnostics import (
    Diagnostics,
    Hypothesis,
    Metric,
    Model,
    SampleSize,
    choose_pairs,
    diagnose_table,
    regimes,
)
from fluxentropy.evaluation.logistic import Z95, LogitFit
from fluxentropy.evaluation.statistics import FEW, POWER, SIGNIFICANT, Share
from fluxentropy.evaluation.table import MetricTable, balanced, counted, read_metric_table
from fluxentropy.runs.directory import RunDirectory, RunRecord
from fluxentropy.runs.files import plain, sha256_file, versions, write_json, write_text
from fluxentropy.runs.progress import Progress

# --- the record -------------------------------------------------------------------------------------------------------


def to_record(result: Diagnostics) -> dict[str, Any]:
    """Everything in `result` but the metrics' values; what is not defined, or infinite, is null."""
    table = result.table
    record = {
        "n": result.n,
        "n_rows": table.n_rows,
        "n_true": int(table.target.sum()),
        "rate": result.rate,
        "target": table.target_name,
        "balanced": result.balanced,
        "seed": result.seed,
        "excluded": table.excluded,
        "skipped": table.skipped,
        "derived": table.derived,
        "metrics": {name: _describe(metric.values, table.target) for name, metric in result.metrics.items()},
        "models": {key: _model(model, key, result) for key, model in result.models.items()},
        "anova": {name: _anova(metric, name, result) for name, metric in result.metrics.items()},
        "chi2": {name: _chi2(metric, name, result) for name, metric in result.metrics.items()},
        "correlation": _correlation(result),
        "holm": {
            "alpha": SIGNIFICANT,
            "n_tests": len(result.tests),
            "tests": [{**vars(test), "survives": test.p_holm < SIGNIFICANT} for test in result.tests],
        },
    }
    values: dict[str, Any] = plain(record)
    return values


def _describe(x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    return {
        "mean": x.mean(),
        "median": np.median(x),
        "std": x.std(ddof=1),
        "min": x.min(),
        "max": x.max(),
        "mean_true": x[y].mean(),
        "mean_false": x[~y].mean(),
    }


def _model(model: Model, key: str, result: Diagnostics) -> dict[str, Any]:
    fit = model.fit
    record: dict[str, Any] = {
        **{name: getattr(fit, name) for name in ("status", "llf", "llnull", "llr", "pseudo_r2")},
        "message": fit.message or None,
        "params": dict(zip(fit.terms, fit.params, strict=True)),
        **_errors(fit, fit.bse, fit.pvalues),
        "robust": {"cov_type": "HC0", **_errors(fit, fit.bse_robust, fit.pvalues_robust)},
        "llr_pvalue": fit.llr_pvalue if fit.ok else None,
        "llr_pvalue_holm": _holm(result, "model", key),
        "roc_auc": model.auc,
        "roc_auc_optimism": model.auc_optimism,
        "roc_auc_conf_int": model.auc_interval,
        "roc_auc_cv": None if model.cross is None else model.cross.auc.mean(),
        "roc_auc_cv_folds": None if model.cross is None else model.cross.auc,
        "bootstrap_replicates": result.replicates,
        "odds_ratio_per_sd": {
            name: {"estimate": ratio[0], "conf_int": ratio[1:]}
            for name, ratio in zip(fit.names, fit.odds_ratios, strict=True)
        },
        "sample_size": {name: _sample_size(size) for name, size in model.sample_size.items()},
        "calibration": None
        if model.calibration is None
        else {**vars(model.calibration), "bins": list(map(_share, model.calibration.bins))},
    }
    if len(fit.names) > 1:
        record["vif"] = model.inflation
        record["likelihood_ratio_against"] = {
            name: {**vars(test), "p_holm": _holm(result, "added", key, name)} for name, test in model.against.items()
        }
    return record


def _errors(fit: LogitFit, bse: np.ndarray, pvalues: np.ndarray) -> dict[str, dict[str, Any]]:
    """Standard errors, p-values and 95 % intervals, by term."""
    limits = np.stack([fit.params - Z95 * bse, fit.params + Z95 * bse], axis=1)
    columns = {"bse": bse, "pvalues": pvalues, "conf_int": limits}
    return {name: dict(zip(fit.terms, values, strict=True)) for name, values in columns.items()}


def _sample_size(size: SampleSize) -> dict[str, Any]:
    values = dict(vars(size))
    return {"target_power": POWER, "rows_needed_conf_int": values.pop("rows_needed_at_limits"), **values}


def _share(share: Share) -> dict[str, Any]:
    return {"predicted": share.at, "observed": share.rate, "conf_int": [share.low, share.high], "n": share.n}


def _holm(result: Diagnostics, kind: str, subject: str, beside: str | None = None) -> float | None:
    found = result.test(kind, subject, beside)
    return found.p_holm if found else None


def _anova(metric: Metric, name: str, result: Diagnostics) -> dict[str, Any] | None:
    return {**vars(metric.anova), "p_holm": _holm(result, "anova", name)} if metric.anova else None


def _chi2(metric: Metric, name: str, result: Diagnostics) -> dict[str, Any] | None:
    if metric.quartiles is None:
        return None
    values = dict(vars(metric.quartiles))
    false, true = values.pop("table")
    return {**values, "p_holm": _holm(result, "chi2", name), "false": false, "true": true}


def _correlation(result: Diagnostics) -> dict[str, Any]:
    biserial = {
        name: {"r": found.r, "p": found.p, "conf_int": [found.low, found.high]}
        if (found := metric.point_biserial)
        else None
        for name, metric in result.metrics.items()
    }
    return {
        "variables": result.variables,
        "pearson": result.pearson,
        "spearman": result.spearman,
        "point_biserial": biserial,
        "regimes": regimes(list(result.metrics)),
    }


# --- in words ---------------------------------------------------------------------------------------------------------


# Log odds per standard deviation are about Cohen's d, the distance of the class means in standard deviations.
SIZES = ((0.1, "negligible"), (0.2, "very small"), (0.5, "small"), (0.8, "medium"), (math.inf, "large"))

NOTES = """\
- An odds ratio per SD says by what one standard deviation more of the metric multiplies the odds of a true outcome; 1
  is no effect. Sizes in words follow Cohen, as the logarithm of this odds ratio is about his d: negligible below 0.1,
  very small below 0.2, small below 0.5, medium below 0.8.
- AUC is the chance that a random true row scores above a random false one; 0.5 is guessing. It is measured on the rows
  that the model was fitted to. A single metric has nothing to gain by that; of a pair the expected gain is taken off,
  value and interval (`roc_auc_optimism`). The cross-validated AUC may fall below 0.5.
- Holm's correction covers every test in the last table. Wald's p of a coefficient repeats the question of a
  likelihood-ratio test, and the point-biserial correlation that of the ANOVA, so they do not count twice.
- Power is that of a true effect as large as the estimate. It says nothing beyond p about this table; it is there to
  plan the next one. An estimate that was picked because it is significant is too large on average.
- All of this is association. A metric may predict the outcome because both follow a third, such as length or topic.
"""


def headline(result: Diagnostics) -> str:
    """The answer in some sentences."""
    y, survivors = _code(result.table.target_name), _survivors(result)
    fitted = {name: model for name in result.metrics if (model := result.models[name]).fit.ok}
    if separated := [name for name in result.metrics if result.models[name].fit.status == "separated"]:
        return (
            f"**Suspiciously well.** {_names(separated)} separate{'' if len(separated) > 1 else 's'} the outcomes of "
            f"{y} completely: check that it is not computed from the outcome, and that there are enough rows."
        )
    if not fitted:
        reason = result.models[next(iter(result.metrics))].fit.message
        return f"**It cannot be said.** No metric could be fitted: {reason}."
    best = min(survivors or fitted, key=lambda name: fitted[name].fit.llr_pvalue)
    p, adjusted = fitted[best].fit.llr_pvalue, _holm_words(result, "model", best)
    tests = f"all {len(result.tests)} tests"
    curved = [test.subject for test in result.tests if test.kind == "chi2" and test.p_holm < SIGNIFICANT]
    if survivors:
        count = _count(len(survivors), len(fitted))
        answer = (
            f"**Yes, with a {_size(fitted[best])} effect.** {count} associated with {y} after correction for {tests}."
        )
    elif curved:
        answer = (
            f"**Not as a trend.** No metric has a steady effect on {y} that survives correction for {tests}, but the "
            f"quartiles of {_names(curved)} differ: see the figure of fitted curves."
        )
    elif p < SIGNIFICANT:
        answer = (
            f"**Not after correction.** The smallest p is {_p(p)} ({_code(best)}); corrected for {tests} it is "
            f"{_p(adjusted)}."
        )
    else:
        seen = fitted[best].sample_size[best].detectable_odds_ratio
        answer = (
            f"**No evidence.** The smallest p is {_p(p)} ({_code(best)}). With {result.n:,} rows, an odds ratio of "
            f"{seen:.3g} (or 1 / {seen:.3g}) per standard deviation would have been seen with 80% power; a smaller "
            "effect may be there."
        )
    return f"{answer} {_strongest(best, fitted[best], len(survivors))}"


def to_markdown(result: Diagnostics, figures: Sequence[str] = ()) -> str:
    """All of `summary.md`, with the pictures `figures`: names of files beside it."""
    table = result.table
    positive = int(table.target.sum())
    rows = [f"- {result.n:,} rows, of which {positive:,} ({result.rate:.1%}) are true."]
    if result.balanced:
        rows[0] += f" The larger class was cut at random to the size of the smaller (seed {result.seed})."
    if table.excluded:
        lost = "; ".join(f"{_code(name)}: {counted(faults)}" for name, faults in table.excluded.items())
        rows.append(f"- Rows left out because a value cannot be used ({lost}); {table.n_rows:,} rows were read.")
    rows += [f"- {_code(name)} was not used: {why}." for name, why in table.skipped.items()]
    rows += [f"- {_code(name)} is the square root of {_code(base)}." for name, base in table.derived.items()]
    singles = {key: model for key, model in result.models.items() if len(model.fit.names) == 1}
    pairs = {key: model for key, model in result.models.items() if len(model.fit.names) > 1}
    parts = [
        f"# What predicts {_code(table.target_name)}?",
        headline(result),
        "\n".join(rows),
        "## Each metric alone",
        _table_of_models(result, singles),
        "\n".join(f"- {_one_metric(result, name)}" for name in singles),
    ]
    if pairs:
        words = "\n".join(f"- {_one_pair(result, key)}" for key in pairs)
        parts += ["## Two metrics together", _table_of_models(result, pairs), words]
    parts += ["## Every test", _table_of_tests(result), "## How to read this", NOTES]
    if figures:
        parts += ["## Figures", "\n\n".join(f"![{name.rpartition('.')[0]}]({quote(name)})" for name in figures)]
    return "\n\n".join(part for part in parts if part).rstrip() + "\n"


# --- sentences --------------------------------------------------------------------------------------------------------


def _survivors(result: Diagnostics) -> list[str]:
    return [
        test.subject
        for test in result.tests
        if test.kind == "model" and test.subject in result.metrics and test.p_holm < SIGNIFICANT
    ]


def _count(survivors: int, metrics: int) -> str:
    if metrics == 1:
        return "The one metric is"
    return f"{survivors} of {metrics} metrics {'is' if survivors == 1 else 'are'}"


def _strongest(name: str, model: Model, among: int) -> str:
    ratio, low, high = model.fit.odds_ratios[0]
    clearest = f"The clearest is {_code(name)}: one" if among > 1 else f"For {_code(name)}, one"
    return (
        f"{clearest} standard deviation more multiplies the odds by {ratio:.3f} (95% interval {low:.3f} to {high:.3f})."
        f" {_auc(model)}."
    )


def _auc(model: Model) -> str:
    text = f"The AUC is {_auc_on_new_rows(model)}"
    return text + (f", cross-validated {model.cross.auc.mean():.3f}" if model.cross else "") + "; 0.5 is chance"


def _auc_on_new_rows(model: Model) -> str:
    """The AUC less what the fit to the same rows adds to it, with its interval."""
    assert model.auc is not None
    value = f"{model.auc - (model.auc_optimism or 0):.3f}"
    return value + (" ({:.3f} to {:.3f})".format(*model.auc_interval) if model.auc_interval else "")


def _one_metric(result: Diagnostics, name: str) -> str:
    model, metric = result.models[name], result.metrics[name]
    values = f"**{name}** (mean {metric.values.mean():.3g}, SD {metric.values.std(ddof=1):.3g})"
    if not model.fit.ok:
        return f"{values}: no fit, because {model.fit.message}."
    slope = "more" if model.fit.params[1] > 0 else "less"
    p, adjusted = model.fit.llr_pvalue, _holm_words(result, "model", name)
    words = (
        f"{values}: where it is higher, a true outcome is {slope} likely, a {_size(model)} effect. p = {_p(p)}, "
        f"{_p(adjusted)} after correction: {_verdict(p, adjusted)}."
    )
    return "\n  - ".join([words, *_quarters(result, name), _rows_in_words(model.sample_size[name], result.n)])


def _verdict(p: float, adjusted: float) -> str:
    if adjusted < SIGNIFICANT:
        return "it survives"
    return "it does not survive" if p < SIGNIFICANT else "no evidence of an effect"


def _quarters(result: Diagnostics, name: str) -> list[str]:
    found = result.metrics[name].quartiles
    if found is None:
        return []
    rates = found.table[1] / found.table.sum(axis=0)
    bins = "quarters" if len(rates) == 4 else f"{len(rates)} bins (ties leave no more)"
    few = " Some cells are nearly empty, so this test is rough." if found.least_expected < FEW else ""
    return [
        f"Share of true rows in its {bins}, from the lowest: {', '.join(f'{rate:.1%}' for rate in rates)} (chi-square "
        f"p = {_p(found.p)}, {_p(_holm_words(result, 'chi2', name))} after correction).{few}"
    ]


def _rows_in_words(size: SampleSize, n: int) -> str:
    few, many = size.rows_needed_at_limits
    most = f"{_round(many)}" if math.isfinite(many) else "without end, since no effect at all is possible too"
    return (
        f"To see an effect of this size with 80% power takes about {_round(size.rows_needed)} rows "
        f"({_round(few)} to {most} over the confidence interval); {n:,} rows have {size.power:.0%} power for it, and "
        f"80% for an odds ratio of {size.detectable_odds_ratio:.3g} per SD."
    )


def _one_pair(result: Diagnostics, key: str) -> str:
    model = result.models[key]
    first, second = model.fit.names
    r = result.pearson[result.variables.index(first), result.variables.index(second)]
    if not model.fit.ok:
        return f"**{key}**: no fit, because {model.fit.message}."
    vif = model.inflation[first]
    words = [
        f"**{key}**: the two correlate {r:.2f}, which makes the variance of each coefficient {vif:.3g} times (its "
        f"standard error {math.sqrt(vif):.2f} times) what it would be without."
    ]
    for had, added in ((first, second), (second, first)):
        if had in model.against:
            p, adjusted = model.against[had].p, _holm_words(result, "added", key, had)
            survives = "it adds something" if adjusted < SIGNIFICANT else "no evidence that it adds anything"
            words.append(
                f"{_code(added)} beside {_code(had)}: p = {_p(p)}, {_p(adjusted)} after correction: {survives}."
            )
    words += [sentence for name in (first, second) if (sentence := _sign(result, model, name))]
    return " ".join(words)


def _sign(result: Diagnostics, pair: Model, name: str) -> str:
    """What becomes of a coefficient's sign beside the other metric."""
    alone = result.models[name].fit
    place = pair.fit.names.index(name) + 1
    if not alone.ok or alone.params[1] * pair.fit.params[place] > 0:
        return ""
    _, low, high = pair.fit.odds_ratios[place - 1]
    settled = "its interval there excludes 1" if low > 1 or high < 1 else "its interval there includes 1"
    signs = ["+" if value > 0 else "−" for value in (alone.params[1], pair.fit.params[place])]
    return f"The sign of {_code(name)} is {signs[0]} alone and {signs[1]} in the pair; {settled}."


# --- tables -----------------------------------------------------------------------------------------------------------


def _table_of_models(result: Diagnostics, models: dict[str, Model]) -> str:
    rows = []
    for key, model in models.items():
        if not model.fit.ok:
            rows.append([key, "no fit: " + model.fit.status.replace("_", " "), *["–"] * 6])
            continue
        ratios = [f"{ratio:.3f} ({low:.3f} to {high:.3f})" for ratio, low, high in model.fit.odds_ratios]
        auc = _auc_on_new_rows(model)
        crossed = f"{model.cross.auc.mean():.3f}" if model.cross else "–"
        ps = [_p(model.fit.llr_pvalue), _p(_holm_words(result, "model", key))]
        rows.append([key, " ; ".join(ratios), auc, crossed, f"{model.fit.pseudo_r2:.2g}", *ps])
    head = ["model", "odds ratio per SD (95%)", "AUC (95%)", "AUC, cross-validated", "pseudo-R²", "p", "p, Holm"]
    return _markdown_table(head, rows)


def _table_of_tests(result: Diagnostics) -> str:
    rows = [
        [in_words(test), _p(test.p), _p(test.p_holm), "yes" if test.p_holm < SIGNIFICANT else "no"]
        for test in result.tests
    ]
    return _markdown_table(["test", "p", "p, Holm", "survives"], rows)


def in_words(test: Hypothesis) -> str:
    """What a test asks.

    >>> in_words(Hypothesis(kind="added", subject="a+b", beside="a", p=0.5))
    'a+b against a alone, likelihood ratio'
    """
    if test.kind == "added":
        return f"{test.subject} against {test.beside} alone, likelihood ratio"
    kinds = {"model": "likelihood ratio", "anova": "ANOVA of the two outcomes", "chi2": "chi-square of quartiles"}
    return f"{test.subject}, {kinds[test.kind]}"


def _markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = [head, ["---"] * len(head), *([cell.replace("|", r"\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(row[: len(head)])} |" for row in cells)


# --- numbers ----------------------------------------------------------------------------------------------------------


def _p(p: float) -> str:
    """A p-value in three digits.

    >>> _p(0.01468), _p(3.2e-9), _p(1.0), _p(0.0)
    ('0.0147', '3.2e-09', '1.00', '< 1e-300')
    """
    if p < 1e-300:
        return "< 1e-300"
    return f"{p:.1e}" if p < 1e-4 else f"{p:.2f}" if p > 0.1 else f"{p:#.3g}"


def _round(rows: float) -> str:
    """A number of rows in three digits.

    >>> _round(13184.05), _round(87.2), _round(float("inf"))
    ('13,200', '88', 'any number of')
    """
    if not math.isfinite(rows):
        return "any number of"
    digits = max(len(str(math.ceil(rows))) - 3, 0)
    return f"{round(math.ceil(rows), -digits):,}"


def _size(model: Model) -> str:
    effect = abs(model.fit.standard_params[1])
    return next(name for limit, name in SIZES if effect < limit)


def _holm_words(result: Diagnostics, kind: str, subject: str, beside: str | None = None) -> float:
    found = result.test(kind, subject, beside)
    assert found is not None
    return found.p_holm


def _code(name: str) -> str:
    return f"`{name}`"


def _names(names: Sequence[str]) -> str:
    return ", ".join(map(_code, names))


# --- `fluxentropy diagnose` -------------------------------------------------------------------------------------------


COMMAND = "diagnose"

PRODUCT = re.compile(
    r"logit_.*\.txt|(surface_.*|distributions|effects|fitted_curves|contingency|correlation_matrices|reliability)\.(png|svg)"
)

SLOW = 3e8  # rows times models times replicates, of some seconds
LIBRARIES = ("numpy", "scipy", "statsmodels", "scikit-learn", "matplotlib", "pyarrow")


@dataclass(frozen=True, kw_only=True)
class DiagnoseResult(Result):
    """What the metrics say of the target. In a notebook: all tests."""

    out: Path
    files: tuple[str, ...]  # names of files in `out`
    diagnostics: Diagnostics = field(repr=False)

    def lines(self) -> list[str]:
        texts, plots = ([n for n in self.files if n.endswith(suffix)] for suffix in (".txt", ".png"))
        return [
            headline(self.diagnostics).replace("**", "").replace("`", ""),
            *_left_out(self.diagnostics.table),
            "",
            f"summary    {self.out / 'summary.md'}",
            f"numbers    {self.out / 'diagnostics.json'}",
            f"models     {self.out}/: {', '.join(texts)}",
            f"plots      {self.out}/: {', '.join(plots)} (and .svg)",
        ]

    def to_dict(self) -> dict[str, Any]:
        return {"out": str(self.out), "files": list(self.files), **to_record(self.diagnostics)}

    def _repr_html_(self) -> str:
        return html_table([vars(test) for test in self.diagnostics.tests])


@command
def diagnose(config: DiagnoseConfig) -> DiagnoseResult:
    """Fit and test every metric of the table, and write what was found into `config.out`.

    Errors: those of `read_metric_table` and `choose_pairs`; `RunError` where `config.out` holds something else.
    """
    table = read_metric_table(config.table, config.target, config.metrics or ())
    pairs = choose_pairs(list(table.metrics), config.pairs)
    if config.balance:
        table = balanced(table, config.seed)
    _check_folder(config.out)
    with RunDirectory(config.out, overwrite=config.overwrite, folder=".parts") as run:
        run.begin(_identity(config, table, pairs), to_yaml(config))
        result = _diagnose(config, table, pairs)
        files = write_diagnosis(result, config.out)
        for file in config.out.iterdir():
            if PRODUCT.fullmatch(file.name) and file not in files:  # of the diagnosis that --overwrite replaces
                file.unlink()
        hashes = {file.name: sha256_file(file) for file in files}
        counts = {"rows": table.n_rows, "used": table.n, "excluded": table.excluded}
        run.finish({"files": hashes, "counts": counts, "versions": versions(LIBRARIES)})
    return DiagnoseResult(out=config.out, files=tuple(file.name for file in files), diagnostics=result)


def _left_out(table: MetricTable) -> list[str]:
    """What the table has that was not used, in a line a column."""
    lost = [f"{name} of {table.n_rows:,} rows: {counted(faults)}" for name, faults in table.excluded.items()]
    return [f"left out, {text}" for text in lost] + [f"not used, {name}: {why}" for name, why in table.skipped.items()]


def _diagnose(config: DiagnoseConfig, table: MetricTable, pairs: list[tuple[str, str]]) -> Diagnostics:
    """The results; a table that takes a while shows progress."""
    models = len(table.metrics) + len(pairs)
    slow = models * table.n * (config.bootstrap + 100) > SLOW
    with Progress(models, unit="models") if slow else nullcontext() as progress:
        return diagnose_table(
            table,
            pairs,
            balanced=config.balance,
            seed=config.seed,
            replicates=config.bootstrap,
            folds=config.folds,
            on_model=lambda: progress.update(1) if progress else None,
        )


def write_diagnosis(result: Diagnostics, out: Path) -> list[Path]:
    """Write the numbers, the summaries and the plots into the folder `out`, and return the files."""
    from fluxentropy.evaluation.figures import draw_diagnostics, file_name

    texts = {f"logit_{file_name(key)}.txt": model.fit.summary for key, model in result.models.items()}
    for name, text in texts.items():
        write_text(out / name, text)
    figures = draw_diagnostics(result, out)
    write_json(out / "diagnostics.json", to_record(result))
    write_text(out / "summary.md", to_markdown(result, [file.name for file in figures if file.suffix == ".png"]))
    return [out / "summary.md", out / "diagnostics.json", *(out / name for name in texts), *figures]


def _identity(config: DiagnoseConfig, table: MetricTable, pairs: list[tuple[str, str]]) -> dict[str, Any]:
    """Everything that decides the bytes of the result."""
    return {
        "command": COMMAND,
        "inputs": dict(table.fingerprints),
        "target": table.target_name,
        "metrics": list(table.metrics),
        "pairs": ["+".join(pair) for pair in pairs],
        "balance": config.balance,
        "bootstrap": config.bootstrap,
        "folds": config.folds,
        "seed": config.seed,
    }


def _check_folder(out: Path) -> None:
    """Refuse a run directory of another command, which --overwrite would destroy."""
    record = RunRecord.read(out)
    if record.facts and record.identity.get("command") != COMMAND:
        raise RunError(f"{out} holds a run of another command: choose another --out")
