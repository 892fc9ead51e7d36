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


class CastLinear(PackedLinear):
    """A packed layer in bfloat16 between float32 tensors."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__(weight.bfloat16(), None if bias is None else bias.bfloat16())

    def forward(self, x: Tensor, activation: str = "none") -> Tensor:
        return super().forward(x.bfloat16(), activation).float()

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        return self.forward(x).add_(other)


# --- 8-bit integers ---------------------------------------------------------------------------------------------------
#
#     x ≈ s (q − 128)      q unsigned 8-bit, s the row's largest |x| / 127     a scale for each token
#     w ≈ t p              p signed 8-bit, t the largest |w| / 127             a scale for each output
#     x·w ≈ s t Σ (q − 128) p,  the sum exact in 32-bit integers
#
# SmoothQuant (arXiv 2211.10438): some features of x are a hundred times larger than others and take all the levels.
# They are divided by v, and the weights multiplied:
#
#     v_k = √(largest |x_k| / largest |w_k|), with a geometric mean of 1


ZERO_POINT = 128  # oneDNN has no fast kernel for a signed source
LEVELS = 127
TINY = 1e-12


class Int8Linear(nn.Module):
    """A linear layer of 8-bit weights, a scale for each output, on rows that are quantised one by one.

    `weight` (M, K) float32, `bias` (M,) float32.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.scale = weight.abs().amax(1).clamp_(min=TINY).div_(LEVELS)  # (M,)
        self.whole = (weight / self.scale[:, None]).round_().to(torch.int8)
        self.packed = torch.ops.onednn.qlinear_prepack(self.whole, [ROWS, weight.shape[1]])
        self.zeros = torch.zeros(len(weight), dtype=torch.int64)
        self.bias = bias

    def forward(self, x: Tensor, activation: str = "none") -> Tensor:  # (N, K) float32 -> (N, M) float32
        q, scale = quantised_rows(x)
        y = self.product(q).mul_(scale)
        if self.bias is not None:
            y += self.bias
        return nn.functional.silu(y, inplace=True) if activation == "swish" else y

    def times(self, x: Tensor, other: Tensor) -> Tensor:
        """The layer's output multiplied by `other`: (N, K), (N, M) -> (N, M)."""
        return self.forward(x).mul_(other)

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        """The layer's output added to `other`: (N, K), (N, M) -> (N, M)."""
        return self.forward(x).add_(other)

    def product(self, q: Tensor) -> Tensor:
        """Σ (q − 128) w, for rows q uint8 (N, K): float32 (N, M)."""
        result: Tensor = torch.ops.onednn.qlinear_pointwise(
            q, 1.0, ZERO_POINT, self.packed, self.scale, self.zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
        return result


def quantised_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows float32 (N, K) as unsigned bytes around 128 (N, K), and the scale of each (N, 1)."""
    largest = torch.maximum(x.amax(-1, keepdim=True), x.amin(-1, keepdim=True).neg_()).clamp_(min=TINY)
    return torch.addcmul(_HALF, x, LEVELS / largest).to(torch.uint8), largest.div_(LEVELS)


_HALF = torch.tensor(ZERO_POINT + 0.5)  # the conversion to bytes cuts what is behind the point


def smoothing(largest: Tensor, weight: Tensor) -> Tensor:
    """v (K,), by which features of `largest` |x| (K,) are divided and the columns of `weight` (M, K) multiplied."""
    root = (largest.clamp(min=TINY) / weight.abs().amax(0).clamp(min=TINY)).sqrt()
    return root / root.log().mean().exp()


@cache
def can_quantise() -> bool:
    """Whether this build of torch and this processor add products of full bytes exactly.

    Processors without VNNI or AMX add two products in 16 bits, and oneDNN lets that sum saturate: sums are wrong by
    up to a half, and nothing says so.
    """
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.onednn, "qlinear_pointwise"):
        return False
    layer = Int8Linear(torch.ones(64, 64))
    found = layer.product(torch.full((ROWS, 64), 255, dtype=torch.uint8)) / layer.scale
    return bool(((found - LEVELS * LEVELS * 64).abs() < 1).all())
