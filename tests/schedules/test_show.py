"""`fluxentropy schedule`: the table, the numbers, the picture, and what it says to bad options."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.collections import FillBetweenPolyCollection, QuadMesh
from tokenblocks import write_blocks
from tokenruns import write_bins

import fluxentropy
from fluxentropy.cli import app as cli
from fluxentropy.config.yaml import read_yaml, to_yaml
from fluxentropy.figures import paper
from fluxentropy.schedules.dataset import BlockSet
from fluxentropy.schedules.mixtures import SlidingWindow
from fluxentropy.schedules.options import PlanConfig, ScheduleConfig
from fluxentropy.schedules.plan import make_plan
from fluxentropy.schedules.sampler import open_sampler
from fluxentropy.schedules.schedule import Adaptive
from fluxentropy.schedules.show import ScheduleResult, plan_figure, table


@pytest.fixture(scope="module")
def bins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_blocks(tmp_path_factory.mktemp("bins"), (400, 300, 500, 800), length=16)


def test_what_is_printed_and_written(bins: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "periodic.yaml"
    config.write_text("schedule: {name: periodic, wave: triangle, cycles: 2}\nbatch_size: 10\ntokens: 32000\n")
    command = ["schedule", "--config", str(config), "--bins", str(bins), "--out", str(tmp_path / "plan")]
    assert cli.main(command) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "periodic (reweighting): 200 steps of 10 blocks of 16 tokens, 32,000 tokens, 1 epochs"
    assert len([line for line in printed if line[:4].strip().isdigit()]) == 4
    assert sorted(path.name for path in (tmp_path / "plan").iterdir()) == ["mixture.json", "mixture.png", "mixture.svg"]
    first = {path.name: path.read_bytes() for path in (tmp_path / "plan").iterdir()}
    assert cli.main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {path.name: path.read_bytes() for path in (tmp_path / "plan").iterdir()} == first
    assert json.loads(first["mixture.json"]) == {key: found[key] for key in found if key != "out"}
    assert found["config"]["wave"] == "triangle" and found["kind"] == "reweighting"
    assert (found["steps"], found["tokens"], found["blocks"]) == (200, 32_000, [400, 300, 500, 800])
    assert sum(found["drawn"]) == 2000 and np.sum(found["mixture"], axis=1) == pytest.approx(np.ones(10))
    np.testing.assert_allclose(found["epochs"], np.array(found["drawn"]) / found["blocks"])


def test_the_table(bins: Path) -> None:
    config = PlanConfig(bins=bins, schedule=ScheduleConfig(name="decreasing"), batch_size=50)
    rows = [line.split() for line in table(open_sampler(config, BlockSet.open(bins)).plan)[2:]]
    assert [row[0] for row in rows] == ["0", "1", "2", "3"] and [row[-1] for row in rows] == ["1.00"] * 4
    assert rows[3] == ["3", "800", *["100"] * 4, *["0"] * 6, "40", "1.00"]
    assert [sum(float(row[2 + tenth]) for row in rows) for tenth in range(10)] == pytest.approx([100] * 10, abs=1.5)


def test_flags_groups_and_policies(
    bins: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fluxentropy.schedules.show.draw_plan", lambda plan, path, **_: [path])
    command = ["schedule", "--bins", str(bins), "--out", str(tmp_path)]
    assert cli.main([*command, "--schedule.name", "tilt", "--schedule.groups", "0-1", "--schedule.groups", "2-3"]) == 0
    assert len([line for line in capsys.readouterr().out.splitlines() if line[:4].strip().isdigit()]) == 2
    assert cli.main([*command, "--schedule.name", "window", "--exhausted", "stop", "--tokens", "64000"]) == 0
    assert "of 4,000 blocks, where a bin is used up" in capsys.readouterr().out
    assert cli.main([*command, "--schedule.name", "adaptive", "--schedule.every", "7"]) == 0
    assert "planned are the first 7 steps" in capsys.readouterr().out
    assert cli.main([*command, "--schedule.name", "increasing", "--schedule.static"]) == 0
    assert capsys.readouterr().out.startswith("increasing, a static mixture like it (reweighting)")
    result = fluxentropy.schedule(bins=bins, out=tmp_path, schedule={"name": "window"}, exhausted="stop", tokens=64000)
    assert isinstance(result, ScheduleResult) and result.config == ScheduleConfig(name="window")
    assert (result.out, result.blocks, result.asked) == (tmp_path, [400, 300, 500, 800], 4000)
    assert result.tokens == 16 * sum(result.drawn) < 64000


def test_what_is_kept_and_stratified(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On bins that the command has made: the table, the numbers and the note in the picture."""
    bins = write_bins(tmp_path, texts=120)
    capsys.readouterr()
    command = ["schedule", "--bins", str(bins), "--out", str(tmp_path / "plan"), "--batch-size", "6"]
    flags = ["--schedule.name", "saw", "--schedule.keep", "lowest 0.5", "--schedule.jitter", "0.1"]
    command += [*flags, "--schedule.stratify", "source"]
    assert cli.main(command) == 0
    printed = capsys.readouterr().out.splitlines()
    found = json.loads((tmp_path / "plan" / "mixture.json").read_text())
    there, kept = sum(found["kept"]["of"]), sum(found["blocks"])
    assert printed[0].startswith("saw, jitter 0.1 (permutation): ")
    assert printed[1] == f"kept are {kept:,} of {there:,} blocks (lowest 0.5)"
    rows = [line.split() for line in printed if line.split()[:1] in (["a"], ["b"], ["c"])]
    strata = found["strata"]
    assert strata["column"] == "source" and [value["name"] for value in strata["values"]] == ["a", "b", "c"]
    for row, value in zip(rows, strata["values"], strict=True):
        low, high = value["in_batch"]
        assert value["blocks"] == value["drawn"] and row[1] == str(value["blocks"]) and 0 < value["off"] < 0.7
        assert abs(low - 6 * value["blocks"] / kept) < 2 and high - low <= 2
    assert sum(value["blocks"] for value in strata["values"]) == kept and abs(kept - there / 2) <= 1.5
    assert any(line.startswith("each batch has its share of every source; ") for line in printed)
    svg = (tmp_path / "plan" / "mixture.svg").read_text()
    assert "kept: lowest 0.5; each batch has its share of every source" in svg


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--schedule.name", "periodc"], "schedule.name periodc: did you mean periodic?"),
        (["--schedule.keep", "half"], "schedule.keep half: write lowest, middle or highest and a share"),
        (["--schedule.stratify", ""], "--schedule.stratify is empty: name a column of the bins' shards"),
        (["--schedule.name", "window", "--schedule.jitter", "0.1"], "schedule.jitter 0.1: it shuffles the order"),
        (
            ["--schedule.cycles", "2"],
            "schedule.cycles: random takes groups, shuffle_labels, balanced_labels, static, stratify, keep, jitter",
        ),
        (["--tokens", "3"], "--tokens 3: one block has 16"),
        (["--tokens", "0"], "--tokens 0: use 1 or more"),
        (["--batch-size", "0"], "--batch-size 0: use 1 or more"),
        (["--schedule.name", "increasing", "--tokens", "48000"], "needs whole epochs of 2,000 blocks"),
        (["--schedule.shuffle-labels", "-1"], "--schedule.shuffle-labels -1: use 0 or more"),
    ],
)
def test_bad_options(
    bins: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert cli.main(["schedule", "--bins", str(bins), "--out", str(tmp_path), *flags]) == 2
    printed = capsys.readouterr()
    assert message in printed.err and "Traceback" not in printed.err and not printed.out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("schedule: {name: periodic, cycels: 4}", "unknown key schedule.cycels: did you mean cycles?"),
        ("schedule: {name: periodic, cycles: four}", "schedule.cycles: 'four' is not a whole number or null"),
        ("schedule: {name: pool, groups: [[0, 1], [2, 3]]}", "schedule.groups: .* is not "),
        ("exhausted: reshufle", "exhausted: 'reshufle' is not one of reshuffle, redistribute, stop"),
    ],
)
def test_bad_files(bins: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str) -> None:
    path = tmp_path / "f.yaml"
    path.write_text(text)
    assert cli.main(["schedule", "--bins", str(bins), "--out", str(tmp_path), "--config", str(path)]) == 2
    with pytest.raises(Exception, match=message):
        read_yaml(path, PlanConfig)
    assert str(path) in capsys.readouterr().err


def test_the_configuration_comes_back(bins: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "f.yaml"
    flags = ["--schedule.name", "stages", "--schedule.ends", "0.3", "--schedule.stages", "2", "--schedule.groups", "2"]
    assert cli.main(["schedule", "--bins", str(bins), *flags, "--print-config"]) == 0
    path.write_text(capsys.readouterr().out)
    assert cli.main(["schedule", "--config", str(path), "--print-config"]) == 0
    assert capsys.readouterr().out == path.read_text()
    config = PlanConfig(bins=bins, schedule=ScheduleConfig(name="stages", ends=(0.3,), stages=2, groups=2))
    assert to_yaml(config) == path.read_text()


def test_bins_without_blocks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["schedule", "--bins", str(tmp_path)]) == 1
    assert "--tokenize" in capsys.readouterr().err


def test_the_picture_shows_the_plan() -> None:
    plan = make_plan(SlidingWindow(), [40, 60, 100], batch_size=5)
    with paper():
        left, right, *_ = plan_figure(plan, tokens_per_block=10, by="entropy_mean").axes
        areas = [item for item in left.collections if isinstance(item, FillBetweenPolyCollection)]
        assert len(areas) == 3 and left.get_xlim() == (0, 2000)
        tops = [area.get_paths()[0].get_extents().ymax for area in areas]
        assert tops == pytest.approx(plan.realised(40).cumsum(axis=1).max(axis=0))
        assert [bar.get_width() for bar in right.patches] == pytest.approx(plan.epochs)
        many = make_plan(SlidingWindow(), [10] * 30, batch_size=5)
        mesh = plan_figure(many, tokens_per_block=10, by="a and b").axes[0].collections[0]
        assert isinstance(mesh, QuadMesh)
        np.testing.assert_allclose(np.asarray(mesh.get_array()).reshape(30, -1), many.realised(60).T)
        waiting = make_plan(Adaptive(every=3), [40, 60], batch_size=5)
        title = plan_figure(waiting, tokens_per_block=10, by="x").axes[0].get_title(loc="left")
    assert title == "the first 3 of 20 steps"


def test_the_file_of_a_training_serves(bins: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its sections about the model are passed over, and it does not decide where the picture goes."""
    file = tmp_path / "train.yaml"
    file.write_text(
        f"out: {tmp_path / 'run'}\nschedule: {{name: increasing}}\nmodel: {{n_layer: 2}}\noptim: {{lr: 0.1}}\n"
    )
    capsys.readouterr()
    argv = ["schedule", "--config", str(file), "--bins", str(bins), "--out", str(tmp_path / "plan")]
    assert cli.main(argv) == 0
    assert capsys.readouterr().out.startswith("increasing (permutation)")
    assert not (tmp_path / "run").exists()
    file.write_text("optim:\n  rate: 0.1\n")
    assert cli.main(argv) == 2
    assert "unknown key optim.rate" in capsys.readouterr().err
