"""Logistic regression of a yes-or-no target on one metric or several, by statsmodels; what cannot be fitted says why.

fit = fit_logit(y, {"entropy": x})        # y (n,) bool, x (n,)
fit.status, fit.params["entropy"], fit.predict({"entropy": grid})

The information matrix of metrics as they are is ill-conditioned where one is far from zero, tiny, or nearly a multiple
of another, and its inverse then is anything. So the fit is to orthonormal combinations of standardised metrics, and
coefficients and covariances are carried back:  [1, x] beta = [1, z] b = [1, q] c,  z = (x - centre) / scale = q R.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from scipy import stats
from scipy.linalg import solve_triangular
from scipy.optimize import linprog
from scipy.special import expit
from statsmodels.base.model import LikelihoodModelResults
from statsmodels.discrete.discrete_model import Logit, LogitResults

from fluxentropy.evaluation.statistics import is_constant, standardised

Status = Literal["ok", "too_few_rows", "constant", "singular", "separated", "not_converged"]
MAX_ITERATIONS = 100
STEEP = 10.0  # log odds of a row: no such certainty is believed before separation is ruled out
COLLINEAR = 1e-10  # share of a standardised metric's variance that the others must leave unexplained
Z95 = float(stats.norm.ppf(0.975))


@dataclass(frozen=True, kw_only=True)
class LogitFit:
    """A fitted model, or, where `status` is not `ok`, only the reason in `message`.

    `params` and the rows of both covariances have the constant first, then the metrics in order; `cov_robust` is the
    sandwich estimate (HC0), which holds even where the logistic curve is the wrong shape. Those called `standard` are
    of the standardised metrics (x - centres) / scales; predictions are made with them, as differences of large numbers
    have no digits left.
    """

    names: tuple[str, ...]  # of the metrics
    status: Status = "ok"
    message: str = ""
    standard_params: np.ndarray  # (k,)
    standard_cov: np.ndarray  # (k, k)
    standard_cov_robust: np.ndarray  # (k, k)
    llf: float
    llnull: float
    n: int
    iterations: int
    centres: np.ndarray  # (k - 1,) mean of each metric
    scales: np.ndarray  # (k - 1,) standard deviation of each metric
    summary: str  # the text tables of statsmodels

    @property
    def terms(self) -> tuple[str, ...]:
        return ("const", *self.names)

    @property
    def ok(self) -> bool:
        return self.status == "ok"

    @property
    def params(self) -> np.ndarray:  # (k,)
        return self._to_units() @ self.standard_params

    @property
    def cov(self) -> np.ndarray:  # (k, k)
        return _carried(self.standard_cov, self._to_units())

    @property
    def cov_robust(self) -> np.ndarray:  # (k, k)
        return _carried(self.standard_cov_robust, self._to_units())

    def _to_units(self) -> np.ndarray:
        """Of coefficients of standardised metrics those of the metrics as they are. (k, k)"""
        return np.block(
            [
                [np.ones((1, 1)), -(self.centres / self.scales)[None]],
                [np.zeros((len(self.scales), 1)), np.diag(1 / self.scales)],
            ]
        )

    @property
    def bse(self) -> np.ndarray:
        return np.sqrt(np.diag(self.cov))

    @property
    def bse_robust(self) -> np.ndarray:
        return np.sqrt(np.diag(self.cov_robust))

    @property
    def pvalues(self) -> np.ndarray:
        """Of the Wald test that a coefficient is 0, two-sided."""
        return 2 * stats.norm.sf(np.abs(self.params / self.bse))

    @property
    def pvalues_robust(self) -> np.ndarray:
        return 2 * stats.norm.sf(np.abs(self.params / self.bse_robust))

    @property
    def llr(self) -> float:
        """The likelihood-ratio statistic against the constant alone."""
        return 2 * (self.llf - self.llnull)

    @property
    def llr_pvalue(self) -> float:
        return float(stats.chi2.sf(self.llr, len(self.names)))

    @property
    def pseudo_r2(self) -> float:
        """McFadden's: 1 - llf / llnull."""
        return 1 - self.llf / self.llnull

    @property
    def odds_ratios(self) -> np.ndarray:
        """(k - 1, 3): by what one standard deviation more of a metric multiplies the odds, and its 95 % interval."""
        middle, half = self.standard_params[1:], Z95 * np.sqrt(np.diag(self.standard_cov))[1:]
        with np.errstate(over="ignore"):
            return np.exp(np.stack([middle, middle - half, middle + half], axis=1))

    def log_odds(self, metrics: Mapping[str, np.ndarray]) -> np.ndarray:
        """The linear predictor, in the shape of the metrics."""
        return self._design(metrics) @ self.standard_params

    def predict(self, metrics: Mapping[str, np.ndarray]) -> np.ndarray:
        """Probabilities, in the shape of the metrics."""
        return expit(self.log_odds(metrics))

    def band(self, metrics: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """The 95 % limits of the probability at each point, by the delta method on the scale of log odds."""
        design = self._design(metrics)
        middle = design @ self.standard_params
        half = Z95 * np.sqrt(np.einsum("...i,ij,...j->...", design, self.standard_cov, design))
        return expit(middle - half), expit(middle + half)

    def _design(self, metrics: Mapping[str, np.ndarray]) -> np.ndarray:
        columns = [
            (np.asarray(metrics[name], np.float64) - centre) / scale
            for name, centre, scale in zip(self.names, self.centres, self.scales, strict=True)
        ]
        return np.stack([np.ones_like(columns[0]), *columns], axis=-1)


def fit_logit(y: np.ndarray, metrics: Mapping[str, np.ndarray], *, target: str = "y") -> LogitFit:
    """Fit P(y) = 1 / (1 + exp(-(const + sum of coefficient * metric))) by maximum likelihood.

    y (n,) bool with both values, metrics each (n,) finite. Never raises for what the data are like: a metric that is
    constant, metrics that determine each other, classes that the metrics separate, and too few rows come back as a
    status with a message.
    """
    names = tuple(metrics)
    n, k = len(y), len(names) + 1
    if n <= k:
        return _failed(names, "too_few_rows", f"{n} rows cannot settle {k} parameters: give at least {k + 1}", n)
    if flat := [name for name, column in metrics.items() if is_constant(column)]:
        value = f"{metrics[flat[0]][0]:g}{' up to rounding' * bool(np.ptp(metrics[flat[0]]))}"
        return _failed(names, "constant", f"{flat[0]} is {value} in every row, so it predicts nothing", n)
    columns = [standardised(column) for column in metrics.values()]
    z = np.column_stack([column.values for column in columns])
    if np.linalg.eigvalsh(z.T @ z / (n - 1))[0] < COLLINEAR:
        return _failed(names, "singular", f"{' and '.join(names)} determine each other exactly: drop one", n)
    if k == 2 and separates(y, z):
        return _failed(names, "separated", _separated(names), n)
    q, r = np.linalg.qr(z)
    design = np.column_stack([np.ones(n), q * np.sqrt(n - 1)])
    with _quietly():
        fit = Logit(y.astype(np.float64), design).fit(disp=0, maxiter=MAX_ITERATIONS)
        robust = Logit(y.astype(np.float64), design).fit(
            start_params=fit.params, disp=0, maxiter=MAX_ITERATIONS, cov_type="HC0"
        )
    converged = bool(fit.mle_retvals["converged"])
    if not (converged and np.abs(design @ fit.params).max() < STEEP) and separates(y, z):
        return _failed(names, "separated", _separated(names), n)
    if not converged:
        return _failed(names, "not_converged", f"no maximum of the likelihood in {MAX_ITERATIONS} steps", n)
    back = np.eye(k)
    back[1:, 1:] = solve_triangular(r / np.sqrt(n - 1), np.eye(k - 1))
    found = LogitFit(
        names=names,
        standard_params=back @ fit.params,
        standard_cov=_carried(np.asarray(fit.cov_params()), back),
        standard_cov_robust=_carried(np.asarray(robust.cov_params()), back),
        llf=float(fit.llf),
        llnull=float(fit.llnull),
        n=n,
        iterations=int(fit.mle_retvals["iterations"]),
        centres=np.array([column.centre for column in columns]),
        scales=np.array([column.scale for column in columns]),
        summary="",
    )
    return replace(found, summary=_summary(y, metrics, found, fit, target))


def _carried(cov: np.ndarray, by: np.ndarray) -> np.ndarray:
    """The covariance of `by` @ x, where that of x is `cov`."""
    return np.asarray(by @ cov @ by.T)


def _separated(names: tuple[str, ...]) -> str:
    what = names[0] if len(names) == 1 else " and ".join(names) + " together"
    return (
        f"{what} separate{'s' if len(names) == 1 else ''} the two outcomes (perfectly, or up to ties): the best "
        "coefficient is infinite and has no standard error"
    )


def _summary(y: np.ndarray, metrics: Mapping[str, np.ndarray], found: LogitFit, fit: Any, target: str) -> str:
    """The text tables of statsmodels, of the metrics as they are: with plain errors, then with robust ones."""
    model = Logit(y.astype(np.float64), np.column_stack([np.ones(len(y)), *metrics.values()]))
    texts = []
    for cov_type, cov in (("nonrobust", found.cov), ("HC0", found.cov_robust)):
        carried = LikelihoodModelResults(model, found.params, cov)
        carried.mle_retvals, carried.mle_settings = fit.mle_retvals, fit.mle_settings
        with _quietly():
            result = LogitResults(model, carried)
            result.cov_type = cov_type
            result.df_model, result.df_resid = fit.df_model, fit.df_resid  # those of `model` count lost digits
            result._cache |= {"llf": fit.llf, "llnull": fit.llnull}
            texts.append(_text(result, found.names, target))
    return "\n\n".join(texts) + "\n"


def _text(result: Any, names: tuple[str, ...], target: str) -> str:
    """The summary of statsmodels, with the numbers of either outcome where it has the date and the time."""
    summary = result.summary(yname=target, xname=["const", *names])
    positive = int(result.model.endog.sum())
    for row in summary.tables[0]:
        for cell, label, value in (("Date:", "True:", positive), ("Time:", "False:", result.nobs - positive)):
            if row[0].data == cell:
                row[0].data, row[1].data = label, f"{value:.0f}"
    return "\n".join(line.rstrip() for line in str(summary).splitlines())


def _failed(names: tuple[str, ...], status: Status, message: str, n: int) -> LogitFit:
    none = np.full(len(names) + 1, np.nan)
    square = np.full((len(none), len(none)), np.nan)
    return LogitFit(
        names=names,
        status=status,
        message=message,
        standard_params=none,
        standard_cov=square,
        standard_cov_robust=square,
        llf=np.nan,
        llnull=np.nan,
        n=n,
        iterations=0,
        centres=none[1:],
        scales=none[1:],
        summary=f"No fit: {message}.\n",
    )


@contextmanager
def _quietly() -> Iterator[None]:
    """What statsmodels and numpy warn about is checked instead."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield


def separates(y: np.ndarray, x: np.ndarray) -> bool:
    """Whether a plane in x (n, k) has all of one class on one side and all of the other on the other, or on it.

    The likelihood then has no maximum (Albert and Anderson 1984). For one metric a comparison of extremes tells, else
    the linear programme of Konis (2007): is there b with s (1, x) b >= 0 in every row, s = 1 or -1, and > 0 in some?

    >>> y = np.array([False, False, True, True])
    >>> separates(y, np.array([[1.0], [2.0], [2.0], [3.0]])), separates(y, np.array([[1.0], [3.0], [2.0], [4.0]]))
    (True, False)
    """
    low, high = x[~y], x[y]
    if x.shape[1] == 1:
        return bool(np.max(low) <= np.min(high) or np.max(high) <= np.min(low))
    rows = np.column_stack([np.ones(len(y)), x]) * np.where(y, 1.0, -1.0)[:, None]
    best = linprog(-rows.sum(axis=0), A_ub=-rows, b_ub=np.zeros(len(rows)), bounds=(-1, 1), method="highs")
    return bool(best.status == 0 and -best.fun > 1e-7 * len(rows))


# --- between models ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Statistic:
    """A test statistic, its degrees of freedom and its p-value."""

    statistic: float
    dof: int
    p: float


def likelihood_ratio(small: LogitFit, large: LogitFit) -> Statistic:
    """Whether the metrics that `large` has and `small` has not improve it: 2 (llf - llf), chi-square.

    Both are fitted to the same rows, and the metrics of `small` are among those of `large`.
    """
    assert set(small.names) < set(large.names) and small.n == large.n
    statistic = max(2 * (large.llf - small.llf), 0.0)
    dof = len(large.names) - len(small.names)
    return Statistic(statistic=statistic, dof=dof, p=float(stats.chi2.sf(statistic, dof)))


def variance_inflation(metrics: Mapping[str, np.ndarray]) -> dict[str, float]:
    """By what the correlation with the other metrics multiplies the variance of each coefficient: 1 / (1 - R²).

    Infinite where the others determine a metric.

    >>> x = np.array([1.0, -1.0, 1.0, -1.0])
    >>> variance_inflation({"a": x, "b": np.array([1.0, 1.0, -1.0, -1.0])})
    {'a': 1.0, 'b': 1.0}
    """
    found = {}
    standard = {
        name: np.zeros(len(column)) if is_constant(column) else standardised(column).values
        for name, column in metrics.items()
    }
    for name, z in standard.items():
        others = np.column_stack([values for key, values in standard.items() if key != name])
        residual = z - others @ np.linalg.lstsq(others, z, rcond=None)[0]
        total, left = float(z @ z), float(residual @ residual)
        found[name] = total / left if left > COLLINEAR * total else np.inf
    return found
