"""`fluxentropy compare` end to end on a tiny model: what it writes, that it goes on, and what it refuses."""

from __future__ import annotations

import functools
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from runfiles import cells, metrics, times
from scipy import stats
from tokenruns import LENGTH, write_bins

from fluxentropy.cli.app import main
from fluxentropy.config.yaml import from_plain, read_yaml
from fluxentropy.experiments.arms import all_arms
from fluxentropy.experiments.cells import RunCell
from fluxentropy.experiments.options import CompareConfig
from fluxentropy.experiments.schedules import compare, make_cell, read_curve, realised, trained
from fluxentropy.pretraining.callbacks import Checkpoints
from fluxentropy.pretraining.options import TrainingOptions
from fluxentropy.runs.engine import WORKER
from fluxentropy.runs.files import read_json

STEPS, BATCH = 8, 4

BASE: dict[str, Any] = {
    "model": {"n_layer": 1, "n_head": 2, "n_embd": 16, "vocab_multiple": 1},
    "tokens": STEPS * BATCH * LENGTH,
    "batch_size": BATCH,
    "holdout": 4,
    "eval_every": 2 * BATCH * LENGTH,
    "checkpoint_every": 2,
    "accelerator": "cpu",
    "optim": {"lr": 0.02},
}

UP: dict[str, Any] = {"up": {"schedule": {"name": "increasing"}}}
CONTROLS = ["shuffled", "static"]
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def bins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bins(tmp_path_factory.mktemp("corpus"))


def command(folder: Path, bins: Path, *more: object, name: str = "out", **options: Any) -> list[str]:
    """The command line of a comparison in `folder`/`name`; `options` are those of its file."""
    file = folder / "compare.yaml"
    file.write_text(yaml.safe_dump({"base": BASE, "arms": UP, "controls": CONTROLS, "seeds": 2} | options))
    return ["compare", "--config", str(file), "--bins", str(bins), "--out", str(folder / name), *map(str, more)]


@pytest.fixture(scope="module")
def whole(bins: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    assert main(command(folder, bins, sources="source")) == 0
    return folder / "out"


def test_what_is_judged_is_what_was_trained(whole: Path) -> None:
    record = read_json(whole / "comparison.json") or {}
    assert record["order"] == ["random", "up", "up-shuffled"]
    assert record["arms"]["up"]["controls"] == {"shuffled": "up-shuffled", "static": "random"}
    final = {arm: [metrics(whole / "cells" / arm / f"seed-{seed}")[-1] for seed in (0, 1)] for arm in record["arms"]}
    for name, arm in record["arms"].items():
        assert arm["bpb"]["by_seed"] == [row["val_bpb"] for row in final[name]]
        assert [cell["by_seed"][1] for cell in arm["bins"]] == [
            final[name][1][f"val_bpb_bin_{k:02d}"] for k in range(3)
        ]
    ours, theirs = (np.array([row["val_bpb"] for row in final[arm]]) for arm in ("up", "random"))
    one = next(one for one in record["comparisons"] if one["arm"] == "up" and one["against"] == "random")
    oracle = stats.ttest_1samp(100 * (ours / theirs - 1), 0)
    assert (one["percent"]["mean"], one["percent"]["p"]) == pytest.approx(
        (100 * np.mean(ours / theirs - 1), oracle.pvalue)
    )
    assert one["p_holm"] == one["percent"]["p"]  # alone in its family
    assert [(one["arm"], one["against"], one["family"]) for one in record["comparisons"]] == [
        ("up", "random", "against random"),
        ("up", "up-shuffled", "order"),
        ("up-shuffled", "random", "controls"),
    ]
    assert final["up"][0]["val_bpb"] != final["up-shuffled"][0]["val_bpb"]


def test_pairs_start_alike_and_sources_add_up(whole: Path) -> None:
    records = {arm: read_json(whole / "cells" / arm / "seed-1.json") or {} for arm in ("random", "up")}
    assert records["random"]["bpb"][0] == records["up"]["bpb"][0]
    assert (read_json(whole / "cells/up/seed-0.json") or {})["bpb"][0] != records["up"]["bpb"][0]
    for record in records.values():
        found = record["sources"].values()
        assert len(found) >= 2
        total = sum(one["bytes"] for one in found)
        assert sum(one["bpb"] * one["bytes"] for one in found) / total == pytest.approx(record["bpb"][-1], rel=1e-5)


def test_mixtures_are_those_of_the_ledger(whole: Path) -> None:
    found = realised(whole / "cells/up/seed-0/ledger.parquet", 4)
    assert found.shape == (4, 3)
    assert found[0].tolist() == [1, 0, 0] and found[-1].tolist() == [0, 0, 1]
    record = read_json(whole / "cells/random/seed-0.json") or {}
    assert np.mean(record["mixture"], axis=0) == pytest.approx([1 / 3] * 3, abs=0.05)


def test_pictures_and_words(whole: Path) -> None:
    for name in ("curves", "differences", "mixture", "effects"):
        assert (whole / f"{name}.png").stat().st_size > 5000 and (whole / f"{name}.svg").exists()
    text = (whole / "comparison.md").read_text()
    record = read_json(whole / "comparison.json") or {}
    for one in record["comparisons"]:
        assert one["words"] in text
    assert f"fluxentropy compare --config {whole / 'config.resolved.yaml'}" in text
    assert record["fingerprints"]["blocks"] in text
    assert "the control `static` of `up` is `random`" in text


@pytest.mark.usefixtures("undrawn")
def test_the_command_in_the_words_changes_nothing(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, numbers = times(whole), (whole / "comparison.json").read_bytes()
    capsys.readouterr()
    assert main(["compare", "--config", str(whole / "config.resolved.yaml"), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    found = compare(**read_yaml(whole / "config.resolved.yaml", CompareConfig))
    assert (found.out, found.failed, found.runs, found.exit_code) == (whole, {}, 6, 0)
    assert (found.arms, found.comparisons) == (printed["arms"], printed["comparisons"])
    assert found.to_dict() == printed and "up-shuffled" in found._repr_html_()
    assert times(whole) == before and (whole / "comparison.json").read_bytes() == numbers


def test_verify_looks_at_every_run(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = Path(shutil.copytree(whole, tmp_path / "out"))
    assert main(["verify", str(out)]) == 0
    with open(out / "cells/up/seed-1/export/model.safetensors", "r+b") as file:
        file.seek(200)
        file.write(b"?")
    capsys.readouterr()
    assert main(["verify", str(out)]) == 1
    assert "cells/up/seed-1/export/model.safetensors" in capsys.readouterr().out


class StoppedError(Exception):
    pass


@pytest.mark.usefixtures("undrawn")
def test_killed_in_the_middle_it_goes_on(
    bins: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = command(tmp_path, bins, "--seeds", 1, sources="source")
    own = Checkpoints.step_end
    steps = 0

    def step_end(self: Any, trainer: Any, module: Any, number: int) -> None:
        nonlocal steps
        steps += 1
        if steps == STEPS + 6:  # in the second cell, past its checkpoint at step 4
            raise StoppedError
        own(self, trainer, module, number)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "step_end", step_end)
        assert main(argv) == 1
    out = tmp_path / "out"
    assert [str(path) for path in cells(out)] == ["cells/random/seed-0.json"]
    before = times(out)
    capsys.readouterr()
    assert main([*argv, "--no-train"]) == 0
    assert "no seed has both" in capsys.readouterr().out
    assert main(argv) == 0
    assert "resuming after step 4 of 8" in capsys.readouterr().err
    assert {path: time for path, time in times(out).items() if "random/seed-0" in str(path)} == {
        path: time for path, time in before.items() if "random/seed-0" in str(path)
    }
    assert cells(out).items() < cells(whole).items() and len(cells(out)) == 3


@pytest.mark.usefixtures("undrawn")
def test_arms_and_seeds_join(bins: Path, whole: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(whole, tmp_path / "out"))
    before, records = times(out), cells(out)
    arms = UP | {"wave": {"schedule": {"name": "periodic", "cycles": 1}}}
    assert main(command(tmp_path, bins, "--seeds", 3, arms=arms, sources="source", controls=[])) == 0
    after = times(out)
    assert {path: after[path] for path in before} == before
    assert records.items() <= cells(out).items()
    record = read_json(out / "comparison.json") or {}
    assert {name: arm["seeds"] for name, arm in record["arms"].items()} == {
        "random": [0, 1, 2],
        "up": [0, 1, 2],
        "wave": [0, 1, 2],
    }
    assert len(after) > len(before)


def test_another_arm_of_the_same_name_is_refused(
    bins: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(shutil.copytree(whole, tmp_path / "out"))
    arms = {"up": {"schedule": {"name": "decreasing"}}}
    assert main(command(tmp_path, bins, arms=arms)) == 1
    assert "has runs of another arm up: schedule.name is 'increasing' there and 'decreasing' here" in (
        capsys.readouterr().err
    )
    assert main(command(tmp_path, bins, "--base.tokens", 4 * BATCH * LENGTH)) == 1
    assert "holds another run: base.tokens is 512 there and 256 here" in capsys.readouterr().err
    assert cells(out) == cells(whole)


def test_a_worker_trains_the_same_without_a_word(
    bins: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What an engine does in another process: the job and the cell are pickled, and several speak at once."""
    config = CompareConfig(bins=bins, base=from_plain(TrainingOptions, BASE), arms=UP, out=tmp_path / "out")
    up = next(arm for arm in all_arms(config) if arm.name == "up")
    cell = make_cell("up", up.config(config.base, bins, config.out), "source")
    job, sent = pickle.loads(pickle.dumps((RunCell(functools.partial(trained, sources="source"), 1, False), cell)))
    monkeypatch.setenv(WORKER, "0")
    capsys.readouterr()
    assert job(sent) is None
    assert capsys.readouterr() == ("", "")
    assert cell.path.read_bytes() == (whole / "cells/up/seed-0.json").read_bytes()
    assert not (cell.config.out / "checkpoints").exists()


@pytest.mark.usefixtures("undrawn")
def test_averaged_weights_are_judged(bins: Path, tmp_path: Path) -> None:
    flat = {"lr": {"schedule": "constant"}, "average": {"kind": "ema", "decay": 0.5}}
    arms = UP | {"up-flat": flat | UP["up"]}
    assert main(command(tmp_path, bins, "--seeds", 1, arms=arms, controls=[], sources="source")) == 0
    out = tmp_path / "out"
    record = read_json(out / "comparison.json") or {}
    assert {name: arm["weights"] for name, arm in record["arms"].items()} == {
        "random": "last",
        "up": "last",
        "up-flat": "averaged",
        "up-flat-random": "averaged",
    }
    last = metrics(out / "cells" / "up-flat" / "seed-0")[-1]
    cell = read_json(out / "cells/up-flat/seed-0.json") or {}
    assert cell["bpb"][-1] == last["val_bpb_averaged"] != last["val_bpb"]
    assert cell["bpb_by_bin"][-1] == [last[f"val_bpb_bin_{k:02d}_averaged"] for k in range(3)]
    bits = sum(one["bpb"] * one["bytes"] for one in cell["sources"].values())
    total = sum(one["bytes"] for one in cell["sources"].values())
    assert bits / total == pytest.approx(last["val_bpb_averaged"], rel=1e-5)
    assert [(one["arm"], one["against"]) for one in record["comparisons"]] == [
        ("up", "random"),
        ("up-flat", "up-flat-random"),
        ("up-flat-random", "random"),
    ]
    assert all(one["verdict"] == "not judged" for one in record["comparisons"])  # of one seed


@pytest.mark.usefixtures("undrawn")
def test_other_bins_are_judged_on_the_same_texts(bins: Path, tmp_path: Path) -> None:
    for name in ("held", "four"):
        (tmp_path / name).mkdir()
    held, four = write_bins(tmp_path / "held", seed=2, texts=30), write_bins(tmp_path / "four", bins=4)
    arms = UP | {"up-four": UP["up"] | {"bins": str(four)}}
    base = BASE | {"validation": str(held)}
    assert main(command(tmp_path, bins, "--seeds", 1, arms=arms, controls=[], base=base)) == 0
    record = read_json(tmp_path / "out" / "comparison.json") or {}
    assert [len(arm["bins"]) for arm in record["arms"].values()] == [3, 3, 3]
    assert {name: len(arm["marginal"]) for name, arm in record["arms"].items()} == {"random": 3, "up": 3, "up-four": 4}
    assert record["arms"]["up-four"]["forgetting"]["early"] is None
    first = [read_json(path) or {} for path in sorted((tmp_path / "out/cells").glob("*/seed-0.json"))]
    assert len({one["bpb"][0] for one in first}) == 1  # untrained, on the same tokens


@pytest.mark.usefixtures("undrawn")
def test_a_run_that_fails_is_told_and_the_others_count(
    bins: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arms = UP | {"wild": UP["up"] | {"optim": {"lr": 1e30}, "clip": 1e30}}
    assert main(command(tmp_path, bins, "--seeds", 1, arms=arms, controls=[])) == 1
    said = capsys.readouterr().out
    assert "2 of 4 runs failed" in said and "wild, seed 0: the " in said
    record = read_json(tmp_path / "out" / "comparison.json") or {}
    assert sorted(record["failed"]) == ["wild, seed 0", "wild-random, seed 0"]
    assert record["arms"]["up"]["seeds"] == [0] and record["arms"]["wild"]["seeds"] == []
    assert "failed: wild, seed 0" in (tmp_path / "out" / "comparison.md").read_text()


def test_curves_of_averages_begin_with_the_plain_loss(tmp_path: Path) -> None:
    file = tmp_path / "metrics.csv"
    file.write_text(
        "step,tokens,val_loss,val_bpb,val_bpb_bin_00,val_bpb_averaged,val_bpb_bin_00_averaged\n"
        "0,0,6.0,8.0,8.5,,\n1,10,,,,,\n2,20,3.0,4.0,4.5,5.0,\n"
    )
    tokens, curve, by_bin, last = read_curve(file, 1, "_averaged")
    assert (tokens.tolist(), curve.tolist(), by_bin.tolist()) == ([0, 20], [8.0, 5.0], [[8.5], [4.5]])
    assert last == {
        "step": 2,
        "tokens": 20,
        "val_loss": 3.0,
        "val_bpb": 4.0,
        "val_bpb_bin_00": 4.5,
        "val_bpb_averaged": 5.0,
    }


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        (["--arms", "{"], 2, "--arms {: not valid JSON"),
        (["--arms", "[1]"], 2, "--arms [1]: write a mapping"),
        (["--sources", "sorce"], 2, "--sources sorce: no such column"),
        (["--no-train"], 1, "has no finished run to judge: leave out --no-train"),
        (["--seeds", "0"], 2, "--seeds 0: use 1 or more"),
    ],
)
def test_refusals(
    more: list[str], code: int, message: str, bins: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command(tmp_path, bins), *more]) == code
    assert message in capsys.readouterr().err
