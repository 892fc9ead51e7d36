"""How well probabilities tell two classes apart, and how far they can be trusted: AUC, cross-validation, calibration.

The area under the ROC curve (AUC) is the probability that a random positive has a higher score than a random negative,
ties counting one half: 0.5 is chance.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from scipy import stats
from scipy.special import expit, logit
from statsmodels.stats.proportion import proportion_confint

from fluxentropy.effects import standardised


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
