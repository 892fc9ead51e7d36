"""Effects of a metric on a yes-or-no target beside the regression: group comparison, association, power, correction.

All of them are of the standardised metric: none depends on its unit or its zero, but the digits would.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats
from scipy.special import expit, logit
from statsmodels.stats.proportion import proportion_confint

# --- effects ----------------------------------------------------------------------------------------------------------


SIGNIFICANT = 0.05  # two-sided
POWER = 0.8
FEW = 5.0  # expected rows in a cell, below which the chi-square approximation is poor
ROUNDING = 16 * float(np.finfo(np.float64).eps)  # of the largest value: a spread within it is none


def is_constant(x: np.ndarray) -> bool:
    """Whether all of `x` (n,) are one number, or would be but for its rounding.

    >>> is_constant(np.array([0.3, 0.1 + 0.2])), is_constant(np.array([1e8, 1e8 + 1e-3]))
    (True, False)
    """
    return bool(np.ptp(x) <= ROUNDING * np.abs(x).max())


@dataclass(frozen=True, kw_only=True)
class Standardised:
    """A metric as `values` (n,) = (x - centre) / scale, of mean 0 and standard deviation 1."""

    values: np.ndarray
    centre: float
    scale: float


def standardised(x: np.ndarray) -> Standardised:
    """`x` (n,), which is not constant, in standard deviations from its mean, to full precision.

    A power of two is taken out first, so that no square overflows or vanishes, and the mean twice, so that what is far
    from zero is centred too.

    >>> standardised(np.array([1e-300, 3e-300])).values.round(3).tolist()
    [-0.707, 0.707]
    """
    x = np.asarray(x, np.float64)
    power = int(np.frexp(np.abs(x).max())[1])
    small = np.ldexp(x, -power)
    mean = small.mean()
    away = small - mean
    away -= (left := away.mean())
    sd = np.sqrt(away @ away / (len(x) - 1))
    return Standardised(values=away / sd, centre=float(np.ldexp(mean + left, power)), scale=float(np.ldexp(sd, power)))


@dataclass(frozen=True, kw_only=True)
class Anova:
    """One-way analysis of variance of a metric between the two classes."""

    F: float
    p: float
    eta_squared: float  # share of the metric's variance between the classes


def anova(y: np.ndarray, x: np.ndarray) -> Anova | None:
    """Compare the means of `x` (n,) where `y` (n,) bool is false and true; None where x is constant in both."""
    if len(x) < 3 or (is_constant(x[~y]) and is_constant(x[y])):
        return None
    z = standardised(x).values
    found = stats.f_oneway(z[~y], z[y])
    F = float(found.statistic)
    return Anova(F=F, p=float(found.pvalue), eta_squared=F / (F + len(x) - 2))


@dataclass(frozen=True, kw_only=True)
class Contingency:
    """Rows by quartile of a metric and by class, and the chi-square test that the two are independent."""

    edges: list[float]  # between the bins; a value that is an edge belongs to the lower bin
    table: np.ndarray  # (2, bins): false, true
    statistic: float
    dof: int
    p: float
    cramers_v: float
    least_expected: float  # rows in a cell, under independence


def quartile_test(y: np.ndarray, x: np.ndarray) -> Contingency | None:
    """Cut `x` (n,) at its quartiles and test whether `y` (n,) bool depends on the bin; None where there is one bin."""
    edges = np.unique(np.quantile(x, [0.25, 0.5, 0.75]))
    places = np.searchsorted(edges, x, side="left")
    table = np.stack([np.bincount(places[y == value], minlength=len(edges) + 1) for value in (False, True)])
    filled = table.sum(axis=0) > 0  # ties may leave the highest bin empty
    table, edges = table[:, filled], edges[filled[1:]]
    if table.shape[1] < 2:
        return None
    found = stats.chi2_contingency(table, correction=False)
    return Contingency(
        edges=edges.tolist(),
        table=table,
        statistic=float(found.statistic),
        dof=int(found.dof),
        p=float(found.pvalue),
        cramers_v=float(np.sqrt(found.statistic / len(x))),  # the smaller side of the table is 2
        least_expected=float(found.expected_freq.min()),
    )


@dataclass(frozen=True, kw_only=True)
class Correlation:
    """A correlation coefficient with its p-value and its 95 % interval (Fisher's z)."""

    r: float
    p: float
    low: float
    high: float


def point_biserial(y: np.ndarray, x: np.ndarray) -> Correlation | None:
    """Pearson's correlation of `x` (n,) with `y` (n,) as 0 and 1; None where x is constant. Its p is the ANOVA's."""
    if is_constant(x):
        return None
    found = stats.pearsonr(standardised(x).values, y.astype(np.float64))
    with np.errstate(all="ignore"):
        low, high = found.confidence_interval(0.95)
    return Correlation(r=float(found.statistic), p=float(found.pvalue), low=float(low), high=float(high))


def correlations(columns: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Pearson's and Spearman's correlation matrices (k, k), NaN where a column is constant."""
    values = np.column_stack(list(columns.values())).astype(np.float64)
    ranks = np.column_stack([stats.rankdata(column) for column in values.T])
    return _pearson(values), _pearson(ranks)


def _pearson(columns: np.ndarray) -> np.ndarray:
    found = np.full((columns.shape[1],) * 2, np.nan)
    vary = [k for k, column in enumerate(columns.T) if not is_constant(column)]
    if vary:
        z = np.column_stack([standardised(columns[:, k]).values for k in vary])
        found[np.ix_(vary, vary)] = np.clip(z.T @ z / (len(z) - 1), -1, 1)
        found[vary, vary] = 1.0
    return found


# --- how many rows ----------------------------------------------------------------------------------------------------


def rows_needed(log_odds: float, rate: float, inflation: float = 1.0, power: float = POWER) -> float:
    """Rows for which an effect is significant with probability `power` (Hsieh, Bloch and Larsen 1998).

    `log_odds` is the coefficient per standard deviation, `rate` the share of true rows, `inflation` the variance
    inflation of the metric beside others: n = (z_0.975 + z_power)² inflation / (rate (1 - rate) log_odds²).

    >>> round(rows_needed(np.log(1.1), 0.5))
    3456
    """
    z = stats.norm.ppf(1 - SIGNIFICANT / 2) + stats.norm.ppf(power)
    return float(z**2 * inflation / (rate * (1 - rate) * log_odds**2)) if log_odds else np.inf


def power_at(log_odds: float, rate: float, n: int, inflation: float = 1.0) -> float:
    """The probability that n rows show such an effect at all, on either side: the inverse of `rows_needed`."""
    limit = stats.norm.ppf(1 - SIGNIFICANT / 2)
    shift = abs(log_odds) * np.sqrt(n * rate * (1 - rate) / inflation)
    return float(stats.norm.sf(limit - shift) + stats.norm.cdf(-limit - shift))


def detectable(rate: float, n: int, inflation: float = 1.0, power: float = POWER) -> float:
    """The smallest log odds per standard deviation that n rows show with probability `power`."""
    z = stats.norm.ppf(1 - SIGNIFICANT / 2) + stats.norm.ppf(power)
    return float(z * np.sqrt(inflation / (n * rate * (1 - rate))))


# --- many tests -------------------------------------------------------------------------------------------------------


def holm(pvalues: Sequence[float]) -> np.ndarray:
    """Holm's (1979) adjusted p-values: reject those below 0.05, and the chance of any false alarm stays below 0.05.

    Those that are NaN, for what was not tested, stay NaN and count for nothing.

    >>> holm([0.01, float("nan"), 0.04]).round(2).tolist()
    [0.02, nan, 0.04]
    """
    p = np.array(pvalues, np.float64)
    known = np.flatnonzero(np.isfinite(p))
    ascending = known[np.argsort(p[known], kind="stable")]
    p[ascending] = np.maximum.accumulate(p[ascending] * np.arange(len(known), 0, -1)).clip(max=1)
    return p


# --- prediction -------------------------------------------------------------------------------------------------------
#
# The area under the ROC curve (AUC) is the probability that a random positive has a higher score than a random
# negative, ties counting one half: 0.5 is chance.


def roc_auc(y: np.ndarray, score: np.ndarray) -> float:
    """The AUC of `score` (n,) for `y` (n,) bool, from the ranks (Mann and Whitney).

    >>> roc_auc(np.array([False, True, False, True]), np.array([1, 2, 3, 3]))
    0.625
    """
    positives, n = int(y.sum()), len(y)
    ranks = stats.rankdata(score)
    return float((ranks[y].sum() - positives * (positives + 1) / 2) / (positives * (n - positives)))


def bootstrap_auc(y: np.ndarray, score: np.ndarray, *, rng: np.random.Generator, replicates: int) -> np.ndarray:
    """The AUCs (replicates,) of samples drawn with replacement from either class.

    The scores stay as they are: what is resampled is the items, not the fit.
    """
    positives, negatives = np.sort(score[y]), np.sort(score[~y])
    below, upto = (np.searchsorted(negatives, positives, side=side) for side in ("left", "right"))
    found = np.empty(replicates)
    for number in range(replicates):
        plus, minus = (_draw(len(rows), rng) for rows in (positives, negatives))
        passed = np.concatenate([[0], np.cumsum(minus)])
        found[number] = plus @ (passed[below] + passed[upto])
    return found / (2 * len(positives) * len(negatives))


def _draw(n: int, rng: np.random.Generator) -> np.ndarray:
    """How often each of n rows (n,) is drawn when n are drawn with replacement."""
    return np.bincount(rng.integers(n, size=n, dtype=np.int32), minlength=n)


def optimism(auc: float, sd: float, metrics: int) -> float:
    """By how much an AUC flatters a model of so many `metrics`, on the rows that it was fitted to; 0 for a single one.

    sd is the AUC's standard deviation over samples of rows. Of several metrics the fit takes the direction in which
    these rows are told apart best, so it takes their noise in too. In standard deviations, with d = `metrics`, what it
    finds is the length R = (auc - 1/2) / sd of a vector, the truth plus noise that has variance 1 in each of d
    directions. To first order the noise adds (d - 1) / R to the truth along that vector:

        optimism = sd min(R, (d - 1) / R)        at most all that is above 1/2

    >>> optimism(0.6, 0.05, 1), round(optimism(0.6, 0.05, 2), 3), round(optimism(0.52, 0.05, 2), 3)
    (0.0, 0.025, 0.02)
    """
    above = max(auc - 0.5, 0.0)
    return min(above, (metrics - 1) * sd**2 / above) if above else 0.0


def auc_interval(auc: float, sd: float, metrics: int) -> tuple[float, float]:
    """The 95 % interval of the AUC on new rows of a model with this AUC on its own rows, and this SD of it.

    The optimism is taken off, and the limits are those of the log odds of the AUC, which stay between 0 and 1. Without
    the correction, that of a pair without any effect would cover 85 % instead of 95.
    """
    middle = auc - optimism(auc, sd, metrics)
    if not 0 < middle < 1:
        return middle, middle
    half = float(stats.norm.ppf(0.975)) * sd / (middle * (1 - middle))
    low, high = expit(np.array([-half, half]) + logit(middle))
    return float(low), float(high)


@dataclass(frozen=True, kw_only=True)
class CrossValidated:
    """What models fitted to the other folds predict."""

    auc: np.ndarray  # (folds,) of each fold
    probabilities: np.ndarray  # (n,) of each row, by the model that has not seen it


def cross_validate(y: np.ndarray, x: np.ndarray, *, folds: int, seed: int) -> CrossValidated | None:
    """Fit logistic regressions without penalty on all folds but one, and predict that one; folds keep the class ratio.

    x (n, k). There are at most as many folds as rows in the smaller class; None where that has a single row.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold

    folds = min(folds, int(y.sum()), int((~y).sum()))
    if folds < 2:
        return None
    x = np.column_stack([standardised(column).values for column in x.T])
    probabilities = np.empty(len(y))
    aucs = []
    for train, test in StratifiedKFold(folds, shuffle=True, random_state=seed).split(x, y):
        model = LogisticRegression(C=np.inf, solver="newton-cholesky", max_iter=1000)
        with warnings.catch_warnings():  # a small fold may be separated: its order of the rows is still good
            warnings.simplefilter("ignore")
            model.fit(x[train], y[train])
        probabilities[test] = model.predict_proba(x[test])[:, 1]
        aucs.append(roc_auc(y[test], probabilities[test]))
    return CrossValidated(auc=np.array(aucs), probabilities=probabilities)


@dataclass(frozen=True, kw_only=True)
class Share:
    """How many rows of a bin are true, with the 95 % interval of Wilson; `at` is the mean of what was binned."""

    at: float
    n: int
    true: int
    low: float
    high: float

    @property
    def rate(self) -> float:
        return self.true / self.n


def shares(y: np.ndarray, x: np.ndarray, bins: int) -> list[Share]:
    """`y` (n,) bool in `bins` bins of about equal numbers of rows, by `x` (n,); equal values share a bin.

    Where x has no more than `bins` values, each is a bin.

    >>> found = shares(np.array([True, False, True]), np.array([1.0, 1.0, 2.0]), 2)
    >>> [(share.at, share.true, share.n) for share in found]
    [(1.0, 1, 2), (2.0, 1, 1)]
    """
    found = []
    values = np.unique(x)
    edges = values if len(values) <= bins else np.unique(np.quantile(x, np.arange(1, bins) / bins))
    places = np.searchsorted(edges, x, side="left")
    for place in np.unique(places):
        chosen = y[places == place]
        low, high = proportion_confint(chosen.sum(), len(chosen), method="wilson")
        found.append(
            Share(
                at=float(x[places == place].mean()),
                n=len(chosen),
                true=int(chosen.sum()),
                low=float(low),
                high=float(high),
            )
        )
    return found


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Predicted against observed."""

    bins: list[Share]  # `at` is the mean predicted probability
    brier: float  # mean squared error of the probabilities
    brier_base_rate: float  # the same of a model that always predicts the base rate
    expected_error: float  # mean over rows of |predicted - observed| of their bin


def calibrate(y: np.ndarray, probabilities: np.ndarray, bins: int) -> Calibration:
    """How the predicted `probabilities` (n,) compare with `y` (n,) bool, in bins of equal numbers of rows."""
    found = shares(y, probabilities, bins)
    return Calibration(
        bins=found,
        brier=float(np.mean((probabilities - y) ** 2)),
        brier_base_rate=float(y.mean() * (1 - y.mean())),
        expected_error=sum(abs(share.at - share.rate) * share.n for share in found) / len(y),
    )
