"""Linear layers for CPUs: weights in oneDNN's blocked layout, in float32 or bfloat16, or as 8-bit integers.

Packed products are 2.3 x the default float32 product on AMD Zen 5 (docs/LOG.md). The operators are those that
torch.compile itself emits for frozen CPU graphs.

Shape legend: N rows (positions), K features in, M features out.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

ROWS = 512  # for how many rows oneDNN chooses its layout

# --- packed -----------------------------------------------------------------------------------------------------------


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this build of torch and this device have oneDNN's packed linear layers for `dtype`."""
    ready = device.type == "cpu" and torch.backends.mkldnn.is_available()
    ready = ready and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    if dtype == torch.bfloat16:
        return ready and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return ready and dtype == torch.float32


class PackedLinear(nn.Module):
    """`nn.Linear` for inference, its weight in oneDNN's blocked layout, with an optional fused operation.

    `weight` (M, K) in float32 or bfloat16, `bias` (M,).
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), ROWS)
        self.bias = bias

    def forward(self, x: Tensor, activation: str = "none") -> Tensor:  # (..., K) -> (..., M)
        result: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, activation, [], "")
        return result

    def times(self, x: Tensor, other: Tensor) -> Tensor:
        """The layer's output multiplied by `other`, fused: (..., K), (..., M) -> (..., M)."""
        result: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, other, self.packed, self.bias, "mul")
        return result

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        """The layer's output added to `other`, fused: (..., K), (..., M) -> (..., M)."""
        result: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, other, self.packed, self.bias, "add")
        return result


# --- 8-bit integers ---------------------------------------------------------------------------------------------------
#
#     x ≈ s (q − 128)      q unsigned 8-bit, s the row's largest |x| / 127     a scale for each token
#     w ≈ t p              p signed 8-bit, t the largest |w| of the output     a scale for each channel
#     x·w ≈ s t Σ (q − 128) p,  the sum exact in 32-bit integers
#
# Processors without VNNI add two products of bytes in 16 bits, and oneDNN lets that sum saturate: with 8 bits on both
# sides it may be wrong by a fifth. There the weights get 7 bits, and no sum overflows: 2 · 255 · 63 < 2¹⁵.

ZERO_POINT = 128  # oneDNN has no fast kernel for a signed source


class Int8Linear(nn.Module):
    """A linear layer of 8-bit weights, a scale for each output, on rows that are quantised one by one.

    `weight` (M, K) float32, `bias` (M,) float32.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        levels = 127 if sums_are_exact() else 63
        self.scale = weight.abs().amax(1).clamp_(min=1e-12).div_(levels)  # (M,)
        whole = (weight / self.scale[:, None]).round_().to(torch.int8)
        self.packed = torch.ops.onednn.qlinear_prepack(whole, [ROWS, weight.shape[1]])
        self.zeros = torch.zeros(len(weight), dtype=torch.int64)
        self.bias = bias

    def forward(self, x: Tensor, activation: str = "none") -> Tensor:  # (N, K) float32 -> (N, M) float32
        return self.of(*quantised_rows(x), activation)

    def of(self, q: Tensor, scale: Tensor, activation: str = "none") -> Tensor:
        """The layer of rows that `quantised_rows` has quantised: (N, K), (N, 1) -> (N, M)."""
        y = self.product(q).mul_(scale)
        if self.bias is not None:
            y += self.bias
        return nn.functional.silu(y, inplace=True) if activation == "swish" else y

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        q, scale = quantised_rows(x)
        y = torch.addcmul(other, self.product(q), scale)
        return y if self.bias is None else y.add_(self.bias)

    def product(self, q: Tensor) -> Tensor:
        """Σ (q − 128) w, for rows q uint8 (N, K): float32 (N, M)."""
        result: Tensor = torch.ops.onednn.qlinear_pointwise(
            q, 1.0, ZERO_POINT, self.packed, self.scale, self.zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
        return result


def quantised_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows float32 (N, K) as unsigned bytes around 128 (N, K), and the scale of each (N, 1)."""
    largest = torch.maximum(x.amax(-1, keepdim=True), x.amin(-1, keepdim=True).neg_()).clamp_(min=1e-12)
    return torch.addcmul(_HALF, x, 127.0 / largest).to(torch.uint8), largest.div_(127.0)


_HALF = torch.tensor(ZERO_POINT + 0.5)  # the conversion to bytes cuts what is behind the point


@cache
def sums_are_exact() -> bool:
    """Whether this processor adds products of full bytes without saturation (VNNI, AMX)."""
    q = torch.full((ROWS, 64), 255, dtype=torch.uint8)
    w = torch.full((64, 64), 127, dtype=torch.int8)
    packed = torch.ops.onednn.qlinear_prepack(w, list(q.shape))
    ones, zeros = torch.ones(64), torch.zeros(64, dtype=torch.int64)
    got = torch.ops.onednn.qlinear_pointwise(
        q, 1.0, 0, packed, ones, zeros, None, 1.0, 0, torch.float32, "none", [], ""
    )
    return bool((got == 255 * 127 * 64).all())


def can_quantise(device: torch.device) -> bool:
    """Whether this build of torch and this device have oneDNN's integer products."""
    return (
        device.type == "cpu" and torch.backends.mkldnn.is_available() and hasattr(torch.ops.onednn, "qlinear_pointwise")
    )
