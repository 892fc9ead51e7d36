"""First and second order along a step against torch's Hessian, the remainder, and the ghost radius against roots."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from rl_enumeration import direction, tuples, world
from torch import nn

from fluxentropy.errors import UsageError
from fluxentropy.rl.passes import SequenceStats, derivatives, sequence_stats
from fluxentropy.rl.policy import Policy
from fluxentropy.rl.responses import Sampler, responses
from fluxentropy.rl.secondorder import expand, expansion_terms, ghost_radius
from fluxentropy.rl.snis import measured_change, others_mean


def _exact(w, v, value):
    """(v·∇f, vᵀ∇²f v) of a differentiable number by torch's reverse mode twice."""
    parameters = list(w.policy.parameters())
    first = torch.autograd.grad(value, parameters, create_graph=True)
    slope = sum((g * x).sum() for g, x in zip(first, w.named(v).values(), strict=True))
    second = torch.autograd.grad(slope, parameters)
    return slope.item(), sum((g * x).sum() for g, x in zip(second, w.named(v).values(), strict=True)).item()


def _terms(w, v, weights, baselines=(0.0, 0.0), lengths=False):
    """E[φ' terms], E[φ'' terms], second moment of the latter."""
    value, one, two = derivatives(Policy(w.policy), w.batch, w.named(v), order=2)
    p, ones = value.logp.sum(-1).exp(), w.batch.mask.double()
    y = (ones, 0 * ones, 0 * ones) if lengths else (value.entropy, one.entropy, two.entropy)
    first, second = expansion_terms(y, (one.logp, two.logp), weights, baselines)
    return tuple(float((p * x).sum(1).mean()) for x in (first, second, second**2))


@pytest.mark.parametrize("weights", ["prefix", "sequence"])
@pytest.mark.parametrize(
    ("seed", "vocabulary", "limit", "temperature"), [(0, 3, 4, 1.0), (1, 4, 3, 0.7), (2, 5, 2, 1.6)]
)
def test_both_orders_are_those_of_the_hessian_whatever_the_constants(seed, vocabulary, limit, temperature, weights):
    w = world(seed, vocabulary, limit, temperature=temperature)
    v = direction(w)
    exact = _exact(w, v, w.entropy())
    for baselines in ((0.0, 0.0), (1.7, -0.4)):
        assert _terms(w, v, weights, baselines)[:2] == pytest.approx(exact, rel=1e-9)
    length = (w.logp().exp() * w.lengths()).sum(1).mean()
    assert _terms(w, v, weights, (0.3, 0.2), lengths=True)[:2] == pytest.approx(_exact(w, v, length), rel=1e-9)


def test_the_baseline_and_the_prefixes_cut_the_variance_of_the_second_order():
    w = world(0, 3, 4)
    v, H = direction(w), w.entropy().item()
    plain, centred = (_terms(w, v, "sequence", (b, 0.0))[2] for b in (0.0, H))
    value, one, _ = derivatives(Policy(w.policy), w.batch, w.named(v), order=2)
    p = value.logp.sum(-1).exp()[..., None] / 2
    means = tuple((p * x).sum((0, 1)) for x in (value.entropy, one.entropy))
    assert _terms(w, v, "prefix", means)[2] < centred < plain


def test_the_remainder_is_of_third_order():
    w = world(1, 4, 3)
    v = direction(w)
    first, second, _ = _terms(w, v, "prefix")
    H = w.entropy().item()

    def remainder(eta):
        return w.moved(v, eta).entropy().item() - H - eta * first - eta**2 / 2 * second

    assert remainder(0.02) / remainder(0.01) == pytest.approx(8, rel=0.1)


def test_the_expansion_of_a_batch_is_that_of_its_measured_change():
    """Same responses, same controls: the measured change along η has the expansion's derivatives."""
    w = world(0, 4, 3)
    v, policy = direction(w), Policy(w.policy)
    batch = w.batch_of([[0, 9, 30], [5, 2, 14], [33, 1, 8], [20, 7, 3]], [0, 1, 1, 0])
    found = expand(policy, batch, w.named(v), rows=5)
    before = sequence_stats(policy, batch)
    eta = 1e-3

    def measured(sign):
        after = sequence_stats(Policy(w.moved(v, sign * eta).policy), batch)
        return measured_change(before, after, batch.mask)

    plus, minus = measured(1), measured(-1)
    for name in ("per_sequence", "per_token"):
        up, down, ours = (getattr(x, name) for x in (plus, minus, found))
        assert ours.first.value == pytest.approx((up.value - down.value) / (2 * eta), rel=1e-4)
        assert ours.second.value == pytest.approx((up.value + down.value) / eta**2, rel=1e-4)
        assert ours.first.se == pytest.approx(up.se / eta, rel=0.01)
        assert ours.quadratic.value == pytest.approx(ours.first.value + ours.second.value / 2)
        assert ours.eta_star == pytest.approx(2 * abs(ours.first.value / ours.second.value))
    entropies = before.entropy.sum(-1).mean()
    assert found.per_sequence.value == pytest.approx(float(entropies))
    assert found.per_token.value == pytest.approx(float(before.entropy.sum() / batch.mask.sum()))
    once = expand(policy, batch, w.named(v), order=1)
    assert once.per_token.first == pytest.approx(found.per_token.first)
    assert math.isnan(once.per_token.second.value)


def test_the_other_prompts_baselines_are_unbiased_at_both_orders():
    """Expectation over all pairs of prompts with a response each."""
    w = world(0, 3, 2)
    v = direction(w)
    stats = derivatives(Policy(w.policy), w.batch, w.named(v), order=2)
    p = stats[0].logp.sum(-1).exp()
    pick = tuples(p.numel(), 2)
    chance = (p / 2).flatten()[pick].prod(-1)
    value, one, two = (SequenceStats(*(x.flatten(0, 1)[pick][:, :, None] for x in s)) for s in stats)
    baselines = (others_mean(value.entropy), others_mean(one.entropy))
    terms = expansion_terms((value.entropy, one.entropy, two.entropy), (one.logp, two.logp), "prefix", baselines)
    found = [float((chance * x.mean((1, 2))).sum()) for x in terms]
    assert found == pytest.approx(_exact(w, v, w.entropy()), rel=1e-9)


def test_a_step_that_moves_nothing_has_no_range():
    w = world()
    still = {name: torch.zeros_like(p) for name, p in w.policy.named_parameters()}
    found = expand(Policy(w.policy), w.batch, still)
    assert found.per_token.eta_star == math.inf and found.per_token.first.value == 0
    assert ghost_radius(Policy(w.policy), w.batch, still).isinf().all()


class LinearLogits(nn.Module):
    """z = bias at every position, so that logits are linear along a step of the bias."""

    def __init__(self, z):
        super().__init__()
        self.bias = nn.Parameter(z)

    def forward(self, ids):
        return self.bias.expand(*ids.shape, -1)


def test_the_ghost_radius_bounds_the_nearest_complex_zero_and_is_sharp_for_equal_logits():
    """With integer slopes a the zeros of Σ e^(z + ηa) are the roots of a polynomial in e^η."""
    batch = responses([[1]], torch.tensor([[[1, 1]]]))
    for seed in range(5):
        z = torch.randn(4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        found = ghost_radius(Policy(LinearLogits(z)), batch, {"bias": torch.arange(4.0).double()})
        assert found.flatten().tolist() == pytest.approx([math.pi / 3] * 2)
        zeros = np.log(np.roots(np.exp(z.numpy())[::-1]).astype(complex))
        assert np.abs(zeros).min() >= math.pi / 3
    z = torch.tensor([0.4, -0.8], dtype=torch.float64)
    found = ghost_radius(Policy(LinearLogits(z)), batch, {"bias": torch.tensor([0.0, 2.0]).double()})
    eta = (1.2 + 1j * math.pi) / 2
    assert abs(np.exp(0.4) + np.exp(-0.8 + 2 * eta)) < 1e-12  # |η| = √(δ² + π²) / Δ
    assert float(found[0, 0, 0]) == pytest.approx(math.pi / 2) and abs(eta) > math.pi / 2


def test_temperature_stretches_the_ghost_radius():
    z = torch.zeros(3, dtype=torch.float64)
    batch = responses([[1]], torch.tensor([[[1]]]), sampler=Sampler(temperature=2.0))
    found = ghost_radius(Policy(LinearLogits(z)), batch, {"bias": torch.tensor([0.0, 1.0, 4.0]).double()})
    assert float(found) == pytest.approx(math.pi / 2)


def test_one_prompt_has_no_baseline_from_others():
    w = world()
    with pytest.raises(UsageError, match="1 prompts in the batch"):
        expand(Policy(w.policy), w.batch_of([[0, 1]], [0]), {})
