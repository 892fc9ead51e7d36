"""Statistics of next-token distributions against sums in float64 and against autograd of the entropy."""

from __future__ import annotations

import math

import pytest
import torch

from fluxentropy.errors import UsageError
from fluxentropy.rl.tokenstats import expected_sensitivity, nucleus_entropy
from fluxentropy.rl.updatebatch import TokenBatch


def logits(*shape, seed=0, scale=2.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def entropy(z):
    return torch.special.entr(z.softmax(-1)).sum(-1)


def minus_gradient(z):
    """-∂H/∂z_a by autograd, (..., V)."""
    z = z.clone().requires_grad_()
    return -torch.autograd.grad(entropy(z).sum(), z)[0]


def test_expected_sensitivity_is_the_mean_of_minus_the_entropys_gradient():
    z = logits(5, 7)
    expected = (z.softmax(-1) * minus_gradient(z)).sum(-1)
    assert torch.allclose(expected_sensitivity(z), expected, rtol=1e-12, atol=1e-15)


def test_the_batchs_sensitivity_is_minus_the_entropys_gradient_in_the_chosen_logit():
    z, tokens = logits(3, 4, 6), torch.tensor([[0, 1, 2, 3], [4, 5, 0, 1], [2, 2, 2, 2]])
    logp = z.log_softmax(-1).gather(2, tokens[..., None])[..., 0]
    mask = torch.ones(3, 4, dtype=torch.bool)
    batch = TokenBatch(mask=mask, logp=logp, old_logp=logp, entropy=entropy(z), advantages=torch.zeros(3))
    expected = minus_gradient(z).gather(2, tokens[..., None])[..., 0]
    assert torch.allclose(batch.sensitivity, expected, rtol=1e-11, atol=1e-14)


def test_a_step_on_one_token_changes_the_entropy_as_the_theorem_says():
    z, a, alpha = logits(6), 2, 1e-6
    p = z.softmax(-1)
    step = alpha * (torch.nn.functional.one_hot(torch.tensor(a), 6) - p)
    predicted = -alpha * (minus_gradient(z)[a] - expected_sensitivity(z))
    assert float(entropy(z + step) - entropy(z)) == pytest.approx(float(predicted), rel=1e-4)


def nucleus_by_hand(z, top_p):
    """Tokens in descending order until their mass reaches top_p, renormalised."""
    mass, kept = 0.0, []
    for q in sorted(z.softmax(-1).tolist(), reverse=True):
        if mass >= top_p:
            break
        kept.append(q)
        mass += q
    return -sum(q / mass * math.log(q / mass) for q in kept)


@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.8, 0.99])
def test_nucleus_entropy_is_that_of_the_tokens_that_reach_the_mass(top_p):
    z = logits(20, 9)
    expected = torch.tensor([nucleus_by_hand(row, top_p) for row in z], dtype=torch.float64)
    assert torch.allclose(nucleus_entropy(z, top_p), expected, rtol=1e-12, atol=1e-14)


def test_the_whole_mass_gives_the_entropy():
    z = logits(4, 9)
    assert torch.allclose(nucleus_entropy(z, 1.0), entropy(z), rtol=1e-12)


def test_tokens_of_probability_zero_change_nothing_and_have_finite_gradients():
    z = logits(3, 5)
    wide = torch.cat([z, torch.full((3, 2), -torch.inf, dtype=torch.float64)], -1).requires_grad_()
    for f in (expected_sensitivity, nucleus_entropy):
        assert torch.allclose(f(wide), f(z), rtol=1e-12)
        (gradient,) = torch.autograd.grad(f(wide).sum(), wide)
        assert gradient.isfinite().all()


def test_half_precision_is_widened():
    z = logits(4, 50).to(torch.bfloat16)
    for f in (expected_sensitivity, nucleus_entropy):
        assert f(z).dtype == torch.float32
        assert torch.allclose(f(z).double(), f(z.double()), rtol=1e-5, atol=1e-6)


def test_a_mass_outside_its_range_is_refused():
    with pytest.raises(UsageError, match=r"top_p 1\.5"):
        nucleus_entropy(logits(3), 1.5)
