"""A compact GPT in plain PyTorch, with a modern preset and the one of GPT-2.

    gpt = GPT(GPTConfig(vocab_size=50257, n_layer=4))       new weights
    gpt = from_export("runs/a/export")                      those of a NanoChat or a GPT-2 of transformers
    loss = gpt(ids[:, :-1], ids[:, 1:])

Shape legend: B rows, T positions, D width, H heads, K key and value heads, E width of a head, V vocabulary.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from fluxentropy.attention import Angles, Mask, attend, document_mask, rotary_angles, rotated
from fluxentropy.gptconfig import GPTConfig

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
