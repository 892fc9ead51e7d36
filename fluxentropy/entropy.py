"""Next-token entropy, varentropy and surprisal from logits, in one pass over the vocabulary.

The one implementation that scoring, training and reinforcement learning share. With d_v = z_v - max(z) and the sums
S0 = Σ e^d, S1 = Σ e^d d, S2 = Σ e^d d² over the vocabulary,

    H = ln S0 - S1/S0            entropy, nats           (logZ - E[z], the maximum cancels)
    V = S2/S0 - (S1/S0)²         varentropy, nats²       (Var_p[z])
    S = ln S0 + max(z) - z_y     surprisal of y, nats    (-ln p_y)

Shifting by the maximum is what makes V safe in float32: |d| is at most about ln(vocabulary) wherever there is mass, so
nothing large cancels, while the unshifted E[z²] - E[z]² loses everything at an offset of 1e4. The sums of a block of
the vocabulary merge exactly with those of another, so the full (batch, time, vocabulary) tensor need never exist.

Shape legend: R rows (positions), V vocabulary, C a block of its columns, D hidden width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# --- all of the vocabulary --------------------------------------------------------------------------------------------


ROWS = 256  # positions projected at once; with 2,048 columns a block's logits are 2 MiB and stay in the cache


class TokenStats(NamedTuple):
    """Statistics of next-token distributions, one value a position, shape (...): float32, or float64 of float64 logits.

    `entropy` and `surprisal` in nats, `varentropy` in nats², `max_prob` a probability. `surprisal` is None without
    targets. With `top_k`, `top_probs` (..., k) and `top_tokens` (..., k) are the most likely tokens in descending
    order. NaN marks a position without a distribution (a NaN or +inf logit, or all -inf); see `check_finite`.
    """

    entropy: Tensor
    varentropy: Tensor
    max_prob: Tensor
    surprisal: Tensor | None = None
    top_probs: Tensor | None = None
    top_tokens: Tensor | None = None

    @property
    def top_k_mass(self) -> Tensor:
        """Probability mass of the `top_k` most likely tokens, shape (...)."""
        if self.top_probs is None:
            raise ValueError("top_k_mass needs token_stats(..., top_k=k)")
        return self.top_probs.sum(-1)


class Head(Protocol):
    """A final projection that can yield its logits in blocks of vocabulary columns."""

    def blocks(self, hidden: Tensor) -> Iterator[Tensor]:
        """(R, D) -> the (R, C) blocks whose concatenation along the last axis is the (R, V) logits."""
        ...


def token_stats(
    inputs: Tensor,
    targets: Tensor | None = None,
    *,
    head: Head | Callable[[Tensor], Tensor] | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
) -> TokenStats:
    """Entropy, varentropy, surprisal and maximum probability of each next-token distribution.

    Args:
        inputs: logits (..., V); or, with `head`, hidden states (..., D) that are projected in row chunks.
        targets: int64 (...), the tokens whose surprisal is wanted. A negative target gives a NaN surprisal.
        head: a callable (R, D) -> (R, V), or a `Head` that yields column blocks.
        temperature: the distribution is softmax(z / temperature).
        top_k: also return the k most likely tokens and their probabilities.

    Logits of -inf are tokens of probability 0 (p ln p = 0, gradients finite). Half-precision logits are widened to
    float32 before anything is computed. Differentiable to any order, also by `torch.func`; with `head` and gradients
    the logits of a chunk are recomputed in the backward pass instead of being kept.

    Errors: TypeError for what is no tensor; ValueError for shapes that do not match, a temperature that is not
    positive, or a `top_k` below 1.

    >>> stats = token_stats(torch.tensor([0.0, 0.0, -torch.inf, -torch.inf]), torch.tensor(0))
    >>> [round(x.item(), 4) for x in (stats.entropy, stats.varentropy, stats.surprisal, stats.max_prob)]
    [0.6931, 0.0, 0.6931, 0.5]
    """
    if not isinstance(inputs, Tensor):
        raise TypeError(f"logits are a {type(inputs).__name__}: give a torch.Tensor (..., V)")
    if targets is not None and targets.shape != inputs.shape[:-1]:
        raise ValueError(f"targets have shape {tuple(targets.shape)}, expected {tuple(inputs.shape[:-1])}")
    if not temperature > 0:
        raise ValueError(f"temperature {temperature}: use a positive number")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k {top_k}: use a whole number of at least 1")
    if head is None:
        return _stats([inputs], targets, temperature, top_k)
    rows = inputs.reshape(-1, inputs.shape[-1])  # (R, D)
    flat_targets = None if targets is None else targets.reshape(-1)
    chunks = []
    for start in range(0, max(len(rows), 1), ROWS):
        hidden = rows[start : start + ROWS]
        chosen = None if flat_targets is None else flat_targets[start : start + ROWS]
        if torch.is_grad_enabled():
            chunks.append(checkpoint(_project_stats, head, hidden, chosen, temperature, top_k, use_reentrant=False))
        else:
            chunks.append(_project_stats(head, hidden, chosen, temperature, top_k))
    shape = inputs.shape[:-1]
    return concatenate(chunks, lambda column: column.view(*shape, *column.shape[1:]))


def concatenate(parts: Sequence[TokenStats], then: Callable[[Tensor], Tensor] = lambda column: column) -> TokenStats:
    """The statistics of consecutive positions as one, joined along the first axis; `then` is applied to each tensor."""
    columns = zip(*parts, strict=True)
    return TokenStats(*(None if column[0] is None else then(torch.cat(column)) for column in columns))  # type: ignore[arg-type]


def check_finite(stats: TokenStats) -> None:
    """Raise FloatingPointError that counts the positions whose entropy is not finite and names the first."""
    bad = ~stats.entropy.isfinite()
    if bad.any():
        first = tuple(bad.nonzero()[0].tolist())
        raise FloatingPointError(f"{int(bad.sum())} of {bad.numel()} positions have NaN entropy, the first at {first}")


# --- the sums over the vocabulary -------------------------------------------------------------------------------------


class Sums(NamedTuple):
    """Sums over the columns seen so far, relative to their maximum `top`; float64 except `top`, shape (...).

    As a shift the maximum is a constant (it cancels); only `max_prob` differentiates through it.
    """

    top: Tensor
    s0: Tensor
    s1: Tensor
    s2: Tensor


def _block_sums(z: Tensor) -> Sums:  # (..., C) -> (...)
    """The three sums of one block of logits, in the block's own dtype, accumulated in float64 where it matters.

    Differences are clamped where e^d underflows, which turns -inf into an exact 0 with a zero gradient. S0 alone is
    summed in float64: it is 1 + ε for a peaked distribution, and H is of the order of ε.
    """
    floor = -110.0 if z.dtype == torch.float32 else -760.0
    top = z.amax(-1)
    shift = top.detach().masked_fill(top == -torch.inf, 0.0)
    wide = _wide(z)
    if not torch.is_grad_enabled():  # the same numbers in memory that is in the cache already
        d = (z - shift.unsqueeze(-1)).clamp_(min=floor)
        e = d.exp()
        s0 = e.sum(-1, dtype=wide)
        s1 = e.mul_(d).sum(-1).to(wide)
        return Sums(top, s0, s1, e.mul_(d).sum(-1).to(wide))
    d = (z - shift.unsqueeze(-1)).clamp(min=floor)
    e = d.exp()
    ed = e * d
    return Sums(top, e.sum(-1, dtype=wide), ed.sum(-1).to(wide), (ed * d).sum(-1).to(wide))


def _merge(a: Sums, b: Sums) -> Sums:
    """The sums of two blocks of columns together: each side is shifted to the common maximum."""
    top = torch.maximum(a.top, b.top)
    parts = []
    for sums in (a, b):
        delta = torch.where(sums.top == top, 0.0, (sums.top - top).detach()).to(sums.s0.dtype).clamp(min=-1e15)  # (...)
        weight = delta.exp()
        s1 = sums.s1 + delta * sums.s0
        s2 = sums.s2 + 2 * delta * sums.s1 + delta * delta * sums.s0
        parts.append((weight * sums.s0, weight * s1, weight * s2))
    (a0, a1, a2), (b0, b1, b2) = parts
    return Sums(top, a0 + b0, a1 + b1, a2 + b2)


def _stats(
    blocks: Iterator[Tensor] | list[Tensor], targets: Tensor | None, temperature: float, top_k: int | None
) -> TokenStats:
    """Fold column blocks (..., C) into the statistics of the whole rows."""
    total: Sums | None = None
    chosen: Tensor | None = None
    largest: _Largest | None = None
    start = 0
    for block in blocks:
        z = block if block.dtype == torch.float64 else block.float()
        if temperature != 1.0:
            z = z / temperature
        sums = _block_sums(z)
        total = sums if total is None else _merge(total, sums)
        if targets is not None:
            chosen = _pick(z, targets - start, chosen)
        if top_k is not None:
            largest = _keep_largest(z, start, top_k, largest)
        start += z.shape[-1]
    if total is None:
        raise ValueError("no logits: the vocabulary is empty")
    return finish(total, chosen, largest)


class _Largest(NamedTuple):
    values: Tensor  # (..., k)
    tokens: Tensor  # (..., k)


def _keep_largest(z: Tensor, start: int, k: int, so_far: _Largest | None) -> _Largest:
    """The k largest logits of this block (..., C), whose first column is token `start`, and of those kept so far."""
    values, tokens = z.topk(min(k, z.shape[-1]), -1)
    tokens = tokens + start
    if so_far is not None:
        values, tokens = torch.cat([so_far.values, values], -1), torch.cat([so_far.tokens, tokens], -1)
        values, order = values.topk(min(k, values.shape[-1]), -1)
        tokens = tokens.gather(-1, order)
    return _Largest(values, tokens)


def _pick(z: Tensor, index: Tensor, so_far: Tensor | None) -> Tensor:
    """The logit at `index` (...) where it falls inside this block (..., C), else `so_far` (NaN before any)."""
    inside = (index >= 0) & (index < z.shape[-1])
    value = z.gather(-1, index.clamp(0, z.shape[-1] - 1).unsqueeze(-1)).squeeze(-1)
    return torch.where(inside, value, torch.nan if so_far is None else so_far)


def finish(sums: Sums, chosen: Tensor | None, largest: _Largest | None) -> TokenStats:
    s0, s1, s2 = sums.s0, sums.s1, sums.s2
    top, narrow = sums.top.detach(), sums.top.dtype
    undefined = ~top.isfinite()
    log_s0 = s0.log()
    mean = s1 / s0  # E[z] - max(z)
    entropy = (log_s0 - mean).masked_fill(undefined, torch.nan)
    varentropy = (s2 / s0 - mean * mean).clamp(min=0).masked_fill(undefined, torch.nan)
    surprisal = None
    if chosen is not None:
        surprisal = (log_s0 + (top - chosen).to(s0.dtype)).masked_fill(undefined, torch.nan).to(narrow)
    top_probs = None
    if largest is not None:
        shifted = (largest.values - top.unsqueeze(-1)).to(s0.dtype).exp()
        top_probs = (shifted / s0.unsqueeze(-1)).masked_fill(undefined.unsqueeze(-1), torch.nan).to(narrow)
    max_prob = ((sums.top - top).to(s0.dtype).exp() / s0).masked_fill(undefined, torch.nan)
    return TokenStats(
        entropy.to(narrow), varentropy.to(narrow), max_prob.to(narrow), surprisal, top_probs, largest and largest.tokens
    )


def _project_stats(
    head: Head | Callable[[Tensor], Tensor],
    hidden: Tensor,
    targets: Tensor | None,
    temperature: float,
    top_k: int | None,
) -> TokenStats:
    blocks = head.blocks(hidden) if hasattr(head, "blocks") else [head(hidden)]
    return _stats(blocks, targets, temperature, top_k)


def _wide(z: Tensor) -> torch.dtype:
    """float64, except on devices that have none (MPS)."""
    return torch.float32 if z.device.type == "mps" else torch.float64


# --- entropy from the top k -------------------------------------------------------------------------------------------
#
#     S = −Σ_{v≤k} p_v ln p_v                  what is seen
#     m = 1 − Σ_{v≤k} p_v                      the tail's mass, over the V − k other tokens, each at most p_k
#     S − m ln p_k  ≤  H  ≤  S − m ln(m/(V−k))  the whole entropy: at least if the tail is as steep as it may be,
#                                               at most if it is flat
#
# and, as most people compute it, the entropy and varentropy of the k probabilities scaled to sum to 1.


@dataclass(frozen=True, kw_only=True)
class TruncatedEntropy:
    """Per position, float64 (N,): of the renormalised top k, and the limits of the whole distribution's entropy."""

    entropy: np.ndarray  # nats
    varentropy: np.ndarray  # nats²
    tail_mass: np.ndarray
    lower: np.ndarray  # nats
    upper: np.ndarray  # nats


def truncated_entropy(top_probs: np.ndarray, vocabulary: int) -> TruncatedEntropy:
    """What the `top_probs` (N, k), in descending order, say about distributions over `vocabulary` tokens.

    >>> seen = truncated_entropy(np.array([[0.5, 0.25]]), vocabulary=4)  # of (1/2, 1/4, 1/8, 1/8), H = 1.213
    >>> [round(float(x[0]), 3) for x in (seen.entropy, seen.varentropy, seen.tail_mass, seen.lower, seen.upper)]
    [0.637, 0.107, 0.25, 1.04, 1.213]
    """
    p = np.asarray(top_probs, dtype=np.float64)
    k = p.shape[-1]
    seen = p.sum(axis=-1)
    m = np.clip(1 - seen, 0, 1) if k < vocabulary else np.zeros_like(seen)
    S = -_x_ln_x(p).sum(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        lower = S - np.where(m > 0, m * np.log(p[..., -1]), 0)
        upper = S - np.where(m > 0, m * np.log(m / max(vocabulary - k, 1)), 0)
        q = p / seen[..., None]
    H = -_x_ln_x(q).sum(axis=-1)
    V = _x_ln2_x(q).sum(axis=-1) - H**2
    return TruncatedEntropy(
        entropy=H, varentropy=np.maximum(V, 0), tail_mass=m, lower=lower, upper=np.maximum(upper, lower)
    )


def _x_ln_x(x: np.ndarray) -> np.ndarray:
    return x * np.log(np.where(x > 0, x, 1))


def _x_ln2_x(x: np.ndarray) -> np.ndarray:
    return x * np.log(np.where(x > 0, x, 1)) ** 2
