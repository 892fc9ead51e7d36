"""Entropy per sequence and per token, as full expectations over every response."""

from __future__ import annotations

import math

import pytest
import torch
from rl_enumeration import world

from fluxentropy.rl.estimate import jackknife, mean_estimate
from fluxentropy.rl.passes import SequenceStats, sequence_stats
from fluxentropy.rl.policy import Policy
from fluxentropy.rl.responses import Sampler, responses
from fluxentropy.rl.sequence_entropy import sequence_entropy
from fluxentropy.rl.support import support_entropy


def _all(w):
    """(π (N, R), stats (N, R, L), mask) of every response."""
    stats = sequence_stats(Policy(w.policy), w.batch)
    return stats.logp.sum(-1).exp(), stats, w.batch.mask


@pytest.mark.parametrize(("seed", "vocabulary", "limit"), [(0, 3, 4), (1, 4, 3), (2, 5, 2)])
def test_both_estimates_are_unbiased_and_per_token_is_a_ratio_of_sums(seed, vocabulary, limit):
    w = world(seed, vocabulary, limit)
    p, stats, mask = _all(w)
    per_response = [
        sequence_entropy(
            SequenceStats(stats.logp[n, i, None, None], stats.entropy[n, i, None, None]), mask[n, i, None, None]
        )
        for n in range(2)
        for i in range(p.shape[1])
    ]
    chance = (p / 2).flatten()
    for name in ("naive", "rao_blackwell"):
        values = torch.tensor([getattr(one, name).value for one in per_response], dtype=torch.float64)
        torch.testing.assert_close((chance * values).sum(), w.entropy().detach(), rtol=0, atol=1e-12)
    # Many draws: the ratio of sums tends to h, the mean of ratios to something else.
    draws = torch.multinomial(chance, 400_000, replacement=True, generator=torch.Generator().manual_seed(0))
    big = SequenceStats(*(x.flatten(0, 1)[draws][:, None] for x in stats))
    estimate = sequence_entropy(big, mask.flatten(0, 1)[draws][:, None])
    h = w.per_token().item()
    assert abs(estimate.per_token.value - h) < 4 * estimate.per_token.se < 0.005
    lengths = mask.sum(-1).double()
    of_surprisals, of_entropies = (float((p * x.sum(-1) / lengths).sum(1).mean()) for x in (-stats.logp, stats.entropy))
    assert abs(of_surprisals - of_entropies) > 1e-3  # the mean of ratios is not even the same number for both
    few = sequence_entropy(SequenceStats(*(x[:, :3] for x in stats)), mask[:, :3])
    assert few.per_token.value == pytest.approx(float(stats.entropy[:, :3].sum() / mask[:, :3].sum()))


def test_the_variance_has_a_covariance_term_that_may_not_be_dropped():
    p, stats, _ = _all(world(3, 3, 4, prompts=1))
    Z, H = -stats.logp[0], stats.entropy[0]
    p = p[0]

    def mean(x):
        return (p * x).sum()

    D = Z - H
    inside = sum(mean(D[:, k] ** 2) for k in range(4))  # E Var(Z_k | t_<k)
    cross = sum(mean(H[:, k] * D[:, j]) for k in range(4) for j in range(k))
    variance_z, variance_h = (mean((x.sum(1) - mean(x.sum(1))) ** 2) for x in (Z, H))
    torch.testing.assert_close(variance_z, variance_h + inside + 2 * cross)
    assert abs(cross) > 0.01
    for k in range(4):
        assert mean(H[:, k] ** 2) - mean(H[:, k]) ** 2 <= mean(Z[:, k] ** 2) - mean(Z[:, k]) ** 2


def test_rao_blackwellising_can_lose_and_the_ratio_says_so():
    """Three equally likely leaves on an unbalanced tree: -S does not vary, Σ H_k does."""
    third, half = math.log(1 / 3), math.log(1 / 2)
    first = math.log(3) - 2 / 3 * math.log(2)
    logp = torch.tensor([[third, 0], [-third * -1 - half, half], [-third * -1 - half, half]], dtype=torch.float64)
    entropy = torch.tensor([[first, 0], [first, math.log(2)], [first, math.log(2)]], dtype=torch.float64)
    torch.testing.assert_close(logp.sum(1), torch.full((3,), third, dtype=torch.float64))
    mask = torch.tensor([[1, 0], [1, 1], [1, 1]], dtype=torch.bool)
    found = sequence_entropy(SequenceStats(logp[:, None], entropy[:, None]), mask[:, None])
    assert found.naive.value == pytest.approx(math.log(3)) == pytest.approx(found.rao_blackwell.value)
    assert found.rao_blackwell.se**2 * 3 * 2 / 3 == pytest.approx(2 / 9 * math.log(2) ** 2)  # 0.107
    assert found.variance_ratio > 1e20


def test_standard_errors_are_between_prompts():
    values = torch.tensor([[1.0, 3.0], [2.0, 2.0], [6.0, 4.0]], dtype=torch.float64)
    stats = SequenceStats(-values[..., None], values[..., None])
    found = sequence_entropy(stats, torch.ones(3, 2, 1, dtype=torch.bool))
    assert found.naive == mean_estimate(torch.tensor([2.0, 2.0, 5.0], dtype=torch.float64))
    assert found.naive.se == pytest.approx(1.0)
    assert found.per_token == pytest.approx(found.naive)
    one = sequence_entropy(SequenceStats(-values[:1, :, None], values[:1, :, None]), torch.ones(1, 2, 1).bool())
    assert one.naive.value == 2 and math.isnan(one.naive.se) and math.isnan(one.per_token.se)


def test_the_jackknife_of_a_ratio_covers_as_it_says():
    rng = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 9, (2000, 40), generator=rng).double()
    sums = lengths * (1 + 0.2 * lengths) + torch.randn(2000, 40, generator=rng)
    truth = 1 + 0.2 * float((torch.arange(1.0, 9) ** 2).mean() / 4.5)
    found = [
        jackknife(lambda m: m[..., 0] / m[..., 1], torch.stack(pair, 1)) for pair in zip(sums, lengths, strict=True)
    ]
    inside = sum(low <= truth <= high for low, high in (one.interval(0.9) for one in found)) / 2000
    assert 0.87 < inside < 0.92


# --- supports ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", [Sampler(top_k=3), Sampler(top_p=0.7), Sampler(top_k=5, temperature=0.5)])
def test_the_entropy_lies_within_the_bounds_of_its_support(sampler):
    z = 3 * torch.randn(100, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z[:, 11] = -torch.inf
    p = (z / sampler.temperature).softmax(-1)
    H = torch.special.entr(p).sum(-1)
    found = support_entropy(z, sampler)
    assert (found.lower <= H + 1e-12).all() and (found.upper + 1e-12 >= H).all()
    kept = sampler.restrict(z) > -torch.inf
    tail = torch.special.entr((p * ~kept) / found.tail_mass[:, None].clamp(min=1e-300)).sum(-1)
    exact = found.lower + found.tail_mass * tail
    torch.testing.assert_close(exact, H, rtol=1e-10, atol=1e-12)  # dividing by s twice would break this
    torch.testing.assert_close(found.support_mass, (p * kept).sum(-1))


def test_the_whole_vocabulary_has_no_tail_and_a_tiny_tail_is_not_lost():
    z = torch.tensor([0.0, -50.0, -60.0], dtype=torch.float64)
    whole = support_entropy(z, Sampler())
    assert whole.tail_mass == 0 and whole.lower == whole.upper
    top = support_entropy(z, Sampler(top_k=1))
    assert float(top.tail_mass) == pytest.approx(math.exp(-50) + math.exp(-60), rel=1e-12)
    assert top.support_mass == 1 and top.upper > top.lower > 0


def test_a_cut_policys_entropy_is_that_of_what_was_sampled():
    """Under top-k sampling E Σ H_A is the entropy of π_A; the full H_k on those prefixes is that of neither policy."""
    w = world(2, 4, 3, prompts=1)
    sampler = Sampler(top_k=2)
    cut = responses(w.prompts, w.batch.tokens, eos=0, sampler=sampler)
    stats = sequence_stats(Policy(w.policy), cut)
    S = stats.logp.sum(-1)
    p = S.exp()
    assert float(p.sum()) == pytest.approx(1)
    entropy = -(p * S.nan_to_num(neginf=0)).sum()
    assert float((p * stats.entropy.sum(-1)).sum()) == pytest.approx(float(entropy))
    full = sequence_stats(Policy(w.policy), w.batch)
    mixed = float((p * full.entropy.sum(-1)).sum())
    assert min(abs(mixed - float(entropy)), abs(mixed - w.entropy().item())) > 0.01
