"""Which tokens, and how many prompts: against sums by hand and known spreads."""

from __future__ import annotations

import numpy as np
import pytest

from fluxentropy.rl.stepanswers import StepBootstrap
from fluxentropy.rl.tokenanswers import (
    agreement,
    batches,
    carrying,
    concentration,
    prompt_answer,
    step_row,
    token_answer,
)

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
