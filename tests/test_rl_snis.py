"""The entropy after a step from responses of before it: full expectations, linearisation, and the known wrong forms."""

from __future__ import annotations

import pytest
import torch
from rl_enumeration import direction, tuples, world

from fluxentropy.rl.passes import SequenceStats, derivatives, sequence_stats
from fluxentropy.rl.policy import Policy
from fluxentropy.rl.snis import before_position, linearised_change, measured_change, others_mean, reweighted


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
