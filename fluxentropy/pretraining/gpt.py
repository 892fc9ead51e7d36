"""A compact GPT in plain PyTorch, with a modern preset and the one of GPT-2.

    gpt = GPT(GPTConfig(vocab_size=50257, n_layer=4))       new weights
    gpt = from_export("runs/a/export")                      those of a NanoChat or a GPT-2 of transformers
    loss = gpt(ids[:, :-1], ids[:, 1:])

Shape legend: B rows, T positions, D width, H heads, K key and value heads, E width of a head, V vocabulary.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

# --- attention --------------------------------------------------------------------------------------------------------
#
# Shape legend: B rows, T positions, H heads, K key and value heads, E width of a head.


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


# --- the configuration ------------------------------------------------------------------------------------------------
#
# The modern preset has rotary positions (Su et al. 2021, arXiv:2104.09864), RMSNorm without weights (Zhang and Sennrich
# 2019, arXiv:1910.07467) also right after the embedding, normalised queries and keys (Henry et al. 2020,
# arXiv:2010.04245), a squared ReLU (So et al. 2021, arXiv:2109.08668), output projections that start at zero, and
# logits soft-capped with tanh (Gemma Team 2024, arXiv:2408.00118).


@dataclass(frozen=True, kw_only=True)
class GPTConfig:
    """The architecture. The defaults are the modern preset at the size of the smallest GPT-2.

    Errors: ValueError names a size that makes no model.
    """

    vocab_size: int = 50257
    block_size: int = 1024
    """The longest input, in tokens."""
    n_layer: int = 12
    n_head: int = 12
    n_kv_head: int | None = None
    """Heads of keys and values, each shared by n_head / n_kv_head heads of queries. Default: n_head."""
    n_embd: int = 768
    n_hidden: int | None = None
    """Width of the MLP. Default: 4 n_embd."""
    vocab_multiple: int = 1
    """Rows of the embedding and of the head are padded to a multiple of this (GPUs like 64), without logits."""
    positions: Literal["rotary", "learned"] = "rotary"
    rope_base: float = 10_000.0
    norm: Literal["rms", "layer"] = "rms"
    norm_eps: float = 1e-6
    qk_norm: bool = True
    mlp: Literal["relu2", "gelu"] = "relu2"
    bias: bool = False
    soft_cap: float | None = 15.0
    """Logits are soft_cap * tanh(logits / soft_cap)."""
    tied: bool = False
    """The head is the embedding."""
    zero_init: bool = True
    """Output projections start at zero: at first the residual stream passes the embeddings unchanged."""

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "block_size", "n_layer", "n_head", "n_kv_head", "n_embd", "n_hidden", "vocab_multiple")
        for name in sizes:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} {value}: use 1 or more")
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd {self.n_embd} is not a multiple of n_head {self.n_head}")
        if self.n_head % self.kv_heads:
            raise ValueError(f"n_head {self.n_head} is not a multiple of n_kv_head {self.n_kv_head}")
        if self.positions == "rotary" and self.head_width % 2:
            raise ValueError(f"n_embd / n_head is {self.head_width}: rotary positions turn pairs, use an even number")
        if self.soft_cap is not None and self.soft_cap <= 0:
            raise ValueError(f"soft_cap {self.soft_cap}: use a positive number, or none")

    @classmethod
    def preset(cls, name: Literal["modern", "gpt2"], **changes: Any) -> GPTConfig:
        """A preset, with changes.

        >>> GPTConfig.preset("gpt2", n_layer=2).positions
        'learned'
        """
        if name not in _PRESETS:
            raise ValueError(f"preset {name!r}: there are {', '.join(_PRESETS)}")
        return cls(**{**_PRESETS[name], **changes})

    @property
    def kv_heads(self) -> int:
        return self.n_head if self.n_kv_head is None else self.n_kv_head

    @property
    def head_width(self) -> int:
        return self.n_embd // self.n_head

    @property
    def hidden(self) -> int:
        """Width of the MLP."""
        return 4 * self.n_embd if self.n_hidden is None else self.n_hidden

    @property
    def padded_vocab_size(self) -> int:
        return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple


_PRESETS: dict[str, dict[str, Any]] = {
    "modern": {},
    "gpt2": {
        "positions": "learned",
        "norm": "layer",
        "norm_eps": 1e-5,
        "qk_norm": False,
        "mlp": "gelu",
        "bias": True,
        "soft_cap": None,
        "tied": True,
        "zero_init": False,
    },
}


# --- the model --------------------------------------------------------------------------------------------------------


IGNORE = -100  # a target that does not count
Reduction = Literal["mean", "sum", "rows"]


class GPT(nn.Module):
    """Token ids -> logits, or the loss. `flex` says whether document masks use FlexAttention; None: on CUDA."""

    def __init__(self, config: GPTConfig, *, flex: bool | None = None) -> None:
        super().__init__()
        self.config, self.flex = config, flex
        self.body = Body(config)
        self.head = nn.Linear(config.n_embd, config.padded_vocab_size, bias=False)
        if config.tied:
            self.head.weight = self.body.embed.weight
        else:
            nn.init.normal_(self.head.weight, std=0.001 if config.zero_init else 0.02)

    def forward(
        self, ids: Tensor, targets: Tensor | None = None, *, starts: Tensor | None = None, reduction: Reduction = "mean"
    ) -> Tensor:
        """ids (B, T) -> logits float32 (B, T, V); with `targets` (B, T) the loss in nats, float32.

        `starts` int (B, T) holds, for each position, the first position of its document (`document_starts`): attention
        stays within documents, and learned positions count from there. Targets of -100 do not count. The loss is the
        mean over all targets, their sum, or their sum for each row (B,).

        Errors: ValueError when T exceeds the block size.
        """
        T = ids.shape[1]
        if self.config.block_size < T:
            raise ValueError(f"{T} tokens are more than the model's block_size, {self.config.block_size}")
        positions, mask = None, None
        if starts is not None:
            positions = torch.arange(T, device=ids.device) - starts
            mask = document_mask(starts, flex=ids.is_cuda if self.flex is None else self.flex)
        hidden = self.body(ids, positions=positions, mask=mask)  # (B, T, D)
        logits = soft_capped(self.head(hidden)[..., : self.config.vocab_size].float(), self.config.soft_cap)
        if targets is None:
            return logits
        if reduction == "rows":
            losses = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
            return losses.view_as(targets).sum(1)
        return functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction=reduction)

    def num_parameters(self) -> int:
        """Trained numbers; a tied head counts once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def flops_per_token(self, length: int | None = None) -> int:
        """Floating-point operations to train on one token in rows of `length` tokens (default: the block size).

        6 N + 12 L D T, with N the weights of all matrix products, the head included and lookups not, L layers, and T
        the length: 2 N + 4 L D T forward, twice that backward. What causality saves is not subtracted (Chowdhery et
        al. 2022, arXiv:2204.02311, appendix B).

        >>> config = GPTConfig.preset("gpt2", n_layer=1, n_head=1, n_embd=2, vocab_size=5, block_size=10)
        >>> GPT(config).flops_per_token()  # N = 4 * 2 * 2 + 2 * 2 * 8 + 5 * 2
        588
        """
        blocks = [module for module in self.body.modules() if isinstance(module, nn.Linear)]
        weights = sum(layer.weight.numel() for layer in (*blocks, self.head))
        config = self.config
        return 6 * weights + 12 * config.n_layer * config.n_embd * (length or config.block_size)


class Body(nn.Module):
    """Token ids -> hidden states after the last norm: everything but the head."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.padded_vocab_size, config.n_embd)
        learned = config.positions == "learned"
        self.positions = nn.Embedding(config.block_size, config.n_embd) if learned else None
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = make_norm(config, config.n_embd)
        initialise(self, config)

    def forward(self, ids: Tensor, *, positions: Tensor | None = None, mask: Mask = None) -> Tensor:
        """ids (B, T), positions (B or 1, T) -> (B, T, D). `mask` is true where (B, 1, T, T) may attend."""
        if positions is None:
            positions = torch.arange(ids.shape[1], device=ids.device)[None]
        x = self.embed(ids)
        if self.config.norm == "rms":
            x = self.norm(x)  # it has no weights
        turn = None
        if self.positions is None:
            turn = rotary_angles(positions, self.config.head_width, self.config.rope_base)
        else:
            x = x + self.positions(positions)
        for block in self.blocks:
            x = block(x, turn, mask)
        return self.norm(x)


class Block(nn.Module):
    """Attention and an MLP, each after a norm and each added to the residual stream."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.norm_attention = make_norm(config, config.n_embd)
        self.attention = Attention(config)
        self.norm_mlp = make_norm(config, config.n_embd)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, turn: Angles | None, mask: Mask) -> Tensor:
        x = x + self.attention(self.norm_attention(x), turn, mask)
        return x + self.mlp(self.norm_mlp(x))


class Attention(nn.Module):
    """Causal self-attention with grouped heads."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.width = config.head_width
        keys = config.kv_heads * config.head_width
        self.q = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.k = nn.Linear(config.n_embd, keys, bias=config.bias)
        self.v = nn.Linear(config.n_embd, keys, bias=config.bias)
        self.out = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.qk_norm = make_norm(config, config.head_width) if config.qk_norm else None

    def forward(self, x: Tensor, turn: Angles | None, mask: Mask) -> Tensor:
        # the values first: gradients are added up in the order of these products, and old runs go on to the same bits
        v, q, k = (layer(x).unflatten(-1, (-1, self.width)).transpose(1, 2) for layer in (self.v, self.q, self.k))
        if self.qk_norm is not None:
            q, k = self.qk_norm(q), self.qk_norm(k)
        if turn is not None:
            q, k = rotated(q, turn), rotated(k, turn)
        q, k = q.to(v.dtype), k.to(v.dtype)
        return self.out(attend(q, k, v, mask).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """down(relu(up(x))^2), or down(gelu(up(x))) with the tanh form of GELU."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.gelu = config.mlp == "gelu"
        self.up = nn.Linear(config.n_embd, config.hidden, bias=config.bias)
        self.down = nn.Linear(config.hidden, config.n_embd, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x)
        return self.down(functional.gelu(x, approximate="tanh") if self.gelu else functional.relu(x).square())


# --- parts ------------------------------------------------------------------------------------------------------------


def make_norm(config: GPTConfig, width: int) -> nn.Module:
    """RMSNorm without weights, or LayerNorm."""
    if config.norm == "rms":
        return nn.RMSNorm(width, eps=config.norm_eps, elementwise_affine=False)
    return nn.LayerNorm(width, eps=config.norm_eps, bias=config.bias)


def soft_capped(logits: Tensor, cap: float | None) -> Tensor:
    """cap * tanh(logits / cap)"""
    return logits if cap is None else cap * torch.tanh(logits / cap)


def initialise(body: Body, config: GPTConfig) -> None:
    """Normal weights: of the modern preset 1 / sqrt(inputs) and zero output projections, else as in GPT-2."""
    for name, module in body.named_modules():
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        elif isinstance(module, nn.Linear):
            output = name.endswith((".out", ".down"))
            if config.zero_init:
                std = 0.0 if output else module.in_features**-0.5
            else:
                std = 0.02 / math.sqrt(2 * config.n_layer) if output else 0.02
            nn.init.normal_(module.weight, std=std)
            if config.bias:
                nn.init.zeros_(module.bias)
