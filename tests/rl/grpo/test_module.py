"""Every controller inside GRPO: it runs, goes on where it was stopped, and does not see how a batch is cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from digits import SUMS
from rl_enumeration import world
from runfiles import metrics
from torch import Tensor
from updates import CHOSEN, PROMPTS, drifted, gradient_of, update_of

from fluxentropy.config.yaml import from_plain
from fluxentropy.errors import RunError, UsageError
from fluxentropy.rl.control.control import CONTROLLERS, open_controller
from fluxentropy.rl.grpo.experiment import Experiment
from fluxentropy.rl.grpo.grpo import grpo
from fluxentropy.rl.grpo.loss import token_values
from fluxentropy.rl.grpo.module import StateCheckpoints, load_states
from fluxentropy.rl.grpo.options import GRPOConfig
from fluxentropy.rl.grpo.update import BatchUpdate, Gradient

TINY = SUMS | {
    "warmup": {},
    "steps": 2,
    "inner_epochs": 2,
    "eval_every": 2,
    "eval_problems": 4,
    "checkpoint_every": 1,
    "probe": {"prompts": 4, "responses": 2},
}

# such that each does something in so small a batch
OPTIONS: dict[str, dict[str, Any]] = {
    "bonus": {"coefficient": 0.05},
    "asymmetric_clip": {"low": 0.01, "high": 0.02},
    "clip_cov": {"ratio": 0.2, "low": 0.0},
    "kl_cov": {"ratio": 0.2},
    "clip_b": {"threshold": 0.2},
    "clip_v": {"threshold": 0.1, "most": 0.5},
    "siren": {"quantile": 0.3, "strength": 0.5},
    "follow": {"start": 3.0},
    "project": {"start": 3.0},
    "guard": {"range": "both"},
}

pytestmark = pytest.mark.usefixtures("one_thread")


def tiny(out: Path, name: str, **options: Any) -> GRPOConfig:
    found: GRPOConfig = from_plain(
        GRPOConfig, TINY | {"out": out, "controller": {"name": name} | OPTIONS.get(name, {})} | options
    )
    return found


@pytest.mark.parametrize("name", CONTROLLERS)
def test_a_stopped_run_goes_on_to_the_same_bits(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, stopped = tiny(tmp_path / "whole", name), tiny(tmp_path / "stopped", name)
    grpo(whole)
    rows = metrics(whole.out)
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert all(row["entropy_per_token"] > 0 for row in rows[1:])

    def stop(self: StateCheckpoints, module: Any, done: int) -> None:
        step_end(self, module, done)
        if done == 1:
            raise KeyboardInterrupt

    step_end = StateCheckpoints.step_end
    with monkeypatch.context() as patch:
        patch.setattr(StateCheckpoints, "step_end", stop)
        with pytest.raises(KeyboardInterrupt):
            grpo(stopped)
    grpo(stopped)
    assert (stopped.out / "metrics.csv").read_bytes() == (whole.out / "metrics.csv").read_bytes()
    (_, ours), (_, theirs) = (load_states(one.out / "checkpoints") or ({}, {}) for one in (stopped, whole))
    assert ours["controller"] == theirs["controller"]
    for name_of, tensor in theirs["weights"].items():
        assert torch.equal(ours["weights"][name_of], tensor), name_of


def test_what_a_controller_does_is_in_the_metrics(tmp_path: Path) -> None:
    """The length of the step, in lengths of the optimizer's."""
    grpo(tiny(tmp_path / "project", "project"))
    assert all(row["controller_step_length"] != 1 for row in metrics(tmp_path / "project")[1:])
    grpo(tiny(tmp_path / "guard", "guard"))
    lengths = [row["controller_step_length"] for row in metrics(tmp_path / "guard")[1:]]
    assert all(0 <= length <= 1 for length in lengths) and min(lengths) < 1
    grpo(tiny(tmp_path / "bonus", "bonus"))
    assert "controller_step_length" not in metrics(tmp_path / "bonus")[1]


def test_a_controller_without_adjustment_samples_no_entropy_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(Experiment, "entropy_batch", refuse)
    grpo(tiny(tmp_path / "run", "clip_cov"))
    with pytest.raises(AssertionError):
        grpo(tiny(tmp_path / "other", "guard"))


def test_a_truncated_vocabulary_is_refused_by_who_looks_at_steps(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="whole vocabulary"):
        grpo(tiny(tmp_path / "run", "follow", rollout=TINY["rollout"] | {"top_k": 3}))


def test_a_step_that_cannot_be_taken_names_the_controller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CONTROLLERS["guard"], "adjust", lambda *_: float("nan"))
    with pytest.raises(RunError, match="step 0: the controller guard makes a step of nan"):
        grpo(tiny(tmp_path / "run", "guard"))


# --- micro-batches ----------------------------------------------------------------------------------------------------


def prepared(name: str, micro_batch: int | None = None) -> BatchUpdate:
    """A batch of a small policy in float64; the policy that sampled it is another one."""
    small, config = world(limit=3, prompts=2), tiny(Path("none"), name, micro_batch=micro_batch)
    along = torch.linspace(-1, 1, sum(p.numel() for p in small.policy.parameters()), dtype=torch.float64)
    controller = open_controller(config.controller)
    if name == "siren":  # an anchor that is not that of this batch
        controller.load_state_dict({"anchor": 0.2})
    old = drifted(small, CHOSEN, PROMPTS, along)
    return update_of(small, CHOSEN, PROMPTS, config, old=old, controller=controller)


def gradient(update: BatchUpdate) -> tuple[Tensor, Gradient]:
    """That of the second inner epoch, where ratios are not 1."""
    return gradient_of(update, 1)


@pytest.mark.parametrize("name", CONTROLLERS)
def test_the_update_does_not_depend_on_micro_batches(name: str) -> None:
    whole, facts = gradient(prepared(name))
    for micro_batch in (1, 5):
        cut, found = gradient(prepared(name, micro_batch))
        torch.testing.assert_close(cut, whole, rtol=1e-6, atol=1e-9)
        assert found.facts == pytest.approx(facts.facts) and found.loss == pytest.approx(facts.loss)


@pytest.mark.parametrize("name", [name for name in CONTROLLERS if name not in ("none", "project", "guard")])
def test_every_controller_of_the_loss_changes_the_gradient(name: str) -> None:
    plain, _ = gradient(prepared("none"))
    controlled, _ = gradient(prepared(name))
    assert (controlled - plain).norm() > 1e-4 * plain.norm()


@pytest.mark.parametrize("micro_batch", [None, 2])
def test_sirens_part_is_the_gradient_of_its_square(micro_batch: int | None) -> None:
    """strength (mean nucleus entropy - anchor)^2 over the tokens that it chose, all at once by autograd."""
    update, strength, name = prepared("siren", micro_batch), OPTIONS["siren"]["strength"], "nucleus_entropy"
    controlled, found = gradient(update)
    plain, without = gradient(prepared("none"))
    policy = update.experiment.policy.model
    values = token_values(policy, update.batch, slice(None), extra=[name])
    H, chosen = values.extra[name], torch.zeros_like(update.mask)
    for n, mask in enumerate(update.mask):
        chosen[n] = mask & (H[n] > H[n][mask].quantile(OPTIONS["siren"]["quantile"]))
    square = strength * (H[chosen].mean() - 0.2) ** 2
    expected = torch.nn.utils.parameters_to_vector(torch.autograd.grad(square, list(policy.parameters())))
    torch.testing.assert_close(controlled - plain, expected, rtol=1e-6, atol=1e-9)
    assert found.loss - without.loss == pytest.approx(float(square.detach()), rel=1e-6)
    assert 0 < chosen.sum() < update.mask.sum()
