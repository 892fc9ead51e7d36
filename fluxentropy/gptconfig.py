"""The architecture of a GPT, as options.

The modern preset has rotary positions (Su et al. 2021, arXiv:2104.09864), RMSNorm without weights (Zhang and Sennrich
2019, arXiv:1910.07467) also right after the embedding, normalised queries and keys (Henry et al. 2020,
arXiv:2010.04245), a squared ReLU (So et al. 2021, arXiv:2109.08668), output projections that start at zero, and logits
soft-capped with tanh (Gemma Team 2024, arXiv:2408.00118).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal


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
