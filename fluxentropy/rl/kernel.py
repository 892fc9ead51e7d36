"""The Fisher kernel between responses, and how it carries an update to the entropy.

    K₁(t|p, t'|p') = ∇S(t|p) · ∇S(t'|p'),    K^P = Σ_α P_α ∂_α S ∂_α S'     (P a diagonal preconditioner)
    δ𝓗₁ = -η E_{p,t} (1/BG) Σ_{m,g} (1/L) (S(t|p) - S̄_p) K(t|p, t_mg|p_m) A_mg

for the step of plain ascent d = η (1/BG) Σ (A/L) ∇S. Source: RL studies, section 2.1, with the expectation over *all*
prompts: the terms between prompts are part of the change, often the larger one. L is a constant (see `update_weights`).

Natural gradient makes the kernel diagonal, K = δ_tt' / π, and then and only then δ𝓗₁ = -η Cov(S, A / L) (Cui et al.).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fluxentropy.errors import UsageError
from fluxentropy.rl.estimate import leave_one_out
from fluxentropy.rl.gradient import check_norm
from fluxentropy.rl.passes import ROWS, Weights, derivatives, row_gradients
from fluxentropy.rl.policy import Parameters, Policy, flatten
from fluxentropy.rl.responses import Responses


@dataclass(frozen=True, kw_only=True)
class KernelSplit:
    """A change Σ_ij x_i K_ij y_j by which pairs carry it; the three parts sum to `total`. Nats, times the step's η.

    `identical`: the same response to the same prompt; `same_prompt`: another response; `cross_prompt`: another prompt.
    """

    total: float
    identical: float
    same_prompt: float
    cross_prompt: float

    @property
    def diagonal_share(self) -> float:
        """The part of the change that a diagonal kernel would explain, identical / total; NaN where total is 0."""
        return self.identical / self.total if self.total else float("nan")


@dataclass(frozen=True, kw_only=True)
class KernelStatistics:
    """Means and root mean squares of a symmetric kernel by kind of pair (NaN where there is none), and its spectrum.

    Pairs of equal responses to a prompt count as same-prompt pairs unless they are the same row. `eigenvalues` (N,)
    descend; `effective_rank` = (Σ λ)² / Σ λ².
    """

    diagonal_mean: float
    same_prompt_mean: float
    same_prompt_rms: float
    cross_prompt_mean: float
    cross_prompt_rms: float
    eigenvalues: Tensor
    effective_rank: float


def fisher_gradients(
    policy: Policy,
    batch: Responses,
    *,
    preconditioner: Parameters | None = None,
    sketch: int | None = None,
    seed: int = 0,
    params: Parameters | None = None,
    rows: int = ROWS,
) -> Tensor:
    """Features F of every response with K = F Fᵀ. -> (N, P) exact, or (N, sketch)

    Exact: √P_α ∂_α S by vmap, for small models. With `sketch`, a Johnson-Lindenstrauss projection on that many random
    signs r: F_i = ∇_(√P r) S / √sketch, one forward-mode pass over the batch each and no gradients in memory. K is then
    unbiased; the relative standard deviation of its diagonal is about √(2/sketch). The same seed gives the same signs,
    so features of two batches may be multiplied.

    Errors: `UsageError` for a sketch below 1 and for a negative preconditioner.
    """
    theta = policy.parameters() if params is None else params
    root = {name: torch.ones_like(tensor) for name, tensor in theta.items()}
    if preconditioner is not None:
        if any((p < 0).any() for p in preconditioner.values()):
            raise UsageError("a preconditioner has negative entries: K^P needs them to be 0 or more")
        root = {name: preconditioner[name].sqrt() if name in preconditioner else 0 * theta[name] for name in theta}
    if sketch is None:
        gradients = row_gradients(policy, batch, Weights(batch.mask.double()), theta, rows=rows)
        return gradients.flatten(0, 1).double() * flatten(root)
    if sketch < 1:
        raise UsageError(f"sketch {sketch}: use a whole number of at least 1, or None for the exact kernel")
    rng = torch.Generator().manual_seed(seed)
    columns = []
    for _ in range(sketch):
        signs = {name: torch.randint(0, 2, tensor.shape, generator=rng) * 2 - 1 for name, tensor in theta.items()}
        direction = {name: root[name] * sign.to(root[name]) for name, sign in signs.items()}
        first = derivatives(policy, batch, direction, order=1, params=theta, rows=rows)[1]
        columns.append(first.logp.sum(-1).flatten())
    return torch.stack(columns, 1) / sketch**0.5


def pairs(a: Responses, b: Responses) -> tuple[Tensor, Tensor]:
    """(same prompt, same prompt and same response) of the rows of two batches, bool (N_a, N_b), by token ids."""
    prompts = torch.tensor([[a.prompt(n) == b.prompt(m) for m in range(b.shape[0])] for n in range(a.shape[0])])
    same_prompt = prompts.repeat_interleave(a.shape[1], 0).repeat_interleave(b.shape[1], 1)
    rows = [_responses(batch) for batch in (a, b)]
    same = torch.tensor([[left == right for right in rows[1]] for left in rows[0]])
    return same_prompt, same_prompt & same


def _responses(batch: Responses) -> list[tuple[int, ...]]:
    rows = zip(batch.tokens.flatten(0, 1).tolist(), batch.lengths.flatten().tolist(), strict=True)
    return [tuple(tokens[:length]) for tokens, length in rows]


def kernel_change(kernel: Tensor, x: Tensor, y: Tensor, same_prompt: Tensor, identical: Tensor) -> KernelSplit:
    """Σ_ij x_i K_ij y_j split by kind of pair. kernel (N, M), x (N,), y (M,), pairs bool (N, M)

    For the change of a policy-gradient step: x from `entropy_side`, y from `update_side`, times η where K has no
    preconditioner. Sampled estimates need two batches: rows of one batch on both sides are correlated.
    """
    same_prompt, identical = same_prompt.to(kernel.device), identical.to(kernel.device)
    terms = x[:, None] * kernel * y[None, :]
    parts = (terms * identical, terms * (same_prompt & ~identical), terms * ~same_prompt)
    same, prompt, cross = (float(part.sum()) for part in parts)
    return KernelSplit(total=float(terms.sum()), identical=same, same_prompt=prompt, cross_prompt=cross)


def entropy_side(logp: Tensor) -> Tensor:
    """x_i = -(S_i - mean of the prompt's other responses) / (BG) from S (B, G): Σ x_i ∇S_i estimates ∇𝓗. -> (N,)"""
    return (-(logp - leave_one_out(logp)) / logp.numel()).flatten()


def update_side(advantages: Tensor, norm: float) -> Tensor:
    """y_j = A_j / (BGL), so that the step is d = η Σ y_j ∇S_j. (B, G) -> (N,)"""
    check_norm(norm)
    return (advantages.double() / (advantages.numel() * norm)).flatten()


def covariance_change(logp: Tensor, advantages: Tensor, norm: float = 1.0, *, relative: bool = True) -> float:
    """-mean of (S - mean of the prompt's S) A / norm: the diagonal-kernel formula of Cui et al., for this update.

    logp S and advantages (B, G), nats, G >= 2; `norm` is what the update divides sums over tokens by. Times η it is
    the first-order change by the *natural* gradient step η (1/BG) Σ (A/norm) ∇S on free logits. It depends on A/norm
    alone. Advantages `relative` to their group sum to 0 in it, so that any mean of S would do, and nothing is left to
    correct: the value is that of this very step, for A of any kind. Those of each response alone are not; there the
    mean is of the other responses, G/(G-1) times as much, and the value unbiased for -Cov(S, A) / norm.

    Errors: `UsageError` for G < 2, and a norm that is not positive.

    >>> S, r = torch.tensor([[-1.0, -3.0]]), torch.tensor([[1.0, 0.0]])
    >>> covariance_change(S, r - r.mean(), 2.0), covariance_change(S, (r - r.mean()) / 2, 1.0)
    (-0.25, -0.25)
    """
    check_norm(norm)
    others = logp - leave_one_out(logp)
    G = logp.shape[-1]
    return -float((others * ((G - 1) / G if relative else 1.0) * advantages / norm).mean())


def kernel_statistics(kernel: Tensor, prompts: Tensor) -> KernelStatistics:
    """Statistics of K (N, N) in blocks of equal `prompts` (N,), any labels."""
    same = (prompts[:, None] == prompts[None, :]).to(kernel.device)
    off = ~torch.eye(len(kernel), dtype=torch.bool, device=kernel.device)
    inside, between = kernel[same & off], kernel[~same]
    values = torch.linalg.eigvalsh((kernel + kernel.T) / 2).flip(0)
    return KernelStatistics(
        diagonal_mean=float(kernel.diagonal().mean()),
        same_prompt_mean=float(inside.mean()),
        same_prompt_rms=float(inside.square().mean().sqrt()),
        cross_prompt_mean=float(between.mean()),
        cross_prompt_rms=float(between.square().mean().sqrt()),
        eigenvalues=values,
        effective_rank=float(values.sum() ** 2 / values.square().sum()),
    )
