"""Each published controller against its definition, written out token by token."""

from __future__ import annotations

import math
import statistics
from collections import Counter

import pytest
import torch
from rl_batches import random_batch, tokens_of

from fluxentropy.rl.control.control import open_controller


def plan(batch, name, seed=0, **options):
    controller = open_controller({"name": name, **options})
    return controller.plan(batch, torch.Generator().manual_seed(seed))


def places(tensor):
    return {(n, k) for n, k in tensor.nonzero().tolist()}


def covariances(tokens):
    A, S = (statistics.fmean(t[x] for t in tokens) for x in ("A", "logp"))
    return {(t["n"], t["k"]): (t["A"] - A) * (t["logp"] - S) for t in tokens}


def clipped(t, low=0.2, high=0.2):
    """Whether the gradient of max(-A ρ, -A clamp(ρ)) in ρ is 0."""
    rho = torch.tensor(math.exp(t["logp"] - t["old_logp"]), requires_grad=True)
    torch.maximum(-t["A"] * rho, -t["A"] * rho.clamp(1 - low, 1 + high)).backward()
    return float(rho.grad) == 0


def test_none_and_bonus_and_asymmetric_clip_say_what_they_say():
    batch = random_batch()
    empty = plan(batch, "none")
    assert (empty.weight, empty.kl, empty.bonus, empty.target, empty.clip) == (None, None, 0.0, None, None)
    assert plan(batch, "bonus", coefficient=0.02).bonus == 0.02
    assert plan(batch, "asymmetric_clip").clip == (0.2, 0.28)


def test_tokens_count_as_clipped_where_the_clipped_loss_has_no_gradient():
    batch = random_batch(1, drift=0.5)
    expected = {(t["n"], t["k"]) for t in tokens_of(batch) if clipped(t)}
    assert 5 < len(expected) < int(batch.mask.sum()) - 5
    assert places(batch.clipped) == expected


# --- covariance -------------------------------------------------------------------------------------------------------


def test_clip_cov_draws_so_many_of_the_interval_and_never_clipped_tokens():
    batch, low, high, ratio = random_batch(2, N=20), 0.2, 1.5, 0.1
    tokens = tokens_of(batch)
    c = covariances(tokens)
    taken = {(t["n"], t["k"]) for t in tokens if clipped(t)}
    allowed = {at for at, value in c.items() if low < value < high} - taken
    assert taken & {at for at, value in c.items() if low < value < high}, "the exclusion must matter"
    weight = plan(batch, "clip_cov", ratio=ratio, low=low, high=high).weight
    dropped = places((weight == 0) & batch.mask)
    assert dropped <= allowed
    assert len(dropped) == int(ratio * len(tokens)) < len(allowed)
    assert set(weight.unique().tolist()) == {0.0, 1.0}


def test_clip_cov_draws_uniformly():
    batch, draws = random_batch(3), 600
    rng = torch.Generator().manual_seed(0)
    controller = open_controller({"name": "clip_cov", "ratio": 0.05, "low": 0.0, "high": 2.0})
    counts = Counter(at for _ in range(draws) for at in places(controller.plan(batch, rng).weight == 0))
    tokens = tokens_of(batch)
    c = covariances(tokens)
    allowed = {(t["n"], t["k"]) for t in tokens if 0 < c[t["n"], t["k"]] < 2 and not clipped(t)}
    each = draws * max(1, int(0.05 * len(tokens))) / len(allowed)
    assert set(counts) == allowed
    assert sum((n - each) ** 2 / each for n in counts.values()) < 2 * len(allowed) + 20  # chi-squared


def test_clip_cov_drops_at_least_one_where_there_is_one_and_none_where_there_is_none():
    batch = random_batch(4, clip=None)
    assert int((plan(batch, "clip_cov", low=0.0).weight == 0).sum()) == 1
    assert int((plan(batch, "clip_cov", low=90.0, high=91.0).weight == 0).sum()) == 0


def test_kl_cov_penalises_exactly_the_largest_and_drops_the_clip_of_the_others():
    batch = random_batch(5)
    c = covariances(tokens_of(batch))
    k = int(0.2 * len(c))
    found = plan(batch, "kl_cov", ratio=0.2, coefficient=0.7)
    assert places(found.kl) == set(sorted(c, key=c.get, reverse=True)[:k])
    assert set(found.kl.unique().tolist()) == {0.0, 0.7}
    assert found.clip == (1.0, math.inf)
    assert plan(batch, "kl_cov", keep_clip=True).clip is None
    assert len(places(plan(batch, "kl_cov").kl)) == 1


# --- discriminator ----------------------------------------------------------------------------------------------------


def sensitivities(tokens):
    return {(t["n"], t["k"]): math.exp(t["logp"]) * (t["entropy"] + t["logp"]) for t in tokens}


def test_clip_b_drops_tokens_of_bad_responses_far_below_the_mean_only():
    batch = random_batch(6, N=12)
    tokens = tokens_of(batch)
    S = sensitivities(tokens)
    mean, sd = statistics.fmean(S.values()), statistics.pstdev(S.values())
    far = {at for at, s in S.items() if s - mean < -0.8 * sd}
    bad = {(t["n"], t["k"]) for t in tokens if t["A"] < 0}
    assert far & bad
    assert far - bad, "some of them must be kept for their advantage"
    weight = plan(batch, "clip_b", threshold=0.8).weight
    assert places(weight == 0) == far & bad


def test_clip_v_drops_the_largest_of_bad_responses_up_to_the_cap():
    batch = random_batch(7, N=40)
    tokens = tokens_of(batch)
    S = sensitivities(tokens)
    x = {(t["n"], t["k"]): t["expected_sensitivity"] - S[t["n"], t["k"]] for t in tokens}
    sd = statistics.pstdev(x.values())
    bad = {(t["n"], t["k"]) for t in tokens if t["A"] < 0}
    beyond = {at for at in bad if x[at] > 0.5 * sd}
    uncapped = plan(batch, "clip_v", threshold=0.5, most=1.0).weight
    assert places(uncapped == 0) == beyond
    cap = max(1, int(0.06 * len(tokens)))
    assert 1 < cap < len(beyond)
    capped = plan(batch, "clip_v", threshold=0.5, most=0.06).weight
    assert places(capped == 0) == set(sorted(beyond, key=x.get, reverse=True)[:cap])
    assert places(plan(batch, "clip_v", threshold=0.5, most=1e-9).weight == 0) == {max(beyond, key=x.get)}


# --- reweighting ------------------------------------------------------------------------------------------------------


def omega(t, exact=False):
    p, old = math.exp(t["logp"]), math.exp(t["old_logp"])
    return abs(t["A"] / old * p * (1 - p) * (t["logp"] + t["entropy"])) * (p if exact else 1)


@pytest.mark.parametrize("exact", [False, True])
def test_steer_weights_fall_linearly_from_high_to_low(exact):
    batch = random_batch(8)
    tokens = tokens_of(batch)
    weight = plan(batch, "steer", exact=exact).weight
    least, most = (f(omega(t, exact) for t in tokens) for f in (min, max))
    for t in tokens:
        expected = 1.2 - 0.4 * (omega(t, exact) - least) / (most - least)
        assert float(weight[t["n"], t["k"]]) == pytest.approx(expected, rel=1e-12)
    assert (float(weight[batch.mask].max()), float(weight[batch.mask].min())) == pytest.approx((1.2, 0.8))


@pytest.mark.parametrize("size", [1.0, 1e-4])
def test_steer_weights_fall_exponentially_and_stretch_no_small_changes(size):
    batch = random_batch(8)
    batch.advantages.mul_(size)
    tokens = tokens_of(batch)
    weight = plan(batch, "steer", form="exponential", low=0.5).weight
    k = -math.log(0.5) / max(*map(omega, tokens), 0.02)
    for t in tokens:
        assert float(weight[t["n"], t["k"]]) == pytest.approx(math.exp(-k * omega(t)), rel=1e-12)
    assert float(weight.min()) == pytest.approx(0.5) if size == 1.0 else float(weight.min()) > 0.95


def test_steer_weighs_alike_what_changes_alike():
    batch = random_batch(8)
    batch.advantages.zero_()
    assert plan(batch, "steer").weight.eq(1).all()


def test_the_exact_change_of_steer_is_that_of_the_logit_alone():
    z = torch.tensor([1.0, 0.2, -0.5, 0.1], dtype=torch.float64)
    p, alpha = z.softmax(-1), 1e-6

    def entropy(z):
        return float(torch.special.entr(z.softmax(-1)).sum())

    moved = z.clone()
    moved[0] += alpha * (1 - p[0])  # A = ρ = 1
    expected = alpha * float(p[0] * (1 - p[0]) * (p[0].log() + entropy(z)))
    assert entropy(z) - entropy(moved) == pytest.approx(expected, rel=1e-5)


# --- selective regularisation -----------------------------------------------------------------------------------------


def test_siren_masks_the_peaks_of_each_response_and_keeps_the_first_anchor():
    first, second = random_batch(9, L=12), random_batch(10, L=12)
    controller, rng = open_controller({"name": "siren"}), torch.Generator()
    plans = [controller.plan(batch, rng) for batch in (first, second)]
    means = []
    for batch, found in zip((first, second), plans, strict=True):
        peaks, entropies = set(), []
        for n in range(len(batch.mask)):
            row = [(float(batch.nucleus_entropy[n, k]), (n, k)) for k in range(12) if batch.mask[n, k]]
            values = sorted(value for value, _ in row)
            place = 0.8 * (len(values) - 1)
            below = values[math.floor(place)]
            bound = below + (place - math.floor(place)) * (values[math.ceil(place)] - below)
            peaks |= {at for value, at in row if value > bound}
            entropies += [value for value, _ in row if value > bound]
        assert places(found.target[0]) == peaks
        means.append(statistics.fmean(entropies))
    assert means[0] != pytest.approx(means[1])
    for found in plans:
        assert found.target[1:] == (pytest.approx(means[0], rel=1e-12), 5e-3)
        assert found.nucleus
    assert plans[1].facts["peak_entropy"] == pytest.approx(means[1])
