"""Small random batches of an optimizer step, in float64, with every statistic that a controller may ask for."""

from __future__ import annotations

import dataclasses

import torch

from fluxentropy.rl.control.base import TokenBatch, TokenPlan, expected_sensitivity, nucleus_entropy

PER_TOKEN = ("logp", "old_logp", "entropy", "expected_sensitivity", "nucleus_entropy")


def random_batch(seed: int = 0, N: int = 6, L: int = 8, V: int = 10, clip=(0.2, 0.2), drift: float = 0.3) -> TokenBatch:
    """N responses of 1 to L tokens; `drift`: how far the policy has moved since it sampled them."""
    rng = torch.Generator().manual_seed(seed)
    z = 2 * torch.randn(N, L, V, generator=rng, dtype=torch.float64)
    mask = torch.arange(L) < torch.randint(1, L + 1, (N, 1), generator=rng)
    tokens = torch.multinomial(z.softmax(-1).view(-1, V), 1, generator=rng).view(N, L, 1)
    logp = z.log_softmax(-1).gather(2, tokens)[..., 0]
    old = logp + drift * torch.randn(N, L, generator=rng, dtype=torch.float64)
    return TokenBatch(
        mask=mask,
        logp=logp * mask,
        old_logp=old.clamp(max=-1e-3) * mask,
        entropy=torch.special.entr(z.softmax(-1)).sum(-1) * mask,
        advantages=torch.randn(N, generator=rng, dtype=torch.float64),
        expected_sensitivity=expected_sensitivity(z) * mask,
        nucleus_entropy=nucleus_entropy(z) * mask,
        clip=clip,
    )


def tokens_of(batch: TokenBatch) -> list[dict[str, float]]:
    """The tokens of the mask as plain numbers, row by row, with their places."""
    found = []
    for n, k in batch.mask.nonzero().tolist():
        token = {name: float(getattr(batch, name)[n, k]) for name in PER_TOKEN}
        found.append({**token, "A": float(batch.advantages[n]), "n": n, "k": k})
    return found


def changed(batch: TokenBatch, change) -> TokenBatch:
    """`change` applied to the mask and to every statistic of tokens, (N, L) -> anything."""
    return dataclasses.replace(batch, **{name: change(getattr(batch, name)) for name in ("mask", *PER_TOKEN)})


def same(a: TokenPlan, b: TokenPlan, mask: torch.Tensor, change=lambda x: x) -> bool:
    """Whether two plans say the same of the tokens of the mask, `change` applied to the tensors of the first."""

    def equal(x, y):
        if isinstance(x, torch.Tensor):
            return torch.allclose(change(x)[mask].double(), y[mask].double(), rtol=1e-12, atol=1e-12)
        if isinstance(x, tuple):
            return len(x) == len(y) and all(map(equal, x, y))
        if isinstance(x, dict):
            return x.keys() == y.keys() and all(equal(x[key], y[key]) for key in x)
        return x is y is None or abs(x - y) < 1e-12 or x == y

    return all(equal(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(TokenPlan))
