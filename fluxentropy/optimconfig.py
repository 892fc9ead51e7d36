"""The optimizer, as options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fluxentropy.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Peak learning rates and the rest of an optimizer. Weight decay is for the matrices of the blocks alone.

    Errors: UsageError names a number out of its range.
    """

    kind: Literal["muon", "adamw"] = "muon"
    """What the matrices of the blocks get: muon or adamw. Everything else gets AdamW."""
    lr: float = 3e-3
    """Peak learning rate, where a role has none of its own."""
    matrix_lr: float | None = None
    """Of the matrices of the blocks."""
    embedding_lr: float | None = None
    """Of the embeddings, a tied head among them."""
    head_lr: float | None = None
    """Of a head of its own."""
    gain_lr: float | None = None
    """Of gains and biases."""
    weight_decay: float = 0.1
    """Of the matrices, decoupled: every step takes away lr * weight_decay of them."""
    momentum: float = 0.95
    """Of Muon, after Nesterov."""
    muon_scale: Literal["match_rms_adamw", "original"] = "match_rms_adamw"
    """Size of Muon's updates: that of AdamW's, so that both share learning rates (Liu et al. 2025, arXiv:2502.16982), \
or sqrt(max(1, rows / columns))."""
    beta1: float = 0.9
    """Of AdamW: decay of the mean gradient."""
    beta2: float = 0.95
    """Of AdamW: decay of the mean squared gradient."""
    eps: float = 1e-8
    """Of AdamW: added to the root of the mean squared gradient."""
    fused: bool = False
    """AdamW in one kernel: faster on GPUs."""

    def __post_init__(self) -> None:
        for name in ("lr", "matrix_lr", "embedding_lr", "head_lr", "gain_lr", "weight_decay", "eps"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise UsageError(f"{name} {value}: use 0 or a positive number")
        for name in ("momentum", "beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(f"{name} {getattr(self, name)}: use a number from 0 to below 1")
