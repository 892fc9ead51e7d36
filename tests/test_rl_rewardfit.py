"""The curve against numpy's least squares, statsmodels' errors, and known curves with noise."""

from __future__ import annotations

import numpy as np
import pytest
import statsmodels.api as sm

from fluxentropy.errors import UsageError
from fluxentropy.rl.rewardfit import fit_reward


def run(seed, n=40, correlated=0.0):
    rng = np.random.default_rng(seed)
    H = np.linspace(1.4, 0.2, n) + 0.05 * rng.normal(size=n)
    noise = rng.normal(size=n)
    for k in range(1, n):
        noise[k] = correlated * noise[k - 1] + (1 - correlated**2) ** 0.5 * noise[k]
    return H, -0.2 * np.exp(H) + 0.9 + 0.03 * noise


def test_parameters_and_errors_are_those_of_least_squares():
    H, R = run(0)
    fit = fit_reward(H, R)
    X = np.stack([-np.exp(H), np.ones_like(H)], axis=1)
    (a, b), *_ = np.linalg.lstsq(X, R)
    assert (fit.a.value, fit.b.value) == pytest.approx((a, b), rel=1e-10)
    oracle = sm.OLS(R, X).fit()
    np.testing.assert_allclose(fit.covariance, oracle.cov_params(), rtol=1e-9)
    assert fit.r_squared == pytest.approx(oracle.rsquared)
    assert fit.residual_sd == pytest.approx(oracle.mse_resid**0.5)
    at = oracle.get_prediction(np.array([[-np.exp(0.5), 1.0], [-1.0, 1.0]]))
    for estimate, mean, se in zip((fit.predict(0.5), fit.ceiling), at.predicted_mean, at.se_mean, strict=True):
        assert estimate == pytest.approx((mean, se), rel=1e-9)
    assert fit.ceiling.value == pytest.approx(fit.b.value - fit.a.value)
    assert (fit.lowest, fit.highest, fit.points) == (H.min(), H.max(), 40)


def test_intervals_cover_the_known_ceiling():
    fits = [fit_reward(*run(seed)) for seed in range(300)]
    inside = sum(low < 0.7 < high for low, high in (fit.ceiling.interval(0.95) for fit in fits))
    assert 270 <= inside <= 297  # normal intervals of 38 degrees of freedom: 94.3% expected


def test_blocks_are_wider_where_steps_are_correlated_and_right():
    runs = [run(seed, n=120, correlated=0.8) for seed in range(60)]
    independent = [fit_reward(*columns) for columns in runs]
    blocks = [fit_reward(*columns, block=15, replicates=200) for columns in runs]
    spread = np.std([fit.ceiling.value for fit in independent])
    assert np.mean([fit.ceiling.se for fit in independent]) < 0.5 * spread
    assert 0.65 * spread < np.mean([fit.ceiling.se for fit in blocks]) < 1.3 * spread
    single = fit_reward(*run(1), block=1, replicates=4000)
    assert single.ceiling.se == pytest.approx(fit_reward(*run(1)).ceiling.se, rel=0.25)


def test_what_cannot_be_fitted_is_refused():
    H, R = run(0)
    for entropy, reward, options, said in (
        (H[:2], R[:2], {}, "2 steps"),
        (H, R[:-1], {}, "shape"),
        (np.ones(5), R[:5], {}, "every entropy is 1"),
        (np.append(H[:-1], np.nan), R, {}, "entropy of step 39 is not finite"),
        (H * 1000, R, {}, "use the entropy per token"),
        (H, R, {"block": 21}, "blocks of 21 steps: use 1 to 20"),
    ):
        with pytest.raises(UsageError, match=said):
            fit_reward(entropy, reward, **options)
