"""The Fisher kernel: what it carries to the entropy on enumerated worlds, its blocks, and its sketch."""

from __future__ import annotations

import math

import pytest
import torch
from rl_enumeration import tuples, world

from fluxentropy.errors import UsageError
from fluxentropy.rl.advantages import advantages
from fluxentropy.rl.kernel import (
    covariance_change,
    entropy_side,
    fisher_gradients,
    kernel_change,
    kernel_statistics,
    pairs,
    update_side,
)
from fluxentropy.rl.policy import Policy
from fluxentropy.rl.responses import responses

LR, NORM = 0.07, 5.0


def _update(w):
    """A batch to update with: three responses to each prompt, and advantages."""
    batch = w.batch_of([[0, 2, 3], [1, 2, 4]], [0, 1])
    advantages = torch.tensor([[1.0, -0.5, 0.25], [-1.0, 0.5, 2.0]])
    return batch, advantages


def _population(w):
    """x of every response under the policy itself: -π (S - S̄_p) / N."""
    S = w.logp().detach()
    p = S.exp()
    return (-p * (S - (p * S).sum(1, keepdim=True)) / len(S)).flatten()


@pytest.mark.parametrize("preconditioned", [False, True])
def test_the_kernel_carries_the_first_order_change_with_its_terms_between_prompts(preconditioned):
    w = world(0, 3, 3)
    policy, (batch, advantages) = Policy(w.policy), _update(w)
    P = None
    scale = torch.ones(len(w.gradient(w.entropy())), dtype=torch.float64)
    if preconditioned:
        scale = torch.rand(len(scale), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        P = w.named(scale)
    every, rows = (fisher_gradients(policy, b, preconditioner=P) for b in (w.batch, batch))
    split = kernel_change(every @ rows.T, _population(w), update_side(advantages, NORM), *pairs(w.batch, batch))
    plain = fisher_gradients(policy, batch)
    step = LR * scale * (update_side(advantages, NORM) @ plain)
    truth = float(w.gradient(w.entropy()) @ step)
    assert LR * split.total == pytest.approx(truth, rel=1e-10)
    assert split.identical + split.same_prompt + split.cross_prompt == pytest.approx(split.total)
    assert abs(split.cross_prompt) > 0.1 * abs(split.total)  # the same prompt alone would not do
    assert split.diagonal_share == split.identical / split.total
    after = w.moved(step, 1e-4).entropy().item() - w.entropy().item()
    assert after == pytest.approx(1e-4 * truth, rel=1e-3)


def test_identical_responses_are_found_by_their_tokens_and_prompts():
    a = responses([[1], [2]], torch.tensor([[[3, 0, 9]], [[3, 0, 9]]]), eos=0)
    b = responses([[2], [2, 2]], torch.tensor([[[3, 0]], [[3, 0]]]), eos=0)
    same_prompt, identical = pairs(a, b)
    assert same_prompt.tolist() == [[False, False], [True, False]] == identical.tolist()
    same_prompt, identical = pairs(a, responses([[1]], torch.tensor([[[3, 1], [3, 0]]]), eos=0))
    assert same_prompt.tolist() == [[True, True], [False, False]]
    assert identical.tolist() == [[False, True], [False, False]]


def test_natural_gradient_makes_the_kernel_diagonal_and_the_covariance_exact():
    """A table of logits for one token: K = ∇S F⁺ ∇S' = δ/π - 1, and δ𝓗₁ = -η Cov(S, A); not so for plain gradient."""
    z = torch.tensor([0.3, -1.0, 0.8, 0.1], dtype=torch.float64)
    p, S = z.softmax(0), z.log_softmax(0)
    A = torch.tensor([1.0, -2.0, 0.5, 0.3], dtype=torch.float64)
    scores = torch.eye(4, dtype=torch.float64) - p
    natural = scores @ torch.linalg.pinv(p.diag() - p[:, None] * p) @ scores.T
    torch.testing.assert_close(natural, (1 / p).diag() - 1)
    x = -p * (S - (p * S).sum())

    def carried(kernel):
        all_pairs = torch.ones(4, 4, dtype=torch.bool)
        return kernel_change(kernel, x, p * A, all_pairs, torch.eye(4, dtype=torch.bool)).total

    def covariance(a, b):
        return float((p * a * b).sum() - (p * a).sum() * (p * b).sum())

    assert carried(natural) == pytest.approx(-covariance(S, A))
    assert carried(scores @ scores.T) == pytest.approx(-covariance(S, p * (A - (p * A).sum())))
    assert abs(carried(scores @ scores.T) + covariance(S, A)) > 0.01
    pick = tuples(4, 3)  # and the sampled covariance is unbiased
    expected = sum(float(p[i].prod()) * covariance_change(S[i][None], A[i][None], relative=False) for i in pick)
    assert expected == pytest.approx(-covariance(S, A))
    halved = sum(float(p[i].prod()) * covariance_change(S[i][None], A[i][None], 2.0, relative=False) for i in pick)
    assert halved == pytest.approx(-covariance(S, A) / 2)


@pytest.mark.parametrize("kind", ["standardised", "centred", "leave_one_out"])
@pytest.mark.parametrize("G", [2, 3])
def test_the_covariance_is_the_natural_steps_change_for_advantages_within_groups(kind: str, G: int) -> None:
    """By the gradient of the entropy over a table of logits, group by group: ∇𝓗 · F⁺ (1/G) Σ (A/norm) ∇S."""
    z = torch.tensor([0.3, -1.0, 0.8, 0.1], dtype=torch.float64, requires_grad=True)
    S = z.log_softmax(0)
    (slope,) = torch.autograd.grad(-(S.exp() * S).sum(), z)
    S = S.detach()
    p, rewards = S.exp(), torch.tensor([1.0, 0.0, 0.5, 1.0], dtype=torch.float64)
    scores = torch.eye(4, dtype=torch.float64) - p
    natural = torch.linalg.pinv(p.diag() - p[:, None] * p)
    expected = 0.0
    for i in tuples(4, G):
        A = advantages(rewards[i][None], kind)[0]
        step = natural @ ((A / NORM) @ scores[i] / G)
        found = covariance_change(S[i][None], A[None], NORM)
        assert found == pytest.approx(float(slope @ step), abs=1e-12)
        assert found == pytest.approx(covariance_change(S[i][None], A[None] / NORM), abs=1e-15)
        expected += float(p[i].prod()) * found
    if kind != "standardised":  # whose baselines differ by the factor alone
        truth = float((p * S * rewards).sum() - (p * S).sum() * (p * rewards).sum())
        factor = 1.0 if kind == "leave_one_out" else (G - 1) / G
        assert expected == pytest.approx(-factor * truth / NORM)


def test_the_sampled_sides_are_unbiased():
    w = world(1, 3, 2, prompts=1)
    S = w.logp().detach()[0]
    p, dS = S.exp(), w.logp_gradients()[0]
    pick = tuples(len(S), 2)
    gradient = sum(p[i].prod() * (entropy_side(S[i][None]) @ dS[i]) for i in pick)
    torch.testing.assert_close(gradient, w.gradient(w.entropy()), rtol=0, atol=1e-12)
    assert update_side(torch.tensor([[2.0, 4.0]]), 10.0).tolist() == [0.1, 0.2]


def test_the_sketch_is_unbiased_with_the_spread_it_states():
    w = world(0, 3, 2)
    policy = Policy(w.policy)
    P = {name: torch.full_like(p, 0.5) for name, p in policy.parameters().items()}
    exact = fisher_gradients(policy, w.batch, preconditioner=P)
    K = exact @ exact.T
    F = fisher_gradients(policy, w.batch, preconditioner=P, sketch=100, seed=3)
    size = K.diagonal()[:, None] * K.diagonal()
    assert ((F @ F.T - K).abs() < 5 * (2 / 100 * size).sqrt()).all()
    assert ((F @ F.T - K).square() / size).mean().sqrt() > 0.2 / 100**0.5  # a sketch, not the exact kernel
    rows = fisher_gradients(policy, w.batch, sketch=3, seed=3).view(2, -1, 3)
    few = fisher_gradients(policy, w.batch_of([[2, 1]], [1]), sketch=3, seed=3)
    torch.testing.assert_close(few, rows[1, [2, 1]])  # the same signs for another batch


def test_statistics_are_those_of_the_blocks():
    K = torch.tensor([[4.0, 1, 2], [1, 3, -2], [2, -2, 5]], dtype=torch.float64)
    found = kernel_statistics(K, torch.tensor([7, 7, 8]))
    assert (found.diagonal_mean, found.same_prompt_mean, found.same_prompt_rms) == (4, 1, 1)
    assert (found.cross_prompt_mean, found.cross_prompt_rms) == (0, 2)
    torch.testing.assert_close(found.eigenvalues.sum(), K.trace())
    assert found.effective_rank == pytest.approx(12**2 / float(K.square().sum()))
    assert math.isnan(kernel_statistics(K, torch.zeros(3)).cross_prompt_mean)


def test_what_gives_no_kernel_is_refused():
    w = world()
    with pytest.raises(UsageError, match="sketch 0"):
        fisher_gradients(Policy(w.policy), w.batch, sketch=0)
    negative = {"bias": -torch.ones(3)}
    with pytest.raises(UsageError, match="negative"):
        fisher_gradients(Policy(w.policy), w.batch, preconditioner=negative)
    with pytest.raises(UsageError, match="at least 2"):
        entropy_side(torch.zeros(2, 1))
    for side in (lambda: update_side(torch.ones(2, 2), 0.0), lambda: covariance_change(S := torch.ones(2, 2), S, -1.0)):
        with pytest.raises(UsageError, match=r"norm (0|-1)\.0: use the positive constant"):
            side()
