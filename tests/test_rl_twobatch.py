"""The two-batch estimate and its variances as full expectations, and the step that was taken by forward mode."""

from __future__ import annotations

import pytest
import torch
from rl_enumeration import direction, tuples, world

from fluxentropy.errors import UsageError
from fluxentropy.rl.estimate import mean_estimate
from fluxentropy.rl.gradient import update_weights
from fluxentropy.rl.passes import Weights, row_gradients, sequence_stats
from fluxentropy.rl.policy import Policy, flatten
from fluxentropy.rl.responses import Sampler, responses
from fluxentropy.rl.twobatch import entropy_weights, known_step, two_batch, two_batch_from_sums, update_change

LR, BE, BU = 0.3, 2, 3


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
        self.truth = LR * float(w.gradient(w.entropy()) @ (self.chance @ self.Y))

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
    found = two_batch(dots, lr=LR)

    def mean(values):
        return float((chance * values).sum())

    mx, my = units.chance @ units.X, units.chance @ units.Y
    cx, cy = units.covariance(units.X), units.covariance(units.Y)
    terms = [float(mx @ cy @ mx) / BU, float(my @ cx @ my) / BE, float((cx @ cy).trace()) / (BE * BU)]
    variance = LR**2 * sum(terms)
    assert mean(found.value) == pytest.approx(units.truth)
    assert mean((found.value - units.truth) ** 2) == pytest.approx(variance)
    assert mean(found.variance) == pytest.approx(variance)
    assert mean(found.trace_term) == pytest.approx(LR**2 * terms[2])
    assert mean(found.conservative_variance) == pytest.approx(variance + LR**2 * terms[2])
    assert mean(found.entropy_variance) == pytest.approx(LR**2 * (terms[1] + terms[2]))
    swapped = mean(found.entropy_variance) * BE * (BE - 1) / (BU * (BE - 1))  # the known wrong prefactor
    assert abs(swapped - mean(found.entropy_variance)) > 0.1 * mean(found.entropy_variance)
    sums = two_batch_from_sums(dots.mean(-1), dots.mean(-2), lr=LR)
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
    found = update_change(policy, batch, update, norm=7.0, lr=LR, preconditioner=P)
    X = row_gradients(policy, batch, entropy_weights(sequence_stats(policy, batch), batch.mask, "to_go")).sum(1)
    Y = row_gradients(policy, update, update_weights(advantages, update.mask, 7.0)).sum(1)
    expected = two_batch((X * scale) @ Y.T, lr=LR)
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
