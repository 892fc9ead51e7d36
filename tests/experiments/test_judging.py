"""From records of cells to verdicts: families, corrections, pairs that are not whole, and the words for all that."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from fluxentropy.experiments.arms import Arm
from fluxentropy.experiments.judging import judge, pairs
from fluxentropy.experiments.text import markdown, summary

CONTROLS = {"reversed": "down", "shuffled": "up-shuffled", "static": "random"}

ARMS = [
    Arm(name="random", own={}, kind="random"),
    Arm(name="up", own={"schedule": {"name": "increasing"}}, kind="arm", controls=CONTROLS),
    Arm(name="down", own={"schedule": {"name": "decreasing"}}, kind="arm", controls={"reversed": "up"}),
    Arm(name="wave", own={"schedule": {"name": "periodic"}}, kind="arm"),
    Arm(name="up-shuffled", own={}, kind="shuffled", of="up"),
]

EFFECTS = {"random": 0.0, "up": 0.02, "down": -0.03, "wave": 0.0, "up-shuffled": 0.01}
SEEDS = range(6)


def record(arm: str, seed: int, **more: Any) -> dict[str, Any]:
    """A run of two bins whose loss falls from 8 to about 2."""
    rng = np.random.default_rng([seed, list(EFFECTS).index(arm)])
    final = 2 * (1 + EFFECTS[arm]) + rng.normal(0, 0.004)
    curve = [8.0, 4.0, 2.5, final]
    return {
        "arm": arm,
        "seed": seed,
        "fingerprint": "f",
        "weights": "last",
        "tokens": [0, 100, 200, 300],
        "bpb": curve,
        "bpb_by_bin": [[8.0, 8.0], [1.9, 4.0], [2.2, 3.0], [final - 0.1, final + 0.1]],
        "mixture": [[1.0, 0.0]] * 5 + [[0.0, 1.0]] * 5,
        "questions": {"answer_loglikelihood": -1.0 - EFFECTS[arm] + rng.normal(0, 0.001)},
        "sources": {"news": {"bpb": final, "bytes": 10}},
        "parameters": 1000,
    } | more


@pytest.fixture(scope="module")
def records() -> list[dict[str, Any]]:
    return [record(arm.name, seed) for seed in SEEDS for arm in ARMS]


def test_families() -> None:
    assert pairs(ARMS) == [
        ("up", "random", "against random"),
        ("down", "random", "against random"),
        ("wave", "random", "against random"),
        ("up", "up-shuffled", "order"),
        ("up-shuffled", "random", "controls"),
    ]


def test_p_values_are_those_of_scipy_and_statsmodels(records: list[dict[str, Any]]) -> None:
    found = judge(ARMS, records, seeds=6, margin=0.5)["comparisons"]
    final = {arm.name: np.array([one["bpb"][-1] for one in records if one["arm"] == arm.name]) for arm in ARMS}
    family = found[:3]
    p = [stats.ttest_1samp(100 * (final[one["arm"]] / final["random"] - 1), 0).pvalue for one in family]
    assert [one["percent"]["p"] for one in family] == pytest.approx(p)
    assert [one["p_holm"] for one in family] == pytest.approx(multipletests(p, method="holm")[1].tolist())
    assert [one["verdict"] for one in found] == ["worse", "better", "not distinguishable", "worse", "worse"]
    assert found[3]["p_holm"] == found[3]["percent"]["p"]
    assert family[2]["detectable_corrected"] > family[2]["percent"]["detectable"]
    assert f"effects from {family[2]['detectable_corrected']:.2f} % on" in family[2]["words"]
    assert found[0]["answer_loglikelihood"]["mean"] == pytest.approx(-0.02, abs=0.003)
    assert found[0]["sources_percent"]["news"]["mean"] == found[0]["percent"]["mean"]


def test_equal_arms_are_said_to_be_so() -> None:
    """Not by a p-value that is large, but where the margin is ruled out on either side."""
    records = [record(arm.name, seed) for seed in range(12) for arm in ARMS]
    wide, narrow = (judge(ARMS, records, seeds=12, margin=margin)["comparisons"][2] for margin in (0.5, 0.05))
    assert (wide["verdict"], narrow["verdict"]) == ("equal", "not distinguishable")
    assert wide["p_equal_holm"] < 0.05 < narrow["p_equal_holm"] and wide["p_holm"] == narrow["p_holm"]
    assert "wave is equal to random within 0.5 %" in wide["words"]
    assert wide["percent"]["bootstrap_low"] is not None  # of 12 seeds
    low, high = narrow["detectable_corrected_interval"]
    assert low < narrow["detectable_corrected"] < high


def test_arms_whose_runs_are_those_of_another_are_not_tested(records: list[dict[str, Any]]) -> None:
    twins = [one | {"arm": "wave"} for one in records if one["arm"] == "random"]
    twins += [one | {"arm": "twin"} for one in records if one["arm"] == "up"]
    arms = [*ARMS, Arm(name="twin", own={}, kind="arm")]
    found = judge(arms, [one for one in records if one["arm"] != "wave"] + twins, seeds=6, margin=0.5)["comparisons"]
    up, down, wave, twin = found[:4]
    assert (wave["verdict"], wave["p_holm"], wave["same_as"]) == ("the same", None, "random")
    assert "wave is the same as random" in wave["words"]
    p = [up["percent"]["p"], down["percent"]["p"]]
    assert [up["p_holm"], down["p_holm"]] == pytest.approx(multipletests(p, method="holm")[1].tolist())
    assert (twin["p_holm"], twin["verdict"], twin["same_as"]) == (up["p_holm"], "worse", "up")
    assert twin["words"] == f"twin is the same as up, run by run: {up['words']}"


def test_what_an_arm_does_on_the_way(records: list[dict[str, Any]]) -> None:
    arms = judge(ARMS, records, seeds=6, margin=0.5)["arms"]
    assert arms["random"]["reach"]["tokens"] == [300.0] * 6
    assert arms["up"]["reach"] == {"tokens": [None] * 6, "runs": 0, "share_of_budget": None}
    early = arms["down"]["reach"]["share_of_budget"]
    assert 2 / 3 < early < 1
    final = np.mean([one["bpb"][-1] for one in records if one["arm"] == "up"])
    assert arms["up"]["forgetting"]["bins"] == pytest.approx([final - 0.1 - 1.9, final + 0.1 - 3.0])
    assert arms["up"]["forgetting"]["early"] == pytest.approx(final - 2.0)  # of bin 0 alone
    assert arms["up"]["marginal"] == [0.5, 0.5]


def test_pairs_that_are_not_whole_are_left_out(records: list[dict[str, Any]]) -> None:
    some = [one for one in records if one["seed"] < 3 or one["arm"] != "up"]
    found = judge(ARMS, some, seeds=6, margin=0.5)
    assert found["comparisons"][0]["seeds"] == [0, 1, 2] and found["comparisons"][0]["percent"]["n"] == 3
    without = judge(ARMS, [one for one in records if one["arm"] != "up"], seeds=6, margin=0.5)
    assert without["comparisons"][0]["verdict"] == "not judged"
    assert without["comparisons"][0]["words"] == "up against random: no seed has both"
    assert without["comparisons"][1]["p_holm"] > found["comparisons"][1]["percent"]["p"]


def test_a_bin_without_held_out_blocks_has_no_numbers(records: list[dict[str, Any]]) -> None:
    empty = [one | {"bpb_by_bin": [[row[0], None] for row in one["bpb_by_bin"]]} for one in records]
    found = judge(ARMS, empty, seeds=6, margin=0.5)
    assert found["arms"]["up"]["bins"][1]["mean"] is None and found["arms"]["up"]["bins"][0]["mean"] > 0
    assert found["comparisons"][0]["bins_percent"][1]["n"] == 0


def test_words(records: list[dict[str, Any]]) -> None:
    rest = {"command": "c", "fingerprints": {"blocks": "b", "cells": {}}, "failed": {"up, seed 9": "why"}}
    found = judge(ARMS, records, seeds=7, margin=0.5) | rest | {"versions": {"torch": "2"}}
    text = markdown("compare", found)
    assert "bootstrap" not in text and "rule out a difference of 0.5 % or more" in text  # 6 seeds
    assert "30 of 35 runs" in text and "failed: up, seed 9: why" in text
    assert "Log-likelihood of the right answers" in text
    for table in (part.splitlines() for part in text.split("\n\n") if part.startswith("|")):
        assert len({line.count("|") for line in table}) == 1 and len(table) > 2
    first, second, *_ = summary("compare", found)
    assert first == "against random:"
    assert second.startswith("  " + found["comparisons"][0]["words"]) and second.endswith("by Holm, 6 seeds)")
