"""Our controllers in a closed loop: 50 exact gradient steps of a softmax policy whose entropy is known exactly."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fluxentropy.rl.control.base import StepView, TokenBatch
from fluxentropy.rl.control.control import apply, open_controller
from fluxentropy.rl.probe.change import EntropyExpansion, Expansion
from fluxentropy.rl.probe.estimate import Estimate
from fluxentropy.rl.probe.step import difference, snapshot

REWARD = torch.tensor([[1.0, 0.6, 0.0, 0.2, 0.1], [0.0, 0.3, 1.0, 0.1, 0.5], [0.4, 0.0, 0.2, 1.0, 0.3]]).double()


class Policy(nn.Module):
    """Three prompts that share parameters, one token each: the entropy a token is the mean of three sums."""

    def __init__(self) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(0)
        self.features = torch.randn(3, 4, generator=rng, dtype=torch.float64)
        self.weight = nn.Parameter(0.2 * torch.randn(4, 5, generator=rng, dtype=torch.float64))
        self.bias = nn.Parameter(torch.zeros(5, dtype=torch.float64))

    def entropies(self, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.special.entr((self.features @ weight + bias).softmax(-1)).sum(-1)

    def entropy(self) -> Tensor:
        return self.entropies(self.weight, self.bias).mean()

    def reward(self) -> Tensor:
        return ((self.features @ self.weight + self.bias).softmax(-1) * REWARD).sum(-1).mean()

    def batch(self) -> TokenBatch:
        """One token a prompt, so that the mean over tokens is the entropy itself."""
        H = self.entropies(self.weight, self.bias).detach()[:, None]
        mask = torch.ones(3, 1, dtype=torch.bool)
        return TokenBatch(mask=mask, logp=-H, old_logp=-H, entropy=H, advantages=torch.ones(3).double())

    def along(self, before, d, order):
        """The entropy before a step and its derivatives along it."""
        theta = [torch.cat([before[n].flatten() for n in d]), torch.cat([d[n].flatten() for n in d])]

        def h(eta):
            flat = theta[0] + eta * theta[1]
            return self.entropies(flat[:20].view(4, 5), flat[20:]).mean()

        found, eta = [h], torch.zeros((), dtype=torch.float64)
        for _ in range(order):
            found.append(torch.func.grad(found[-1]))
        return [float(f(eta)) for f in found]


def view(policy, before, t, lr, se=0.0):
    """The exact view of the step just taken from `before`; the gradient is that of θ_before."""
    after = snapshot(policy)
    d = difference(policy, before)

    def gradient():
        apply(policy, before, {name: torch.zeros_like(x) for name, x in d.items()})
        names, tensors = zip(*policy.named_parameters(), strict=True)
        g = dict(zip(names, torch.autograd.grad(policy.entropy(), tensors), strict=True))
        apply(policy, after, {name: torch.zeros_like(x) for name, x in d.items()})
        return g

    def expansion():
        value, first, second = policy.along(before, d, 2)
        nothing = Estimate(float("nan"), 0.0)
        one = Expansion(value=value, first=Estimate(first, 0.0), second=Estimate(second, 0.0), quadratic=nothing)
        return EntropyExpansion(per_sequence=one, per_token=one)

    return StepView(
        step=t,
        entropy_now=policy.along(before, d, 0)[0],
        first_order=lambda: Estimate(policy.along(before, d, 1)[1], se),
        expansion=expansion,
        entropy_gradient=gradient,
        direction=lambda: d,
        preconditioner=lambda: {name: torch.full_like(x, lr) for name, x in d.items()},
    )


def train(lr=1.0, count=50, controller=None, resume_at=None, **options):
    """Entropies (before the first step, then after each) and rewards of the exact ascent."""
    policy = Policy()
    controller = controller or open_controller(options)
    rows = [(policy.entropy().item(), policy.reward().item())]
    for t in range(1, count + 1):
        if t == resume_at:
            state, controller = controller.state_dict(), open_controller(options)
            controller.load_state_dict(state)
        plan = controller.plan(policy.batch(), torch.Generator())
        before = snapshot(policy)
        policy.zero_grad()
        (-policy.reward() - plan.bonus * policy.entropy()).backward()
        with torch.no_grad():
            for p in policy.parameters():
                p -= lr * p.grad
        if controller.adjusts:
            apply(policy, before, controller.adjust(view(policy, before, t, lr)))
        rows.append((policy.entropy().item(), policy.reward().item()))
    return [h for h, _ in rows], [r for _, r in rows]


def target(curve, start, end, steps, t):
    u = min(t / steps, 1.0)
    return {"linear": start + (end - start) * u, "exponential": start * (end / start) ** u}[curve]


# --- the target is followed -------------------------------------------------------------------------------------------

TOLERANCE, SECOND_ORDER = 0.02, 0.003  # what is promised, and what a step of this size may add to it


def test_without_control_the_entropy_collapses():
    entropies, _ = train(lr=0.5)
    assert entropies[0] > 1.5
    assert entropies[-1] < 0.6


@pytest.mark.parametrize(
    "options",
    [
        {"name": "follow", "proportional": 1.0, "integral": 0.1, "boost": 0.1, "max_bonus": 1.0},
        {"name": "project"},
        {"name": "project", "metric": "optimizer"},
    ],
)
def test_the_entropy_of_step_one_is_kept_while_the_reward_grows(options):
    entropies, rewards = train(lr=0.5, tolerance=TOLERANCE, **options)
    for h in entropies:
        assert abs(h - entropies[0]) < TOLERANCE + SECOND_ORDER
    assert rewards[-1] > rewards[0] + 0.12
    assert rewards[-1] > rewards[25] > rewards[10], "it must not just stand still"


@pytest.mark.parametrize("name", ["follow", "project"])
@pytest.mark.parametrize(("curve", "end"), [("linear", 1.0), ("exponential", 0.9)])
def test_the_entropy_never_falls_below_a_curve_and_ends_on_it(name, curve, end):
    entropies, _ = train(lr=0.3, name=name, curve=curve, end=end, steps=40, tolerance=TOLERANCE)
    errors = [h - target(curve, entropies[0], end, 40, t) for t, h in enumerate(entropies)]
    assert min(errors[1:]) > -TOLERANCE - SECOND_ORDER
    assert max(errors[40:]) < 0.05
    assert train(lr=0.3)[0][-1] < end - 0.1, "without control it would have fallen through"


def test_a_target_above_the_entropy_is_reached_by_the_bonus_and_by_the_projection_but_not_by_a_factor():
    low = {"curve": "constant", "start": 1.605, "tolerance": 0.005, "lr": 0.5}  # ln 5 = 1.609
    assert train(name="follow", max_bonus=30.0, integral=2.0, count=80, **low)[0][-1] > 1.59
    assert train(name="project", limit=10.0, **low)[0][-1] > 1.59
    still = train(name="follow", max_bonus=0.0, **low)[0]
    assert max(still) < 1.59


def test_a_negative_bonus_lowers_an_entropy_that_is_too_high():
    above = {"name": "follow", "curve": "constant", "start": 0.8, "lr": 0.2, "tolerance": TOLERANCE}
    assert train(**above)[0][20] > train(min_bonus=-1.0, **above)[0][20] + 0.1


def test_a_resumed_run_goes_on_the_same():
    for name in ("follow", "project"):
        options = {"name": name, "curve": "linear", "end": 1.0, "steps": 40}
        assert train(count=30, **options) == train(count=30, resume_at=17, **options)


# --- one decision -----------------------------------------------------------------------------------------------------


def decide(now=1.0, change=-0.2, se=0.0, **options):
    """The factor of `follow` with the target 0.95 and a tolerance of 0.05: the entropy may fall to 0.9."""
    controller = open_controller({"name": "follow", "start": 0.95, "tolerance": 0.05, **options})
    H = torch.full((1, 1), now, dtype=torch.float64)
    batch = TokenBatch(mask=H > 0, logp=-H, old_logp=-H, entropy=H, advantages=H[0])
    controller.plan(batch, torch.Generator())
    return controller.adjust(StepView(step=1, entropy_now=now, first_order=lambda: Estimate(change, se)))


def test_the_factor_lets_the_entropy_fall_to_the_bound_and_no_further():
    assert decide(change=-0.2) == pytest.approx(0.5)
    assert decide(change=-0.05) == 1.0
    assert decide(change=+0.2) == 1.0
    assert decide(now=0.8, change=-0.2) == 0.0
    assert decide(now=0.8, change=-0.2, min_scale=0.1) == 0.1


def test_an_uncertain_change_counts_as_the_larger_fall():
    assert decide(change=-0.2, se=0.05) == pytest.approx(0.1 / 0.3)  # two standard errors
    assert decide(change=-0.2, se=0.05, guard=2.0) == pytest.approx(0.1 / 0.3)
    assert decide(change=-0.2, se=float("nan")) == pytest.approx(0.5)
    assert decide(change=+0.01, se=0.5) == 1.0


def test_the_bonus_follows_its_law_and_does_not_wind_up():
    gains = {"proportional": 0.5, "integral": 0.2, "boost": 0.3, "max_bonus": 0.4}
    controller = open_controller({"name": "follow", "start": 1.0, "tolerance": 0.05, **gains})
    # entropy of the batch, predicted change -> bonus by hand, factor by hand
    told = [
        (0.9, -0.1, 0.5 * 0.1 + 0.2 * 0.1, 0.0),  # below the bound of 0.95: not taken
        (0.8, +0.1, 0.07 + 0.5 * 0.1 + 0.2 * 0.2 + 0.3, 1.0),
        (1.1, -0.3, 0.4 - 0.5 * 0.3 - 0.2 * 0.1, 0.5),  # from the limit of 0.4, not from 0.46
        (1.5, -0.1, 0.23 - 0.5 * 0.4 - 0.2 * 0.5 + 0.3 * 0.5, 1.0),
        (1.5, -0.1, 0.0, 1.0),
    ]
    for H, change, bonus, factor in told:
        entropy = torch.full((1, 1), H, dtype=torch.float64)
        batch = TokenBatch(mask=entropy > 0, logp=-entropy, old_logp=-entropy, entropy=entropy, advantages=entropy[0])
        step = StepView(step=1, entropy_now=H, first_order=lambda change=change: Estimate(change, 0.0))
        assert controller.plan(batch, torch.Generator()).bonus == pytest.approx(min(bonus, 0.4))
        assert controller.adjust(step) == pytest.approx(factor)


# --- the projection ---------------------------------------------------------------------------------------------------


def projected(entropy_now=1.0, **options):
    """(d', g, d, P) of a step that would take the entropy below its bound of 0.98."""
    rng = torch.Generator().manual_seed(3)
    g, d, P = (
        {"w": torch.randn(3, 2, generator=rng).double(), "b": torch.randn(2, generator=rng).double()} for _ in "gdP"
    )
    P = {name: x.abs() for name, x in P.items()}
    if sum(float((g[n] * d[n]).sum()) for n in g) > 0:
        d = {name: -x for name, x in d.items()}
    controller = open_controller({"name": "project", "start": 1.0, "tolerance": 0.02, **options})
    H = torch.full((1, 1), entropy_now, dtype=torch.float64)
    controller.plan(TokenBatch(mask=H > 0, logp=-H, old_logp=-H, entropy=H, advantages=H[0]), torch.Generator())
    step = StepView(
        step=1, entropy_now=entropy_now, entropy_gradient=lambda: g, direction=lambda: d, preconditioner=lambda: P
    )
    return controller.adjust(step), *(torch.cat([x["w"].flatten(), x["b"]]) for x in (g, d, P))


@pytest.mark.parametrize(("metric", "now"), [("euclidean", 1.0), ("optimizer", 1.0), ("euclidean", 0.9)])
def test_the_projection_is_the_nearest_step_that_keeps_the_bound(metric, now):
    found, g, d, P = projected(now, metric=metric, limit=100.0)
    new = torch.cat([found["w"].flatten(), found["b"]])
    assert float(g @ new) == pytest.approx(0.98 - now, abs=1e-12)
    P = P if metric == "optimizer" else torch.ones_like(P)
    # the oracle: minimise (d' - d)ᵀ P⁻¹ (d' - d) under g · d' = wanted, by its linear system
    size = len(d)
    system = torch.zeros(size + 1, size + 1, dtype=torch.float64)
    system[:size, :size], system[:size, size], system[size, :size] = torch.diag(2 / P), -g, g
    right = torch.cat([2 * d / P, torch.tensor([0.98 - now], dtype=torch.float64)])
    assert torch.allclose(new, torch.linalg.solve(system, right)[:size], rtol=1e-10)


def test_the_correction_is_no_longer_than_its_limit():
    found, g, d, _ = projected(0.2, limit=0.1)
    new = torch.cat([found["w"].flatten(), found["b"]])
    assert float((new - d).norm()) == pytest.approx(0.1 * float(d.norm()))
    assert float(g @ new) > float(g @ d)


def test_a_step_that_keeps_the_bound_is_left_alone():
    assert projected(9.0)[0] == 1.0


# --- the guard --------------------------------------------------------------------------------------------------------


def test_the_guard_keeps_the_quadratic_term_small_and_training_going():
    policy, controller, missed = Policy(), open_controller({"name": "guard"}), []
    for t in range(1, 51):
        before = snapshot(policy)
        policy.zero_grad()
        (-policy.reward()).backward()
        with torch.no_grad():
            for p in policy.parameters():
                p -= 20.0 * p.grad
        seen = view(policy, before, t, 20.0)
        value, first, second = policy.along(before, difference(policy, before), 2)
        s = controller.adjust(seen)
        apply(policy, before, s)
        assert s**2 * abs(second) / 2 <= max(0.5 * s * abs(first), 1e-3) + 1e-12
        assert s == 1 or s**2 * abs(second) / 2 >= max(0.5 * s * abs(first), 1e-3) - 1e-12, "not smaller than needed"
        missed.append(abs(policy.entropy().item() - value - s * first))
    entropies, _ = train(lr=20.0)
    unguarded = Policy()
    first_step = unguarded.along(snapshot(unguarded), one_step(20.0), 1)
    assert abs(entropies[1] - sum(first_step)) > 2 * max(missed)
    assert policy.reward().item() > 0.99


def one_step(lr):
    policy = Policy()
    policy.reward().backward()
    return {name: lr * p.grad for name, p in policy.named_parameters()}


def test_the_guard_takes_the_range_that_it_is_told():
    estimates = {"value": 1.0, "quadratic": Estimate(0.0, 0.0)}
    one = Expansion(first=Estimate(-0.1, 0.0), second=Estimate(0.5, 0.0), **estimates)  # eta* = 0.4

    def factor(radius=0.3, **options):
        step = StepView(
            step=1,
            entropy_now=1.0,
            expansion=lambda: EntropyExpansion(per_sequence=one, per_token=one),
            ghost_radius=lambda: radius,
        )
        return open_controller({"name": "guard", **options}).adjust(step)

    assert factor() == pytest.approx(0.2)
    assert factor(fraction=1.0) == pytest.approx(0.4)
    assert factor(negligible=0.04) == pytest.approx(0.4)  # √(0.04 / 0.25)
    assert factor(range="ghost_radius") == pytest.approx(0.15)
    assert factor(range="both") == pytest.approx(0.15)
    assert factor(range="ghost_radius", radius=float("inf")) == 1.0
    assert factor(min_scale=0.3) == 0.3
