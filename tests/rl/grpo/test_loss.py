"""The loss of GRPO against numbers worked out by hand, finite differences, and other forms of the same thing."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fluxentropy.errors import UsageError
from fluxentropy.rl.control.base import TokenPlan
from fluxentropy.rl.grpo.loss import (
    Objective,
    adapted_beta,
    advantages,
    k3,
    normaliser,
    ratios,
    target_loss,
    token_loss,
)

MASK = torch.tensor([[True, True, True], [True, False, False]])


def rows(*values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# --- advantages -------------------------------------------------------------------------------------------------------


def test_advantages_by_hand() -> None:
    rewards = rows([0.0, 1.0, 2.0, 5.0])
    centred = rows([-2.0, -1.0, 0.0, 3.0])
    torch.testing.assert_close(advantages(rewards, "centred"), centred)
    torch.testing.assert_close(advantages(rewards, "leave_one_out"), centred * 4 / 3)
    torch.testing.assert_close(advantages(rewards, "standardised", eps=0.0), centred / math.sqrt(14 / 4))


@pytest.mark.parametrize("kind", ["standardised", "centred", "leave_one_out"])
def test_equal_rewards_have_advantages_of_exactly_zero(kind: str) -> None:
    rewards = torch.full((3, 7), 0.1, dtype=torch.float32)  # its mean is not 0.1
    assert (advantages(rewards, kind) == 0).all()  # type: ignore[arg-type]


def test_one_response_has_no_group() -> None:
    with pytest.raises(UsageError, match="at least 2 responses"):
        advantages(torch.ones(3, 1), "centred")


# --- averages ---------------------------------------------------------------------------------------------------------


def test_normalisers() -> None:
    torch.testing.assert_close(normaliser(MASK, "tokens", 5), MASK.float() / 4)
    torch.testing.assert_close(normaliser(MASK, "responses", 5), torch.tensor([[1 / 6] * 3, [1 / 2, 0, 0]]))
    torch.testing.assert_close(normaliser(MASK, "constant", 5), MASK.float() / 10)  # Dr. GRPO: 2 rows of at most 5


# --- the clipped ratio ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rho", "A", "loss", "clipped"),
    [
        (1.5, 2.0, -2.6, True),  # 1 + high = 1.3
        (1.5, -2.0, 3.0, False),
        (0.5, 2.0, -1.0, False),
        (0.5, -2.0, 1.6, True),  # 1 - low = 0.8
        (1.25, 2.0, -2.5, False),  # inside the upper limit alone
        (1.0, 2.0, -2.0, False),
    ],
)
def test_asymmetric_clip(rho: float, A: float, loss: float, clipped: bool) -> None:
    logp = torch.tensor([[math.log(rho)]], dtype=torch.float64, requires_grad=True)
    one, zero = torch.tensor([[True]]), torch.zeros(1, 1, dtype=torch.float64)
    found = token_loss(logp, zero, zero, torch.tensor([A]), one, Objective(clip=(0.2, 0.3)))
    assert float(found.loss.detach()) == pytest.approx(loss)
    assert bool(found.clipped) is clipped
    found.loss.sum().backward()
    assert logp.grad is not None
    assert float(logp.grad) == pytest.approx(0.0 if clipped else -A * rho)


def test_ratio_of_a_sequence_is_the_geometric_mean_of_its_tokens() -> None:
    logp, old = rows([-1.0, -2.0, -3.0], [-1.0, 0.0, 0.0]), rows([-1.5, -2.0, -1.0], [-3.0, 9.0, 9.0])
    _, found = ratios(logp, old, MASK, "sequence")
    expected = [(math.exp(0.5) * 1 * math.exp(-2.0)) ** (1 / 3), math.exp(2.0)]
    torch.testing.assert_close(found[:, 0], torch.tensor(expected, dtype=torch.float64))
    assert (found == found[:, :1]).all()
    _, tokens = ratios(logp, old, MASK, "token")
    torch.testing.assert_close(tokens[0], rows([0.5, 0.0, -2.0])[0].exp())
    assert (tokens[~MASK] == 1).all()


def test_sequence_ratio_and_average_over_responses_is_gspo() -> None:
    """(1/N) sum_i min(s_i A_i, clip(s_i) A_i), whatever the lengths."""
    torch.manual_seed(0)
    logp, old = torch.randn(2, 3, dtype=torch.float64) * MASK, torch.randn(2, 3, dtype=torch.float64) * MASK
    A = torch.tensor([1.0, -2.0])
    found = token_loss(logp, old, logp * 0, A, MASK, Objective(ratio="sequence", clip=(0.1, 0.1)))
    s = ((logp - old).sum(1) / MASK.sum(1)).exp()
    expected = -torch.minimum(s * A, s.clamp(0.9, 1.1) * A).mean()
    assert float((found.loss * normaliser(MASK, "responses", 3)).sum()) == pytest.approx(float(expected))


# --- the divergence from a reference ----------------------------------------------------------------------------------


def test_k3_is_unbiased_never_negative_and_has_its_gradient() -> None:
    torch.manual_seed(0)
    z, ref = torch.randn(5, dtype=torch.float64), torch.randn(5, dtype=torch.float64).log_softmax(-1)
    logp = z.log_softmax(-1)
    each = k3(logp, ref)
    assert (each >= 0).all() and float(k3(ref, ref).abs().max()) == 0
    assert float((logp.exp() * each).sum()) == pytest.approx(float((logp.exp() * (logp - ref)).sum()))
    x = logp.clone().requires_grad_()
    k3(x, ref).sum().backward()
    torch.testing.assert_close(x.grad, 1 - (ref - logp).exp())


def test_beta_follows_the_divergence() -> None:
    assert adapted_beta(0.1, 0.5, 0.1) == pytest.approx(0.102)  # at most a fifth of the error counts
    assert adapted_beta(0.1, 0.0, 0.1) == pytest.approx(0.098)
    assert adapted_beta(0.1, 0.11, 0.1) == pytest.approx(0.101)


# --- plans of a controller --------------------------------------------------------------------------------------------


def loss_of(plan: TokenPlan, part: slice = slice(None), **options: float) -> Tensor:
    logp, old = rows([-1.0, -2.0, -3.0], [-1.0, 0.0, 0.0]), rows([-1.5, -2.0, -2.8], [-1.2, 0.0, 0.0])
    entropy = rows([0.5, 0.6, 0.7], [0.8, 0.0, 0.0])
    arguments = (logp[part], old[part], entropy[part], torch.tensor([1.0, -1.0])[part], MASK[part])
    return token_loss(*arguments, Objective(**options), plan=plan, rows=part).loss  # type: ignore[arg-type]


def test_every_field_of_a_plan() -> None:
    plain = loss_of(TokenPlan())
    assert torch.equal(plain[~MASK], torch.zeros(2, dtype=torch.float64))
    weight = torch.tensor([[0.0, 2.0, 1.0], [0.5, 1.0, 1.0]])
    torch.testing.assert_close(loss_of(TokenPlan(weight=weight)), plain * weight)
    torch.testing.assert_close(loss_of(TokenPlan(weight=weight), slice(1, 2)), (plain * weight)[1:])
    kl = torch.tensor([[0.7, 0.0, 0.0], [0.3, 0.0, 0.0]])
    expected = plain.clone()
    expected[0, 0] = -math.exp(0.5) + 0.7 * 0.5
    expected[1, 0] = math.exp(0.2) + 0.3 * 0.2
    torch.testing.assert_close(loss_of(TokenPlan(kl=kl)), expected)
    entropy = rows([0.5, 0.6, 0.7], [0.8, 0.0, 0.0])
    torch.testing.assert_close(loss_of(TokenPlan(bonus=0.1)), plain - 0.1 * entropy)
    torch.testing.assert_close(loss_of(TokenPlan(bonus=0.1), entropy_bonus=0.2), plain - 0.3 * entropy)
    clipped = loss_of(TokenPlan(clip=(0.0, 0.1)))
    assert float(clipped[0, 0]) == pytest.approx(-1.1) and float(plain[0, 0]) == pytest.approx(-1.2)


def test_the_target_of_a_plan_has_its_value_and_gradient_in_parts() -> None:
    entropy = rows([0.5, 0.6, 0.7], [0.8, 0.0, 0.0]).requires_grad_()
    mask = torch.tensor([[True, False, True], [True, False, False]])
    target = target_loss(TokenPlan(target=(mask, 0.4, 3.0)), entropy.detach())
    assert target is not None
    exact = 3.0 * (entropy[mask].mean() - 0.4) ** 2
    assert target.loss == pytest.approx(float(exact.detach()))
    (expected,) = torch.autograd.grad(exact, entropy)
    torch.testing.assert_close(target.weights, expected)
    none = target_loss(TokenPlan(target=(mask & False, 0.4, 3.0)), entropy.detach())
    assert none is not None and none.loss == 0 and not none.weights.any()
    assert target_loss(TokenPlan(), entropy.detach()) is None
