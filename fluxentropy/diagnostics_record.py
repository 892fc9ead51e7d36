"""`diagnostics.json`: the results of a diagnosis as plain numbers, lists and names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fluxentropy.diagnostics import Diagnostics, Metric, Model, regimes
from fluxentropy.effects import POWER, SIGNIFICANT
from fluxentropy.jsonvalues import plain
from fluxentropy.logit import Z95
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
            "tests": [
                {
                    "kind": test.kind,
                    "subject": test.subject,
                    "beside": test.beside,
                    "p": test.p,
                    "p_holm": test.p_holm,
                    "survives": test.p_holm < SIGNIFICANT,
                }
                for test in result.tests
            ],
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
        "status": fit.status,
        "message": fit.message or None,
        "params": _by_term(fit.terms, fit.params),
        "bse": _by_term(fit.terms, fit.bse),
        "pvalues": _by_term(fit.terms, fit.pvalues),
        "conf_int": _by_term(fit.terms, _intervals(fit.params, fit.bse)),
        "robust": {
            "cov_type": "HC0",
            "bse": _by_term(fit.terms, fit.bse_robust),
            "pvalues": _by_term(fit.terms, fit.pvalues_robust),
            "conf_int": _by_term(fit.terms, _intervals(fit.params, fit.bse_robust)),
        },
        "llf": fit.llf,
        "llnull": fit.llnull,
        "llr": fit.llr,
        "llr_pvalue": fit.llr_pvalue if fit.ok else None,
        "llr_pvalue_holm": _holm(result, "model", key),
        "pseudo_r2": fit.pseudo_r2,
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
        "sample_size": {
            name: {
                "target_power": POWER,
                "rows_needed": size.rows_needed,
                "rows_needed_conf_int": size.rows_needed_at_limits,
                "power": size.power,
                "detectable_odds_ratio": size.detectable_odds_ratio,
            }
            for name, size in model.sample_size.items()
        },
        "calibration": _calibration(model),
    }
    if len(fit.names) > 1:
        record["vif"] = model.inflation
        record["likelihood_ratio_against"] = {
            name: {
                "statistic": test.statistic,
                "dof": test.dof,
                "p": test.p,
                "p_holm": _holm(result, "added", key, name),
            }
            for name, test in model.against.items()
        }
    return record


def _by_term(terms: Sequence[str], values: np.ndarray) -> dict[str, Any]:
    return dict(zip(terms, values, strict=True))


def _intervals(params: np.ndarray, errors: np.ndarray) -> np.ndarray:
    return np.stack([params - Z95 * errors, params + Z95 * errors], axis=1)


def _holm(result: Diagnostics, kind: str, subject: str, beside: str | None = None) -> float | None:
    found = result.test(kind, subject, beside)
    return found.p_holm if found else None


def _calibration(model: Model) -> dict[str, Any] | None:
    if model.calibration is None:
        return None
    return {
        "brier": model.calibration.brier,
        "brier_base_rate": model.calibration.brier_base_rate,
        "expected_error": model.calibration.expected_error,
        "bins": [_share(share) for share in model.calibration.bins],
    }


def _share(share: Share) -> dict[str, Any]:
    return {"predicted": share.at, "observed": share.rate, "conf_int": [share.low, share.high], "n": share.n}


def _anova(metric: Metric, name: str, result: Diagnostics) -> dict[str, Any] | None:
    found = metric.anova
    if found is None:
        return None
    return {"F": found.F, "p": found.p, "p_holm": _holm(result, "anova", name), "eta_squared": found.eta_squared}


def _chi2(metric: Metric, name: str, result: Diagnostics) -> dict[str, Any] | None:
    found = metric.quartiles
    if found is None:
        return None
    return {
        "statistic": found.statistic,
        "dof": found.dof,
        "p": found.p,
        "p_holm": _holm(result, "chi2", name),
        "cramers_v": found.cramers_v,
        "edges": found.edges,
        "false": found.table[0],
        "true": found.table[1],
        "least_expected": found.least_expected,
    }


def _correlation(result: Diagnostics) -> dict[str, Any]:
    biserial = {
        name: {"r": found.r, "p": found.p, "conf_int": [found.low, found.high]}
        if (found := metric.point_biserial)
        else None
        for name, metric in result.metrics.items()
    }
    matrices = {"pearson": result.pearson, "spearman": result.spearman}
    return {
        "variables": result.variables,
        **matrices,
        "point_biserial": biserial,
        "regimes": regimes(list(result.metrics)),
    }
