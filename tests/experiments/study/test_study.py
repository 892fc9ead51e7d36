"""`fluxentropy grpo-study` end to end on a tiny run: its numbers are those of the run's files, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from digits import SUMS

from fluxentropy.cli.app import main
from fluxentropy.experiments.options import GRPOStudyConfig
from fluxentropy.experiments.study.study import answers, find_probed, grouped, grpo_study, other_options, read_run
from fluxentropy.runs.files import read_json, write_json
from fluxentropy.runs.tables import read_metrics

pytest.importorskip("reasoning_gym")


BASE = SUMS | {
    "rollout": {"prompts": 4, "responses": 2, "max_tokens": 3},
    "steps": 6,
    "eval_every": 6,
    "probe": {
        "every": 1, "prompts": 4, "responses": 2, "kernel": "exact", "attribution": True,
        "parts": ["measured", "second_order", "split", "range", "kernel"],
    },
}  # fmt: skip

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, and its copy that says another learning rate and seed."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "run.yaml").write_text(yaml.safe_dump(BASE))
    assert main(["grpo", "--config", str(folder / "run.yaml"), "--out", str(folder / "a" / "first")]) == 0
    shutil.copytree(folder / "a" / "first", folder / "b")
    manifest = read_json(folder / "b" / "manifest.json") or {}
    manifest["identity"] |= {"seed": 1, "optim": manifest["identity"]["optim"] | {"lr": 0.02}}
    write_json(folder / "b" / "manifest.json", manifest)
    return folder


@pytest.fixture(scope="module")
def studied(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("study") / "out"
    assert main(["grpo-study", str(runs), "--bootstrap", "100", "--out", str(out)]) == 0
    return out


def test_the_numbers_are_those_of_the_run(runs: Path, studied: Path) -> None:
    record = json.loads((studied / "study.json").read_text())
    metrics = {name: column[1:] for name, column in read_metrics(runs / "b" / "metrics.csv").items()}  # after step 0
    assert list(record["groups"]) == ["0.01", "0.02"]
    group = record["groups"]["0.02"]
    assert (group["lr"], group["steps"], [run["seed"] for run in group["runs"]]) == (0.02, 6, [1])
    measured, first = metrics["probe_measured_per_sequence"], metrics["probe_first_per_sequence"]
    gap = metrics["probe_measured_minus_first_per_sequence"]
    assert gap == pytest.approx(measured - first, abs=1e-9)
    found = group["predictions"]["first"]
    assert found["paired"] and found["rms"]["value"] == pytest.approx(np.sqrt((gap**2).sum() / (measured**2).sum()))
    assert found["correlation"]["value"] == pytest.approx(np.corrcoef(first, measured)[0, 1])
    momentum = metrics["probe_momentum_per_sequence"]
    one = group["optimizer"]["parts"]["momentum"]
    assert one["share"]["value"] == pytest.approx((momentum * first).sum() / (first**2).sum(), rel=1e-6)
    pairs = group["pairs"]["parts"]
    assert sum(part["share"]["value"] for part in pairs.values()) == pytest.approx(1)
    assert group["sketched"]["correlation"]["value"] > 0.5  # the exact kernel: the score form and the to-go form
    assert group["tokens"]["steps"] == 6 and group["prompts"]["steps"] == 6 and group["missing"] == {}
    assert group["fresh"]["steps"] == 5
    tokens = [pq.read_table(file).to_pydict() for file in sorted((runs / "b" / "attribution").glob("*.parquet"))]
    down = sum(min(c, 0) for one in tokens for c in one["change"]) / 6
    assert group["tokens"]["down"]["value"] == pytest.approx(down)


def test_the_answers_are_written_and_drawn_and_the_same_again(runs: Path, studied: Path, tmp_path: Path) -> None:
    text = (studied / "study.md").read_text()
    names = ["predicted_measured", "errors", "parts", "tokens", "prompts"]
    assert {path.name for path in studied.iterdir()} == {
        "study.md", "study.json", *(f"{name}.{suffix}" for name in names for suffix in ("png", "svg")),
    }  # fmt: skip
    assert all(f"({name}.png)" in text for name in names) and "could not be answered" not in text
    assert all(f"## {number}. " in text for number in range(1, 5)) and "nan" not in text and "None" not in text
    again = tmp_path / "again"
    found = grpo_study(str(runs), bootstrap=100, out=again)
    assert (found.out, set(found.groups), found.unit, found.tolerance) == (again, {"0.01", "0.02"}, "sequence", 0.1)
    assert found.lines()[0].startswith("learning rate 0.01: ") and "errors.png" in found.figures
    assert found.to_dict() == {"out": str(again), "figures": list(found.figures), **read_json(again / "study.json")}
    assert {p.name: p.read_bytes() for p in again.iterdir()} == {p.name: p.read_bytes() for p in studied.iterdir()}


def test_what_is_missing_is_named_with_the_option_that_writes_it(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fluxentropy.experiments.study.figures.save", lambda figure, path: [path])
    run = tmp_path / "run"
    shutil.copytree(runs / "b", run, ignore=shutil.ignore_patterns("attribution", "responses.parquet"))
    lines = (run / "metrics.csv").read_text().splitlines()
    names = lines[0].split(",")
    kept = [at for at, name in enumerate(names) if not name.startswith(("probe_kernel", "probe_snis", "probe_batch"))]
    (run / "metrics.csv").write_text("".join(",".join(line.split(",")[at] for at in kept) + "\n" for line in lines))
    assert main(["grpo-study", str(run), "--bootstrap", "100", "--out", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out" / "study.md").read_text()
    for option in ("--probe.parts with kernel", "--probe.parts with split", "--probe.attribution", "by this version"):
        assert option in text
    assert "tokens.png" not in text


def test_the_covariance_of_an_earlier_version_is_left_out(runs: Path, tmp_path: Path) -> None:
    """It was of A, not of A / norm, under the same name; the manifest of such a run does not say what it is of."""
    run = read_run(runs / "a" / "first", "new")
    assert run.identity["covariance"] == "A / norm" and np.isfinite(run.columns["probe_covariance_per_lr"]).all()
    old = tmp_path / "old"
    shutil.copytree(runs / "a" / "first", old)
    manifest = read_json(old / "manifest.json") or {}
    del manifest["identity"]["covariance"]
    write_json(old / "manifest.json", manifest)
    found = read_run(old, "old")
    assert "probe_covariance_per_lr" not in found.columns and "probe_kernel_total" in found.columns
    (group,) = grouped([found])
    config = GRPOStudyConfig(runs=(str(old),), out=tmp_path / "out", bootstrap=100)
    assert answers(group, config)["missing"] == {"diagonal": "--probe.parts with kernel, by this version"}
    assert main(["grpo-study", str(old), "--bootstrap", "100", "--out", str(config.out)]) == 0
    assert "The diagonal kernel: written by `fluxentropy grpo` --probe.parts with kernel" in (
        (config.out / "study.md").read_text()
    )


def test_runs_that_cannot_be_used_are_refused_by_name(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unfinished, bare = tmp_path / "in" / "unfinished", tmp_path / "in" / "bare"
    for path in (unfinished, bare):
        shutil.copytree(runs / "b", path)
    write_json(unfinished / "manifest.json", (read_json(runs / "b" / "manifest.json") or {}) | {"complete": False})
    (bare / "metrics.csv").write_text("step,reward\n1,0.5\n")
    for source, said in (
        (unfinished, "unfinished is not finished"),
        (bare, "bare has no probed step: run it with --probe.every"),
        (tmp_path / "in", "in holds no finished run of grpo with probes"),
        (tmp_path / "nothing", "nothing: no such folder"),
    ):
        assert main(["grpo-study", str(source), "--out", str(tmp_path / "out")]) == 1
        assert said in capsys.readouterr().err
    assert main(["grpo-study", str(runs), "--out", str(runs / "b")]) == 2
    assert "this is a run, choose another folder" in capsys.readouterr().err
    assert main(["grpo-study", str(runs), "--tolerance", "0", "--out", str(tmp_path / "out")]) == 2


def test_runs_are_grouped_and_other_differences_named(runs: Path) -> None:
    found, left_out = find_probed([str(runs), str(runs / "b")])
    assert [run.name for run in found] == ["a/first", "b"] and left_out == []
    assert [group.label for group in grouped(found)] == ["0.01", "0.02"] and other_options(found) == ""
    object.__setattr__(found[1], "identity", {**found[1].identity, "controller": {"name": "bonus"}, "clip": 0.5})
    assert [group.label for group in grouped(found)] == ["0.01, none", "0.02, bonus"]
    assert other_options(found) == "clip is 1.0 in a/first, 0.5 in b"
    probe = {**found[0].identity["probe"], "same_prompts": True}
    object.__setattr__(found[1], "identity", {**found[0].identity, "probe": probe})
    assert [group.label for group in grouped(found)] == ["0.01, new prompts", "0.01, own prompts"]
