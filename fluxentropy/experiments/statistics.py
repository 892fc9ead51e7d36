"""What paired runs say: the difference, how sure it is, and what could have been seen at all.

A pair is two runs that share a seed: their initial weights and the order of blocks inside each bin. Differences are in
per cent of the other run's value, so that effects on different losses compare:

    d_s = 100 (a_s / b_s - 1) of the seeds s = 1 .. n,    t = mean(d) / (sd(d) / sqrt(n)) with n - 1 degrees of freedom

"Not distinguishable" is not "equal": that takes a margin, and two one-sided tests that reject a difference as large as
it on either side (Schuirmann 1987),  p = max(P(T > (margin + mean) / se), P(T > (margin - mean) / se)).

The first half is about a curve of one run, the second about differences between runs.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import optimize, stats

LEVEL = 0.95  # of intervals
SIGNIFICANT = 0.05  # two-sided, of Holm's adjusted p-values
POWER = 0.8
RESAMPLES = 20_000
FEWEST = 8  # values that a bootstrap interval is made of: of fewer it is too narrow (docs/LOG.md)
ALIKE = 1e-12  # differences that vary by less than this share of themselves have no SD to be judged by
BELOW = ("better", "worse")  # what differences below and above 0 are, where less is better


# --- curves -----------------------------------------------------------------------------------------------------------


def area(tokens: np.ndarray, loss: np.ndarray) -> float:
    """The mean loss over the tokens: the area under a curve (E,) of straight lines, by its width.

    >>> round(area(np.array([0, 10, 30]), np.array([4.0, 2.0, 2.0])), 3)
    2.333
    """
    if len(tokens) < 2:
        return float(loss[-1])
    return float(np.trapezoid(loss, tokens) / (tokens[-1] - tokens[0]))


def reached(tokens: np.ndarray, loss: np.ndarray, target: float) -> float | None:
    """The tokens after which a curve (E,) of straight lines first is at `target` or below; None if it never is.

    >>> reached(np.array([0, 10, 20]), np.array([4.0, 2.0, 1.0]), 3.0)
    5.0
    """
    below = np.flatnonzero(loss <= target)
    if not len(below):
        return None
    end = int(below[0])
    if end == 0:
        return float(tokens[0])
    share = (loss[end - 1] - target) / (loss[end - 1] - loss[end])
    return float(tokens[end - 1] + share * (tokens[end] - tokens[end - 1]))


def forgetting(losses: np.ndarray) -> np.ndarray:
    """The last loss of each bin minus the best before it; below 0 where the last is the best. (E, K) -> (K,)

    >>> forgetting(np.array([[3.0, 3.0], [1.0, 2.0], [1.5, 1.0]]))
    array([ 0.5, -1. ])
    """
    if len(losses) < 2:
        return np.full(losses.shape[1], np.nan)
    return np.asarray(losses[-1] - losses[:-1].min(axis=0))


# --- differences ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Paired:
    """The mean of paired differences. What one pair, or equal ones, or fewer than FEWEST cannot tell is NaN."""

    n: int
    mean: float
    sd: float
    low: float  # of the t interval
    high: float
    bootstrap_low: float
    bootstrap_high: float
    t: float
    p: float  # two-sided
    detectable: float  # the smallest true mean that would be significant with probability POWER, were the SD `sd`
    detectable_low: float  # and with the limits of the SD's interval
    detectable_high: float


def percent(ours: Sequence[float] | np.ndarray, theirs: Sequence[float] | np.ndarray) -> np.ndarray:
    """How much larger ours (n,) are than theirs, pair by pair, in per cent.

    >>> percent([2.0, 3.0], [1.0, 4.0]).tolist()
    [100.0, -25.0]
    """
    return 100 * (np.asarray(ours, np.float64) / np.asarray(theirs, np.float64) - 1)


def paired(differences: Sequence[float] | np.ndarray, *, seed: int = 0) -> Paired:
    """The mean of `differences` (n,), with a t interval and a bootstrap interval, and the t test against 0.

    Differences that are all the same, as of a measure with few values, say nothing about how much they might vary: no
    interval and no p, rather than a width and a p of 0.
    """
    d = np.asarray(differences, np.float64)
    d = d[np.isfinite(d)]
    n, mean = len(d), float(d.mean()) if len(d) else np.nan
    sd = float(d.std(ddof=1)) if n > 1 else np.nan
    if n < 2 or np.ptp(d) <= ALIKE * abs(mean):
        names = ("low", "high", "bootstrap_low", "bootstrap_high", "t", "p")
        nan = dict.fromkeys((*names, "detectable", "detectable_low", "detectable_high"), np.nan)
        return Paired(n=n, mean=mean, sd=sd, **nan)
    half = float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) * sd / np.sqrt(n)
    t = mean / (sd / np.sqrt(n))
    low, high = bootstrap_interval(d, seed=seed) if n >= FEWEST else (np.nan, np.nan)
    least = detectable(sd, n)
    shares = sd_limits(n)
    return Paired(
        n=n,
        mean=mean,
        sd=sd,
        low=mean - half,
        high=mean + half,
        bootstrap_low=low,
        bootstrap_high=high,
        t=t,
        p=float(2 * stats.t.sf(abs(t), n - 1)),
        detectable=least,
        detectable_low=least * shares[0],
        detectable_high=least * shares[1],
    )


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean, SD and t interval over the seeds, and the values themselves."""
    found = paired(values)
    return {"mean": found.mean, "sd": found.sd, "low": found.low, "high": found.high, "by_seed": list(values)}


def bootstrap_interval(d: np.ndarray, *, seed: int = 0, resamples: int = RESAMPLES) -> tuple[float, float]:
    """The expanded percentile interval of the mean of `d` (n,), for few values (Hesterberg 2015, arXiv:1411.5279).

    Percentiles of the means of resamples are too narrow by sqrt((n - 1) / n), and know nothing of Student's t; both are
    mended by taking percentiles further out: Phi(-sqrt(n / (n - 1)) t_{0.975, n-1}) instead of 0.025.
    """
    n = len(d)
    rng = np.random.default_rng(seed)
    means = d[rng.integers(0, n, (resamples, n))].mean(axis=1)
    tail = float(stats.norm.cdf(-np.sqrt(n / (n - 1)) * stats.t.ppf((1 + LEVEL) / 2, n - 1)))
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def detectable(sd: float, n: int, *, power: float = POWER, level: float = SIGNIFICANT) -> float:
    """The smallest true mean of n paired differences of this `sd` that a two-sided t test finds with this power.

    With the non-central t distribution, in the unit of `sd`; the test is one of its own, without Holm's correction.

    >>> round(detectable(1.0, 5), 2)
    1.68
    """
    if n < 2 or not sd > 0:
        return np.nan
    return _detectable_share(n, power, level) * sd


@functools.cache
def _detectable_share(n: int, power: float, level: float) -> float:
    limit = float(stats.t.ppf(1 - level / 2, n - 1))

    def short(shift: float) -> float:
        other_side = np.nan_to_num(stats.nct.cdf(-limit, n - 1, shift))  # NaN where it is too small to be computed
        return float(stats.nct.sf(limit, n - 1, shift) + other_side) - power

    return float(optimize.brentq(short, 0, 2 * limit + 3)) / float(np.sqrt(n))


def sd_limits(n: int) -> tuple[float, float]:
    """The 95 % limits of a true SD, as shares of that of n normal values (chi-square), and so of what is detectable.

    >>> [round(share, 2) for share in sd_limits(5)]
    [0.6, 2.87]
    """
    if n < 2:
        return np.nan, np.nan
    low, high = stats.chi2.ppf([(1 + LEVEL) / 2, (1 - LEVEL) / 2], n - 1)
    return float(np.sqrt((n - 1) / low)), float(np.sqrt((n - 1) / high))


def equivalence(found: Paired, margin: float) -> float:
    """The p of two one-sided t tests that the true mean is beyond -margin or margin; NaN where nothing is tested.

    >>> equivalence(paired([0.1, -0.1, 0.05, 0.0]), 0.5) < 0.01
    True
    """
    if not found.sd > 0 or not np.isfinite(found.p):
        return np.nan
    return float(stats.t.sf((margin - abs(found.mean)) / (found.sd / np.sqrt(found.n)), found.n - 1))


def word(found: Paired, adjusted_p: float, equal_p: float = np.nan, words: tuple[str, str] = BELOW) -> str:
    """The verdict; `equal_p`: the adjusted p-value of `equivalence`, `words`: of differences below and above 0."""
    if not np.isfinite(adjusted_p):
        return "not judged"
    if adjusted_p < SIGNIFICANT:
        return words[0] if found.mean < 0 else words[1]
    return "equal" if equal_p < SIGNIFICANT else "not distinguishable"


def in_words(
    found: Paired, verdict: str, arm: str, against: str, *, level: float = SIGNIFICANT, margin: float | None = None
) -> str:
    """The verdict as a sentence; `level`: of the test, where several comparisons share SIGNIFICANT.

    >>> in_words(paired([1.0, 1.2, 0.9, 1.1]), "worse", "up", "random")
    'up is worse than random by 1.05 % [0.84, 1.26]'
    """
    if verdict == "the same":
        return f"{arm} is the same as {against}: the runs of each seed are equal, so there is nothing to test"
    if not found.n:
        return f"{arm} against {against}: no seed has both"
    limits = f"[{found.low:.2f}, {found.high:.2f}]"
    if verdict == "better":
        return f"{arm} is better than {against} by {-found.mean:.2f} % [{-found.high:.2f}, {-found.low:.2f}]"
    if verdict == "worse":
        return f"{arm} is worse than {against} by {found.mean:.2f} % {limits}"
    if verdict == "equal":
        return f"{arm} is equal to {against} within {margin:g} %: {found.mean:+.2f} % {limits}"
    if verdict == "not distinguishable":
        least = detectable(found.sd, found.n, level=level)
        low, high = (least * share for share in sd_limits(found.n))
        unsure = f"{low:.2f} to {high:.2f} %, as the SD is that of {found.n} seeds"
        seen = f"effects from {least:.2f} % on ({unsure}) would have been seen with probability {POWER:g}"
        return f"{arm} is not distinguishable from {against}: {found.mean:+.2f} % {limits}; {seen}"
    why = f"of {found.n} seed{'s' * (found.n != 1)}"
    why += ", all with the same difference" * (found.n > 1)
    return f"{arm} against {against}: {found.mean:+.2f} %, {why}; no verdict"


def same_runs(runs: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> dict[str, str]:
    """The first arm whose runs are those of each arm, number for number, in all seeds that both have; often itself.

    Such arms are one arm with two names, as a schedule or a controller that never acts: to compare them is no test.
    """
    first: dict[str, str] = {}
    for arm, mine in runs.items():
        first[arm] = next((other for other in first if first[other] == other and _equal(mine, runs[other])), arm)
    return first


def _equal(mine: Mapping[int, Mapping[str, Any]], theirs: Mapping[int, Mapping[str, Any]]) -> bool:
    shared = mine.keys() & theirs.keys()
    named = ("arm", "fingerprint")
    ours, others = ([{k: v for k, v in of[s].items() if k not in named} for s in shared] for of in (mine, theirs))
    return bool(shared) and ours == others
