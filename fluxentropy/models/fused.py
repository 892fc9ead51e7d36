"""Decoders of the Llama family on CPU cores: the same numbers as transformers', in fewer passes over memory.

Llama, Mistral, Qwen 2 and 3, and whatever shares their layers (SmolLM2). Each layer is

    x + o(attention(rope(q, k), v))        q, k, v = one product of norm(x)
    x + down(silu(gate(h)) · up(h))        h = norm(x)

Texts lie end to end, without padding. The weights of the norms and the attention's scale are folded into the matrices
that follow them; the rotation of a pair of features is one complex product; activations, residuals and the gate's
product are fused into the matrix products. Every call runs on one thread as well as on many, and several may run at
once: nothing is kept between calls.

Shape legend: N positions, D hidden width, H heads, G key-value heads, r = H / G, d features of a head, F inner width.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from fluxentropy.entropy import TokenStats, token_stats
from fluxentropy.models.files import Weights
from fluxentropy.models.linear import CastLinear, Int8Linear, PackedLinear, can_pack, smoothing
from fluxentropy.models.weights import trim_memory
from fluxentropy.runs.engine import default_threads, one_thread_each

KINDS = ("llama", "mistral", "qwen2", "qwen3")
ROPES = ("default", "linear", "llama3", "yarn")  # whose tables do not depend on the input
COLUMNS = 2048  # vocabulary columns projected at once
TRIMMED = 5  # layers after which what packing took besides the packed weights goes back to the system
SHORT = 32  # positions up to which the library's attention is the faster one


# --- what a decoder is ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The sizes and constants of a decoder of this family."""

    layers: int
    heads: int  # H
    groups: int  # G
    size: int  # d
    eps: float
    scale: float  # of the attention's logits
    inverse: Tensor  # (d/2,) float32: radians that a pair of features turns for each position
    magnitude: float  # of the rotation: 1 but for yarn


def shape_of(config: Any) -> Shape | None:
    """The shape that a configuration describes, None where it describes a decoder of another family.

    A window of attention, a quantisation or a rotary embedding that depends on the input makes another family.
    """
    kind = getattr(config, "model_type", None)
    rope = getattr(config, "rope_parameters", None) or {}
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads if kind in KINDS else 0
    if (
        kind not in KINDS
        or config.hidden_act not in ("silu", "swish")
        or rope.get("rope_type", "default") not in ROPES
        or rope.get("partial_rotary_factor", 1.0) != 1.0
        or window
        or getattr(config, "quantization_config", None)
        or any(kind != "full_attention" for kind in getattr(config, "layer_types", None) or [])
    ):
        return None
    inverse, magnitude = _rotation(config, rope, size)
    return Shape(
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        groups=config.num_key_value_heads,
        size=size,
        eps=config.rms_norm_eps,
        scale=size**-0.5,
        inverse=inverse,
        magnitude=magnitude,
    )


def _rotation(config: Any, rope: Mapping[str, Any], size: int) -> tuple[Tensor, float]:
    """(d/2,) radians a position, and the factor on cosine and sine, as transformers computes them."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    if (kind := rope.get("rope_type", "default")) == "default":
        return 1.0 / (rope["rope_theta"] ** (torch.arange(0, size, 2, dtype=torch.float) / size)), 1.0
    inverse, magnitude = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
    return inverse.float(), float(magnitude)


class Span(NamedTuple):
    """Texts of one length that lie end to end from `start`; each also sees the `prefix` positions from `before`."""

    start: int
    length: int
    copies: int = 1
    before: int = 0
    prefix: int = 0


def spans_of(lengths: Sequence[int]) -> list[Span]:
    """Texts of these lengths end to end, neighbours of one length together.

    >>> spans_of([3, 3, 2])
    [Span(start=0, length=3, copies=2, before=0, prefix=0), Span(start=6, length=2, copies=1, before=0, prefix=0)]
    """
    spans, start = [], 0
    for length, same in itertools.groupby(lengths):
        copies = len(list(same))
        if length:
            spans.append(Span(start, length, copies))
        start += length * copies
    return spans


# --- the decoder ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class _Layer:
    qkv: PackedLinear | Int8Linear
    out: PackedLinear | Int8Linear
    gate: PackedLinear | Int8Linear
    up: PackedLinear | Int8Linear
    down: PackedLinear | Int8Linear
    norms: tuple[Tensor, Tensor] | None  # (d,) weights of the norms of queries and keys, Qwen 3's
    before: tuple[Tensor | None, Tensor | None] = (None, None)  # (D,) of the norms before qkv, and gate and up


class FusedDecoder:
    """Token ids -> hidden states -> logits in blocks of vocabulary columns.

    `weight` gives the weights by the names of transformers, in any floating type; `rows` those of the embedding at ids
    (N,), where that is not to be in memory. With `largest`, what `largest` gives, the layers are 8-bit integers, and
    the head is wider.
    Errors: KeyError for a name that the weights lack; RuntimeError for one of another shape.
    """

    def __init__(
        self,
        shape: Shape,
        weight: Weights,
        dtype: torch.dtype = torch.float32,
        largest: Mapping[str, Tensor] | None = None,
        rows: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.shape, self.dtype, self.seen = shape, dtype, largest
        self.pairs = torch.arange(shape.size).view(2, -1).T.reshape(-1)  # features that turn together, side by side
        self.head = self._head(weight)
        self.columns = sum(len(part.packed) for part in self.head)
        self.layers: list[_Layer] = []
        for layer in one_thread_each(
            lambda number: self._layer(weight, number), range(shape.layers), default_threads()
        ):
            self.layers.append(layer)
            if len(self.layers) % TRIMMED == 0:
                trim_memory()
        trim_memory()
        embedding = weight("model.embed_tokens.weight")
        self.vocabulary, self.width = embedding.shape
        self.rows = rows or functools.partial(functional.embedding, weight=embedding)

    def _linear(self, weight: Tensor, bias: Tensor | None = None) -> PackedLinear:
        if self.seen and can_pack(torch.device("cpu"), torch.bfloat16):
            return CastLinear(weight, bias)
        return PackedLinear(weight.to(self.dtype), None if bias is None else bias.to(self.dtype))

    def _narrow(self, weight: Tensor, bias: Tensor | None) -> PackedLinear | Int8Linear:
        return Int8Linear(weight, bias) if self.seen else self._linear(weight, bias)

    def _head(self, weight: Weights) -> list[PackedLinear]:
        try:
            head = weight("lm_head.weight")
        except KeyError:
            head = weight("model.embed_tokens.weight")
        last = weight("model.norm.weight").float()
        return [self._linear(head[start : start + COLUMNS].float() * last) for start in range(0, len(head), COLUMNS)]

    def _layer(self, weight: Weights, number: int) -> _Layer:
        shape = self.shape

        def get(name: str) -> Tensor:
            return weight(f"model.layers.{number}.{name}").float()

        def maybe(name: str) -> Tensor | None:
            try:
                return get(name)
            except KeyError:
                return None

        first, second = get("input_layernorm.weight"), get("post_attention_layernorm.weight")
        norms = maybe("self_attn.q_norm.weight"), maybe("self_attn.k_norm.weight")
        scale = 1.0 if norms[0] is not None else shape.scale
        qkv, biases = [], []
        for name, heads, factor in (("q", shape.heads, scale), ("k", shape.groups, 1.0), ("v", shape.groups, 1.0)):
            matrix, bias = get(f"self_attn.{name}_proj.weight"), maybe(f"self_attn.{name}_proj.bias")
            if name != "v":
                matrix = matrix.view(heads, shape.size, -1)[:, self.pairs].flatten(0, 1)
                bias = None if bias is None else (bias * factor).view(heads, shape.size)[:, self.pairs].flatten()
            qkv.append(matrix * (first * factor))
            biases.append(bias)
        found = [bias for bias in biases if bias is not None]
        q_norm, k_norm = norms
        matrix, gate, up = torch.cat(qkv), get("mlp.gate_proj.weight") * second, get("mlp.up_proj.weight") * second
        down, up_bias = get("mlp.down_proj.weight"), maybe("mlp.up_proj.bias")
        before: tuple[Tensor | None, Tensor | None] = (None, None)
        if self.seen:
            v = smoothing(self.seen[f"down {number}"], down)
            down, up, up_bias = down * v, up / v[:, None], None if up_bias is None else up_bias / v
            first = smoothing(self.seen[f"qkv {number}"], matrix)
            second = smoothing(self.seen[f"gate {number}"], torch.cat([gate, up]))
            matrix, gate, up = matrix * first, gate * second, up * second
            before = 1 / first, 1 / second
        return _Layer(
            before=before,
            qkv=self._narrow(matrix, torch.cat(found) if len(found) == 3 else None),
            out=self._narrow(get("self_attn.o_proj.weight"), maybe("self_attn.o_proj.bias")),
            gate=self._narrow(gate, maybe("mlp.gate_proj.bias")),
            up=self._narrow(up, up_bias),
            down=self._narrow(down, maybe("mlp.down_proj.bias")),
            norms=None
            if q_norm is None or k_norm is None
            else ((q_norm[self.pairs] * shape.scale).to(self.dtype), k_norm[self.pairs].to(self.dtype)),
        )

    def largest(self, rows: Sequence[Tensor]) -> dict[str, Tensor]:
        """The largest size that each feature (D,) before the products of every layer has in some texts (T,)."""
        seen: dict[str, Tensor] = {}
        positions = torch.cat([torch.arange(len(row)) for row in rows])
        self.hidden(torch.cat(list(rows)), positions, spans_of([len(row) for row in rows]), seen)
        return seen

    def hidden(
        self, ids: Tensor, positions: Tensor, spans: Sequence[Span], seen: dict[str, Tensor] | None = None
    ) -> Tensor:
        """The states (N, D) that the head projects, of tokens (N,) at these positions (N,) of their texts.

        `seen` is told the largest size of the features before the products.
        """
        shape = self.shape
        width = (ids.shape[0], -1, shape.size)
        x = self.rows(ids).to(self.dtype)
        angles = torch.outer(positions.float(), shape.inverse)  # (N, d/2)
        turns = torch.polar(torch.full_like(angles, shape.magnitude), angles).unsqueeze(1)  # complex64
        for number, layer in enumerate(self.layers):
            h = self._norm(x, layer.before[0])
            if seen is not None:
                seen[f"qkv {number}"] = h.abs().amax(0)
            qkv = layer.qkv(h).view(width)  # (N, H + 2 G, d)
            self._rotate(qkv[:, : shape.heads + shape.groups], layer, turns)
            x = layer.out.plus(self._attention(qkv, spans), x)
            h = self._norm(x, layer.before[1])
            if seen is not None:
                seen[f"gate {number}"] = h.abs().amax(0)
            h = layer.up.times(h, layer.gate(h, "swish"))
            if seen is not None:
                seen[f"down {number}"] = h.abs().amax(0)
            x = layer.down.plus(h, x)
        return self._norm(x)

    def blocks(self, hidden: Tensor) -> Iterator[Tensor]:
        """(R, D) -> logits (R, C), block after block of columns."""
        for part in self.head:
            yield part(hidden)

    def _norm(self, x: Tensor, weight: Tensor | None = None) -> Tensor:  # its own is in the matrix that follows
        return functional.rms_norm(x, x.shape[-1:], weight, self.shape.eps)

    def _rotate(self, heads: Tensor, layer: _Layer, turns: Tensor) -> None:  # (N, H + G, d), in place
        if layer.norms:
            split = self.shape.heads
            for part, weight in zip((heads[:, :split], heads[:, split:]), layer.norms, strict=True):
                part.copy_(functional.rms_norm(part, part.shape[-1:], weight, self.shape.eps))
        pairs = heads.float().unflatten(-1, (-1, 2))
        turned = torch.view_as_complex(pairs).mul_(turns)
        if heads.dtype != torch.float32:
            heads.copy_(torch.view_as_real(turned).flatten(-2))

    def _attention(self, qkv: Tensor, spans: Sequence[Span]) -> Tensor:  # (N, H + 2 G, d) -> (N, H d)
        shape = self.shape
        out = torch.empty(len(qkv), shape.heads, shape.size, dtype=qkv.dtype)
        for start, length, copies, before, prefix in spans:
            stop = start + length * copies
            z = qkv[start:stop].view(copies, length, -1, shape.size)
            place = out[start:stop].view(copies, length, shape.groups, -1, shape.size)
            long = length > (256 if qkv.dtype == torch.float32 else SHORT)
            if long or prefix:
                _in_chunks(z, qkv[before : before + prefix], shape.groups, place)
            else:
                _in_one(z, shape.groups, place)
        return out.view(len(qkv), -1)


# --- attention --------------------------------------------------------------------------------------------------------
#
# z (k, T, H + 2 G, d): the queries, scaled already, keys and values of k texts; seen (P, H + 2 G, d): of positions that
# come before each of them; out (k, T, G, r, d).


def _in_one(z: Tensor, groups: int, out: Tensor) -> None:
    """The library's kernel, the query heads of a key head being views of it; for texts that nothing comes before."""
    k, T, _, r, d = out.shape
    heads = groups * r
    q = z[:, :, :heads].transpose(1, 2)  # (k, H, T, d)
    keys, values = (
        z[:, :, first : first + groups].transpose(1, 2).unsqueeze(2).expand(k, groups, r, T, d)
        for first in (heads, heads + groups)
    )
    if k == 1:
        q, keys, values = q.view(groups, r, T, d), keys[0], values[0]
    else:
        keys, values = keys.reshape(k, heads, T, d), values.reshape(k, heads, T, d)
    found = functional.scaled_dot_product_attention(q, keys, values, is_causal=True, scale=1.0)
    out.copy_(found.reshape(k, groups, r, T, d).permute(0, 3, 1, 2, 4))


def _in_chunks(z: Tensor, seen: Tensor, groups: int, out: Tensor) -> None:
    """The query heads of a key head in one product, by chunks of queries that stop at the diagonal."""
    k, T, _, r, d = out.shape
    heads, P = groups * r, len(seen)
    chunk = 64 if z.dtype == torch.float32 else 128
    q = z[:, :, :heads].view(k, T, groups, r, d).permute(0, 2, 1, 3, 4)  # (k, G, T, r, d)
    keys, values = (
        torch.cat([seen[:, first : first + groups].expand(k, P, groups, d), z[:, :, first : first + groups]], 1)
        for first in (heads, heads + groups)
    )  # (k, P + T, G, d)
    keys = keys.permute(0, 2, 3, 1).reshape(k * groups, d, P + T)
    values = values.transpose(1, 2).reshape(k * groups, P + T, d)
    for a in range(0, T, chunk):
        b = min(a + chunk, T)
        logits = torch.bmm(q[:, :, a:b].reshape(k * groups, (b - a) * r, d), keys[:, :, : P + b])
        later = _later(chunk, z.dtype)[: b - a, None, : b - a]
        logits.view(k * groups, b - a, r, P + b)[..., P + a :] += later
        found = torch.bmm(torch.softmax(logits, -1), values[:, : P + b])  # (k G, (b - a) r, d)
        out[:, a:b] = found.view(k, groups, b - a, r, d).transpose(1, 2)


def _later(size: int, dtype: torch.dtype) -> Tensor:
    """(size, size): -inf where a query would see a later key."""
    if (size, dtype) not in _MASKS:
        _MASKS[size, dtype] = torch.full((size, size), -torch.inf, dtype=dtype).triu(1)
    return _MASKS[size, dtype]


_MASKS: dict[tuple[int, torch.dtype], Tensor] = {}


# --- the path ---------------------------------------------------------------------------------------------------------


class FusedPath:
    """A `ForwardPath` through a `FusedDecoder`: right-padded rows go end to end, their padding left out."""

    name = "fused"
    parallel = True
    padded = False

    def __init__(self, decoder: FusedDecoder) -> None:
        self.decoder = decoder
        self.vocabulary, self.outcomes = decoder.vocabulary, decoder.columns

    def __call__(self, ids: Tensor, keep: Tensor, targets: Tensor | None, *, top_k: int | None = None) -> TokenStats:
        at = torch.arange(ids.shape[1])
        lengths = ((at + 1) * keep).amax(1)  # (B,): a row ends with its last kept position
        inside = at < lengths[:, None]
        positions = at.expand_as(ids)[inside]
        hidden = self.decoder.hidden(ids[inside], positions, spans_of(lengths.tolist()))
        return token_stats(hidden[keep[inside]], targets, head=self.decoder, top_k=top_k)
