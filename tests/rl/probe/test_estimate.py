"""Entropy per sequence and per token, as full expectations over every response."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from rl_enumeration import world

from fluxentropy.errors import UsageError
from fluxentropy.rl.probe.estimate import (
    entropy_precision,
    jackknife,
    mean_estimate,
    prompts_needed,
    sequence_entropy,
    support_entropy,
)
from fluxentropy.rl.probe.policy import Policy, SequenceStats, sequence_stats
from fluxentropy.rl.probe.samples import Sampler, responses


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


# --- Errors over batch sizes, against the variances that were put in and the library's own standard error ---


def batch(B, G, seed=0):
    """Variance 4 between prompts and 9 within them around a mean of 20, over 10 to 20 tokens."""
    rng = np.random.default_rng(seed)
    H = 20 + 2 * rng.normal(size=(B, 1)) + 3 * rng.normal(size=(B, G))
    return H, rng.integers(10, 21, size=(B, G)).astype(float)


@pytest.mark.parametrize("G", [1, 4])
def test_errors_fall_as_the_root_of_the_prompts(G):
    H, T = batch(2000, G)
    found = entropy_precision(H, T, [4, 16, 64], replicates=2000)
    true = (4 + 9 / G) ** 0.5
    h = H.mean() / T.mean()
    column = (H - h * T).mean(1) / T.mean()  # the delta method of a ratio
    for row in found:
        assert row.per_sequence.se == pytest.approx(true / row.prompts**0.5, rel=0.08)
        assert row.per_sequence.theory == pytest.approx(true / row.prompts**0.5, rel=0.06)
        assert row.per_sequence.relative == pytest.approx(row.per_sequence.se / H.mean())
        assert row.per_token.theory == pytest.approx(column.std() / row.prompts**0.5, rel=0.01)
        assert row.per_token.se == pytest.approx(row.per_token.theory, rel=0.1)
        assert row.per_token.relative == pytest.approx(row.per_token.se / h)


def test_theory_starts_from_the_library_s_own_standard_errors():
    H, T = batch(64, 2)
    lengths = torch.tensor(T).long()
    mask = torch.arange(20) < lengths[..., None]
    entropy = torch.tensor(H)[..., None] / lengths[..., None] * mask
    whole = sequence_entropy(SequenceStats(-entropy, entropy), mask)
    last = entropy_precision(H, T, replicates=10)[-1]
    assert last.prompts == 64
    assert last.per_sequence.theory == pytest.approx(whole.rao_blackwell.se)
    assert last.per_token.theory == pytest.approx(whole.per_token.se)
    needed = prompts_needed(H, T, relative=0.02)
    assert needed.per_sequence == int(np.ceil(64 * (whole.rao_blackwell.se / whole.rao_blackwell.value / 0.02) ** 2))
    assert needed.per_token == int(np.ceil(64 * (whole.per_token.se / whole.per_token.value / 0.02) ** 2))


def test_heavy_tails_keep_the_root_law():
    """The variance of a mean is σ²/B whatever the distribution; sizes are powers of two by default."""
    rng = np.random.default_rng(0)
    H = rng.lognormal(0, 1.5, size=(500, 1))
    found = entropy_precision(H, np.ones_like(H), replicates=4000)
    assert [row.prompts for row in found] == [2, 4, 8, 16, 32, 64, 128, 256]
    for row in found:
        assert row.per_sequence.se == pytest.approx(row.per_sequence.theory, rel=0.2)
        assert row.per_sequence == pytest.approx(row.per_token)  # of one token each


def test_what_cannot_be_measured_is_refused():
    H, T = batch(5, 2)
    with pytest.raises(UsageError, match="batches of 6 prompts: use 1 to 5"):
        entropy_precision(H, T, [6])
    with pytest.raises(UsageError, match="2 prompts"):
        entropy_precision(H[:2], T[:2])
    with pytest.raises(UsageError, match="shape"):
        prompts_needed(H[:, 0], T[:, 0], relative=0.1)
    with pytest.raises(UsageError, match="relative error 0"):
        prompts_needed(H, T, relative=0)
