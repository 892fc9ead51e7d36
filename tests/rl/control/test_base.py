"""Statistics of next-token distributions against sums in float64 and against autograd of the entropy."""

from __future__ import annotations

import math

import pytest
import torch
from rl_enumeration import direction, world

from fluxentropy.errors import UsageError
from fluxentropy.rl.control.base import TokenBatch, expected_sensitivity, nucleus_entropy, view_step
from fluxentropy.rl.control.control import apply, open_controller
from fluxentropy.rl.probe.policy import Policy, dot, sequence_stats, weighted_gradient
from fluxentropy.rl.probe.samples import Sampler
from fluxentropy.rl.probe.step import snapshot, update_weights


def logits(*shape, seed=0, scale=2.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def entropy(z):
    return torch.special.entr(z.softmax(-1)).sum(-1)


def minus_gradient(z):
    """-∂H/∂z_a by autograd, (..., V)."""
    z = z.clone().requires_grad_()
    return -torch.autograd.grad(entropy(z).sum(), z)[0]


def test_expected_sensitivity_is_the_mean_of_minus_the_entropys_gradient():
    z = logits(5, 7)
    expected = (z.softmax(-1) * minus_gradient(z)).sum(-1)
    assert torch.allclose(expected_sensitivity(z), expected, rtol=1e-12, atol=1e-15)


def test_the_batchs_sensitivity_is_minus_the_entropys_gradient_in_the_chosen_logit():
    z, tokens = logits(3, 4, 6), torch.tensor([[0, 1, 2, 3], [4, 5, 0, 1], [2, 2, 2, 2]])
    logp = z.log_softmax(-1).gather(2, tokens[..., None])[..., 0]
    mask = torch.ones(3, 4, dtype=torch.bool)
    batch = TokenBatch(mask=mask, logp=logp, old_logp=logp, entropy=entropy(z), advantages=torch.zeros(3))
    expected = minus_gradient(z).gather(2, tokens[..., None])[..., 0]
    assert torch.allclose(batch.sensitivity, expected, rtol=1e-11, atol=1e-14)


def test_a_step_on_one_token_changes_the_entropy_as_the_theorem_says():
    z, a, alpha = logits(6), 2, 1e-6
    p = z.softmax(-1)
    step = alpha * (torch.nn.functional.one_hot(torch.tensor(a), 6) - p)
    predicted = -alpha * (minus_gradient(z)[a] - expected_sensitivity(z))
    assert float(entropy(z + step) - entropy(z)) == pytest.approx(float(predicted), rel=1e-4)


def nucleus_by_hand(z, top_p):
    """Tokens in descending order until their mass reaches top_p, renormalised."""
    mass, kept = 0.0, []
    for q in sorted(z.softmax(-1).tolist(), reverse=True):
        if mass >= top_p:
            break
        kept.append(q)
        mass += q
    return -sum(q / mass * math.log(q / mass) for q in kept)


@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.8, 0.99])
def test_nucleus_entropy_is_that_of_the_tokens_that_reach_the_mass(top_p):
    z = logits(20, 9)
    expected = torch.tensor([nucleus_by_hand(row, top_p) for row in z], dtype=torch.float64)
    assert torch.allclose(nucleus_entropy(z, top_p), expected, rtol=1e-12, atol=1e-14)


def test_the_whole_mass_gives_the_entropy():
    z = logits(4, 9)
    assert torch.allclose(nucleus_entropy(z, 1.0), entropy(z), rtol=1e-12)


def test_tokens_of_probability_zero_change_nothing_and_have_finite_gradients():
    z = logits(3, 5)
    wide = torch.cat([z, torch.full((3, 2), -torch.inf, dtype=torch.float64)], -1).requires_grad_()
    for f in (expected_sensitivity, nucleus_entropy):
        assert torch.allclose(f(wide), f(z), rtol=1e-12)
        (gradient,) = torch.autograd.grad(f(wide).sum(), wide)
        assert gradient.isfinite().all()


def test_half_precision_is_widened():
    z = logits(4, 50).to(torch.bfloat16)
    for f in (expected_sensitivity, nucleus_entropy):
        assert f(z).dtype == torch.float32
        assert torch.allclose(f(z).double(), f(z.double()), rtol=1e-5, atol=1e-6)


def test_a_mass_outside_its_range_is_refused():
    with pytest.raises(UsageError, match=r"top_p 1\.5"):
        nucleus_entropy(logits(3), 1.5)


# --- The view of a real step: its parts agree with each other and with exact values, and a closed loop on ---


def stepped(seed=0, size=0.1, B=40, G=2):
    """(world, view of a random step, the step's parameters by name), the world's policy moved."""
    w = world(seed, limit=3)
    batch = w.sample(B, G, torch.Generator().manual_seed(seed))
    before, d = snapshot(w.policy), w.named(direction(w, size=size))
    h = w.per_token()
    exact = h.item(), (w.gradient(h) @ direction(w, size=size)).item()
    apply(w.policy, before, d)
    return view_step(w.policy, batch, before, step=7), d, exact


def test_gradient_and_forward_mode_agree_on_the_change():
    for seed in range(4):
        view, d, _ = stepped(seed)
        assert dot(view.need("entropy_gradient"), d) == pytest.approx(view.need("first_order").value, rel=1e-9)


def test_its_numbers_are_the_exact_ones_within_their_errors():
    view, d, (entropy, change) = stepped(B=200)
    first = view.need("first_order")
    assert view.step == 7
    assert view.entropy_now == pytest.approx(entropy, abs=0.05)
    assert abs(first.value - change) < 4 * first.se
    assert first.se < abs(change)
    assert view.need("expansion").per_token.first == pytest.approx(first)
    assert all(torch.allclose(view.need("direction")[name], d[name], atol=1e-12) for name in d)


def test_twice_the_step_has_half_the_radius():
    radii = [stepped(size=size)[0].need("ghost_radius") for size in (0.1, 0.2)]
    assert radii[0] == pytest.approx(2 * radii[1])


def test_what_is_not_asked_is_not_computed(monkeypatch):
    view, _, _ = stepped()
    calls = []
    monkeypatch.setattr("fluxentropy.rl.control.base.expand", lambda *a, **k: calls.append(k["order"]) or view)
    with pytest.raises(AttributeError):
        view.need("first_order")  # it did call the replaced function
    assert calls == [1]


def test_one_prompt_and_truncated_samplers_are_refused():
    w = world()
    rng = torch.Generator()
    with pytest.raises(UsageError, match="1 prompt"):
        view_step(w.policy, w.sample(1, 4, rng), snapshot(w.policy), step=1)
    with pytest.raises(UsageError, match="vocabulary"):
        view_step(w.policy, w.sample(4, 2, rng, sampler=Sampler(top_p=0.9)), snapshot(w.policy), step=1)


def reinforce(options, steps=20, lr=0.6):
    """Exact entropies a token of a sampled policy-gradient run that rewards token 1, controlled by `options`."""
    w, rng = world(1, limit=3, scale=0.3), torch.Generator().manual_seed(0)
    policy, controller, found = Policy(w.policy), open_controller(options), [w.per_token().item()]
    for t in range(1, steps + 1):
        update, batch = (w.sample(24, 4, rng) for _ in range(2))
        reward = ((update.tokens == 1) * update.mask).sum(-1) - 0.5 * update.lengths
        A = reward - reward.mean(1, keepdim=True)
        stats = sequence_stats(policy, update)
        rows = {name: x.flatten(0, 1) for name, x in (("mask", update.mask), ("H", stats.entropy), ("S", stats.logp))}
        tokens = TokenBatch(
            mask=rows["mask"], logp=rows["S"], old_logp=rows["S"], entropy=rows["H"], advantages=A.flatten()
        )
        plan = controller.plan(tokens, rng)
        before = snapshot(w.policy)
        weights = update_weights(A, update.mask, 3)
        bonus = plan.bonus * update.mask / update.mask.sum() * update.shape[0]
        step = weighted_gradient(policy, update, weights._replace(entropy=bonus.double()))
        apply(w.policy, before, {name: lr * g for name, g in step.items()})
        if controller.adjusts:
            apply(w.policy, before, controller.adjust(view_step(w.policy, batch, before, step=t)))
        found.append(w.per_token().item())
    return found


def test_the_loop_holds_on_sampled_batches():
    gains = {"proportional": 1.0, "integral": 0.1, "boost": 0.1, "guard": 1.0}
    free, followed, projected = (
        reinforce(o)
        for o in ({}, {"name": "follow", "tolerance": 0.05, **gains}, {"name": "project", "tolerance": 0.05})
    )
    assert free[-1] < 0.5
    for held in (followed, projected):
        assert min(held) > free[0] - 0.07  # the target is the first batch's estimate, some 0.02 off
        assert max(held) < free[0] + 0.05
    assert len(set(followed[13:])) > 5, "the bonus must get it going again"
