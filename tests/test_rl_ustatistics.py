"""U-statistics as full expectations over every batch of small worlds, with the known wrong forms beside them."""

from __future__ import annotations

import pytest
import torch
from rl_enumeration import tuples, world

from fluxentropy.errors import UsageError
from fluxentropy.rl.estimate import leave_one_out
from fluxentropy.rl.gradient import score_weights, to_go_weights, update_weights
from fluxentropy.rl.kernel import fisher_gradients
from fluxentropy.rl.passes import SequenceStats, Weights, row_gradients, sequence_stats
from fluxentropy.rl.policy import Policy
from fluxentropy.rl.ustatistics import (
    leave_one_out_advantages,
    multi_prompt_u,
    multi_prompt_u_from_sums,
    one_prompt_u,
)

NORM = 4.0


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


class Units:
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
        y = update_weights(advantages, mask, NORM).logp[..., 0]
        X.append((x[..., None] * dS[n, pick]).sum(1))
        Y.append((y[..., None] * dS[n, pick]).sum(1))
        chances.append(S[n, pick].exp().prod(-1) / 2)
    return Units(w, *(torch.cat(parts) for parts in (chances, X, Y)))


def _single_responses(seed):
    """Three tokens, 14 units of one response: to-go form, raw rewards."""
    w = world(seed, 3, 2)
    policy, batch = Policy(w.policy), w.batch
    rows = SequenceStats(*(x[:, :, None] for x in sequence_stats(policy, batch)))
    X = row_gradients(policy, batch, Weights(*(x[:, :, 0] for x in to_go_weights(rows, batch.mask[:, :, None]))))
    rewards = torch.randn(2, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    Y = rewards[..., None] * w.logp_gradients()
    return Units(w, w.logp().detach().exp().flatten() / 2, X.flatten(0, 1), Y.flatten(0, 1))


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
