"""Causal attention: rotary positions, document masks, and the kernels.

Shape legend: B rows, T positions, H heads, K key and value heads, E width of a head.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

Mask = Tensor | BlockMask | None  # None: causal, over the whole row
Angles = tuple[Tensor, Tensor]  # cosine and sine, float32 (B or 1, 1, T, E / 2)


def rotary_angles(positions: Tensor, width: int, base: float) -> Angles:
    """Cosine and sine of position * base^(-2 i / width) for the pairs i of a head."""
    frequency = base ** (torch.arange(0, width, 2, device=positions.device, dtype=torch.float32) / -width)
    angle = (positions[..., None].float() * frequency)[:, None]
    return angle.cos(), angle.sin()


def rotated(x: Tensor, turn: Angles) -> Tensor:
    """(B, H, T, E) -> the same, float32, each pair (i, i + E / 2) turned by its angle."""
    (cos, sin), (a, b) = turn, x.float().chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
    """Attention of (B, H, T, E) to (B, K, T, E)."""
    grouped = q.shape[1] != k.shape[1]
    if isinstance(mask, BlockMask):
        return _flex(q.is_cuda)(q, k, v, block_mask=mask, enable_gqa=grouped)
    return functional.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None, enable_gqa=grouped)


@functools.cache
def _flex(fused: bool) -> Callable[..., Any]:
    flex: Callable[..., Any] = flex_attention  # without compilation it makes all scores: slow, and runs anywhere
    return torch.compile(flex) if fused else flex


def document_starts(begins: Tensor) -> Tensor:
    """bool (B, T), true where a document begins -> int64 (B, T), the first position of each position's document.

    >>> document_starts(torch.tensor([[False, False, True, False, True]]))
    tensor([[0, 0, 2, 2, 4]])
    """
    at = torch.arange(begins.shape[1], device=begins.device)
    return torch.where(begins, at, 0).cummax(1).values


def document_mask(starts: Tensor, *, flex: bool = False) -> Tensor | BlockMask:
    """Who attends to whom: all of the own document up to here. starts (B, T) -> bool (B, 1, T, T), or a BlockMask."""
    B, T = starts.shape
    if flex:
        return create_block_mask(lambda b, _, q, k: (k <= q) & (k >= starts[b, q]), B, None, T, T, device=starts.device)
    at = torch.arange(T, device=starts.device)
    return ((at <= at[:, None]) & (at >= starts[:, :, None]))[:, None]
