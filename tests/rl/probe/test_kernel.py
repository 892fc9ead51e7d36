"""The Fisher kernel: what it carries to the entropy on enumerated worlds, its blocks, and its sketch."""

from __future__ import annotations

import math

import pytest
import torch
from rl_enumeration import direction, tuples, world

from fluxentropy.errors import UsageError
from fluxentropy.rl.grpo.loss import advantages
from fluxentropy.rl.probe.estimate import leave_one_out, mean_estimate
from fluxentropy.rl.probe.kernel import (
    covariance_change,
    entropy_side,
    entropy_weights,
    fisher_gradients,
    kernel_change,
    kernel_statistics,
    known_step,
    leave_one_out_advantages,
    multi_prompt_u,
    multi_prompt_u_from_sums,
    one_prompt_u,
    pairs,
    two_batch,
    two_batch_from_sums,
    update_change,
    update_side,
)
from fluxentropy.rl.probe.policy import Policy, SequenceStats, Weights, flatten, row_gradients, sequence_stats
from fluxentropy.rl.probe.samples import Sampler, responses
from fluxentropy.rl.probe.step import score_weights, to_go_weights, update_weights

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


# --- The two-batch estimate and its variances as full expectations, and the step that was taken by forwar ---


LR_TWOBATCH, BE, BU = 0.3, 2, 3


class Units:
    """Every unit of one response a prompt: X in the to-go form without baseline, Y with raw rewards."""

    def __init__(self, seed, vocabulary):
        w = world(seed, vocabulary, 2)
        policy, batch = Policy(w.policy), w.batch
        stats, mask = sequence_stats(policy, batch), batch.mask
        togo = stats.entropy.sum(-1, keepdim=True) - stats.entropy.cumsum(-1)
        self.X = row_gradients(policy, batch, Weights(togo * mask, mask.double())).flatten(0, 1)
        rewards = torch.randn(stats.logp.shape[:2], generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        self.Y = (row_gradients(policy, batch, Weights(mask.double())) * rewards[..., None]).flatten(0, 1)
        self.chance = w.logp().detach().exp().flatten() / 2
        self.truth = LR_TWOBATCH * float(w.gradient(w.entropy()) @ (self.chance @ self.Y))

    def covariance(self, values):
        mean = self.chance @ values
        return (self.chance[:, None] * (values - mean)).T @ (values - mean)


@pytest.mark.parametrize(("seed", "vocabulary"), [(3, 2), (0, 3), (1, 3)])
def test_value_and_variances_are_unbiased_with_the_sizes_of_their_own_batches(seed, vocabulary):
    units = Units(seed, vocabulary)
    pick = tuples(len(units.chance), BE + BU)
    chance = units.chance[pick].prod(-1)
    e, u = pick[:, :BE], pick[:, BE:]
    dots = (units.X @ units.Y.T)[e[:, :, None], u[:, None, :]]
    found = two_batch(dots, lr=LR_TWOBATCH)

    def mean(values):
        return float((chance * values).sum())

    mx, my = units.chance @ units.X, units.chance @ units.Y
    cx, cy = units.covariance(units.X), units.covariance(units.Y)
    terms = [float(mx @ cy @ mx) / BU, float(my @ cx @ my) / BE, float((cx @ cy).trace()) / (BE * BU)]
    variance = LR_TWOBATCH**2 * sum(terms)
    assert mean(found.value) == pytest.approx(units.truth)
    assert mean((found.value - units.truth) ** 2) == pytest.approx(variance)
    assert mean(found.variance) == pytest.approx(variance)
    assert mean(found.trace_term) == pytest.approx(LR_TWOBATCH**2 * terms[2])
    assert mean(found.conservative_variance) == pytest.approx(variance + LR_TWOBATCH**2 * terms[2])
    assert mean(found.entropy_variance) == pytest.approx(LR_TWOBATCH**2 * (terms[1] + terms[2]))
    swapped = mean(found.entropy_variance) * BE * (BE - 1) / (BU * (BE - 1))  # the known wrong prefactor
    assert abs(swapped - mean(found.entropy_variance)) > 0.1 * mean(found.entropy_variance)
    sums = two_batch_from_sums(dots.mean(-1), dots.mean(-2), lr=LR_TWOBATCH)
    torch.testing.assert_close(sums.conservative_variance, found.conservative_variance)
    assert sums.trace_term.isnan().all()


@pytest.mark.parametrize("form", ["score", "to_go"])
def test_a_known_step_needs_no_gradient_per_prompt(form):
    w = world(0, 4, 3)
    batch = w.batch_of([[0, 5, 9], [2, 2, 7], [1, 8, 3], [30, 11, 4]], [0, 1, 1, 0])
    policy, d = Policy(w.policy), direction(w, size=0.1)
    found = known_step(policy, batch, w.named(d), form=form, rows=5)
    weights = entropy_weights(sequence_stats(policy, batch), batch.mask, form)
    X = row_gradients(policy, batch, weights).sum(1)
    expected = mean_estimate(X @ d)
    assert found == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("preconditioned", [False, True])
def test_the_update_of_a_batch_by_two_means_and_two_passes(preconditioned):
    w = world(0, 3, 3)
    policy = Policy(w.policy)
    batch = w.batch_of([[0, 5], [2, 3], [1, 6]], [0, 1, 1])
    advantages = torch.tensor([[1.0, -1.0], [0.5, 0.25]])
    update = w.batch_of([[4, 1], [3, 3]], [1, 0])
    update = responses([update.prompt(n) for n in range(2)], update.tokens, eos=0, advantages=advantages)
    scale = torch.ones(len(direction(w)), dtype=torch.float64)
    if preconditioned:
        scale = torch.rand(len(scale), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    P = w.named(scale) if preconditioned else None
    found = update_change(policy, batch, update, norm=7.0, lr=LR_TWOBATCH, preconditioner=P)
    X = row_gradients(policy, batch, entropy_weights(sequence_stats(policy, batch), batch.mask, "to_go")).sum(1)
    Y = row_gradients(policy, update, update_weights(advantages, update.mask, 7.0)).sum(1)
    expected = two_batch((X * scale) @ Y.T, lr=LR_TWOBATCH)
    torch.testing.assert_close(tuple(found)[:3], tuple(expected)[:3])
    assert flatten(w.named(scale)).shape == scale.shape


def test_what_has_no_variance_or_no_update_is_refused():
    w = world()
    policy, batch = Policy(w.policy), w.batch
    with pytest.raises(UsageError, match="1 and 3 prompts"):
        two_batch(torch.ones(1, 3))
    with pytest.raises(UsageError, match="3 and 1 prompts"):
        two_batch_from_sums(torch.ones(3), torch.ones(1))
    with pytest.raises(UsageError, match="1 prompts in the batch"):
        known_step(policy, w.batch_of([[0, 1]], [0]), {})
    with pytest.raises(UsageError, match="no advantages"):
        update_change(policy, batch, batch, norm=1.0)
    cut = responses(w.prompts, batch.tokens, eos=0, sampler=Sampler(top_p=0.9))
    with pytest.raises(UsageError, match="top_p 0.9: a change of the entropy needs"):
        known_step(policy, cut, {})


# --- U-statistics as full expectations over every batch of small worlds, with the known wrong forms besid ---


NORM_USTATISTICS = 4.0


# --- one prompt -------------------------------------------------------------------------------------------------------


class OnePrompt:
    def __init__(self, G, seed):
        w = world(seed, 3, 2, prompts=1)
        F = fisher_gradients(Policy(w.policy), w.batch)
        S, K = w.logp().detach()[0], F @ F.T
        p = S.exp()
        rewards = torch.randn(len(S), generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        pick = tuples(len(S), G)
        self.chance, self.S, self.r = p[pick].prod(-1), S[pick], rewards[pick]
        self.K = K[pick[:, :, None], pick[:, None, :]]
        centred = rewards - (p * rewards).sum()
        self.truth = float((p * (S - (p * S).sum())) @ K @ (p * centred))
        self.raw_truth = float((p * (S - (p * S).sum())) @ K @ (p * rewards))

    def mean(self, values):
        return float((self.chance * values).sum())


@pytest.mark.parametrize(("G", "seed"), [(3, 0), (3, 1), (4, 2)])
def test_leaving_two_out_is_unbiased(G, seed):
    one = OnePrompt(G, seed)
    assert one.mean(one_prompt_u(one.S, one.K, one.r)) == pytest.approx(one.raw_truth)
    loo = leave_one_out_advantages(one.r)
    assert one.mean(one_prompt_u(one.S, one.K, loo)) == pytest.approx(one.truth)
    grouped = one.r - one.r.mean(-1, keepdim=True)
    assert one.mean(one_prompt_u(one.S, one.K, grouped)) == pytest.approx((G - 1) / G * one.truth)


@pytest.mark.parametrize(("G", "seed"), [(3, 0), (3, 1), (4, 2)])
def test_leaving_one_out_with_group_relative_advantages_is_off_by_the_known_factor(G, seed):
    one = OnePrompt(G, seed)
    off = ~torch.eye(G, dtype=torch.bool)
    loo = leave_one_out_advantages(one.r)
    terms = (one.S - leave_one_out(one.S))[..., :, None] * one.K * loo[..., None, :] * off
    wrong = one.mean(terms.sum((-1, -2)) / (G * (G - 1)))
    assert wrong == pytest.approx((1 + 1 / (G - 1) ** 2) * one.truth)


# --- several prompts --------------------------------------------------------------------------------------------------


class UnitsOfU:
    """Every unit (prompt, its responses) of a small world: its probability, X and Y."""

    def __init__(self, w, chance, X, Y):
        self.chance, self.dots = chance, X @ Y.T
        h = (self.dots + self.dots.T) / 2
        q = self.chance
        self.truth = float(w.gradient(w.entropy()) @ (q @ Y))
        row = h @ q - self.truth
        self.zeta1 = float(q @ row**2)
        self.zeta2 = float(q @ (h - self.truth - row[:, None] - row) ** 2 @ q)

    def batches(self, B):
        """(chance (C,), dots (C, B, B)) of all batches of B units."""
        pick = tuples(len(self.chance), B)
        return self.chance[pick].prod(-1), self.dots[pick[:, :, None], pick[:, None, :]]


def _groups_of_two():
    """Two tokens, 18 units of two responses: score form, and advantages divided by the group's deviation as in GRPO."""
    w = world(3, 2, 2)
    S, dS = w.logp().detach(), w.logp_gradients()
    R = S.shape[1]
    rewards = torch.randn(2, R, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    pick = tuples(R, 2)
    chances, X, Y = [], [], []
    for n in range(2):
        s, r = S[n, pick], rewards[n, pick]
        advantages = (r - r.mean(-1, keepdim=True)) / (r.std(-1, keepdim=True) + 1e-4)
        mask = torch.ones(len(pick), 2, 1, dtype=torch.bool)
        x = score_weights(SequenceStats(s[..., None], s[..., None]), mask).logp[..., 0]
        y = update_weights(advantages, mask, NORM_USTATISTICS).logp[..., 0]
        X.append((x[..., None] * dS[n, pick]).sum(1))
        Y.append((y[..., None] * dS[n, pick]).sum(1))
        chances.append(S[n, pick].exp().prod(-1) / 2)
    return UnitsOfU(w, *(torch.cat(parts) for parts in (chances, X, Y)))


def _single_responses(seed):
    """Three tokens, 14 units of one response: to-go form, raw rewards."""
    w = world(seed, 3, 2)
    policy, batch = Policy(w.policy), w.batch
    rows = SequenceStats(*(x[:, :, None] for x in sequence_stats(policy, batch)))
    X = row_gradients(policy, batch, Weights(*(x[:, :, 0] for x in to_go_weights(rows, batch.mask[:, :, None]))))
    rewards = torch.randn(2, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    Y = rewards[..., None] * w.logp_gradients()
    return UnitsOfU(w, w.logp().detach().exp().flatten() / 2, X.flatten(0, 1), Y.flatten(0, 1))


@pytest.fixture(scope="module", params=["groups", 0, 1])
def units(request):
    return _groups_of_two() if request.param == "groups" else _single_responses(request.param)


@pytest.mark.parametrize("B", [3, 4])
def test_u_is_unbiased_for_group_wise_advantages_and_its_variances_are_as_stated(units, B):
    chance, dots = units.batches(B)

    def mean(values):
        return float((chance * values).sum())

    found = multi_prompt_u(dots)
    assert mean(found.value) == pytest.approx(units.truth)
    with_itself = mean(dots.mean((-1, -2)))
    assert abs(with_itself - units.truth) > 0.1 * abs(units.truth)  # n = m kept: biased
    variance = mean((found.value - units.truth) ** 2)
    z1, z2 = units.zeta1, units.zeta2
    assert variance == pytest.approx(4 / B * z1 + 2 / (B * (B - 1)) * z2)
    assert z2 > 0.1 * z1  # not negligible: with B(B-1) in place of 2B(B-1) the line above would fail
    assert mean(found.zeta1_plugin) == pytest.approx(((B - 2) ** 2 * z1 + (B - 2) * z2) / (B - 1) ** 2)
    assert mean(found.zeta1_jackknife) == pytest.approx(z1 + z2 / (B - 2))
    torch.testing.assert_close(found.zeta1_jackknife, ((B - 1) / (B - 2)) ** 2 * found.zeta1_plugin)
    assert mean(found.jackknife_variance) == pytest.approx(variance + 2 * z2 / ((B - 1) * (B - 2)))
    if B == 3:
        assert found.variance.isnan().all() and found.zeta2.isnan().all()
    else:
        assert mean(found.zeta1) == pytest.approx(z1) and mean(found.zeta2) == pytest.approx(z2)
        assert mean(found.variance) == pytest.approx(variance)


def test_the_row_means_give_the_jackknife_of_brute_force_and_the_sums_give_the_pairs():
    rng = torch.Generator().manual_seed(0)
    X, Y = (torch.randn(6, 9, generator=rng, dtype=torch.float64) for _ in range(2))
    found = multi_prompt_u(X @ Y.T)
    without = []
    for n in range(6):
        keep = [m for m in range(6) if m != n]
        without.append(multi_prompt_u(X[keep] @ Y[keep].T).value)
    without = torch.stack(without)
    brute = 5 / 6 * (without - without.mean()).square().sum()
    torch.testing.assert_close(found.jackknife_variance, brute)
    sums = multi_prompt_u_from_sums(X @ Y.mean(0), Y @ X.mean(0), (X * Y).sum(1))
    for ours, theirs in zip(sums[:4], found[:4], strict=True):
        torch.testing.assert_close(ours, theirs)
    assert sums.zeta2.isnan()
    U = 6 / 5 * X.mean(0) @ Y.mean(0) - (X * Y).sum() / 30
    torch.testing.assert_close(found.value, U)


@pytest.mark.parametrize("B", [1, 2])
def test_fewer_than_three_prompts_are_refused(B):
    with pytest.raises(UsageError, match=f"{B} prompts: the variance of a U-statistic needs at least 3"):
        multi_prompt_u(torch.ones(B, B))
    with pytest.raises(UsageError, match="at least 3"):
        multi_prompt_u_from_sums(torch.ones(B), torch.ones(B), torch.ones(B))


def test_groups_too_small_are_refused():
    with pytest.raises(UsageError, match="2 responses a prompt"):
        one_prompt_u(torch.zeros(2), torch.zeros(2, 2), torch.zeros(2))
    with pytest.raises(UsageError, match="1 response a prompt"):
        leave_one_out_advantages(torch.zeros(1))
