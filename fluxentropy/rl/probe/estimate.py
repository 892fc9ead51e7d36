"""A number with its standard error, from independent prompts.

Prompts are the independent units: responses to one prompt share it, so standard errors are always between prompts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fluxentropy.entropy import token_stats
from fluxentropy.errors import UsageError
from fluxentropy.rl.probe.policy import SequenceStats
from fluxentropy.rl.probe.samples import Sampler

# --- estimates --------------------------------------------------------------------------------------------------------


class Estimate(NamedTuple):
    """A value and its standard error, in the same units; the error is NaN where one prompt gives none.

    >>> [round(end, 3) for end in Estimate(1.0, 0.5).interval(0.95)]
    [0.02, 1.98]
    """

    value: float
    se: float

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """The normal interval of confidence `level`, too narrow for few prompts.

        Errors: `UsageError` for a level outside (0, 1).
        """
        if not 0 < level < 1:
            raise UsageError(f"confidence level {level}: use a number between 0 and 1")
        half = NormalDist().inv_cdf((1 + level) / 2) * self.se
        return self.value - half, self.value + half


def mean_estimate(values: Tensor) -> Estimate:
    """Mean and standard error of one value a prompt, (B,)."""
    return Estimate(float(values.mean()), float(values.std() / len(values) ** 0.5) if len(values) > 1 else float("nan"))


def jackknife(f: Callable[[Tensor], Tensor], columns: Tensor) -> Estimate:
    """f of the means of columns (B, q) over prompts, with the delete-one-prompt standard error.

    f maps (..., q) -> (...). SE² = (B-1)/B Σ_n (f_(-n) - mean f_(-))²: for a linear f the usual one of a mean.

    >>> jackknife(lambda m: m[..., 0] / m[..., 1], Tensor([[1.0, 2.0], [3.0, 4.0], [2.0, 2.0]])).value
    0.75
    """
    value = float(f(columns.mean(0)))
    if len(columns) < 2:
        return Estimate(value, float("nan"))
    return Estimate(value, jackknife_error(f(without_each(columns))))


def without_each(columns: Tensor) -> Tensor:
    """The means of columns (B, q) without each prompt in turn. -> (B, q), B >= 2"""
    return (columns.sum(0) - columns) / (len(columns) - 1)


def jackknife_error(without: Tensor) -> float:
    """The standard error of an estimate from its values without each prompt, (B,)."""
    B = len(without)
    return float(((B - 1) / B * (without - without.mean()).square().sum()).sqrt())


def leave_one_out(values: Tensor, dim: int = -1) -> Tensor:
    """The mean of the other values along `dim`, at each place; at least two values.

    >>> leave_one_out(Tensor([1.0, 2.0, 6.0])).tolist()
    [4.0, 3.5, 1.5]
    """
    n = values.shape[dim]
    if n < 2:
        raise UsageError("a leave-one-out mean needs at least 2 values: sample more, or use the to-go form")
    return (values.sum(dim, keepdim=True) - values) / (n - 1)


# --- entropy of sequences ---------------------------------------------------------------------------------------------
#
#     naive             -(1/BG) Σ S(t_ng),       S = Σ_k log π(t_k | t_<k, p)
#     Rao-Blackwellised  (1/BG) Σ Σ_k H_k,       H_k the entropy of the distribution that t_k was drawn from
#
# Both are unbiased for 𝓗 = -E[S] (nats a sequence). Source: RL studies, section 2.2. Rao-Blackwellising lowers the
# variance of each position's term, Var(H_k) <= Var(-S_k), but not always that of the sum:
#
#     Var(-S) = Var(Σ H_k) + Σ_k E Var(-S_k | t_<k) + 2 Σ_{j<k} Cov(H_k, -S_j - H_j)
#
# and the last term may be negative. The ratio of the measured variances is therefore reported, not promised.
#
# Per token the entropy is a ratio of sums, E[Σ H_k] / E[T]: the mean of Σ H_k / T has another expectation than that of
# -S / T, because the length is random.


@dataclass(frozen=True, kw_only=True)
class SequenceEntropy:
    """Entropy estimates of one batch, with standard errors between prompts (NaN for one prompt).

    Attributes:
        naive: -mean S, nats a sequence.
        rao_blackwell: mean Σ_k H_k, nats a sequence.
        per_token: Σ Σ_k H_k / Σ T, nats a token.
        variance_ratio: Var(Σ_k H_k) / Var(-S) over all responses; above 1 where the naive estimate is the better one
            (inf where -S does not vary but Σ H_k does, NaN where neither does).
        mean_length: tokens a response.
    """

    naive: Estimate
    rao_blackwell: Estimate
    per_token: Estimate
    variance_ratio: float
    mean_length: float


def sequence_entropy(stats: SequenceStats, mask: Tensor) -> SequenceEntropy:
    """Entropies of a batch from S_k and H_k (B, G, L), float64 nats, and the mask (B, G, L).

    >>> half = torch.full((2, 1, 1), 0.5, dtype=torch.float64).log()
    >>> sequence_entropy(SequenceStats(half, -half), torch.ones(2, 1, 1, dtype=torch.bool)).per_token
    Estimate(value=0.6931471805599453, se=0.0)
    """
    surprisal, entropy = -stats.logp.sum(-1), stats.entropy.sum(-1)  # (B, G)
    length = mask.sum(-1).double()
    columns = torch.stack([entropy.mean(1), length.mean(1)], 1)
    return SequenceEntropy(
        naive=mean_estimate(surprisal.mean(1)),
        rao_blackwell=mean_estimate(entropy.mean(1)),
        per_token=jackknife(lambda means: means[..., 0] / means[..., 1], columns),
        variance_ratio=float(entropy.var(correction=0) / surprisal.var(correction=0)),
        mean_length=float(length.mean()),
    )


# --- top-k and top-p supports -----------------------------------------------------------------------------------------
#
# With Z = logsumexp(z), Z_A that over the support, s = e^(Z_A - Z) its mass and ε = 1 - s,
#
#     H = s H_A + ε H_tail - s ln s - ε ln ε,    0 <= ε H_tail <= ε ln(V - |A|)
#
# Source: RL studies, section 2.2.5, with the renormalisation done once: H_A is the entropy of the renormalised
# distribution on A. The tail is bounded, not assumed small.


class SupportEntropy(NamedTuple):
    """Per position (...), float64. `lower` <= H <= `upper`, all entropies in nats, masses are probabilities."""

    support_entropy: Tensor  # H_A
    support_mass: Tensor  # s
    tail_mass: Tensor  # ε, exact also where s rounds to 1
    lower: Tensor  # s H_A - s ln s - ε ln ε
    upper: Tensor  # lower + ε ln(V - |A|)


def support_entropy(logits: Tensor, sampler: Sampler) -> SupportEntropy:
    """Bounds of the entropy of softmax(z / τ) from the support that `sampler` keeps. (..., V) -> (...)

    `lower` to `upper` is what is known of H without the tail's logits; use it where only the top of the distribution
    was stored. Tokens of logit -inf belong to neither part.

    >>> both = support_entropy(torch.tensor([2.0, 1.0, 0.0, 0.0]), Sampler(top_k=2))
    >>> [round(x.item(), 3) for x in both]
    [0.582, 0.835, 0.165, 0.934, 1.049]
    """
    z = logits.double() / sampler.temperature
    kept = sampler.restrict(logits.double()) > -torch.inf
    inside, outside = z.masked_fill(~kept, -torch.inf), z.masked_fill(kept, -torch.inf)
    total = z.logsumexp(-1)
    s, tail = (inside.logsumexp(-1) - total).exp(), (outside.logsumexp(-1) - total).exp()
    support = token_stats(inside).entropy
    lower = s * support + torch.special.entr(s) + torch.special.entr(tail)
    size = (outside > -torch.inf).sum(-1).clamp(min=1)
    return SupportEntropy(support, s, tail, lower, lower + tail * size.double().log())


# --- precision --------------------------------------------------------------------------------------------------------
#
# Prompts are independent, so the error of a mean falls as 1/√B, the error of one response a prompt included; more
# responses to the same prompts lower only the part within prompts. Whether 1/√B already holds at a size, and for the
# ratio of sums too, is measured by drawing batches of that size from a large one.


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
