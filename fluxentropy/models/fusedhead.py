"""A model's head and the statistics of its logits in one Triton kernel: the logits are never written to memory.

A program owns some rows of hidden states and walks over tiles of the vocabulary. It keeps, for each row, the largest
logit so far and the three sums of `fluxentropy.entropy` relative to it. Where there are few rows, the vocabulary is cut
into parts with programs of their own, and the parts' sums are merged in float64. Products are accumulated in float32
(no TF32), and the logits are not rounded to bf16 or fp16 as the model's own are: they are closer to the true product.

S0 is 1 + ε for a peaked distribution, and H is of the order of ε. So a program counts the logits that are equal to the
maximum, which are exactly 1 each, apart from the rest, whose sum then keeps its precision in float32.

Sizes of tiles are fixed, not tuned on the spot: a run that is repeated gives the same numbers.
`TRITON_INTERPRET=1`, set before Python starts, runs the kernel on a CPU, in NumPy: for tests.

Shape legend: N rows, D hidden width, V vocabulary, P parts of the vocabulary.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from fluxentropy.entropy import Sums, TokenStats, finish
from fluxentropy.models.forward import FastPath, TailHead

try:
    import triton
    import triton.language as tl
except ImportError:  # the extra `triton`; torch for CUDA brings it along
    triton = None

# --- the kernel -------------------------------------------------------------------------------------------------------

PROGRAMS = 512  # at least so many are started, by cutting the vocabulary: a few for each processor of a large GPU
FLOOR = -110.0  # e^x is 0 in float32 below


@dataclass(frozen=True, kw_only=True)
class Tiles:
    """Sizes of tiles of logits, powers of 2; a step of their products takes `unit` columns of the hidden states."""

    rows: int
    columns: int
    unit: int
    warps: int = 8


TILES = {
    torch.float32: Tiles(rows=64, columns=128, unit=32),
    torch.bfloat16: Tiles(rows=128, columns=128, unit=64),
    torch.float16: Tiles(rows=128, columns=128, unit=64),
}


def _sums_of_tiles(  # type: ignore[no-untyped-def]
    hidden,  # (N, D)
    weight,  # (V, D)
    bias,  # (V,)
    targets,  # (N,)
    out,  # (7, P, N) float32
    n_rows,
    vocabulary,
    width,
    tiles,  # of the vocabulary, in a part
    scale,
    cap,
    capped_scale,
    HAS_BIAS: tl.constexpr,
    HAS_TARGETS: tl.constexpr,
    HAS_CAP: tl.constexpr,
    WIDEN: tl.constexpr,
    FLOOR: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    UNIT: tl.constexpr,
):
    """For the rows of this program and its part of the vocabulary: the largest logit, how many logits equal it, and
    over the others Σ e^d, and Σ e^d d and Σ e^d d² over all; the target's logit or 0; 1 if a logit is NaN or +inf.
    """
    part = tl.program_id(1)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = rows < n_rows
    wide_rows = rows.to(tl.int64)
    top = tl.full((ROWS,), float("-inf"), tl.float32)
    count = tl.zeros((ROWS,), tl.float32)
    rest = tl.zeros((ROWS,), tl.float32)
    s1 = tl.zeros((ROWS,), tl.float32)
    s2 = tl.zeros((ROWS,), tl.float32)
    chosen = tl.zeros((ROWS,), tl.float32)
    bad = tl.zeros((ROWS,), tl.float32)
    if HAS_TARGETS:
        target = tl.load(targets + rows, mask=inside, other=-1)
    for tile in range(part * tiles, tl.minimum((part + 1) * tiles, tl.cdiv(vocabulary, COLUMNS))):
        columns = tile * COLUMNS + tl.arange(0, COLUMNS)
        known = columns < vocabulary
        wide_columns = columns.to(tl.int64)
        z = tl.zeros((ROWS, COLUMNS), tl.float32)
        for start in range(0, width, UNIT):
            at = start + tl.arange(0, UNIT)
            h = tl.load(
                hidden + wide_rows[:, None] * width + at[None, :],
                mask=inside[:, None] & (at[None, :] < width),
                other=0.0,
            )
            w = tl.load(
                weight + wide_columns[None, :] * width + at[:, None],
                mask=known[None, :] & (at[:, None] < width),
                other=0.0,
            )
            if WIDEN:  # Triton's interpreter cannot multiply bf16
                h = h.to(tl.float32)
                w = w.to(tl.float32)
            z = tl.dot(h, w, z, input_precision="ieee")
        if HAS_BIAS:
            z += tl.load(bias + columns, mask=known, other=0.0).to(tl.float32)[None, :]
        if HAS_CAP:
            x = z * capped_scale
            xx = x * x
            near = x * (1 + xx * (-1 / 3 + xx * (2 / 15 - xx * (17 / 315))))
            e = tl.exp(-2 * tl.abs(x))
            far = (1 - e) / (1 + e)
            z = cap * tl.where(tl.abs(x) < 0.1, near, tl.where(x < 0, -far, far))
        else:
            z = z * scale
        z = tl.where(known[None, :], z, float("-inf"))
        wrong = (z != z) | (z == float("inf"))
        bad = tl.maximum(bad, tl.max(wrong.to(tl.float32), 1))
        z = tl.where(wrong, float("-inf"), z)
        if HAS_TARGETS:
            chosen += tl.sum(tl.where(wide_columns[None, :] == target[:, None], z, 0.0), 1)
        # the tile's sums, relative to the larger of its maximum and that of the tiles before
        higher = tl.maximum(top, tl.max(z, 1))
        shift = tl.where(higher == float("-inf"), 0.0, higher)
        d = tl.maximum(z - shift[:, None], FLOOR)
        first = d == 0
        e = tl.where(first, 0.0, tl.exp(d))
        ed = e * d
        delta = tl.where(top == higher, 0.0, tl.maximum(top - shift, FLOOR))
        fall = tl.exp(delta)
        s0 = count + rest
        s2 = fall * (s2 + delta * (2 * s1 + delta * s0)) + tl.sum(ed * d, 1)
        s1 = fall * (s1 + delta * s0) + tl.sum(ed, 1)
        rest = tl.where(top == higher, rest, fall * s0) + tl.sum(e, 1)
        count = tl.where(top == higher, count, 0.0) + tl.sum(first.to(tl.float32), 1)
        top = higher
    step = tl.num_programs(1).to(tl.int64) * n_rows
    place = out + part.to(tl.int64) * n_rows + rows
    tl.store(place, top, mask=inside)
    tl.store(place + step, count, mask=inside)
    tl.store(place + 2 * step, rest, mask=inside)
    tl.store(place + 3 * step, s1, mask=inside)
    tl.store(place + 4 * step, s2, mask=inside)
    tl.store(place + 5 * step, chosen, mask=inside)
    tl.store(place + 6 * step, bad, mask=inside)


_kernel: Any = triton and triton.jit(_sums_of_tiles, do_not_specialize=["n_rows", "vocabulary", "tiles"])


def fused_stats(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor | None = None,
    *,
    bias: Tensor | None = None,
    scale: float = 1.0,
    cap: float | None = None,
    temperature: float = 1.0,
    tiles: Tiles | None = None,
) -> TokenStats:
    """Entropy, varentropy, maximum probability and surprisal of softmax(z / temperature), without gradients.

    Args:
        hidden: (N, D) float32, bfloat16 or float16.
        weight: (V, D) of the same type.
        targets: int64 (N,), the tokens whose surprisal is wanted. A negative target gives a NaN surprisal.
        bias: (V,). z = scale · (hidden weightᵀ + bias), and with a `cap` cap · tanh(z / cap).
        tiles: their sizes, if not those of `TILES`.

    The same as `entropy.token_stats` of these logits in float32, undefined positions included.
    """
    assert _kernel is not None, "triton is not installed"
    hidden, weight = hidden.contiguous(), weight.contiguous()
    size = tiles or TILES[hidden.dtype]
    (N, D), V = hidden.shape, len(weight)
    high, wide = math.ceil(N / size.rows), math.ceil(V / size.columns)  # of the logits, in tiles
    tiles_of_part = math.ceil(wide / max(1, PROGRAMS // max(1, high)))
    parts = math.ceil(wide / tiles_of_part)
    out = torch.empty(7, parts, N, dtype=torch.float32, device=hidden.device)
    cuda = hidden.device.type == "cuda"
    if N:
        with torch.cuda.device(hidden.device) if cuda else contextlib.nullcontext():
            _kernel[(high, parts)](
                hidden,
                weight,
                weight if bias is None else bias,
                hidden if targets is None else targets,
                out,
                N,
                V,
                D,
                tiles_of_part,
                scale / temperature,
                0.0 if cap is None else cap / temperature,
                0.0 if cap is None else scale / cap,
                HAS_BIAS=bias is not None,
                HAS_TARGETS=targets is not None,
                HAS_CAP=cap is not None,
                WIDEN=not cuda,
                FLOOR=FLOOR,
                ROWS=size.rows,
                COLUMNS=size.columns,
                UNIT=size.unit,
                num_warps=size.warps,
            )
    chosen = None
    if targets is not None:
        chosen = out[5].sum(0).masked_fill((targets < 0) | (targets >= V), torch.nan)
    return finish(_merged(out), chosen, None)


def _merged(out: Tensor) -> Sums:
    """The sums (N,) over the whole vocabulary from those of its parts (7, P, N)."""
    tops = out[0].masked_fill(out[6] > 0, torch.nan)
    top = tops.amax(0)
    count, rest, s1, s2 = out[1:5].double().unbind()
    s0 = count + rest
    delta = torch.where(tops == top, 0.0, tops - top).double().clamp(min=-1e15)
    fall = delta.exp()
    return Sums(
        top,
        (fall * s0).sum(0),
        (fall * (s1 + delta * s0)).sum(0),
        (fall * (s2 + 2 * delta * s1 + delta * delta * s0)).sum(0),
    )


# --- the path through a model -----------------------------------------------------------------------------------------


class FusedHeadPath(FastPath):
    """Base model, then the fused head over the chosen positions; with `top_k` the head in blocks.

    Errors: ValueError when the model does more with its logits than the kernel knows.
    """

    name = "fast, fused head"

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        projection = model.get_output_embeddings()
        assert isinstance(projection, nn.Linear)  # else there is no TailHead
        self.weight, self.bias = projection.weight, projection.bias
        self.tail = measured_tail(self.head)

    def __call__(self, ids: Tensor, keep: Tensor, targets: Tensor | None, *, top_k: int | None = None) -> TokenStats:
        if top_k is not None:
            return super().__call__(ids, keep, targets, top_k=top_k)
        hidden, tail = self.hidden(ids, keep), self.tail
        return fused_stats(hidden, self.weight, targets, bias=self.bias, scale=tail.scale, cap=tail.cap)


@dataclass(frozen=True, kw_only=True)
class Tail:
    """What a model does with the output x of its projection: scale · x, or with a cap, cap · tanh(scale · x / cap)."""

    scale: float = 1.0
    cap: float | None = None

    def __call__(self, x: Tensor) -> Tensor:
        return self.scale * x if self.cap is None else self.cap * torch.tanh(self.scale * x / self.cap)


class _GivenLogits(nn.Module):
    """Stands in for a projection: remembers its input, and returns the logits it was given."""

    seen: Tensor

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, hidden: Tensor) -> Tensor:
        self.seen = hidden
        return self.logits.clone()


@torch.inference_mode()
def measured_tail(head: TailHead) -> Tail:
    """What the model's own code does after its projection, found by handing it logits.

    Names in configurations would not do: `logits_scaling` divides in Granite and multiplies in HyperCLOVA X.
    Errors: ValueError for anything but a scale and a soft-cap.
    """
    device = next(head.slices[0].parameters()).device
    given = torch.cat(
        [torch.tensor([1e-6, 1e6], dtype=torch.float64), torch.linspace(-300, 300, 254, dtype=torch.float64)]
    )
    given = torch.stack([given, given.flip(0)]).to(device)  # (2, 256)
    hidden = torch.ones(2, 4, device=device)  # of any width
    projection = _GivenLogits(given[None])
    found = head.logits(hidden, projection).double()
    scale, far = float(found[0, 0] / 1e-6), float(found[0, 1])
    tail = Tail(scale=scale) if far > 0.5 * scale * 1e6 else Tail(scale=scale, cap=far)
    same = found.shape == given.shape and torch.allclose(found, tail(given), rtol=1e-5, atol=1e-9)
    if not same or not torch.equal(projection.seen, hidden[None]):
        raise ValueError("the model does more after its output projection than a scale and a soft-cap")
    return tail
