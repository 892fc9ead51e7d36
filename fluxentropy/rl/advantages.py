"""Advantages within the group of responses to one prompt: pure functions of rewards, (B, G) -> (B, G).

    standardised    (r - mean) / (sd + eps), sd over the group       GRPO (Shao et al. 2024, arXiv:2402.03300)
    centred         r - mean                                          Dr. GRPO (Liu et al. 2025, arXiv:2503.20783)
    leave_one_out   r - mean of the others = G/(G-1) (r - mean)       RLOO (Ahmadian et al. 2024, arXiv:2402.14740)

A group whose rewards are all the same has advantages of exactly 0.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from fluxentropy.errors import UsageError
from fluxentropy.rl.estimate import leave_one_out

Advantage = Literal["standardised", "centred", "leave_one_out"]
EPS = 1e-4


def advantages(rewards: Tensor, kind: Advantage, *, eps: float = EPS) -> Tensor:
    """Advantages of rewards (B, G), G >= 2, in their dtype; the standard deviation is that of the group itself (1/G).

    Errors: UsageError for one response a prompt.

    >>> import torch
    >>> advantages(torch.tensor([[0.0, 1.0], [3.0, 3.0]]), "leave_one_out").tolist()
    [[-1.0, 1.0], [0.0, 0.0]]
    """
    if rewards.shape[-1] < 2:
        raise UsageError("advantages within a group need at least 2 responses a prompt")
    if kind == "leave_one_out":
        found = rewards - leave_one_out(rewards)
    else:
        found = rewards - rewards.mean(-1, keepdim=True)
        if kind == "standardised":
            found = found / (rewards.std(-1, correction=0, keepdim=True) + eps)
    same = rewards.amax(-1, keepdim=True) == rewards.amin(-1, keepdim=True)
    return found.masked_fill(same, 0.0)
