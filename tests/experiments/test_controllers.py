"""`fluxentropy grpo-compare` end to end on a tiny policy: what it writes, that it goes on, and what it refuses."""

from __future__ import annotations

import functools
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import runfiles
import yaml
from digits import SUMS
from runfiles import cells, times
from scipy import stats

from fluxentropy.cli.app import main
from fluxentropy.config.yaml import config_path, from_plain, read_yaml
from fluxentropy.evaluation.statistics import holm
from fluxentropy.experiments.cells import RunCell
from fluxentropy.experiments.controllers import grpo_compare, held_out, trained
from fluxentropy.experiments.judging import final, judge_controllers
from fluxentropy.experiments.options import NONE, GRPOCompareConfig
from fluxentropy.rl.grpo.grpo import grpo
from fluxentropy.rl.grpo.module import StateCheckpoints
from fluxentropy.rl.grpo.update import check_parts
from fluxentropy.runs.files import read_json

pytest.importorskip("reasoning_gym")


BASE = SUMS | {"steps": 3, "eval_every": 3, "checkpoint_every": 1, "probe": {"prompts": 3, "responses": 2}}

ARMS: dict[str, Any] = {
    "bonus": {"controller": {"name": "bonus", "coefficient": 0.5}},
    "clip": {"controller": {"name": "asymmetric_clip"}, "optim": {"lr": 0.03}},
}

pytestmark = pytest.mark.usefixtures("one_thread")


def command(folder: Path, *more: object, **options: Any) -> list[str]:
    """The command line of a comparison in `folder`/out; `options` are those of its file."""
    file = folder / "compare.yaml"
    file.write_text(yaml.safe_dump({"base": BASE, "arms": ARMS, "seeds": 2, "samples": 3} | options))
    return ["grpo-compare", "--config", str(file), "--out", str(folder / "out"), *map(str, more)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    assert main(command(folder)) == 0
    return folder / "out"


def metrics(out: Path, arm: str, seed: int) -> dict[str, list[float]]:
    rows = [row for row in runfiles.metrics(out / "cells" / arm / f"seed-{seed}") if "reward" in row]
    return {name: [row[name] for row in rows] for name in ("reward", "entropy_per_token")}


def test_what_is_judged_is_what_was_trained(whole: Path) -> None:
    record = read_json(whole / "grpo_comparison.json") or {}
    assert record["order"] == [NONE, "bonus", "clip"]
    last = {arm: np.array([metrics(whole, arm, seed)["reward"][-1] for seed in (0, 1)]) for arm in record["arms"]}
    for name, arm in record["arms"].items():
        entropies = [metrics(whole, name, seed)["entropy_per_token"] for seed in (0, 1)]
        assert arm["measures"]["final reward"]["by_seed"] == last[name].tolist()
        assert arm["measures"]["lowest entropy"]["by_seed"] == [min(values) for values in entropies]
        assert arm["measures"]["mean entropy"]["by_seed"] == pytest.approx([np.mean(values) for values in entropies])
        assert arm["kept"] == [values[-1] >= 0.5 * values[0] for values in entropies]
    assert record["arms"][NONE]["measures"]["final reward"]["mean"] == last[NONE].mean()
    last = {arm: np.array(record["arms"][arm]["measures"]["final entropy"]["by_seed"]) for arm in record["arms"]}
    found = {one["arm"]: one for one in record["comparisons"] if one["family"] == "final entropy"}
    ps = []
    for name in ("bonus", "clip"):
        oracle = stats.ttest_1samp(last[name] - last[NONE], 0)
        ps.append(float(oracle.pvalue))
        assert (found[name]["difference"]["mean"], found[name]["difference"]["p"]) == pytest.approx(
            (np.mean(last[name] - last[NONE]), oracle.pvalue)
        )
    assert [found[name]["p_holm"] for name in ("bonus", "clip")] == pytest.approx(list(holm(ps)))


def test_pairs_start_alike_and_seeds_do_not(whole: Path) -> None:
    first = {(arm, seed): metrics(whole, arm, seed)["reward"][0] for arm in (NONE, "bonus") for seed in (0, 1)}
    entropy = {key: metrics(whole, *key)["entropy_per_token"][0] for key in first}
    for seed in (0, 1):
        assert first[NONE, seed] == first["bonus", seed] and entropy[NONE, seed] == entropy["bonus", seed]
    assert entropy[NONE, 0] != entropy[NONE, 1]
    ends = [metrics(whole, arm, 0)["entropy_per_token"][-1] for arm in (NONE, "bonus", "clip")]
    assert len(set(ends)) == 3
    assert sorted(path.name for path in whole.glob("warmups/*")) == ["seed-0.ckpt", "seed-1.ckpt"]


def test_a_cell_is_what_grpo_makes_of_its_options(whole: Path, tmp_path: Path) -> None:
    """Bit by bit, though it had its warm-up from another run; and its record counts the right responses."""
    config = from_plain(GRPOCompareConfig, {"base": BASE, "arms": ARMS, "out": tmp_path, "samples": 3}).run("clip", 1)
    assert config.optim.lr == 0.03 and config.seed == 1
    grpo(config)
    cell = whole / "cells" / "clip" / "seed-1"
    for name in ("metrics.csv", "export/model.safetensors"):
        assert (config.out / name).read_bytes() == (cell / name).read_bytes()
    record, found = read_json(whole / "cells/clip/seed-1.json") or {}, held_out(config, 3)
    assert {key: record[key] for key in found} == json.loads(json.dumps(found))
    assert record["greedy"] == runfiles.metrics(cell)[-1]["eval_solved"]
    assert list(found["pass_at_k"]) == ["1", "2", "3"]
    assert found["distinct"] == pytest.approx(found["pass_at_k"]["3"])  # a sum has one right answer


def test_verify_and_report_know_it(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(whole)]) == 0
    assert capsys.readouterr().out.count("3 steps") == 6
    assert main(["report", str(whole), "--out", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert "Comparison of controllers" in page and "final reward" in page.lower()


def test_the_words_and_pictures(whole: Path) -> None:
    said = (whole / "grpo_comparison.md").read_text()
    record = read_json(whole / "grpo_comparison.json") or {}
    for arm in record["arms"].values():
        assert f"- {arm['words']}." in said
    for name in ("trajectories", "pass_at_k", "effects"):
        assert f"({name}.png)" in said
        assert all((whole / f"{name}{suffix}").stat().st_size > 1000 for suffix in (".png", ".svg"))


@pytest.mark.usefixtures("undrawn")
def test_more_seeds_and_arms_keep_what_is_finished(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(tmp_path, seeds=1, arms={"bonus": ARMS["bonus"]})) == 0
    before, kept = times(tmp_path / "out"), cells(tmp_path / "out")
    assert main(command(tmp_path, seeds=2, arms={"bonus": ARMS["bonus"]})) == 0
    assert main(command(tmp_path, seeds=1, arms=ARMS)) == 0
    assert {path: times(tmp_path / "out")[path] for path in before} == before
    assert kept.items() <= cells(tmp_path / "out").items() and len(cells(tmp_path / "out")) == 5
    capsys.readouterr()
    other = {"bonus": {"controller": {"name": "bonus", "coefficient": 0.1}}}
    assert main(command(tmp_path, seeds=1, arms=other)) == 1
    assert "has runs of another arm bonus" in capsys.readouterr().err
    assert main(command(tmp_path, seeds=1, base=BASE | {"steps": 4})) == 1
    assert "holds another run: base.steps" in capsys.readouterr().err


@pytest.mark.usefixtures("undrawn")
def test_stopped_in_a_cell_it_goes_on_to_the_same(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class StoppedError(BaseException):
        pass

    def stop(self: StateCheckpoints, module: Any, done: int) -> None:
        step_end(self, module, done)
        if done == 2 and "bonus" in str(self.folder):
            raise StoppedError

    step_end = StateCheckpoints.step_end
    with monkeypatch.context() as patch:
        patch.setattr(StateCheckpoints, "step_end", stop)
        with pytest.raises(StoppedError):
            main(command(tmp_path, seeds=1))
    assert list(cells(tmp_path / "out")) == [f"cells/{NONE}/seed-0.json"]
    assert main(command(tmp_path, seeds=1)) == 0
    assert cells(tmp_path / "out").items() < cells(whole).items() and len(cells(tmp_path / "out")) == 3


@pytest.mark.usefixtures("undrawn")
def test_a_run_that_fails_is_named_and_the_others_are_judged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arms = {"bonus": ARMS["bonus"], "wild": {"optim": {"lr": 1e30}}}
    assert main(command(tmp_path, arms=arms, seeds=1)) == 1
    said = capsys.readouterr().out
    result = grpo_compare(**read_yaml(tmp_path / "out" / "config.resolved.yaml", GRPOCompareConfig) | {"train": False})
    assert (result.out, result.runs, list(result.arms)) == (tmp_path / "out", 3, [NONE, *arms])
    assert "final reward" in result._repr_html_()
    assert "1 of 3 runs failed" in said and "wild, seed 0: the policy's logits are not numbers" in said
    record = read_json(tmp_path / "out" / "grpo_comparison.json") or {}
    assert record["arms"]["wild"]["seeds"] == [] and record["arms"]["bonus"]["seeds"] == [0]


def test_its_job_can_be_sent_to_other_processes(tmp_path: Path) -> None:
    job = RunCell(functools.partial(trained, samples=3, warmups=tmp_path), 1, False)
    sent = pickle.loads(pickle.dumps(job))
    assert (sent.work.func, sent.work.keywords) == (trained, {"samples": 3, "warmups": tmp_path})
    assert (sent.threads, sent.keep_checkpoints) == (1, False)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"arms": {}}, "arms: there is none to compare"),
        ({"arms": {"a": {"steps": 3}}}, "arms.a.steps: all arms share it"),
        ({"arms": {"a": {"controler": {}}}}, "a.controler"),
        ({"arms": {"a": {"controller": {"name": "bonnus"}}}}, "arms.a: controller.name bonnus: did you mean bonus?"),
        ({"arms": {"a": {"loss": {"clip_low": 2.0}}}}, "arms.a: --loss.clip-low 2.0"),
        ({"arms": {"../a": {}}}, "arms.../a: begin a name with a letter"),
        ({"collapse": 1.0}, "--collapse 1: use a share between 0 and 1"),
        ({"samples": 0}, "--samples 0"),
    ],
)
def test_what_is_refused(
    options: dict[str, Any], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(tmp_path, **options)) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["controllers", "controllers_annealed", "rates", "kernel"])
def test_the_configurations_that_are_shipped_are_some(name: str) -> None:
    from fluxentropy.rl.grpo.experiment import open_controller

    found = read_yaml(config_path("grpo") / f"{name}.yaml", GRPOCompareConfig)
    config = from_plain(GRPOCompareConfig, {**found, "out": "x"})
    for arm in config.all_arms():
        options = config.run(arm)
        check_parts(options, controller := open_controller(options))
        assert controller.name == arm if controller else arm == "none" or options.optim.lr != config.base.optim.lr


# --- verdicts ---------------------------------------------------------------------------------------------------------


def cell(arm: str, seed: int, reward: float, entropy: list[float]) -> dict[str, Any]:
    """The record of a cell by hand."""
    passed = {"1": {"value": reward, "se": 0.0}, "4": {"value": reward, "se": 0.0}}
    return {
        "arm": arm,
        "seed": seed,
        "steps": list(range(1, len(entropy) + 1)),
        "reward": [reward] * len(entropy),
        "entropy": entropy,
        "held_out": 9,
        "greedy": reward,
        "parameters": 7,
        "pass_at_k": passed,
        "distinct": {"value": 4 * reward, "se": 0.0},
    }


def test_verdicts_by_hand() -> None:
    noise = [0.0, 0.01, -0.01, 0.005]
    fallen, kept = np.linspace(1, 0.1, 20).tolist(), np.linspace(1, 0.8, 20).tolist()
    records = [cell(NONE, s, 0.5, fallen) for s in range(4)]
    records += [cell("good", s, 0.6 + noise[s], kept) for s in range(4)]
    records += [cell("bad", s, 0.4 + noise[s], fallen if s else kept) for s in range(4)]
    records += [cell("same", s, 0.5 + noise[s], kept) for s in range(4)]
    for place, one in enumerate(records[4:]):
        one["entropy"] = [value + 0.001 * (place % 7) for value in one["entropy"]]
    found = judge_controllers(
        {NONE: {}, "good": {}, "bad": {}, "same": {}, "absent": {}}, records, seeds=4, share=0.5, margin=0.01
    )
    verdicts = {one["arm"]: one["verdict"] for one in found["comparisons"] if one["family"] == "final reward"}
    assert verdicts == {"good": "better", "bad": "worse", "same": "not distinguishable", "absent": "not judged"}
    assert {one["family"] for one in found["comparisons"]} >= {"pass@4", "distinct@4"}
    entropy = {one["arm"]: one["verdict"] for one in found["comparisons"] if one["family"] == "final entropy"}
    assert entropy["good"] == "higher" and entropy["bad"] == "not distinguishable"
    assert [found["arms"][name].get("entropy") for name in (NONE, "good", "bad", "absent")] == [
        "collapsed",
        "kept",
        "kept in 1 of 4 runs",
        None,
    ]
    assert found["arms"]["good"]["words"].startswith("good: reward better than none (+0.101 [")
    assert found["arms"][NONE]["words"] == (
        f"none: reward 0.500; entropy collapsed: {final(fallen):.3f} nats a token after 1.000 at the start"
    )
    assert found["arms"]["absent"]["words"] == "absent: no finished run"


def test_an_arm_that_never_acts_is_the_same_and_one_that_hardly_acts_is_equal() -> None:
    rng = np.random.default_rng(0)
    curve = np.linspace(1, 0.5, 20).tolist()
    records = [cell(NONE, s, 0.5 + 0.01 * s, curve) for s in range(5)]
    records += [cell("idle", s, 0.5 + 0.01 * s, curve) for s in range(5)]
    records += [cell("near", s, 0.5 + 0.01 * s + rng.normal(0, 0.002), curve) for s in range(5)]
    records += [
        cell("twin", *[one[key] for key in ("seed", "greedy", "entropy")]) for one in records if one["arm"] == "near"
    ]
    found = judge_controllers(
        {name: {} for name in (NONE, "idle", "near", "twin")}, records, seeds=5, share=0.5, margin=0.01
    )
    reward = {one["arm"]: one for one in found["comparisons"] if one["family"] == "final reward"}
    assert (reward["idle"]["verdict"], reward["idle"]["p_holm"]) == ("the same", None)
    assert reward["near"]["p_holm"] == reward["near"]["difference"]["p"]  # one test, not three
    assert reward["near"]["verdict"] == "equal" and reward["near"]["p_equal_holm"] < 0.05
    assert (reward["twin"]["same_as"], reward["twin"]["p_holm"]) == ("near", reward["near"]["p_holm"])
    assert found["arms"]["idle"]["words"].startswith("idle: the same as none, run by run; entropy")
    assert found["arms"]["near"]["words"].startswith("near: reward equal to none (")
    distinct = [one for one in found["comparisons"] if one["arm"] == "near" and one["family"] == "distinct@4"]
    assert distinct[0]["p_equal_holm"] is None
