"""Which arms a comparison has: random ones, controls, and what counts as the same run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenruns import LENGTH, write_bins

from fluxentropy.errors import RunError, UsageError
from fluxentropy.experiments.arms import Arm, all_arms
from fluxentropy.experiments.cells import remember_arms
from fluxentropy.experiments.options import CompareConfig
from fluxentropy.pretraining.options import ArchitectureOptions, TrainingOptions
from fluxentropy.pretraining.pretrain import open_blocks
from fluxentropy.schedules.dataset import BlockSet
from fluxentropy.schedules.sampler import open_sampler

BASE = TrainingOptions(
    tokens=20 * 4 * LENGTH,
    batch_size=4,
    holdout=4,
    seed=10,
    model=ArchitectureOptions(n_layer=1, n_head=2, n_embd=16),
)


@pytest.fixture(scope="module")
def bins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bins(tmp_path_factory.mktemp("corpus"), bins=4, texts=400)


def arms_of(bins: Path, arms: dict[str, Any], **more: Any) -> dict[str, Arm]:
    return {arm.name: arm for arm in all_arms(CompareConfig(bins=bins, base=BASE, arms=arms, out=Path("out"), **more))}


def drawn(arm: Arm, bins: Path, place: int = 0) -> Any:
    """Blocks of each bin in each step, (T, K)."""
    config = arm.config(BASE, bins, Path("out"), place)
    sampler = open_sampler(config, open_blocks(config)[0])
    whole = BlockSet.open(bins)
    return [
        [int((whole.places(sampler.batch(step))[0] == k).sum()) for k in range(whole.bins)]
        for step in range(sampler.steps)
    ]


def test_a_permutation_gets_random_its_reverse_and_shuffled_labels(bins: Path) -> None:
    arms = arms_of(bins, {"up": {"schedule": {"name": "increasing"}}})
    assert list(arms) == ["random", "up", "up-reversed", "up-shuffled"]
    assert arms["up"].controls == {"reversed": "up-reversed", "shuffled": "up-shuffled", "static": "random"}
    assert arms["up-reversed"].own["schedule"] == {"name": "decreasing"}
    assert arms["up"].baseline == arms["up-reversed"].baseline == "random"


def test_arms_that_are_there_serve_as_controls(bins: Path) -> None:
    asked = {
        "down": {"schedule": {"name": "decreasing"}},
        "base": {},
        "up": {"schedule": {"name": "increasing"}},
        "up-shuffled": {"schedule": {"name": "increasing", "shuffle_labels": 7}},
    }
    arms = arms_of(bins, asked, controls=("reversed", "shuffled"))
    assert list(arms) == ["base", "down", "up", "up-shuffled", "down-shuffled"]
    assert arms["up"].controls == {"reversed": "down", "shuffled": "up-shuffled"}
    assert arms["up"].baseline == "base"
    assert arms["up-shuffled"].kind == "shuffled" and arms["up-shuffled"].of == "up"


@pytest.mark.parametrize(
    "schedule",
    [
        {"name": "periodic", "cycles": 2},
        {"name": "folded", "cycles": 2},
        {"name": "tilt"},
        {"name": "pool"},
        {"name": "curriculum", "begin": "low", "until": 0.5},
        {"name": "segment", "front": 0.3},
    ],
    ids=lambda schedule: schedule["name"],
)
def test_controls_draw_what_they_promise(schedule: dict[str, Any], bins: Path) -> None:
    arms = arms_of(bins, {"a": {"schedule": schedule}})
    own, turned = drawn(arms["a"], bins), drawn(arms["a-reversed"], bins)
    assert own != turned
    mirrored = np.cumsum(own, axis=0)[:, ::-1] - np.cumsum(turned, axis=0)
    assert abs(mirrored).max() <= 3  # bins are nearly of one size
    static = drawn(arms[arms["a"].controls["static"]], bins)
    assert np.sum(own, axis=0).tolist() == np.sum(static, axis=0).tolist()
    even = np.outer(np.arange(1, 21), np.sum(own, axis=0) / 20)
    assert abs(np.cumsum(static, axis=0) - even).max() < 2
    shuffled = [drawn(arms["a-shuffled"], bins, place) for place in range(4)]
    assert all(one != own for one in shuffled)
    assert len({str(one) for one in shuffled}) == 4  # another order for each seed
    # over as many seeds as bins each bin has each place of the pacing once, so together they draw evenly at each step
    even = np.sum(shuffled, axis=(0, 2)) / 4
    assert abs(np.cumsum(np.sum(shuffled, axis=0) - even[:, None], axis=0)).max() <= 8


def test_a_selection_is_an_arm_and_judged_against_all_blocks(bins: Path) -> None:
    asked = {
        "half": {"schedule": {"keep": "lowest 0.5"}},
        "up": {"schedule": {"name": "increasing", "keep": "lowest 0.5", "jitter": 0.1}},
    }
    arms = arms_of(bins, asked)
    assert list(arms) == ["random", "half", "up", "up-reversed", "up-shuffled"]
    assert [arms[name].kind for name in asked] == ["arm"] * 2
    assert {arm.baseline for arm in arms.values()} == {"random"}
    assert arms["half"].controls == {}
    assert arms["up"].controls["static"] == "half"  # the same blocks, evenly
    assert np.sum(drawn(arms["half"], bins), axis=0)[-1] == 0


def test_a_stratified_arm_is_judged_against_a_stratified_random_one(bins: Path) -> None:
    up = {"schedule": {"name": "increasing", "stratify": "source"}}
    arms = arms_of(bins, {"up": up, "plain": {"schedule": {"name": "increasing"}}}, controls=["static"])
    assert {name: arm.baseline for name, arm in arms.items() if arm.kind == "arm"} == {
        "up": "up-random",
        "plain": "random",
    }
    assert arms["up-random"].own == {"schedule": {"name": "random", "stratify": "source"}}
    assert arms["up"].controls == {"static": "up-random"}
    other = arms_of(
        bins, {"mixed": {"schedule": {"stratify": "source"}}, "up": up, "slow": up | {"lr": {"floor": 0.1}}}
    )
    assert (other["mixed"].kind, other["up"].baseline, other["slow"].baseline) == ("random", "mixed", "slow-random")
    assert other["slow-random"].own["schedule"] == {"name": "random", "stratify": "source"}


def test_seeds_are_paired(bins: Path) -> None:
    arms = arms_of(bins, {"up": {"schedule": {"name": "increasing"}}})
    for place in (0, 3):
        runs = [arm.config(BASE, bins, Path("out"), place) for arm in arms.values()]
        assert {(run.seed, run.model_seed) for run in runs} == {(10 + place, 10 + place)}
        assert {run.out for run in runs} == {Path(f"out/cells/{name}/seed-{10 + place}") for name in arms}


def test_another_training_has_its_own_random_arm(bins: Path) -> None:
    constant = {"lr": {"schedule": "constant"}, "average": {"kind": "ema", "decay": 0.9}}
    asked = {
        "up": {"schedule": {"name": "increasing"}},
        "up-flat": constant | {"schedule": {"name": "increasing"}},
        "down-flat": constant | {"schedule": {"name": "decreasing"}},
    }
    arms = arms_of(bins, asked, controls=())
    assert arms["up"].baseline == "random"
    assert arms["up-flat"].baseline == arms["down-flat"].baseline == "up-flat-random"
    run = arms["up-flat-random"].config(BASE, bins, Path("out"))
    assert (run.lr.schedule, run.lr.warmup, run.average.kind) == ("constant", BASE.lr.warmup, "ema")
    assert run.schedule.name == "random"


def test_a_control_that_is_named_is_one_though_none_are_asked_for(bins: Path) -> None:
    asked = {"up": {"schedule": {"name": "increasing"}}}
    asked["up-shuffled"] = {"schedule": {"name": "increasing", "balanced_labels": 2}}
    arms = arms_of(bins, asked, controls=())
    runs = [arms["up-shuffled"].config(BASE, bins, Path("out"), place) for place in range(3)]
    assert [run.schedule.balanced_labels for run in runs] == [2, 3, 4]  # the next row for each seed
    assert [*arms] == ["random", "up", "up-shuffled"]
    assert arms["up"].controls == {"shuffled": "up-shuffled"}
    assert arms["up-shuffled"].kind == "shuffled"


def test_shuffled_controls_of_an_earlier_version_are_refused(tmp_path: Path, bins: Path) -> None:
    """They had a random order for each seed, kept as an option that was left out where it was 0."""
    (tmp_path / "cells" / "up-shuffled").mkdir(parents=True)
    remember_arms(tmp_path, {"up-shuffled": {"schedule": {"name": "increasing"}}})
    own = arms_of(bins, {"up": {"schedule": {"name": "increasing"}}})["up-shuffled"].own
    with pytest.raises(
        RunError, match="schedule.balanced_labels is None there and 0 here. Choose another name, or remove"
    ):
        remember_arms(tmp_path, {"up-shuffled": own})


def test_adaptive_has_no_controls(bins: Path) -> None:
    assert list(arms_of(bins, {"a": {"schedule": {"name": "adaptive"}}})) == ["random", "a"]


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        ({}, "arms: there are none"),
        ({"a b": {}}, "arms.a b: begin a name with"),
        ({"up": 3}, r"arms.up: write a mapping, such as \{schedule: \{name: increasing\}\}, not 3"),
        ({"up": {"schedul": {}}}, "--arms: unknown key up.schedul: did you mean schedule?"),
        ({"up": {"schedule": {"nam": "x"}}}, "--arms: unknown key up.schedule.nam: did you mean name?"),
        ({"up": {"tokens": 100}}, "arms.up.tokens: all arms share it, so it goes under base"),
        ({"up": {"schedule": {"name": "upward"}}}, "arms.up: schedule.name upward"),
        ({"up": {"lr": {"floor": 2.0}}}, "floor 2.0: use a share from 0 to 1"),
        ({"up": {"bins": "elsewhere"}}, "arms.up.bins: its blocks may hold what the other arms are validated on"),
        ({"random": {"schedule": {"name": "increasing"}}}, "arms.random: this is the name of the random arm"),
    ],
)
def test_refusals(arms: dict[str, Any], message: str, bins: Path) -> None:
    with pytest.raises(UsageError, match=message):
        arms_of(bins, arms)
