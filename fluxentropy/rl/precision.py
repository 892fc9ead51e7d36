"""How many prompts an entropy needs: its standard error over batches of every size.

Prompts are independent, so the error of a mean falls as 1/√B, the error of one response a prompt included; more
responses to the same prompts lower only the part within prompts. Whether 1/√B already holds at a size, and for the
ratio of sums too, is measured by drawing batches of that size from a large one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from fluxentropy.errors import UsageError
from fluxentropy.rl.estimate import Estimate, jackknife, mean_estimate


class Spread(NamedTuple):
    """Of one entropy over batches of a size: nats. `theory` is the large batch's standard error times √(B_all / B)."""

    se: float
    relative: float  # se / the large batch's entropy
    theory: float


@dataclass(frozen=True, kw_only=True)
class Precision:
    """The errors of entropies from batches of `prompts` prompts."""

    prompts: int
    per_sequence: Spread
    per_token: Spread


def entropy_precision(
    entropy: np.ndarray,
    lengths: np.ndarray,
    sizes: Sequence[int] | None = None,
    *,
    replicates: int = 1000,
    seed: int = 0,
) -> list[Precision]:
    """The errors at every size, from `replicates` batches each, drawn with return from the prompts of a large one.

    entropy: Σ_k H_k of every response (B, G), nats; lengths: its tokens (B, G); `sizes`: prompts a batch, powers of two
    from 2 on by default. Errors: `UsageError` for other shapes, fewer than 3 prompts, sizes outside [1, B].
    """
    columns = _columns(entropy, lengths)
    B = len(columns)
    if sizes is None:
        sizes = [2**power for power in range(1, B.bit_length()) if 2**power <= B]
    if wrong := [size for size in sizes if not 1 <= size <= B]:
        raise UsageError(f"batches of {wrong[0]} prompts: use 1 to {B}, the prompts that there are")
    rng = np.random.default_rng(seed)
    whole = _errors(columns)
    found = []
    for size in sizes:
        drawn = np.stack([columns[rng.integers(0, B, size)].mean(0) for _ in range(replicates)])
        se = np.stack([drawn[:, 0], drawn[:, 0] / drawn[:, 1]]).std(axis=1, ddof=1)
        spreads = [
            Spread(float(s), float(s) / estimate.value if estimate.value else math.nan, estimate.se * (B / size) ** 0.5)
            for s, estimate in zip(se, whole, strict=True)
        ]
        found.append(Precision(prompts=size, per_sequence=spreads[0], per_token=spreads[1]))
    return found


class PromptsNeeded(NamedTuple):
    """Prompts for a relative standard error."""

    per_sequence: int
    per_token: int


def prompts_needed(entropy: np.ndarray, lengths: np.ndarray, *, relative: float) -> PromptsNeeded:
    """Prompts at which the standard error is `relative` of the entropy, by 1/√B; with as many responses to each.

    Errors: `UsageError` as for `entropy_precision`, and for a `relative` error that is not positive.

    >>> prompts_needed(np.array([[1.0], [2.0], [3.0]]), np.ones((3, 1)), relative=0.1)
    PromptsNeeded(per_sequence=25, per_token=25)
    """
    if not relative > 0:
        raise UsageError(f"relative error {relative}: use a positive number, such as 0.05")
    columns = _columns(entropy, lengths)
    per_sequence, per_token = (
        math.ceil(round(len(columns) * (estimate.se / estimate.value / relative) ** 2, 9)) if estimate.value else 0
        for estimate in _errors(columns)
    )
    return PromptsNeeded(per_sequence, per_token)


def _columns(entropy: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """(B, 2): mean Σ_k H_k and mean length of each prompt's responses."""
    H, T = np.asarray(entropy, np.float64), np.asarray(lengths, np.float64)
    if H.ndim != 2 or H.shape != T.shape:
        raise UsageError(f"entropies of shape {H.shape} and lengths of shape {T.shape}: expected (prompts, responses)")
    if len(H) < 3:
        raise UsageError(f"{len(H)} prompts: a standard error that is worth scaling needs at least 3")
    return np.stack([H.mean(1), T.mean(1)], axis=1)


def _errors(columns: np.ndarray) -> tuple[Estimate, Estimate]:
    """The entropies of all prompts with their standard errors."""
    values = torch.from_numpy(columns)
    return mean_estimate(values[:, 0]), jackknife(lambda means: means[..., 0] / means[..., 1], values)
