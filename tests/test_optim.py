"""The one optimizer against torch's two, each run on its own."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import AdamW, Muon, Optimizer

from fluxentropy.errors import UsageError
from fluxentropy.gpt import GPT
from fluxentropy.gptconfig import GPTConfig
from fluxentropy.optim import build_optimizer, parameters_by_role, scale_learning_rates
from fluxentropy.optimconfig import OptimConfig

CONFIG = OptimConfig(lr=0.01, matrix_lr=0.02, embedding_lr=0.05, head_lr=0.003, gain_lr=0.007, weight_decay=0.3)


def make_gpt(preset: Any = "modern", **changes: Any) -> GPT:
    torch.manual_seed(0)
    shape = {"vocab_size": 40, "block_size": 16, "n_layer": 2, "n_head": 2, "n_embd": 16}
    return GPT(GPTConfig.preset(preset, **shape, **changes))


def some_ids(seed: int) -> Tensor:
    return torch.randint(40, (4, 16), generator=torch.Generator().manual_seed(seed))


def train(gpt: GPT, optimizers: list[Optimizer], steps: range) -> None:
    for step in steps:
        ids = some_ids(step)
        gpt(ids, ids.roll(-1, 1)).backward()
        for optimizer in optimizers:
            scale_learning_rates(optimizer, 1 / (1 + step))
            optimizer.step()
            optimizer.zero_grad()


def assert_same(a: GPT, b: GPT) -> None:
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def torchs_two(gpt: GPT, muon: bool) -> list[Optimizer]:
    """The optimizers of CONFIG, written out."""
    matrices = [p for name, p in gpt.named_parameters() if "blocks" in name and p.ndim == 2 and "values" not in name]
    rates = {"embed.": 0.05, "positions.": 0.05, "values.": 0.05, "head.": 0.003}
    others = []
    for name, parameter in gpt.named_parameters():
        if not any(parameter is matrix for matrix in matrices):
            lr = next((rate for part, rate in rates.items() if part in name), 0.007)
            others.append({"params": [parameter], "lr": lr, "initial_lr": lr, "weight_decay": 0.0})
    first = {"params": matrices, "lr": 0.02, "initial_lr": 0.02, "weight_decay": 0.3}
    if not muon:
        return [AdamW([first, *others], betas=(0.9, 0.95), eps=1e-8)]
    return [Muon([first], momentum=0.95, adjust_lr_fn="match_rms_adamw"), AdamW(others, betas=(0.9, 0.95), eps=1e-8)]


VARIANTS = [("modern", {"n_kv_head": 2}), ("modern", {"tied": True}), ("gpt2", {})]


@pytest.mark.parametrize("kind", ["muon", "adamw"])
@pytest.mark.parametrize(("preset", "changes"), VARIANTS)
def test_steps_are_those_of_torchs_optimizers(preset: str, changes: dict[str, Any], kind: Any) -> None:
    ours = make_gpt(preset, **changes)
    theirs, start = copy.deepcopy(ours), copy.deepcopy(ours)
    train(ours, [build_optimizer(ours, OptimConfig(**{**vars(CONFIG), "kind": kind}))], range(6))
    train(theirs, torchs_two(theirs, kind == "muon"), range(6))
    assert_same(ours, theirs)
    assert not any(torch.equal(p, q) for p, q in zip(ours.parameters(), start.parameters(), strict=True))


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_a_saved_and_loaded_optimizer_goes_on_bit_for_bit(kind: Any) -> None:
    config = OptimConfig(**{**vars(CONFIG), "kind": kind})
    whole = make_gpt("gpt2")
    optimizer = build_optimizer(whole, config)
    train(whole, [optimizer], range(3))
    file = io.BytesIO()
    torch.save({"model": whole.state_dict(), "optimizer": optimizer.state_dict()}, file)
    train(whole, [optimizer], range(3, 6))

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = make_gpt("gpt2")
    again = build_optimizer(resumed, config)
    resumed.load_state_dict(saved["model"])
    again.load_state_dict(saved["optimizer"])
    train(resumed, [again], range(3, 6))
    assert_same(whole, resumed)
    a, b = optimizer.state_dict(), again.state_dict()
    assert a["param_groups"] == b["param_groups"]
    assert a["state"].keys() == b["state"].keys()
    for index, state in a["state"].items():
        assert all(torch.equal(tensor, b["state"][index][name]) for name, tensor in state.items())


def test_a_deep_copy_goes_on_alone() -> None:
    gpt = make_gpt()
    optimizer = build_optimizer(gpt, CONFIG)
    train(gpt, [optimizer], range(2))
    other, other_optimizer = copy.deepcopy((gpt, optimizer))
    before = copy.deepcopy(gpt)
    train(other, [other_optimizer], range(2, 4))
    assert_same(gpt, before)
    train(gpt, [optimizer], range(2, 4))
    assert_same(gpt, other)


@pytest.mark.parametrize(("preset", "changes"), VARIANTS)
def test_every_parameter_has_one_role_and_only_matrices_decay(preset: str, changes: dict[str, Any]) -> None:
    gpt = make_gpt(preset, **changes)
    roles = parameters_by_role(gpt)
    listed = [id(parameter) for parameters in roles.values() for parameter in parameters]
    assert sorted(listed) == sorted(id(parameter) for parameter in gpt.parameters())
    assert len(roles["matrix"]) == 2 * 6
    assert ("head" in roles) == (not gpt.config.tied)
    assert ("gain" in roles) == (preset == "gpt2")
    groups = {group["role"]: group for group in build_optimizer(gpt, CONFIG).param_groups}
    assert {role: group["weight_decay"] for role, group in groups.items() if group["weight_decay"]} == {"matrix": 0.3}
    assert {role: group["initial_lr"] for role, group in groups.items()} == {
        role: getattr(CONFIG, f"{role}_lr") for role in roles
    }


def test_weights_without_gradient_only_decay() -> None:
    gpt = make_gpt()
    matrix, embedding = gpt.body.blocks[0].mlp.up.weight, gpt.body.embed.weight
    before = matrix.detach().clone(), embedding.detach().clone()
    for parameter in gpt.parameters():
        parameter.grad = torch.zeros_like(parameter)
    build_optimizer(gpt, CONFIG).step()
    torch.testing.assert_close(matrix, before[0] * (1 - 0.02 * 0.3))
    assert torch.equal(embedding, before[1])


def test_a_step_runs_its_closure_once_with_gradients() -> None:
    gpt, calls = make_gpt(), []
    optimizer = build_optimizer(gpt, CONFIG)

    def closure() -> Tensor:
        calls.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss: Tensor = gpt(some_ids(0), some_ids(1))
        loss.backward()
        return loss

    assert optimizer.step(closure) == gpt_loss_at_start()
    assert calls == [True]


def gpt_loss_at_start() -> Tensor:
    return make_gpt()(some_ids(0), some_ids(1))


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_it_learns_a_row_by_heart(kind: Any) -> None:
    gpt, ids = make_gpt(), some_ids(0)
    optimizer = build_optimizer(gpt, OptimConfig(kind=kind, lr=0.02))
    for _ in range(40):
        loss = gpt(ids[:, :-1], ids[:, 1:])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < 0.5 < 3 < gpt_loss_at_start().item()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": -1.0}, "lr -1.0: use 0 or a positive number"),
        ({"head_lr": float("nan")}, "head_lr nan"),
        ({"beta2": 1.0}, "beta2 1.0: use a number from 0 to below 1"),
    ],
)
def test_numbers_out_of_range_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        OptimConfig(**changes)
