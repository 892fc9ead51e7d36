"""The reward as a function of the entropy over a training run, R = -a e^H + b, and the ceiling that it predicts.

With x = e^H it is a straight line, fitted by least squares: a = -Cov(x, R)/Var(x), b = R̄ + a x̄. Where the entropy is
used up, H = 0, the reward is -a + b: more can only come from elsewhere. Source: Cui et al. 2025, an empirical law; H is
per token there (nats).

Standard errors: those of least squares with independent residuals of equal variance, or, since the steps of a run are
not independent, a moving-block bootstrap. The ceiling usually lies outside the entropies that were seen: its error
holds if the law does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fluxentropy.errors import UsageError
from fluxentropy.rl.estimate import Estimate

LARGEST = 700.0  # nats; e^H is no float64 beyond 709


@dataclass(frozen=True, kw_only=True)
class RewardFit:
    """a, b and the ceiling -a + b (in units of the reward), with standard errors.

    `covariance` (2, 2) is that of (a, b); `r_squared` the share of the reward's variance that the curve explains, NaN
    where the reward does not vary; `lowest` and `highest` the entropies (nats) that were fitted, `points` how many.
    """

    a: Estimate
    b: Estimate
    ceiling: Estimate
    covariance: np.ndarray
    r_squared: float
    residual_sd: float
    lowest: float
    highest: float
    points: int

    def predict(self, entropy: float) -> Estimate:
        """-a e^H + b at an entropy (nats); the error is that of the curve, without the residual's spread."""
        return _at(entropy, self.a.value, self.b.value, self.covariance)


def fit_reward(
    entropy: np.ndarray, reward: np.ndarray, *, block: int | None = None, replicates: int = 1000, seed: int = 0
) -> RewardFit:
    """Fit R = -a e^H + b to the steps of a run. entropy (nats a token) and reward (n,)

    `block` None: errors of least squares. Otherwise they are the spread over `replicates` series made of blocks of so
    many successive steps, about as many as the residuals stay correlated; at most n/2.

    Errors: `UsageError` for fewer than 3 steps, entropies that are all equal, values that are not finite, entropies
    above 700 nats, and blocks outside [1, n/2].

    >>> fit = fit_reward(np.log([1.0, 2.0, 3.0]), np.array([0.7, 0.5, 0.3]))
    >>> round(fit.a.value, 6), round(fit.b.value, 6), round(fit.ceiling.value, 6)
    (0.2, 0.9, 0.7)
    """
    H, R = (np.asarray(column, np.float64) for column in (entropy, reward))
    _check(H, R, block)
    x = np.exp(H)
    a, b = _line(x, R)
    residuals = R - (b - a * x)
    variance = float(residuals @ residuals / (len(R) - 2))
    covariance = _least_squares(x, variance) if block is None else _bootstrap(x, R, block, replicates, seed)
    total = float(((R - R.mean()) ** 2).sum())
    return RewardFit(
        a=Estimate(float(a), float(covariance[0, 0] ** 0.5)),
        b=Estimate(float(b), float(covariance[1, 1] ** 0.5)),
        ceiling=_at(0.0, float(a), float(b), covariance),
        covariance=covariance,
        r_squared=1 - float(residuals @ residuals) / total if total else float("nan"),
        residual_sd=variance**0.5,
        lowest=float(H.min()),
        highest=float(H.max()),
        points=len(H),
    )


def _check(H: np.ndarray, R: np.ndarray, block: int | None) -> None:
    if H.ndim != 1 or H.shape != R.shape:
        raise UsageError(
            f"entropies of shape {H.shape} and rewards of shape {R.shape}: give one of each for every step"
        )
    if len(H) < 3:
        raise UsageError(f"{len(H)} steps: a curve of 2 parameters with errors needs at least 3")
    for name, column in (("entropy", H), ("reward", R)):
        if not np.isfinite(column).all():
            raise UsageError(f"the {name} of step {int(np.argmin(np.isfinite(column)))} is not finite: leave it out")
    if H.max() > LARGEST:
        raise UsageError(f"an entropy of {H.max():g} nats: e^H is no number; use the entropy per token")
    if not np.ptp(np.exp(H)) > 0:
        raise UsageError(f"every entropy is {H[0]:g}: nothing to fit")
    if block is not None and not 1 <= block <= len(H) // 2:
        raise UsageError(f"blocks of {block} steps: use 1 to {len(H) // 2}, half of the run")


def _line(x: np.ndarray, R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(a, b) of R = -a x + b along the last axis."""
    centred = x - x.mean(-1, keepdims=True)
    a = -(centred * R).sum(-1) / (centred**2).sum(-1)
    return a, R.mean(-1) + a * x.mean(-1)


def _least_squares(x: np.ndarray, variance: float) -> np.ndarray:
    spread = ((x - x.mean()) ** 2).sum()
    mean = x.mean()
    return variance * np.array([[1 / spread, mean / spread], [mean / spread, 1 / len(x) + mean**2 / spread]])


def _bootstrap(x: np.ndarray, R: np.ndarray, block: int, replicates: int, seed: int) -> np.ndarray:
    n = len(x)
    rng = np.random.default_rng(seed)
    starts = rng.integers(0, n - block + 1, size=(replicates, -(-n // block)))
    at = (starts[..., None] + np.arange(block)).reshape(replicates, -1)[:, :n]
    varies = np.ptp(x[at], axis=1) > 0
    return np.cov(np.stack(_line(x[at[varies]], R[at[varies]])))


def _at(entropy: float, a: float, b: float, covariance: np.ndarray) -> Estimate:
    slope = np.array([-np.exp(entropy), 1.0])
    return Estimate(float(slope @ [a, b]), float(max(slope @ covariance @ slope, 0.0) ** 0.5))
