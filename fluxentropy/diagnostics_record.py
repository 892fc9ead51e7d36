"""`diagnostics.json`: the results of a diagnosis as plain numbers, lists and names."""

from __future__ import annotations

from typing import Any

import numpy as np

from fluxentropy.diagnostics import Diagnostics, Metric, Model, SampleSize, regimes
from fluxentropy.effects import POWER, SIGNIFICANT
from fluxentropy.jsonvalues import plain
from fluxentropy.logit import Z95, LogitFit
from fluxentropy.prediction import Share


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
