"""Packed and integer layers against float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fluxentropy.models.linear import (
    CastLinear,
    Int8Linear,
    PackedLinear,
    can_pack,
    can_quantise,
    quantised_rows,
    smoothing,
)

CPU = torch.device("cpu")


def tensors() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x (N, K), weight (M, K), bias (M,), other (N, M)."""
    torch.manual_seed(0)
    return torch.randn(37, 48), torch.randn(70, 48), torch.randn(70), torch.randn(37, 70)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_layers(dtype: torch.dtype) -> None:
    if not can_pack(CPU, dtype):
        pytest.skip(f"this processor packs no {dtype}")
    x, weight, bias, other = tensors()
    layer = PackedLinear(weight.to(dtype), bias.to(dtype))
    y = functional.linear(x.double(), weight.double(), bias.double())
    close = {"rtol": 1e-5, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.3}
    for got, want in (
        (layer(x.to(dtype)), y),
        (layer(x.to(dtype), "swish"), functional.silu(y)),
        (layer.times(x.to(dtype), other.to(dtype)), y * other),
        (layer.plus(x.to(dtype), other.to(dtype)), y + other),
    ):
        torch.testing.assert_close(got.double(), want, **close)
    if dtype == torch.bfloat16:
        torch.testing.assert_close(CastLinear(weight, bias).plus(x, other).double(), y + other, **close)


def test_rows_are_quantised_to_the_nearest_level() -> None:
    x = torch.tensor([[0.0, 127.0, -127.0, 1.4, -1.4, 0.6], [0.0, 0.0, 0.0, 0.0, 0.0, 0.0], [2.0, -1.0, 0.5, 0, 0, 0]])
    q, scale = quantised_rows(x)
    assert q[0].tolist() == [128, 255, 1, 129, 127, 129]
    assert q[1].tolist() == [128] * 6
    assert scale[:, 0].tolist() == pytest.approx([1.0, 0.0, 2 / 127])
    assert (((q.double() - 128) * scale - x).abs() <= scale / 2 + 1e-6).all()


@pytest.mark.skipif(not can_quantise(), reason="this processor has no VNNI")
def test_integer_layers_are_exact_on_what_is_whole() -> None:
    x, weight, bias, other = tensors()
    layer = Int8Linear(weight, bias)
    q, scale = quantised_rows(x)
    want = ((q.double() - 128) * scale) @ (layer.whole.double() * layer.scale.double()[:, None]).T + bias
    torch.testing.assert_close(layer(x).double(), want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer.plus(x, other).double(), want + other, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer.times(x, other).double(), want * other, rtol=1e-5, atol=1e-4)


def test_smoothing_evens_features_and_weights_out() -> None:
    largest, weight = torch.tensor([100.0, 1.0, 4.0]), torch.tensor([[1.0, -1.0, 0.5], [0.5, 0.2, 1.0]])
    v = smoothing(largest, weight)
    assert float(v.log().sum()) == pytest.approx(0, abs=1e-6)
    evened = (largest / v) / (weight.abs().amax(0) * v)
    assert evened.tolist() == pytest.approx([float(evened[0])] * 3)
