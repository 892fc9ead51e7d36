"""The entropy after a step from responses of before it: full expectations, linearisation, and the known wrong forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from rl_enumeration import direction, tuples, world
from torch import nn

from fluxentropy.errors import UsageError
from fluxentropy.rl.probe.change import (
    before_position,
    expand,
    expansion_terms,
    ghost_radius,
    linearised_change,
    measured_change,
    others_mean,
    reweighted,
)
from fluxentropy.rl.probe.policy import Policy, SequenceStats, derivatives, sequence_stats
from fluxentropy.rl.probe.samples import Sampler, responses


class Shifted:
    """A world before and after a large step, its statistics, and the exact entropies after."""

    def __init__(self, seed=0, vocabulary=3, limit=3, eta=0.7):
        self.w = world(seed, vocabulary, limit)
        self.v = direction(self.w)
        self.after_world = self.w.moved(self.v, eta)
        batch = self.w.batch
        self.mask = batch.mask
        self.before = sequence_stats(Policy(self.w.policy), batch)
        self.after = sequence_stats(Policy(self.after_world.policy), batch)
        self.ratio = self.after.logp - self.before.logp
        self.p = self.before.logp.sum(-1).exp()

    def mean(self, values):
        return float((self.p * values).sum(1).mean())

    def draw(self, B, G, seed):
        """(before, after, mask) of a sampled batch."""
        rng = torch.Generator().manual_seed(seed)
        n = torch.randint(0, 2, (B,), generator=rng)
        i = torch.multinomial(self.p[n], G, replacement=True, generator=rng)
        rows = (n[:, None], i)
        before, after = (SequenceStats(*(x[rows] for x in stats)) for stats in (self.before, self.after))
        return before, after, self.mask[rows]


@pytest.fixture(scope="module", params=[(0, 3, 3), (1, 4, 2)], ids=str)
def shifted(request):
    return Shifted(*request.param)


@pytest.mark.parametrize("weights", ["prefix", "sequence"])
def test_both_weights_give_the_entropy_and_length_after_the_step(shifted, weights):
    truth = shifted.after_world.entropy().item()
    assert shifted.mean(reweighted(shifted.after.entropy, shifted.ratio, weights)) == pytest.approx(truth, rel=1e-12)
    length = shifted.mean(reweighted(shifted.mask.double(), shifted.ratio, weights))
    assert truth / length == pytest.approx(shifted.after_world.per_token().item(), rel=1e-12)
    at_theta = shifted.mean(reweighted(shifted.before.entropy, shifted.ratio, weights))
    assert abs(at_theta - truth) > 0.01  # H must be that of after the step


def test_any_constants_keep_the_prefix_form_unbiased_and_prefix_weights_vary_less(shifted):
    truth = shifted.after_world.entropy().item()
    L = shifted.mask.shape[-1]
    for b in (0.7, torch.linspace(0, 2, L, dtype=torch.float64)):
        assert shifted.mean(reweighted(shifted.after.entropy, shifted.ratio, "prefix", b)) == pytest.approx(truth)
    variances = [
        shifted.mean(reweighted(shifted.after.entropy, shifted.ratio, weights) ** 2)
        for weights in ("prefix", "sequence")
    ]
    assert variances[0] < variances[1]
    assert before_position(torch.tensor([1.0, 2.0, 4.0])).tolist() == [0, 1, 3]


def test_the_other_prompts_mean_is_an_unbiased_control():
    """Expectation over all pairs of prompts with a response each."""
    s = Shifted(0, 3, 2)
    pick = tuples(s.p.numel(), 2)
    chance = (s.p / 2).flatten()[pick].prod(-1)
    after, ratio = (x.flatten(0, 1)[pick][:, :, None] for x in (s.after.entropy, s.ratio))
    found = reweighted(after, ratio, "prefix", others_mean(after)).mean((1, 2))
    truth = s.after_world.entropy().item()
    assert float((chance * found).sum()) == pytest.approx(truth, rel=1e-12)
    own = after.mean((1, 2), keepdim=True)
    assert abs(float((chance * reweighted(after, ratio, "prefix", own).mean((1, 2))).sum()) - truth) > 1e-3


@pytest.mark.parametrize("weights", ["prefix", "sequence"])
def test_intervals_cover_the_exact_change_at_the_stated_rate(weights):
    s = Shifted(0, 3, 3, eta=0.3)
    per_sequence = s.after_world.entropy().item() - s.w.entropy().item()
    per_token = s.after_world.per_token().item() - s.w.per_token().item()
    inside = torch.zeros(2)
    for seed in range(300):
        found = measured_change(*s.draw(60, 2, seed), weights=weights)
        for k, (estimate, truth) in enumerate(((found.per_sequence, per_sequence), (found.per_token, per_token))):
            low, high = estimate.interval(0.9)
            inside[k] += low <= truth <= high
    assert ((inside / 300 - 0.9).abs() < 0.055).all(), inside / 300  # 3 standard deviations of 300 draws


def test_a_batch_is_normalised_once_and_reports_its_weights():
    s = Shifted(1, 4, 2)
    before, after, mask = s.draw(5, 3, 0)
    found = measured_change(before, after, mask, weights="sequence")
    w = (after.logp - before.logp).sum(-1).exp()
    H, T = after.entropy.sum(-1), mask.sum(-1)
    h = (w * H).sum() / (w * T).sum()
    assert found.after_per_token == pytest.approx(float(h))
    assert found.per_token.value == pytest.approx(float(h - before.entropy.sum() / T.sum()))
    assert found.per_sequence.value == pytest.approx(float((w * H).sum() / w.sum() - before.entropy.sum(-1).mean()))
    assert found.effective_sample_size == pytest.approx(float(w.sum() ** 2 / (w**2).sum()))
    assert found.largest_weight == float(w.max()) and found.responses == 15


def test_a_huge_weight_is_reported_not_clipped():
    before = SequenceStats(torch.full((3, 1, 2), -6.0).double(), torch.ones(3, 1, 2).double())
    after = SequenceStats(before.logp.clone(), before.entropy)
    after.logp[0] = -0.5
    found = measured_change(before, after, torch.ones(3, 1, 2, dtype=torch.bool), weights="sequence")
    assert found.largest_weight == pytest.approx(torch.tensor(11.0).exp().item())
    assert found.effective_sample_size == pytest.approx(1, abs=1e-3)


def test_no_step_is_no_change():
    s = Shifted()
    before, _, mask = s.draw(4, 2, 0)
    for weights in ("prefix", "sequence"):
        found = measured_change(before, before, mask, weights=weights)
        assert found.per_sequence == (0, 0) and found.per_token == (0, 0) and found.effective_sample_size == 8


@pytest.mark.parametrize("weights", ["prefix", "sequence"])
def test_the_linearisation_is_the_derivative(weights):
    w = world(0, 4, 3)
    v, policy = direction(w), Policy(w.policy)
    batch = w.batch_of([[0, 9, 30], [5, 2, 14], [33, 1, 8], [20, 7, 3]], [0, 1, 1, 0])
    mask = batch.mask
    value, slope = derivatives(policy, batch, w.named(v), order=1)
    found = linearised_change(value, slope, mask, weights=weights).value
    eta = 1e-4

    def h(sign):
        after = sequence_stats(Policy(w.moved(v, sign * eta).policy), batch)
        ratio = after.logp - value.logp
        return reweighted(after.entropy, ratio, weights).sum() / reweighted(mask.double(), ratio, weights).sum()

    assert found == pytest.approx(float(h(1) - h(-1)) / (2 * eta), rel=1e-6)
    if weights == "sequence":  # the known wrong forms: T_i H_k within the sum, and E[H] E[T ∇S] without 1/E[T]
        H, T, dH, dS = value.entropy.sum(-1), mask.sum(-1), slope.entropy.sum(-1), slope.logp.sum(-1)
        right = (dH + (H - H.sum() / T.sum() * T) * dS).sum() / T.sum()
        assert found == pytest.approx(float(right), rel=1e-12)
        inside = (dH + H * dS - T * H * dS / T.sum()).sum() / T.sum()
        without = (dH + H * dS).sum() / T.sum() - H.mean() * (T * dS).mean()
        assert min(abs(inside - right), abs(without - right)) > 0.1 * abs(right)


def test_the_linearisation_is_exact_for_the_population():
    w = world(1, 3, 3)
    v = direction(w)
    value, slope = derivatives(Policy(w.policy), w.batch, w.named(v), order=1)
    p, mask = value.logp.sum(-1).exp(), w.batch.mask
    exact = float(w.gradient(w.per_token()) @ v)
    for reach in (before_position(slope.logp), slope.logp.sum(-1, keepdim=True)):
        reward = (value.entropy - w.per_token().item()) * mask
        terms = (slope.entropy + reach * reward).sum(-1)
        assert float((p * terms).sum() / (p * mask.sum(-1)).sum()) == pytest.approx(exact, rel=1e-10)


# --- First and second order along a step against torch's Hessian, the remainder, and the ghost radius aga ---


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
