"""Answers about steps, from columns that were made with a known answer."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from fluxentropy.experiments.study.answers import (
    StepBootstrap,
    agreement,
    batches,
    block_weights,
    carrying,
    concentration,
    diagonal,
    fresh,
    parts,
    prediction,
    prompt_answer,
    step_row,
    token_answer,
    validity,
    verdict,
)

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


# --- Which tokens, and how many prompts: against sums by hand and known spreads ---


TOKENS = {
    "step": np.ones(8, dtype=int), "prompt": np.array([0, 0, 0, 0, 1, 1, 1, 1]),
    "response": np.array([0, 0, 1, 1, 0, 0, 1, 1]), "position": np.array([0, 1] * 4),
    "advantage": np.array([1.0, 1.0, -1.0, -1.0, 2.0, 2.0, 0.0, 0.0]),
    "logp": np.array([-0.1, -3.0, -0.2, -2.0, -0.3, -4.0, -0.4, -5.0]),
    "entropy": np.array([0.05, 4.0, 0.5, 0.5, 0.5, 0.5, 0.5, 6.0]),
    "change": np.array([-0.5, 0.25, 0.5, -0.125, -1.0, 0.75, 0.0, 0.0]),
}  # fmt: skip

RESPONSES = {
    "step": np.ones(4, dtype=int), "prompt": np.array([0, 0, 1, 1]), "response": np.array([0, 1, 0, 1]),
    "reward": np.array([1.0, 0.0, 1.0, 1.0]),
}  # fmt: skip


def test_the_sums_of_a_step_are_those_by_hand():
    row = step_row(TOKENS, RESPONSES, by="median")
    assert (row["tokens"], row["change"], row["down"], row["up"]) == (8, -0.125, -1.625, 1.5)
    assert (row["positive_common_tokens"], row["positive_common_change"], row["positive_common_up"]) == (2, -1.5, 0)
    assert (row["positive_rare_change"], row["negative_rare_change"], row["negative_common_change"]) == (1, -0.125, 0.5)
    assert (row["right_tokens"], row["right_down"], row["wrong_change"]) == (6, -1.5, 0.375)
    assert (row["token_0_change"], row["token_1_change"], row["eighth_4_change"]) == (-1.0, 0.875, 0.875)
    assert (row["by_token"], row["by_response"], row["by_prompt"]) == (3.125, 0.875, 0.375)
    assert row["tokens_for_0.5"] == 2 / 8 and row["responses_for_0.8"] == 3 / 4
    other = step_row(TOKENS, None)  # ln p < -H
    assert (other["positive_rare_change"], other["positive_common_change"]) == (-0.5 + 0.75, 0.25 - 1.0)
    assert "right_tokens" not in other


def test_shares_are_of_all_steps_and_cancelling_is_what_sums_lose():
    half = {**TOKENS, "change": TOKENS["change"] / 2}
    rows = [
        [step_row(TOKENS, RESPONSES, by="median"), step_row(half, RESPONSES, by="median")],
        [step_row(TOKENS, RESPONSES, by="median")],
    ]
    found = token_answer(rows, StepBootstrap([2, 1], 50))
    assert found["steps"] == 3 and found["change"]["value"] == pytest.approx(-0.125 * 2.5 / 3)
    common = found["classes"]["positive_common"]
    assert common["down"]["value"] == pytest.approx(1.5 / 1.625) and common["tokens"]["value"] == 0.25
    assert "token_0" in found["classes"] and not {"token_2", "eighth_0"} & found["classes"].keys()
    assert found["cancelled"]["within_responses"]["value"] == pytest.approx(1 - 0.875 / 3.125)
    assert found["cancelled"]["within_prompts"]["value"] == pytest.approx(1 - 0.375 / 0.875)


def test_the_agreement_is_full_where_tokens_follow_the_covariance_and_none_where_they_do_not():
    rng = np.random.default_rng(0)
    logp, A, prompt = -rng.gamma(1.0, 1.0, 4000), rng.normal(size=4000), np.repeat(np.arange(40), 100)
    follows = agreement(-(A - A.mean()) * (logp - logp.mean()), logp, A, prompt)
    assert follows["correlation"] == pytest.approx(1) and follows["same_sign"] == 1
    assert follows["correlation_within"] > 0.95
    other = agreement(rng.normal(size=4000), logp, A, prompt)
    assert abs(other["correlation"]) < 0.06 and other["same_sign"] == pytest.approx(0.5, abs=0.03)
    assert np.isnan(agreement(np.ones(2), logp[:2], A[:2], prompt[:2])["correlation"])


def test_concentration_is_that_of_sorted_sums():
    parts = np.array([4.0, -3.0, 2.0, 1.0, 0.0])
    assert concentration(parts, np.array([0.2, 0.4, 1.0])) == pytest.approx([0.4, 0.7, 1.0])
    assert [carrying(parts, share) for share in (0.4, 0.41, 0.9, 1.0)] == [0.2, 0.4, 0.6, 0.8]
    assert np.isnan(concentration(np.zeros(3), np.array([0.5]))).all() and np.isnan(carrying(np.zeros(3), 0.5))


def test_prompts_needed_are_those_of_the_spread():
    rng = np.random.default_rng(1)
    B, G = 256, 4

    def table(step, between, within):
        entropy = 5 + between * rng.normal(size=(B, 1)) + within * rng.normal(size=(B, G))
        return {
            "step": np.full(B * G, step), "prompt": np.repeat(np.arange(B), G), "response": np.tile(np.arange(G), B),
            "length": np.ones(B * G), "entropy": entropy.ravel(),
        }  # fmt: skip

    def answer(between, within):
        parts = [table(step, between, within) for step in range(2)]
        joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        return prompt_answer([batches(joined)], StepBootstrap([2], 100))

    found = answer(0.0, 1.0)
    assert found["steps"] == 2 and list(found["by_responses"]) == ["1", "2", "4"]
    for G_cut, one in found["by_responses"].items():
        needed = (1 / 5 / 0.01) ** 2 / int(G_cut)
        assert one["needed"]["per_token"]["0.01"]["value"] == pytest.approx(needed, rel=0.15)
        assert one["curve"]["per_sequence"]["64"]["value"] == pytest.approx(0.2 / 8 / int(G_cut) ** 0.5, rel=0.15)
    between = answer(1.0, 0.0)["by_responses"]
    assert between["1"]["needed"] == between["4"]["needed"]  # more responses to the same prompts tell nothing
    assert batches({name: column[:8] for name, column in table(0, 1.0, 1.0).items()}) == []


# --- Statistics over steps: weights against rows that are repeated, and intervals against known truths ---


@pytest.mark.parametrize("lengths", [[12], [5, 3, 4], [2, 1, 1, 2, 1, 1, 2, 2]], ids=["blocks", "t", "runs"])
def test_every_statistic_is_that_of_the_rows_drawn_again(lengths):
    """Of rows that are repeated; of three runs of the rows without each of them."""
    boot = StepBootstrap(lengths, 30, seed=1)
    run = np.repeat(np.arange(len(lengths)), lengths)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=12) + 3, rng.normal(size=12) + 2
    answers = {
        "mean": lambda a, b: a.mean(),
        "ratio": lambda a, b: a.sum() / b.sum(),
        "root_ratio": lambda a, b: np.sqrt(a.sum() / b.sum()),
        "median": lambda a, b: np.median(a),
        "correlation": lambda a, b: np.corrcoef(a, b)[0, 1],
        "slope": lambda a, b: np.polyfit(a, b, 1)[0],
        "intercept": lambda a, b: np.polyfit(a, b, 1)[1],
        "share": lambda a, b: np.sqrt(a.sum()) / (np.sqrt(a.sum()) + np.sqrt(b.sum())),
    }
    slope, intercept = boot.line(x, y)
    found = {
        "mean": boot.mean(x), "ratio": boot.ratio(x, y), "root_ratio": boot.root_ratio(x, y), "median": boot.median(x),
        "correlation": boot.correlation(x, y), "slope": slope, "intercept": intercept,
        "share": boot.root_shares([x, y])[0],
    }  # fmt: skip
    for name, answer in answers.items():
        values = []
        for weights in [np.ones(12, int), *(run != k for k in range(3))] if len(lengths) == 3 else boot.weights:
            values.append(answer(np.repeat(x, weights.astype(int)), np.repeat(y, weights.astype(int))))
        if len(lengths) == 3:
            half = stats.t.ppf(0.975, 2) * np.sqrt(2 / 3 * np.sum((values[1:] - np.mean(values[1:])) ** 2))
            low, high = values[0] - half, values[0] + half
            low = max(low, 0) if name in ("root_ratio", "share") else low
        else:
            low, high = np.quantile(values[1:], [0.025, 0.975])
        expected = {"value": values[0], "low": low, "high": high}
        assert found[name] == pytest.approx(expected), name


def test_blocks_stay_together_and_runs_are_drawn_whole():
    weights = block_weights([27, 8], 200, seed=3)
    assert (weights[0] == 1).all() and set(weights[1:, :27].sum(1)) <= {0, 27, 54}
    alone = block_weights([27], 200)[1:]
    together = ((alone > 0) & (np.roll(alone, -1, axis=1) > 0)).sum() / (alone > 0).sum()
    single = (np.random.default_rng(0).multinomial(27, np.full(27, 1 / 27), 200) > 0).mean()
    assert (alone.sum(1) == 27).all() and together > single + 0.1  # blocks of 3


@pytest.mark.parametrize("runs", [1, 3, 5, 10])
def test_intervals_of_correlated_steps_cover_the_mean(runs):
    """Runs differ more than their steps, but where there is one: that speaks about itself alone."""
    rng = np.random.default_rng(2)
    hits, drawn, n = [], [], 80 if runs == 1 else 40
    for seed in range(200):
        noise = rng.normal(size=(runs, n))
        for step in range(1, n):
            noise[:, step] += 0.4 * noise[:, step - 1]
        noise += rng.normal(size=(runs, 1)) * (runs > 1)
        boot = StepBootstrap([n] * runs, 200, seed)
        found = boot.mean(noise.ravel())
        hits.append(found["low"] <= 0 <= found["high"])
        low, high = np.quantile(boot.weights[1:] @ noise.ravel() / (n * runs), [0.025, 0.975])
        drawn.append(low <= 0 <= high)
    assert (0.91 if 1 < runs < 8 else 0.85) <= np.mean(hits) <= 0.99
    assert runs != 3 or np.mean(drawn) < 0.83  # runs and steps drawn again


def test_a_number_that_one_of_the_runs_has_is_of_its_steps():
    x = np.concatenate([np.full(20, np.nan), np.random.default_rng(0).normal(size=20)])
    found, alone = StepBootstrap([20, 20], 100).mean(x), StepBootstrap([20], 100).mean(x[20:])
    assert found == pytest.approx(alone)


def test_what_is_not_known_is_passed_over():
    x = np.array([1.0, np.nan, 3.0, 5.0, 7.0])
    assert StepBootstrap([5], 50).mean(x)["value"] == 4
    few = StepBootstrap([3], 50).mean(x[2:])
    assert few["value"] == 5 and np.isnan(few["low"])
    unsure = StepBootstrap([40], 200).ratio(np.ones(40), np.random.default_rng(0).normal(size=40))
    assert np.isnan(unsure["value"])
    assert np.isnan(StepBootstrap([2], 50).median(np.full(2, np.nan))["value"])
