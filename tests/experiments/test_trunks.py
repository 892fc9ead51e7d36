"""Arms that start from other arms: which there are, and that sharing a trunk changes no record."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from runfiles import cells, metrics, times
from tokenruns import LENGTH, write_bins

import fluxentropy
from fluxentropy.cli.app import main
from fluxentropy.config.yaml import from_plain, to_plain
from fluxentropy.errors import UsageError
from fluxentropy.experiments.arms import ANEW, Arm, all_arms
from fluxentropy.experiments.options import CompareConfig
from fluxentropy.experiments.schedules import make_cell, make_cells
from fluxentropy.pretraining.callbacks import Checkpoints
from fluxentropy.pretraining.optim import BATCHED
from fluxentropy.pretraining.options import TrainingOptions
from fluxentropy.pretraining.pretrain import FREE, open_blocks
from fluxentropy.runs.files import fingerprint_json, read_json
from fluxentropy.schedules.options import LATER

STEPS, BATCH = 8, 4
pytestmark = pytest.mark.usefixtures("one_thread")

BASE: dict[str, Any] = {
    "model": {"n_layer": 1, "n_head": 2, "n_embd": 16, "vocab_multiple": 1},
    "tokens": STEPS * BATCH * LENGTH,
    "batch_size": BATCH,
    "holdout": 4,
    "eval_every": 2 * BATCH * LENGTH,
    "checkpoint_every": 3,
    "accelerator": "cpu",
    "optim": {"lr": 0.02},
    "lr": {"schedule": "constant"},
}
DECAY = {"lr": {"schedule": "trapezoid", "decay": 0.5}}
ARMS: dict[str, Any] = {
    "up": {"schedule": {"name": "increasing"}},
    "up-decay": {"from": "up@0.5", **DECAY},
    "up-then": {"from": "up@0.25", "schedule": {"name": "random"}, "keep_optimizer": True, **DECAY},
}


@pytest.fixture(scope="module")
def bins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bins(tmp_path_factory.mktemp("corpus"))


def options(bins: Path, arms: dict[str, Any], out: Path = Path("out"), **more: Any) -> CompareConfig:
    base = from_plain(TrainingOptions, BASE)
    return CompareConfig(bins=bins, base=base, arms=arms, out=out, **more)


def arms_of(bins: Path, arms: dict[str, Any], **more: Any) -> dict[str, Arm]:
    return {arm.name: arm for arm in all_arms(options(bins, arms, **more))}


def test_a_branch_is_judged_against_the_branch_of_random(bins: Path) -> None:
    arms = arms_of(bins, ARMS)
    assert list(arms) == [
        *("random", "up-decay-random", "up-then-random", "up", "up-decay", "up-then"),
        *("up-reversed", "up-shuffled", "up-decay-reversed", "up-decay-shuffled"),
        *("up-then-reversed", "up-then-shuffled"),
    ]
    assert arms["up-decay"].baseline == "up-decay-random" and arms["up-then"].baseline == "up-then-random"
    assert arms["up-decay-random"].own == {"from": "random@0.5", **DECAY}
    assert arms["up-then-random"].own == ARMS["up-then"] | {"from": "random@0.25"}
    assert [arms[name].kind for name in ("up-decay-random", "up-then-random", "up-then")] == ["random", "random", "arm"]
    # controls of a branch are branches of controls; its static mixture is that of its random arm
    assert arms["up-decay"].controls == {
        "reversed": "up-decay-reversed",
        "shuffled": "up-decay-shuffled",
        "static": "up-decay-random",
    }
    assert arms["up-decay-shuffled"].own == {"from": "up-shuffled@0.5", **DECAY}
    # a new training that is random itself has an ordered trunk to be controlled
    assert arms["up-then"].controls["static"] == "up-then-random"
    assert arms["up-then-shuffled"].own == ARMS["up-then"] | {"from": "up-shuffled@0.25"}
    down = {"down": {"from": "random@0.25", "schedule": {"name": "decreasing"}}}
    assert arms_of(bins, down)["down-reversed"].own == {"from": "random@0.25", "schedule": {"name": "increasing"}}
    base = from_plain(TrainingOptions, BASE)
    for place in range(3):  # with the row of the Latin square that the trunk has
        runs = {name: arm.config(base, bins, Path("out"), place) for name, arm in arms.items()}
        assert runs["up-decay-shuffled"].schedule == runs["up-shuffled"].schedule
        assert runs["up-shuffled"].schedule.balanced_labels == place
        for name, run in runs.items():
            assert run.out == Path(f"out/cells/{name}/seed-{place}")
        one, two = runs["up-decay"], runs["up-then"]
        assert (one.from_, one.branch, one.tokens, one.seed) == (f"out/cells/up/seed-{place}@4", True, 512, place)
        assert (two.from_, two.branch, two.tokens, two.seed) == (
            f"out/cells/up/seed-{place}@2",
            False,
            384,
            place + ANEW,
        )


def test_arms_with_the_same_branch_share_their_random_arm(bins: Path) -> None:
    asked = {
        "up": {"schedule": {"name": "increasing"}},
        "down": {"schedule": {"name": "decreasing"}},
        **{f"{name}-{share}": {"from": f"{name}@{share}", **DECAY} for name in ("up", "down") for share in (0.5, 0.75)},
        "plain": {"from": "random@0.5", **DECAY},
        "twice": {"from": "up-0.5@0.75", "clip": 0.1},
    }
    arms = arms_of(bins, asked, controls=())
    assert {name: arm.baseline for name, arm in arms.items() if arm.kind == "arm"} == {
        "up": "random",
        "down": "random",
        "up-0.5": "plain",
        "down-0.5": "plain",
        "up-0.75": "up-0.75-random",
        "down-0.75": "up-0.75-random",
        "twice": "twice-random",
    }
    assert arms["twice-random"].own == {"from": "plain@0.75", "clip": 0.1}
    base = from_plain(TrainingOptions, BASE | {"schedule": {"name": "decreasing"}})
    alone = all_arms(CompareConfig(bins=bins, base=base, arms={"x": {"from": "random@0.5", **DECAY}}, out=Path("out")))
    assert (alone[0].name, alone[0].own) == ("random", {"schedule": {"name": "random"}})
    run = arms["twice"].config(from_plain(TrainingOptions, BASE), bins, Path("out"))
    assert (run.clip, run.lr.schedule, run.from_) == (0.1, "trapezoid", "out/cells/up-0.5/seed-0@6")


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"from": "up"}, "arms.x.from up: write an arm and a share of its steps between 0 and 1, such as x@0.6"),
        ({"from": "up@1.5"}, "such as up@0.6"),
        ({"from": "upp@0.5"}, "there is no such arm: did you mean up"),
        ({"from": "x@0.5"}, "x starts from x: let one have no from"),
        ({"from": "then@0.5"}, "then is a new training itself"),
        ({"from": "up@0.5", "short_start": 4}, "arms.x.short_start: a branch has it from its trunk up"),
        ({"from": 3}, "x.from: 3 is not text"),
        ({"branch": True}, "arms.x.branch: all arms share it"),
    ],
)
def test_refusals(own: dict[str, Any], message: str, bins: Path) -> None:
    up = {"schedule": {"name": "increasing"}}
    with pytest.raises(UsageError) as caught:
        arms_of(bins, {"up": up, "then": {"from": "up@0.5", **up}, "x": own})
    assert message in str(caught.value)


def test_cells_without_trunks_have_the_fingerprints_of_earlier_versions(bins: Path) -> None:
    config = options(bins, {"up": ARMS["up"]})
    run = all_arms(config)[1].config(config.base, bins, config.out)
    ours = make_cell("up", run, None)
    earlier = {
        **{"schedule": 0, "tokens": 0, "batch_size": 0, "seed": 0, "exhausted": 0, "holdout": 0, "eval_blocks": 0},
        **{"model": 0, "optim": 0, "lr": 0, "average": 0, "questions": 0, "clip": 0, "micro_batch": 0},
        **{"short_start": 0, "short_tokens": 0, "model_seed": 0, "precision": 0},
        **{"eval_every": 0, "eval_batch": 0, "log_every": 0},
    }
    plain = {name: value for name, value in to_plain(run).items() if name in earlier}
    assert earlier.keys() == plain.keys() and not set(FREE) & set(earlier)
    for name in ("balanced_labels", *LATER):
        del plain["schedule"][name]
    blocks, held_out = open_blocks(run)
    facts = [plain, blocks.fingerprint, held_out.blocks.fingerprint, held_out.first.tolist(), None, BATCHED]
    assert ours.fingerprint == fingerprint_json(facts)


def test_what_a_cell_starts_from_is_in_its_fingerprint(bins: Path) -> None:
    def prints(arms: dict[str, Any]) -> dict[str, str]:
        config = options(bins, arms, controls=())
        return {cell.arm: cell.fingerprint for cell in make_cells(config, all_arms(config), 0)}

    one = prints(ARMS)
    later = prints(ARMS | {"up-decay": ARMS["up-decay"] | {"from": "up@0.75"}})
    other = prints(ARMS | {"up": {"schedule": {"name": "decreasing"}}})
    assert one["up"] == later["up"] and one["up-decay"] != later["up-decay"]
    assert one["random"] == other["random"] and one["up-then"] != other["up-then"]  # by its trunk alone


# --- trained ----------------------------------------------------------------------------------------------------------


def command(folder: Path, bins: Path, *more: object, arms: dict[str, Any] = ARMS, **options: Any) -> list[str]:
    file = folder / "compare.yaml"
    file.write_text(yaml.safe_dump({"base": BASE, "arms": arms, "controls": [], "seeds": 1} | options))
    return ["compare", "--config", str(file), "--bins", str(bins), "--out", str(folder / "out"), *map(str, more)]


def checkpoints(out: Path) -> list[str]:
    return sorted(str(path.relative_to(out / "cells")) for path in out.glob("cells/*/*/checkpoints/*"))


@pytest.fixture(scope="module")
def whole(bins: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    assert main(command(folder, bins)) == 0
    return folder / "out"


def test_a_branch_has_the_record_of_a_run_of_its_own(bins: Path, whole: Path, tmp_path: Path) -> None:
    record = read_json(whole / "cells/up-decay/seed-0.json") or {}
    fluxentropy.pretrain(
        **BASE | DECAY, bins=bins, out=tmp_path / "alone", schedule={"name": "increasing"}, model_seed=0
    )
    assert (tmp_path / "alone" / "metrics.csv").read_bytes() == (
        whole / "cells/up-decay/seed-0/metrics.csv"
    ).read_bytes()
    assert record["bpb"][-1] == metrics(tmp_path / "alone")[-1]["val_bpb"] and record["tokens"][-1] == 512
    assert checkpoints(whole) == []
    comparison = read_json(whole / "comparison.json") or {}
    assert [(one["arm"], one["against"], one["family"]) for one in comparison["comparisons"]][:3] == [
        ("up", "random", "against random"),
        ("up-decay", "up-decay-random", "against random"),
        ("up-then", "up-then-random", "against random"),
    ]
    assert main(["verify", str(whole)]) == 0


def test_a_new_training_goes_on_with_the_curve_of_its_trunk(whole: Path) -> None:
    record = read_json(whole / "cells/up-then/seed-0.json") or {}
    trunk, own = (metrics(whole / f"cells/{name}/seed-0") for name in ("up", "up-then"))
    assert record["tokens"][:2] == [0, 128] and record["tokens"][-1] == 512
    assert record["bpb"][:2] == [trunk[0]["val_bpb"], own[0]["val_bpb"]] and own[0]["tokens"] == 0
    assert own[0]["val_bpb"] == next(row["val_bpb"] for row in trunk if row["step"] == 2)
    assert np.shape(record["mixture"]) == (STEPS, 3) and record["mixture"][0] == [1, 0, 0]


@pytest.mark.usefixtures("undrawn")
def test_stopped_anywhere_it_has_the_same_records(
    bins: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, count = Checkpoints.step_end, 0
    argv = command(tmp_path, bins)
    for stop in (5, 18, 25, 33):

        def step_end(self: Any, trainer: Any, module: Any, number: int) -> None:
            nonlocal count
            count += 1
            if count == stop:  # noqa: B023
                raise RuntimeError("stopped")
            own(self, trainer, module, number)

        with monkeypatch.context() as patch:
            patch.setattr(Checkpoints, "step_end", step_end)
            assert main(argv) == 1
    assert "up/seed-0/checkpoints/step-00000004.kept.ckpt" in checkpoints(tmp_path / "out")  # for what is to come
    assert main([*argv, "--workers", "2"]) == 0
    assert cells(tmp_path / "out") == cells(whole) and checkpoints(tmp_path / "out") == []


@pytest.mark.usefixtures("undrawn")
def test_a_branch_that_joins_later_has_its_trunk_trained_again(
    bins: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(shutil.copytree(whole, tmp_path / "out"))
    before = times(out)
    arms = ARMS | {"up-late": {"from": "up-decay@0.75", "clip": 0.1}}
    assert main(command(tmp_path, bins, arms=arms)) == 0
    said = capsys.readouterr().err
    assert "up-decay, seed 0 is trained again" in said and "up, seed 0 is trained again" in said
    after = cells(out)
    assert {name: after[name] for name in cells(whole)} == cells(whole) and len(after) == 6 + 2
    again = {path.parts[-3] for path, time in before.items() if times(out)[path] != time}
    assert again == {"up", "up-decay", "random", "up-decay-random"}
    assert checkpoints(out) == []
    before = times(out)
    assert main(command(tmp_path, bins, arms=arms)) == 0 and times(out) == before


@pytest.mark.usefixtures("undrawn")
def test_what_starts_from_a_run_that_failed_is_told(
    bins: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wild = {"optim": {"lr": 1e30}, "clip": 1e30}
    arms = {"up": ARMS["up"], "wild": {**ARMS["up"], **wild}, "next": {"from": "wild@0.5", "clip": 1.0}}
    assert main(command(tmp_path, bins, arms=arms)) == 1
    record = read_json(tmp_path / "out" / "comparison.json") or {}
    assert record["failed"]["next, seed 0"] == "it starts from wild, seed 0, which failed"
    assert record["arms"]["up"]["seeds"] == [0] and "wild, seed 0: the " in capsys.readouterr().out


@pytest.mark.usefixtures("undrawn")
def test_several_averages_are_in_the_record(bins: Path, tmp_path: Path) -> None:
    arms = {"up": {**ARMS["up"], "average": {"kind": "ema", "decay": [0.5, 0.9]}}}
    assert main(command(tmp_path, bins, arms=arms, sources="source")) == 0
    record, last = read_json(tmp_path / "out/cells/up/seed-0.json") or {}, metrics(tmp_path / "out/cells/up/seed-0")[-1]
    assert record["averages"] == {"0.5": last["val_bpb_averaged_0.5"], "0.9": last["val_bpb_averaged_0.9"]}
    assert record["bpb"][-1] == last["val_bpb_averaged_0.5"]
    bits = sum(one["bpb"] * one["bytes"] for one in record["sources"].values())
    total = sum(one["bytes"] for one in record["sources"].values())
    assert bits / total == pytest.approx(record["bpb"][-1], rel=1e-5)
