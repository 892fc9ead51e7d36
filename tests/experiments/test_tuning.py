"""Peak learning rates of arms, chosen on seeds that are not judged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from runfiles import metrics, times
from tokenruns import LENGTH, write_bins

from fluxentropy.config.yaml import from_plain
from fluxentropy.errors import RunError, UsageError
from fluxentropy.experiments.arms import all_arms
from fluxentropy.experiments.options import SHIFT, CompareConfig
from fluxentropy.experiments.schedules import compare
from fluxentropy.experiments.tuning import choices, grid, tuned_arms, with_rates
from fluxentropy.runs.files import read_json

BASE: dict[str, Any] = {
    "model": {"n_layer": 1, "n_head": 2, "n_embd": 16, "vocab_multiple": 1},
    "tokens": 6 * 4 * LENGTH,
    "batch_size": 4,
    "holdout": 4,
    "eval_every": 12 * LENGTH,
    "checkpoint_every": 3,
    "accelerator": "cpu",
    "lr": {"warmup": 0.0},
}
ARMS: dict[str, Any] = {
    "up": {"schedule": {"name": "increasing"}},
    "slow": {"schedule": {"name": "increasing"}, "lr": {"schedule": "constant"}},
    "own": {"schedule": {"name": "decreasing"}, "optim": {"lr": 0.5}},
}
RATES = [0.05, 0.005]
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def bins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bins(tmp_path_factory.mktemp("corpus"))


def config(bins: Path, out: Path, **options: Any) -> CompareConfig:
    plain = {"base": BASE, "arms": ARMS, "controls": ["shuffled"], "seeds": 1, "rates": RATES, "tuning_seeds": 2}
    found: CompareConfig = from_plain(CompareConfig, plain | {"bins": bins, "out": out} | options)
    return found


def test_each_arm_has_the_rate_that_was_best_for_it(bins: Path, tmp_path: Path) -> None:
    asked = config(bins, tmp_path / "out")
    result = compare(asked)
    tuning = result.record["tuning"]
    assert set(tuning) == {"random", "slow-random", "up", "slow"}
    for arm, found in tuning.items():
        means = {}
        for rate in RATES:
            runs = [asked.out / "tuning" / "cells" / f"{arm}+lr{rate:g}" / f"seed-{SHIFT + place}" for place in (0, 1)]
            means[rate] = np.mean([metrics(run)[-1]["val_bpb"] for run in runs])
            assert found["bpb"][f"{rate:g}"] == pytest.approx(means[rate], rel=1e-12)
        assert found["lr"] == min(means, key=lambda rate: means[rate])
        assert found["edge"]  # of two, each is one
    chosen = {name: arm["own"].get("optim", {}).get("lr") for name, arm in result.record["arms"].items()}
    assert chosen == {name: found["lr"] for name, found in tuning.items()} | {
        "up-shuffled": tuning["up"]["lr"],
        "slow-shuffled": tuning["slow"]["lr"],
        "own": 0.5,
        "own-random": 0.5,
        "own-shuffled": 0.5,
    }
    for name, lr in chosen.items():
        run = yaml.safe_load((asked.out / "cells" / name / "seed-0" / "config.resolved.yaml").read_text())
        assert run["optim"]["lr"] == lr
    assert "## Peak learning rates" in (asked.out / "comparison.md").read_text()
    before = times(asked.out)
    assert compare(asked).record == result.record
    assert times(asked.out / "cells") == {
        path: when for path, when in before.items() if path in times(asked.out / "cells")
    }


def test_rates_are_chosen_from_whole_ones(bins: Path, tmp_path: Path) -> None:
    asked = config(bins, tmp_path / "out", rates=[0.1, 0.2, 0.4])
    arms = all_arms(asked)
    names = [arm.name for arm in tuned_arms(arms)]
    means = {0.1: 3.0, 0.2: 2.0, 0.4: 1.0}
    record: dict[str, Any] = {
        "arms": {
            f"{name}+lr{rate:g}": {"seeds": [100, 101], "bpb": {"mean": means[rate]}}
            for name in names
            for rate in means
        }
    }
    assert choices(asked, arms, record)["up"] == {"lr": 0.4, "bpb": {"0.1": 3.0, "0.2": 2.0, "0.4": 1.0}, "edge": True}
    record["arms"]["up+lr0.4"]["seeds"] = [100]  # a run that failed
    assert choices(asked, arms, record)["up"] == {
        "lr": 0.2,
        "bpb": {"0.1": 3.0, "0.2": 2.0, "0.4": None},
        "edge": False,
    }
    record["arms"]["up+lr0.2"]["bpb"]["mean"] = 3.0
    assert choices(asked, arms, record)["up"]["lr"] == 0.1
    for rate in means:
        record["arms"][f"slow+lr{rate:g}"]["seeds"] = []
    with pytest.raises(RunError, match="arm slow: no peak rate of 0.1, 0.2, 0.4 has all of its 2 runs"):
        choices(asked, arms, record)


def test_an_arm_from_another_has_the_rate_of_its_trunk(bins: Path, tmp_path: Path) -> None:
    arms = {
        "stable": {"lr": {"schedule": "constant"}, "schedule": {"name": "increasing"}},
        "branch": {"from": "stable@0.5", "lr": {}},
    }
    found = all_arms(config(bins, tmp_path / "out", arms=arms))
    assert "branch" not in [arm.name for arm in tuned_arms(found)]
    rated = {arm.name: arm for arm in with_rates(found, {"stable": {"lr": 0.3}})}
    trunk = rated["branch"].trunk
    assert trunk is not None
    assert (trunk.own["optim"], rated["stable"].own["optim"]) == ({"lr": 0.3}, {"lr": 0.3})
    assert (
        rated["branch"]
        .config(from_plain(CompareConfig, {"base": BASE, "bins": bins, "out": tmp_path}).base, bins, tmp_path)
        .optim.lr
        == 0.3
    )


def test_what_is_tuned_is_a_comparison(bins: Path, tmp_path: Path) -> None:
    asked = config(bins, tmp_path / "out")
    found = grid(asked, all_arms(asked))
    assert len(found.arms) == 8
    assert (found.base.seed, found.seeds, found.controls, found.rates) == (SHIFT, 2, (), ())
    assert {arm.name for arm in all_arms(found)} == set(found.arms)  # each finds a random arm that is trained like it


@pytest.mark.parametrize("rates", [[0.0], [-1.0], [float("nan")], [0.1, 0.1], [0.1, 0.10000001]])
def test_rates_that_are_none(bins: Path, tmp_path: Path, rates: list[float]) -> None:
    with pytest.raises(UsageError, match="--rates .*: give different numbers above 0"):
        config(bins, tmp_path / "out", rates=rates)
    assert read_json(tmp_path / "out" / "comparison.json") is None


def test_seeds_that_would_be_judged_and_chosen_on(bins: Path, tmp_path: Path) -> None:
    assert config(bins, tmp_path / "out", seeds=100).seeds == 100
    assert config(bins, tmp_path / "out", seeds=101, rates=[]).seeds == 101
    with pytest.raises(UsageError, match="--seeds 101 with --rates: .* use at most 100 seeds"):
        config(bins, tmp_path / "out", seeds=101)
