"""Averages of weights against the sums that define them, in float64."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fluxentropy.averaging import EMA, LastK, averaged, ema_horizon, weights_of
from fluxentropy.errors import RunError
from fluxentropy.gpt import GPT
from fluxentropy.gptconfig import GPTConfig


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
