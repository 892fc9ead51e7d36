"""Answers about steps, from columns that were made with a known answer."""

from __future__ import annotations

import numpy as np
import pytest

from fluxentropy.rl.stepanswers import StepBootstrap, diagonal, fresh, parts, prediction, validity, verdict

N, PROMPTS, NOISE = 400, 24, 0.02


def steps(factor=1.0, paired=True):
    """Measured changes are `factor` times the predicted ones, with noise that the standard errors state."""
    rng = np.random.default_rng(0)
    first = rng.normal(size=N)
    spread = NOISE * np.sqrt(rng.chisquare(PROMPTS - 1, N) / (PROMPTS - 1))
    columns = {
        "probe_first_per_token": first,
        "probe_first_per_token_se": np.full(N, 0.3),
        "probe_measured_per_token": factor * first + NOISE * rng.normal(size=N),
        "probe_measured_per_token_se": np.full(N, 0.3),
        "probe_prompts": np.full(N, float(PROMPTS)),
    }
    return columns | ({"probe_measured_minus_first_per_token_se": spread} if paired else {})


def test_a_prediction_with_known_noise_is_covered_and_its_error_is_taken_off():
    found = prediction(steps(), "first", "token", StepBootstrap([N], 400))
    assert found["paired"] and found["steps"] == N
    assert found["covered"]["value"] == pytest.approx(0.95, abs=0.03)
    assert found["slope"]["low"] < 1 < found["slope"]["high"]
    assert found["rms"]["value"] == pytest.approx(NOISE, rel=0.1)
    assert found["rms_true"]["value"] < 0.4 * NOISE
    assert verdict(found["rms_true"], 0.1, found["half_width"]["value"]) == "good enough"
    assert verdict(found["rms_true"], 0.1, noise=1.2) == "not judged"


def test_an_error_of_the_prediction_is_found_whatever_the_noise():
    found = prediction(steps(1.25), "first", "token", StepBootstrap([200, 200], 400))
    measured = steps(1.25)["probe_measured_per_token"]
    true = 0.25 * np.sqrt(np.mean((measured / 1.25) ** 2) / np.mean(measured**2 - 0.3**2))
    assert found["rms_true"]["value"] == pytest.approx(true, rel=0.02)
    assert found["covered"]["value"] < 0.3 and found["slope"]["value"] == pytest.approx(1.25, abs=0.01)
    assert verdict(found["rms_true"], 0.1, 0.5) == "not good enough"
    assert verdict(found["rms_true"], found["rms_true"]["value"], 0.5) == "undecided"


def test_without_the_paired_error_the_sum_of_both_is_used():
    found = prediction(steps(paired=False), "first", "token", StepBootstrap([N], 50))
    assert not found["paired"] and found["covered"]["value"] == 1


def test_shares_of_parts_are_exact():
    first = np.random.default_rng(1).normal(size=30)
    columns = {"probe_first_per_token": first}
    for name, share in {"batch": 0.5, "momentum": 0.75, "decay": -0.25}.items():
        columns |= {f"probe_{name}_per_token": share * first, f"probe_{name}_per_token_se": np.zeros(30)}
    found = parts(columns, "optimizer", "token", StepBootstrap([30], 100))
    assert found is not None
    for name, share in {"batch": 0.5, "momentum": 0.75, "decay": -0.25}.items():
        one = found["parts"][name]
        assert one["share"] == pytest.approx({"value": share, "low": share, "high": share})
        assert [one["size"]["value"], one["size_true"]["value"]] == pytest.approx([abs(share) / 1.5] * 2)
    assert parts(columns, "pairs", "token", StepBootstrap([30], 100)) is None


def test_noise_makes_no_part():
    rng = np.random.default_rng(2)
    columns = {"probe_first_per_token": np.zeros(N)}
    for name, size in {"batch": 1.0, "momentum": 0.5, "decay": 0.0}.items():
        columns[f"probe_{name}_per_token"] = size * rng.normal(size=N) + 0.5 * rng.normal(size=N)
        columns[f"probe_{name}_per_token_se"] = np.full(N, 0.5)
    found = parts(columns, "optimizer", "token", StepBootstrap([N], 200))
    assert found is not None
    decay, batch = found["parts"]["decay"], found["parts"]["batch"]
    assert decay["size"]["value"] > 0.15 and decay["size_true"]["value"] < 0.1
    assert batch["size_true"]["low"] < 2 / 3 < batch["size_true"]["high"]


def test_the_diagonal_account_and_the_reach_of_a_step():
    covariance, lr = np.random.default_rng(3).normal(size=20) + 2, 0.01
    columns = {
        "probe_covariance_per_lr": covariance, "lr": np.full(20, lr), "probe_batch_per_sequence": 2 * lr * covariance,
        "probe_eta_star_per_token": np.array([0.5, 4.0] * 10), "probe_effective_sample_size": np.full(20, 6.0),
        "probe_responses": np.full(20, 8.0),
    }  # fmt: skip
    boot = StepBootstrap([20], 100)
    found = diagonal(columns, boot)
    assert found is not None and "measured" not in found
    assert found["batch"]["correlation"]["value"] == pytest.approx(1) and found["batch"]["same_sign"]["value"] == 1
    assert found["batch"]["total"]["value"] == pytest.approx(0.5)
    reach = validity(columns, "token", boot)
    assert {name: one["value"] for name, one in reach.items()} == {
        "eta_star": 2.25, "eta_star_below_1": 0.5, "effective_share": 0.75, "effective_below_half": 0.0,
    }  # fmt: skip


def test_fresh_rollouts_agree_with_what_was_measured_as_their_errors_say():
    rng = np.random.default_rng(4)
    change = rng.normal(size=N)
    names = {"entropy_per_token": 1.0, "next_entropy_per_token": 1 + change, "probe_measured_per_token": change}
    columns = {name: value + 0.1 * rng.normal(size=N) for name, value in names.items()}
    columns |= {f"{name}_se": np.full(N, 0.1) for name in names}
    found = fresh(columns, "token", StepBootstrap([N], 200))
    assert found is not None and found["steps"] == N
    assert found["covered"]["value"] == pytest.approx(0.95, abs=0.03)
    assert found["z"]["low"] < 1 < found["z"]["high"] and found["difference"]["low"] < 0 < found["difference"]["high"]
    assert (
        fresh({name: columns[name] for name in columns if "next" not in name}, "token", StepBootstrap([N], 9)) is None
    )
