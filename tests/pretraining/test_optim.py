"""The one optimizer against torch's two, each run on its own."""

from __future__ import annotations

import copy
import io
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer

from fluxentropy.errors import RunError, UsageError
from fluxentropy.pretraining.gpt import GPT, GPTConfig
from fluxentropy.pretraining.optim import (
    EMA,
    BatchedMuon,
    LastK,
    averaged,
    build_optimizer,
    ema_horizon,
    orthogonal,
    parameters_by_role,
    scale_learning_rates,
    weights_of,
)
from fluxentropy.pretraining.options import OptimConfig

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


def exactly_orthogonal(grad: Tensor, coefficients: Any, steps: int, eps: float) -> Tensor:
    """Newton-Schulz by what it does to the singular values, in float64: s <- a s + b s^3 + c s^5."""
    u, s, vt = torch.linalg.svd(grad.double(), full_matrices=False)
    s = s / s.norm().clamp(min=eps)
    a, b, c = coefficients
    for _ in range(steps):
        s = a * s + b * s**3 + c * s**5
    return (u * s @ vt).to(grad.dtype)


class ExactMuon(Muon):
    """torch's, without the rounding to bfloat16."""

    def step(self, closure: Any = None) -> Any:
        with patch.object(torch.optim._muon, "_zeropower_via_newtonschulz", exactly_orthogonal):
            return super().step(closure)


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
    muon = ExactMuon([first], momentum=0.95, adjust_lr_fn="match_rms_adamw")
    return [muon, AdamW(others, betas=(0.9, 0.95), eps=1e-8)]


SHAPES = list(enumerate([(8, 8), (8, 24), (24, 8), (8, 24), (8, 8)]))
VARIANTS = [("modern", {"n_kv_head": 2}), ("modern", {"tied": True}), ("gpt2", {})]


@pytest.mark.parametrize("kind", ["muon", "adamw"])
@pytest.mark.parametrize(("preset", "changes"), VARIANTS)
def test_steps_are_those_of_torchs_optimizers(preset: str, changes: dict[str, Any], kind: Any) -> None:
    ours = make_gpt(preset, **changes)
    theirs, start = copy.deepcopy(ours), copy.deepcopy(ours)
    train(ours, [build_optimizer(ours, OptimConfig(**{**vars(CONFIG), "kind": kind}))], range(6))
    train(theirs, torchs_two(theirs, kind == "muon"), range(6))
    if kind == "adamw":
        assert_same(ours, theirs)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=1e-5, atol=1e-5)  # 1e-3 with updates rounded to bfloat16
    assert not any(torch.equal(p, q) for p, q in zip(ours.parameters(), start.parameters(), strict=True))


@pytest.mark.parametrize("scale", ["match_rms_adamw", "original"])
def test_muon_is_torchs_but_for_the_rounding(scale: Any) -> None:
    ours = [nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(n))) for n, shape in SHAPES]
    theirs = copy.deepcopy(ours)
    options: dict[str, Any] = {"lr": 0.1, "weight_decay": 0.3, "momentum": 0.9, "adjust_lr_fn": scale}
    pair = (BatchedMuon(ours, **options), Muon(theirs, **options))
    for step in range(3):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(99 + step))
            q.grad = p.grad.clone()
        for optimizer in pair:
            optimizer.step()
    for p, q in zip(ours, theirs, strict=True):
        assert (p - q).norm() < 0.01 * q.norm()
        assert not torch.equal(p, q)


def test_orthogonal_matrices_come_one_by_one_as_together() -> None:
    batch = torch.randn(3, 5, 12, generator=torch.Generator().manual_seed(0))
    for one, alone, wide in zip(orthogonal(batch), batch, orthogonal(batch.mT), strict=True):
        exact = exactly_orthogonal(alone, (3.4445, -4.775, 2.0315), 5, 1e-7)
        assert torch.allclose(one, exact, atol=1e-5)
        assert torch.allclose(wide.T, exact, atol=1e-5)


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


# --- Averages of weights against the sums that define them, in float64 ---


def make_model(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return GPT(GPTConfig(vocab_size=20, block_size=8, n_layer=1, n_head=1, n_embd=8, tied=True)).to(dtype)


def path(model: nn.Module, steps: int, seed: int = 0) -> list[dict[str, Tensor]]:
    """Random weights at each step, float64."""
    g = torch.Generator().manual_seed(seed)
    return [
        {name: torch.randn(p.shape, generator=g).to(p.dtype).double() for name, p in model.named_parameters()}
        for _ in range(steps)
    ]


def put(model: nn.Module, weights: dict[str, Tensor]) -> None:
    for name, parameter in model.named_parameters():
        parameter.data.copy_(weights[name])


def shares(n: int, decay: float) -> list[float]:
    """What each of n weights is of the average, by the recursion on unit vectors, in float64."""
    found = np.zeros(n)
    for i in range(n):
        kept = min(decay, (i + 1) / (i + 10)) if i else 0.0
        found *= kept
        found[i] = 1 - kept
    return found.tolist()


@pytest.mark.parametrize("decay", [0.8, 0.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_moving_average_is_its_sum(dtype: torch.dtype, decay: float) -> None:
    model, ema, n = make_model(dtype), EMA(make_model(dtype), decay), 50
    steps = path(model, n)
    for weights in steps:
        put(model, weights)
        ema.update(model)
    assert sum(shares(n, decay)) == pytest.approx(1)
    for name, average in ema.average().items():
        want = sum(share * weights[name] for share, weights in zip(shares(n, decay), steps, strict=True))
        assert average.dtype == torch.float32
        torch.testing.assert_close(average.double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n", [20, 256, 3000])
def test_the_first_weights_are_forgotten_and_the_horizon_is_stated(n: int) -> None:
    found = np.array(shares(n, 0.999))
    assert found[0] < 1e-5 and 0.999 ** (n - 1) > 0.04  # with a fixed decay, 0.775 at 256
    age = float(found @ np.arange(n)[::-1])  # of the weights, on the average
    assert age == pytest.approx(ema_horizon(n, 0.999) - 1, rel=0.12)
    assert ema_horizon(n, 0.999) == pytest.approx(1 + n / 9)
    model = nn.Linear(1, 1, bias=False)
    ema = EMA(model, 0.999)
    for i in range(n):  # a unit jump after the first: what is left of it
        nn.init.constant_(model.weight, float(i > 0))
        ema.update(model)
    assert float(ema.average()["weight"]) == pytest.approx(1 - found[0], abs=1e-5)


def test_long_runs_have_the_decay_itself() -> None:
    found = np.array(shares(40_000, 0.999))
    assert found[-1000:] == pytest.approx(0.001 * 0.999 ** np.arange(1000)[::-1], rel=1e-9)
    assert ema_horizon(40_000, 0.999) == pytest.approx(1000)


def test_the_state_of_an_earlier_version_is_refused() -> None:
    """Its average has other shares, and the first weights, which could be taken out of it, are gone."""
    with pytest.raises(RunError, match="of an earlier version.*train afresh with --overwrite"):
        EMA(make_model()).load_state_dict({"weights": weights_of(make_model())})


@pytest.mark.parametrize("n", [2, 3, 7])
def test_the_last_k_are_averaged(n: int) -> None:
    model, last = make_model(), LastK(3)
    steps = path(model, n)
    for weights in steps:
        put(model, weights)
        last.update(model)
    for name, average in last.average().items():
        want = torch.stack([weights[name] for weights in steps[-3:]]).mean(0)
        torch.testing.assert_close(average.double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("make", [lambda: EMA(make_model(), 0.9), lambda: LastK(3)])
def test_a_saved_average_goes_on_bit_for_bit(make: Any) -> None:
    model, whole, again, file = make_model(), make(), make(), io.BytesIO()
    steps = path(model, 9)
    for weights in steps[:5]:
        put(model, weights)
        whole.update(model)
    torch.save(whole.state_dict(), file)
    file.seek(0)
    again.load_state_dict(torch.load(file, weights_only=True))
    for weights in steps[5:]:
        put(model, weights)
        whole.update(model)
        again.update(model)
    a, b = whole.average(), again.average()
    assert a.keys() == b.keys() == dict(model.named_parameters()).keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_an_average_that_took_over_a_state_goes_its_own_way() -> None:
    model, ema, other = make_model(), EMA(make_model(), 0.5), EMA(make_model(), 0.5)
    first, second = path(model, 2)
    put(model, first)
    ema.update(model)
    other.load_state_dict(ema.state_dict())
    put(model, second)
    ema.update(model)
    assert all(torch.equal(tensor.double(), first[name]) for name, tensor in other.average().items())


def test_the_model_has_the_average_inside_and_its_own_weights_after() -> None:
    model = make_model(torch.bfloat16)
    own = weights_of(model)
    (other,) = path(model, 1)
    ids = torch.zeros(1, 3, dtype=torch.long)
    before = model(ids)
    with pytest.raises(KeyError, match="stop"), averaged(model, other) as inside:
        assert all(torch.equal(p.double(), other[name]) for name, p in inside.named_parameters())
        assert not torch.equal(model(ids), before)
        raise KeyError("stop")
    assert all(torch.equal(tensor, own[name]) for name, tensor in weights_of(model).items())
    assert torch.equal(model(ids), before)


def test_impossible_settings_are_named() -> None:
    with pytest.raises(ValueError, match="decay 1.0: use a number from 0 to below 1"):
        EMA(make_model(), 1.0)
    with pytest.raises(ValueError, match="k 0: use 1 or more"):
        LastK(0)
