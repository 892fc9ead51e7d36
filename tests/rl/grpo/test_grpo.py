"""`fluxentropy grpo` end to end on a policy of some thousand parameters: what it writes, that it resumes to the bit."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from digits import Digits, Steering, config, steer
from runfiles import metrics
from safetensors.torch import load_file

from fluxentropy.cli.app import main
from fluxentropy.errors import RunError, UsageError
from fluxentropy.rl.grpo.grpo import grpo, open_experiment
from fluxentropy.rl.grpo.loss import Objective, normaliser, token_loss
from fluxentropy.rl.grpo.module import Rows, StateCheckpoints
from fluxentropy.rl.grpo.options import (
    GRPOConfig,
    GRPOOptim,
    KLOptions,
    LoRAOptions,
    LossOptions,
    PolicyOptions,
    ProbeOptions,
    RolloutOptions,
)
from fluxentropy.rl.grpo.tasks import Problem

CRASHING = Path(__file__).parents[2] / "crashing.py"
PARTS = ("measured", "first_order", "split", "two_batch")
PROBE = ProbeOptions(every=2, prompts=4, responses=2, parts=PARTS, attribution=True)
FIRST = ProbeOptions(every=1, prompts=4, responses=2, parts=("first_order",))
pytestmark = pytest.mark.usefixtures("one_thread")


def result(out: Path) -> dict[str, bytes]:
    """All files that must not depend on how often a run was stopped."""
    leave = ("timings.csv", ".lock", "config.resolved.yaml", ".records.json")
    files = (path for path in sorted(out.rglob("*")) if path.is_file() and path.name not in leave)
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in files
        if path.suffix != ".ckpt" and path.parent.name != "figures"
    }


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "export" / "model.safetensors")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a probe that nothing disturbed."""
    out = tmp_path_factory.mktemp("whole") / "run"
    grpo(config(out, probe=PROBE, plots=True), own_task=Digits())
    return out


def test_what_a_run_writes(whole: Path) -> None:
    found = metrics(whole)
    assert [row["step"] for row in found] == [0, 1, 2, 3, 4]
    assert [row["step"] for row in found if "eval_reward" in row] == [0, 2, 4]
    assert [row["step"] for row in found if "probe_first_per_token" in row] == [2, 4]
    for row in found[1:]:
        assert row["tokens"] == pytest.approx(12 * row["length"]) and 0 <= row["logp_gap"] < 1e-5
        assert row["entropy_per_token"] == pytest.approx(row["entropy_per_sequence"] / row["length"])
        assert row["entropy_per_token_se"] > 0 and row["clip_fraction"] == 0 and "kl" not in row
        assert row["entropy_naive"] == pytest.approx(row["entropy_per_sequence"], abs=5 * row["entropy_naive_se"])
        assert row["lr"] == pytest.approx(3e-4)
    probed = found[2]
    parts = sum(probed[f"probe_{part}_per_token"] for part in ("batch", "momentum", "decay"))
    assert parts == pytest.approx(probed["probe_first_per_token"], rel=1e-3)
    manifest = json.loads((whole / "manifest.json").read_text())
    assert manifest["complete"] and manifest["identity"]["kind"] == "grpo" and manifest["warmup_loss"] > 0
    assert {"metrics.csv", "responses.parquet", "export/model.safetensors"} <= manifest["files"].keys()
    assert sorted(path.name for path in whole.glob("attribution/*")) == ["step_000002.parquet", "step_000004.parquet"]
    assert {"attribution/step_000002.parquet", "attribution/step_000004.parquet"} <= manifest["files"].keys()
    drawn = {path.name for path in whole.glob("figures/*")}
    assert {"entropy_reward.png", "predicted_measured.png", "attribution.png"} <= drawn
    assert sorted(path.name for path in whole.glob("checkpoints/*.ckpt")) == [f"step-{n:08d}.ckpt" for n in (0, 3, 4)]


def test_responses_are_those_of_the_metrics(whole: Path) -> None:
    table = pq.read_table(whole / "responses.parquet").to_pandas()
    assert sorted(set(table["step"])) == [2, 4]
    for step, group in table.groupby("step"):
        row = metrics(whole)[step]
        assert len(group) == 12
        assert group["reward"].mean() == pytest.approx(row["reward"])
        assert group["entropy"].mean() == pytest.approx(row["entropy_per_sequence"])
        assert -group["logp"].mean() == pytest.approx(row["entropy_naive"])
        assert group["length"].sum() == row["tokens"]
        for _, prompt in group.groupby("prompt"):
            assert prompt["advantage"].sum() == pytest.approx(0, abs=1e-9)
            assert len(set(prompt["prompt_text"])) == 1
    task = Digits()
    for line in table.itertuples():
        assert task.score(Problem(prompt=line.prompt_text, answer=line.answer), line.response_text) == line.reward


def test_the_export_is_a_model_of_transformers(whole: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(whole / "export")
    model = AutoModelForCausalLM.from_pretrained(whole / "export")
    experiment = open_experiment(config(whole), Digits())
    experiment.policy.load(torch.load(whole / "checkpoints" / "step-00000004.ckpt", weights_only=False)["weights"])
    ids = torch.tensor([tokenizer("x3=")["input_ids"]])
    torch.testing.assert_close(model(ids).logits, experiment.policy.model(ids).logits)


def test_a_finished_run_is_left_alone_and_another_refused(whole: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.glob("export/*")}
    found, last = grpo(config(whole, probe=PROBE), own_task=Digits()), metrics(whole)[-1]
    assert (found.out, found.export.is_dir(), found.steps, found.reward) == (whole, True, 4, last["reward"])
    assert (found.eval_solved, found.entropy_per_token) == (last["eval_solved"], last["entropy_per_token"])
    assert found.to_dict() == {"out": str(whole), **last}
    assert {path: path.stat().st_mtime_ns for path in whole.glob("export/*")} == before
    with pytest.raises(RunError, match=r"holds another run: loss.clip_low is 0.2 there and 0.1 here"):
        grpo(config(whole, probe=PROBE, loss=LossOptions(clip_low=0.1)), own_task=Digits())


def test_verify(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(whole)]) == 0
    assert "4 steps" in capsys.readouterr().out
    damaged = tmp_path / "damaged"
    shutil.copytree(whole, damaged)
    (damaged / "responses.parquet").unlink()
    assert main(["verify", str(damaged)]) == 1
    assert "responses.parquet: it is missing" in capsys.readouterr().out


# --- resuming ---------------------------------------------------------------------------------------------------------


class StoppedError(Exception):
    pass


def stop_after(patch: pytest.MonkeyPatch, step: int, callback: type) -> None:
    """Let a run end in what `callback` does at the end of a step."""
    own = callback.step_end  # type: ignore[attr-defined]

    def step_end(self: Any, module: Any, done: int) -> None:
        if done == step:
            raise StoppedError
        own(self, module, done)

    patch.setattr(callback, "step_end", step_end)


def test_stopped_at_every_step_it_goes_on_to_the_same_bits(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(tmp_path / "run", probe=PROBE)
    for step in (1, 2, 3, 4):
        with monkeypatch.context() as patch:
            stop_after(patch, step, StateCheckpoints if step % 2 else Rows)
            with pytest.raises(StoppedError):
                grpo(settings, own_task=Digits())
    grpo(settings, own_task=Digits())
    assert result(tmp_path / "run") == result(whole)


def test_all_state_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inner epochs, an adaptive beta and its reference, Muon's momentum, a controller, checkpoints now and then."""
    steer(monkeypatch, Steering(scales=(1.0, 0.5, 0.7)))
    options: dict[str, Any] = {
        "controller": {"name": "steering"},
        "inner_epochs": 2,
        "kl": KLOptions(beta=0.1, target=0.001),
        "optim": GRPOOptim(kind="muon", lr=0.003),
        "checkpoint_every": 2,
        "micro_batch": 5,
    }
    grpo(config(tmp_path / "one", **options), own_task=Digits())
    with monkeypatch.context() as patch:
        stop_after(patch, 4, StateCheckpoints)
        with pytest.raises(StoppedError):
            grpo(config(tmp_path / "two", **options), own_task=Digits())
    grpo(config(tmp_path / "two", **options), own_task=Digits())
    assert result(tmp_path / "one") == result(tmp_path / "two")
    found = metrics(tmp_path / "one")
    assert len({row["beta"] for row in found[1:]}) > 2
    assert [row["kl"] > 0 for row in found[1:]] == [False, True, True, True]  # the first policy is the reference
    assert [row["controller_count"] for row in found[1:]] == [0.5, 2.5, 4.5, 6.5]  # two a step
    assert found[1]["controller_step_length"] == pytest.approx(0.75, rel=1e-4)


@pytest.mark.timeout(300)
def test_killed_by_the_system(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("reasoning_gym")
    sizes = ["--policy.n-layer", "1", "--policy.n-head", "2", "--policy.n-embd", "16", "--policy.block-size", "32"]
    options = ["--task.template", "{expression} =", "--warmup.steps", "3", "--warmup.batch-size", "8", "--steps", "3"]
    options += ["--rollout.prompts", "3", "--rollout.responses", "2", "--rollout.max-tokens", "3", "--eval-every", "2"]
    options += ["--eval-problems", "4", "--accelerator", "cpu", "--checkpoint-every", "1"]
    options += ["--task.options", json.dumps({"max_terms": 2, "max_digits": 1})]
    assert main(["grpo", *sizes, *options, "--out", str(tmp_path / "one")]) == 0
    argv = [sys.executable, str(CRASHING), "grpo", *sizes, *options, "--out", str(tmp_path / "two")]
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(argv, env={**environment, "CRASH_AT": "26:after"}, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert list((tmp_path / "two" / "checkpoints").glob("step-*.ckpt"))
    assert not (tmp_path / "two" / "export").exists()
    capsys.readouterr()
    assert main(argv[2:]) == 0
    assert "resuming after step" in capsys.readouterr().err
    assert result(tmp_path / "one") == result(tmp_path / "two")


# --- what a step does -------------------------------------------------------------------------------------------------


def test_micro_batches_do_not_change_the_result(whole: Path, tmp_path: Path) -> None:
    grpo(config(tmp_path / "run", probe=PROBE, micro_batch=5), own_task=Digits())
    for one, two in zip(metrics(whole), metrics(tmp_path / "run"), strict=True):
        assert one.keys() == two.keys()
        assert {name: two[name] for name in ("reward", "tokens", "loss") if name in two} == pytest.approx(
            {name: one[name] for name in ("reward", "tokens", "loss") if name in one}, rel=1e-4, abs=1e-6
        )
    for name, tensor in weights(whole).items():
        torch.testing.assert_close(weights(tmp_path / "run")[name], tensor, rtol=1e-4, atol=1e-5)


def test_it_learns(tmp_path: Path) -> None:
    """From a policy that knows nothing: with a reward for one token, it says that token."""

    class Three(Digits):
        def score(self, problem: Problem, response: str) -> float:
            return float(response.startswith("3"))

    settings = config(
        tmp_path / "run",
        steps=25,
        rollout=RolloutOptions(prompts=8, responses=8, max_tokens=1),
        optim=GRPOOptim(lr=0.01),
        checkpoint_every=25,
        eval_sampled=True,
    )
    grpo(settings, own_task=Three())
    found = metrics(tmp_path / "run")
    assert found[1]["reward"] < 0.4 and found[-1]["reward"] > 0.9 and found[-1]["eval_reward"] > 0.8
    assert found[-1]["entropy_per_token"] < found[1]["entropy_per_token"] / 2


def test_a_controller_scales_the_step_that_was_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """theta = before + s (after - before); it is told of that step, on the entropy batch of the probe."""

    def run(name: str, scale: float) -> dict[str, torch.Tensor]:
        told: list[Any] = []

        def ask(view: Any) -> None:
            told.append((view.entropy_now, view.first_order(), view.preconditioner(), view.step))

        steer(monkeypatch, Steering(scales=(scale,), asks=ask))
        options = {"steps": 1, "probe": FIRST}
        grpo(config(tmp_path / name, controller={"name": "steering"}, **options), own_task=Digits())
        row = metrics(tmp_path / name)[1]
        ((entropy, first, preconditioner, step),) = told
        assert entropy == pytest.approx(row["probe_entropy_per_token"]) and step == 1
        assert first.value == pytest.approx(row["probe_first_per_token"] / scale, rel=1e-3)
        assert row["controller_step_length"] == pytest.approx(scale, rel=1e-5)
        assert all((P >= 0).all() for P in preconditioner.values())
        return weights(tmp_path / name)

    one, half = run("one", 1.0), run("half", 0.5)
    start = torch.load(tmp_path / "one" / "checkpoints" / "step-00000000.ckpt", weights_only=False)["weights"]
    assert start.keys() == one.keys()
    for name, before in start.items():
        torch.testing.assert_close(half[name], before + 0.5 * (one[name] - before))
    assert any(not torch.equal(one[name], before) for name, before in start.items())


def test_an_entropy_batch_on_the_prompts_of_the_update_has_pairs_of_one_prompt(tmp_path: Path) -> None:
    probe = ProbeOptions(every=1, prompts=3, responses=2, parts=("measured", "two_batch", "kernel"), same_prompts=True)
    experiment = open_experiment(config(tmp_path / "run", probe=probe, steps=1), Digits())
    batch, update = experiment.entropy_batch(1, 0), experiment.roll_out(1).responses
    assert [batch.prompt(n) for n in range(3)] == [update.prompt(n) for n in range(3)]
    grpo(experiment.config, own_task=Digits())
    row = metrics(tmp_path / "run")[1]
    kinds = [row[f"probe_kernel_{kind}"] for kind in ("identical", "same_prompt", "cross_prompt")]
    assert kinds[1] and kinds[2] and sum(kinds) == pytest.approx(row["probe_kernel_total"])


def test_a_checker_that_fails_ends_no_run_and_is_counted(tmp_path: Path) -> None:
    class Fragile(Digits):
        def score(self, problem: Problem, response: str) -> float:
            if response != problem.answer:
                raise ValueError(response)
            return 1.0

    grpo(config(tmp_path / "run", steps=2), own_task=Fragile())
    first, *steps = metrics(tmp_path / "run")
    assert 0 < first["eval_checker_errors"] <= 6
    assert len(steps) == 2
    for row in steps:
        assert row["checker_errors"] > 0 and row["reward"] == pytest.approx(1 - row["checker_errors"] / 12)


@pytest.mark.parametrize(
    "loss",
    [
        LossOptions(average="tokens"),
        LossOptions(average="constant", advantages="leave_one_out"),
        LossOptions(average="responses", advantages="centred"),
        LossOptions(average="responses", ratio="sequence"),
    ],
    ids=lambda loss: f"{loss.average}-{loss.advantages}-{loss.ratio}",
)
def test_the_covariance_is_of_the_update_that_the_loss_makes(loss: LossOptions, tmp_path: Path) -> None:
    """-mean S w with w the weights of ∇S in minus the gradient of the loss, by autograd, times the responses."""
    probe = ProbeOptions(every=1, prompts=3, responses=2, parts=("measured", "kernel"))
    grpo(config(tmp_path / "run", probe=probe, steps=1, loss=loss, clip=1e-4), own_task=Digits())
    row, table = metrics(tmp_path / "run")[1], pq.read_table(tmp_path / "run" / "responses.parquet").to_pydict()
    S, A = (torch.tensor(table[name], dtype=torch.float64) for name in ("logp", "advantage"))
    lengths = torch.tensor(table["length"])
    mask = torch.arange(3) < lengths[:, None]
    logp = torch.zeros(mask.shape, dtype=torch.float64, requires_grad=True)
    factors = normaliser(mask, loss.average, 3).double()
    one = token_loss(logp, logp.detach(), torch.zeros(mask.shape), A, mask, Objective(ratio=loss.ratio))
    (slope,) = torch.autograd.grad((one.loss * factors).sum(), logp)
    weights = -slope[:, 0] * len(A)
    torch.testing.assert_close(slope, slope[:, :1] * mask)  # a weight a response
    groups = S.view(4, 3)
    centred = (groups - groups.mean(1, keepdim=True)).flatten()
    clip = 1e-4 / (row["grad_norm"] + 1e-6)
    assert clip < 1
    assert row["probe_covariance_per_lr"] == pytest.approx(-clip * float((centred * weights).mean()), rel=1e-4)


def test_a_controller_without_a_probe_sees_the_same_entropy_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = []
    for every in (1, None):
        steer(monkeypatch, Steering(asks=lambda view: told.append(view.first_order())))
        options = {"steps": 1, "probe": dataclasses.replace(FIRST, every=every)}
        grpo(config(tmp_path / str(every), controller={"name": "steering"}, **options), own_task=Digits())
    assert told[0] == told[1]
    assert all(torch.equal(weights(tmp_path / "1")[n], t) for n, t in weights(tmp_path / "None").items())


@pytest.mark.parametrize("average", ["tokens", "responses", "constant"])
def test_the_probe_knows_the_update_of_each_average(average: Any, tmp_path: Path) -> None:
    """AdamW's part of this batch, by the probe's two batches and by the step itself: the same to first order."""
    probe = ProbeOptions(every=1, prompts=4, responses=2, parts=("split", "two_batch"))
    grpo(config(tmp_path / "run", steps=1, probe=probe, loss=LossOptions(average=average)), own_task=Digits())
    row = metrics(tmp_path / "run")[1]
    assert row["probe_two_batch_per_sequence"] != 0
    entropy_batch = row["probe_batch_per_sequence"]  # the same entropy batch, another estimator of its gradient
    gap = abs(row["probe_two_batch_per_sequence"] - entropy_batch)
    assert gap < 4 * (row["probe_two_batch_per_sequence_se"] + row["probe_batch_per_sequence_se"])
    assert math.copysign(1, entropy_batch) == math.copysign(1, row["probe_two_batch_per_sequence"])


# --- other policies ---------------------------------------------------------------------------------------------------


def folder_of_llama(folder: Path) -> Path:
    """A decoder of transformers with learned weights of its own, and a tokenizer of characters."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from fluxentropy.rl.grpo.policies import character_tokenizer

    tokenizer = character_tokenizer(["xy=0123456789"])
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    special = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes, **special)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_any_decoder_of_transformers_can_be_trained(tmp_path: Path) -> None:
    folder = folder_of_llama(tmp_path / "llama")
    grpo(config(tmp_path / "run", policy=PolicyOptions(model=str(folder)), steps=2), own_task=Digits())
    assert all(row["logp_gap"] < 1e-5 for row in metrics(tmp_path / "run")[1:])
    before, after = load_file(folder / "model.safetensors"), weights(tmp_path / "run")
    assert before.keys() == after.keys() and all(not torch.equal(before[name], after[name]) for name in before)


def test_low_rank_adapters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("peft")
    folder = folder_of_llama(tmp_path / "llama")
    options: dict[str, Any] = {
        "policy": PolicyOptions(model=str(folder), lora=LoRAOptions(rank=2, targets=("q_proj", "v_proj"))),
        "kl": KLOptions(beta=0.1),
        "optim": GRPOOptim(lr=0.01),
        "steps": 2,
    }
    grpo(config(tmp_path / "run", **options), own_task=Digits())
    before, after = load_file(folder / "model.safetensors"), weights(tmp_path / "run")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert before.keys() == after.keys()
    assert changed == {f"model.layers.0.self_attn.{name}_proj.weight" for name in "qv"}
    assert set(torch.load(tmp_path / "run/checkpoints/step-00000002.ckpt", weights_only=False)["weights"]) == {
        f"model.layers.0.self_attn.{name}_proj.lora_{side}.default.weight" for name in "qv" for side in "AB"
    }
    with monkeypatch.context() as patch:
        stop_after(patch, 2, StateCheckpoints)
        with pytest.raises(StoppedError):
            grpo(config(tmp_path / "two", **options), own_task=Digits())
    grpo(config(tmp_path / "two", **options), own_task=Digits())
    assert result(tmp_path / "two") == result(tmp_path / "run")


# --- what is refused --------------------------------------------------------------------------------------------------


def test_a_reward_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    class Broken(Digits):
        def score(self, problem: Problem, response: str) -> float:
            return math.inf if problem.prompt.startswith("xx") else 1.0

    with pytest.raises(RunError, match=r"the reward of the response '.*' to the prompt 'xx.=' is inf"):
        grpo(config(tmp_path / "run"), own_task=Broken())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"probe": PROBE, "optim": GRPOOptim(kind="muon")}, "--probe.parts split with --optim.kind muon"),
        ({"probe": ProbeOptions(parts=("measured,splits",))}, "--probe.parts splits is unknown: did you mean split?"),
        ({"rollout": RolloutOptions(max_tokens=30)}, "--rollout.max-tokens 30 are more than the 16 tokens"),
        ({"policy": PolicyOptions(n_embd=15, n_head=2)}, "n_embd 15 is not a multiple of n_head 2"),
    ],
)
def test_what_does_not_fit(options: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=said):
        grpo(config(tmp_path / "run", **options), own_task=Digits())


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--rollout.responses", "1"], "advantages within a group need at least 2"),
        (["--kl.target", "0.1"], "--kl.target 0.1 with --kl.beta 0"),
        (["--loss.clip-low", "1.5"], "--loss.clip-low 1.5: use a number from 0 to 1"),
        (["--probe.every", "5", "--rollout.top-k", "3"], "the probe needs the whole vocabulary"),
        (["--task.name", "gsm8k"], "give --task.data"),
    ],
)
def test_options_that_make_no_sense(argv: list[str], said: str, tmp_path: Path, capsys: Any) -> None:
    assert main(["grpo", *argv, "--out", str(tmp_path / "run")]) == 2
    assert said in capsys.readouterr().err


def test_the_configuration_that_is_shipped_is_one() -> None:
    from fluxentropy.config.yaml import config_path, from_plain, read_yaml

    shipped = read_yaml(config_path("grpo") / "chain_sum.yaml", GRPOConfig)
    assert from_plain(GRPOConfig, {**shipped, "out": "runs/x"}).steps > 0
