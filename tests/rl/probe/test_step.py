"""Realised steps and AdamW's parts, against torch's optimizers and the history of gradients."""

from __future__ import annotations

import pytest
import torch
from rl_enumeration import TinyPolicy, direction, tuples, world

from fluxentropy.errors import UsageError
from fluxentropy.rl.probe.policy import Policy, SequenceStats, Weights, dot, flatten, row_gradients, sequence_stats
from fluxentropy.rl.probe.samples import Sampler, responses
from fluxentropy.rl.probe.step import (
    AdamWRecorder,
    RunningBaseline,
    clip_factor,
    difference,
    entropy_gradient,
    entropy_to_go,
    learning_rates,
    others_to_go,
    score_weights,
    snapshot,
    to_go_weights,
    update_weights,
)


def _loss(model, ids):
    return model(ids).log_softmax(-1)[..., 0].square().mean()


def _batches(n):
    rng = torch.Generator().manual_seed(0)
    return [torch.randint(0, 3, (4, 3), generator=rng) for _ in range(n)]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weight_decay": 0.3, "eps": 0.1},
        {"amsgrad": True, "betas": (0.5, 0.6)},
        {"maximize": True, "weight_decay": 0.1},
    ],
    ids=str,
)
def test_the_three_parts_add_up_to_torchs_step_and_are_those_of_the_history(options):
    model = TinyPolicy()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, **options)
    beta1, beta2 = options.get("betas", (0.9, 0.999))
    eps, decay = options.get("eps", 1e-8), options.get("weight_decay", 1e-2)
    history, largest = [], 0.0
    for t, ids in enumerate(_batches(5), start=1):
        optimizer.zero_grad()
        recorder = AdamWRecorder(model, optimizer)
        _loss(model, ids).backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.05)
        history.append(flatten({n: p.grad for n, p in model.named_parameters()}))
        optimizer.step()
        parts, step = recorder.split(), difference(model, recorder.before)
        whole = flatten(parts.batch) + flatten(parts.momentum) + flatten(parts.decay)
        torch.testing.assert_close(whole, flatten(step), rtol=1e-10, atol=1e-15)
        assert clip_factor(norm, 0.05) < 1

        sign = -1 if options.get("maximize") else 1
        v = (1 - beta2) * sum(beta2 ** (t - s) * g**2 for s, g in enumerate(history, start=1))
        largest = torch.maximum(torch.as_tensor(largest), v)
        root = ((largest if options.get("amsgrad") else v) / (1 - beta2**t)).sqrt() + eps  # ε outside the root
        first = 0.05 * (1 - beta1) / (1 - beta1**t)
        momentum = -sign * first * sum(beta1 ** (t - s) * g for s, g in enumerate(history[:-1], start=1)) / root
        torch.testing.assert_close(flatten(parts.momentum), torch.zeros_like(root) + momentum, rtol=1e-9, atol=1e-15)
        torch.testing.assert_close(flatten(parts.batch), -sign * first * history[-1] / root, rtol=1e-9, atol=1e-15)
        torch.testing.assert_close(flatten(parts.decay), -0.05 * decay * flatten(recorder.before))
        torch.testing.assert_close(flatten(parts.preconditioner), first / root)


def test_the_step_of_any_optimizer_is_the_difference_of_snapshots_and_gives_the_first_order_change():
    w = world(vocabulary=4, limit=3)
    gradient = w.named(w.gradient(w.entropy()))
    before, entropy = snapshot(w.policy), w.entropy().item()
    optimizer = torch.optim.SGD(w.policy.parameters(), lr=1e-5, momentum=0.9, nesterov=True)
    for _ in range(3):
        optimizer.zero_grad()
        _loss(w.policy, torch.tensor([[1, 2, 3]])).backward()
        optimizer.step()
    step = difference(w.policy, before)
    assert dot(gradient, step) == pytest.approx(w.entropy().item() - entropy, rel=1e-3)


def test_parameters_that_the_optimizer_leaves_alone_have_a_step_of_zero():
    model = TinyPolicy()
    optimizer = torch.optim.Adam([model.bias, model.head], lr=0.1)
    recorder = AdamWRecorder(model, optimizer)
    _loss(model, torch.tensor([[1, 2]])).backward()
    optimizer.step()
    parts = recorder.split()
    assert not parts.batch["carry"].any() and parts.batch["bias"].any()


def test_what_cannot_be_split_is_refused():
    model = TinyPolicy()
    with pytest.raises(UsageError, match="SGD with its options has no split"):
        AdamWRecorder(model, torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(UsageError, match="Adam with its options"):
        AdamWRecorder(model, torch.optim.Adam(model.parameters(), weight_decay=0.1))
    optimizer = torch.optim.AdamW(model.parameters())
    recorder = AdamWRecorder(model, optimizer)
    with pytest.raises(UsageError, match="no optimizer step was taken"):
        recorder.split()
    _loss(model, torch.tensor([[1, 2]])).backward()
    optimizer.step()
    optimizer.step()
    with pytest.raises(UsageError, match="2 steps were taken"):
        recorder.split()
    recorder = AdamWRecorder(model, optimizer)
    optimizer.step()
    optimizer.zero_grad()
    with pytest.raises(UsageError, match="call split.. before zero_grad"):
        recorder.split()
    with pytest.raises(UsageError, match="no parameter gone"):
        difference(model, {"gone": torch.zeros(1)})


def test_parts_that_miss_the_step_are_refused_and_a_scheduler_after_it_is_no_matter():
    model = TinyPolicy()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.1)
    recorder = AdamWRecorder(model, optimizer)
    _loss(model, torch.tensor([[1, 2]])).backward()
    optimizer.step()
    scheduler.step()
    step = flatten(difference(model, recorder.before))
    parts = recorder.split()
    whole = flatten(parts.batch) + flatten(parts.momentum) + flatten(parts.decay)
    torch.testing.assert_close(whole, step, rtol=1e-10, atol=1e-15)
    optimizer.zero_grad(set_to_none=False)
    with pytest.raises(UsageError, match="AdamW's parts miss the step by .* gradients or options were changed"):
        recorder.split()


def test_float32_steps_near_the_rounding_of_the_parameters_still_split():
    model = TinyPolicy(scale=30.0).float()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    recorder = AdamWRecorder(model, optimizer)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(0))
    optimizer.step()
    recorder.split()


def test_learning_rates_are_those_of_the_groups():
    model = TinyPolicy()
    optimizer = torch.optim.SGD([{"params": [model.bias]}, {"params": [model.head], "lr": 0.5}], lr=0.1, momentum=0.9)
    found = learning_rates(model, optimizer)
    assert [float(found[name].max()) for name in ("bias", "head", "carry")] == [0.1, 0.5, 0]
    for other in (
        torch.optim.SGD(model.parameters(), lr=1, momentum=0.9, nesterov=True),
        torch.optim.RMSprop([model.bias]),
    ):
        with pytest.raises(UsageError, match="how it scales the update's gradient is known for"):
            learning_rates(model, other)


def test_the_oracles_own_moves_are_steps():
    w = world()
    v = direction(w)
    moved = w.moved(v, 0.3)
    torch.testing.assert_close(flatten(difference(moved.policy, snapshot(w.policy))), 0.3 * v)


# --- The gradient of the entropy: both forms, every baseline, as full expectations; and the known wrong b ---


class Table:
    """Everything about every response of a world: π, S_k and H_k, and the gradients of each S_k and H_k."""

    def __init__(self, w):
        self.w, self.batch, self.policy = w, w.batch, Policy(w.policy)
        self.stats, self.mask = sequence_stats(self.policy, self.batch), w.batch.mask
        self.p = self.stats.logp.sum(-1).exp()  # (N, R)
        self.truth = w.gradient(w.entropy())
        eye = torch.eye(self.mask.shape[-1], dtype=torch.float64)
        zero = torch.zeros_like(self.stats.logp)
        self.ds, self.dh = (
            torch.stack([row_gradients(self.policy, self.batch, make(zero + row)) for row in eye], 2)
            for make in (Weights, lambda x: Weights(zero, x))
        )  # (N, R, L, P) each

    def gradients(self, weights):
        """Σ_k weight ∇S_k + weight ∇H_k of every response, (N, R, P)."""
        total = (weights.logp[..., None] * self.ds).sum(2)
        return total if weights.entropy is None else total + (weights.entropy[..., None] * self.dh).sum(2)

    def mean(self, values):
        """Expectation over prompts and responses of (N, R, P)."""
        return (self.p[..., None] * values).sum(1).mean(0)

    def trace(self, values):
        """Trace of the covariance of (N, R, P)."""
        return float((self.mean(values**2) - self.mean(values) ** 2).sum())

    def single(self, **options):
        """to-go weights of every response as if it were alone: G = 1."""
        stats = SequenceStats(*(x[:, :, None] for x in self.stats))
        found = to_go_weights(stats, self.mask[:, :, None], **options)
        return Weights(*(None if x is None else x[:, :, 0] for x in found))


@pytest.fixture(scope="module", params=[(0, 3, 3), (1, 4, 2)], ids=str)
def table(request):
    return Table(world(*request.param))


def test_the_score_form_is_unbiased_with_a_constant_and_with_the_leave_one_out_mean(table):
    for b in (0.0, -1.3):
        alone = score_weights(SequenceStats(*(x[:, :, None] for x in table.stats)), table.mask[:, :, None], b)
        torch.testing.assert_close(
            table.mean(table.gradients(Weights(alone.logp[:, :, 0]))), table.truth, rtol=0, atol=1e-12
        )
    R = table.p.shape[1]
    for G in (2, 3):
        pick = tuples(min(R, 13), G)
        total = torch.zeros_like(table.truth)
        for n in range(2):
            p = table.p[n, :13] / table.p[n, :13].sum()  # a policy over the first outcomes will do: the score stays ∇S
            weights = score_weights(SequenceStats(*(x[n, pick] for x in table.stats)), table.mask[n, pick])
            X = torch.einsum("cgl,cglp->cp", weights.logp, table.ds[n, pick])
            total += (p[pick].prod(-1)[:, None] * X).sum(0) / 2
        S, dS = table.stats.logp.sum(-1)[:, :13], table.ds.sum(2)[:, :13]
        p = table.p[:, :13] / table.p[:, :13].sum(1, keepdim=True)
        centred = S - (p * S).sum(1, keepdim=True)
        expected = -((p * centred)[..., None] * dS).sum(1).mean(0)
        torch.testing.assert_close(total, expected, rtol=0, atol=1e-12)


def test_the_leave_one_out_factor_is_applied_once(table):
    S, G = table.stats.logp[:, :4], 4
    weights = score_weights(SequenceStats(S, S), table.mask[:, :4]).logp[..., 0]
    sums = S.sum(-1)
    torch.testing.assert_close(weights, -(G / (G - 1)) * (sums - sums.mean(-1, keepdim=True)) / G)


def test_the_to_go_form_is_unbiased_whatever_the_positions_constants(table):
    L = table.mask.shape[-1]
    for mu in (0.0, torch.linspace(-1, 2, L, dtype=torch.float64)):
        X = table.gradients(table.single(baseline=mu))
        torch.testing.assert_close(table.mean(X), table.truth, rtol=0, atol=1e-12)


def test_a_baseline_that_has_seen_the_chosen_token_is_biased(table):
    """t_<=k instead of t_<k in b_k: here H_{k+1}, which t_k decides."""
    seen = torch.zeros_like(table.stats.entropy)
    seen[..., :-1] = table.stats.entropy[..., 1:]
    X = table.gradients(table.single(baseline=seen[:, :, None]))
    assert (table.mean(X) - table.truth).norm() > 0.05 * table.truth.norm()


def test_the_variances_are_ordered_as_claimed_on_a_world_of_some_length():
    """Rao-Blackwellised without baseline is worse than the centred score; to-go with μ is the best."""
    table = Table(world(0, 3, 4))
    G = entropy_to_go(table.stats.entropy)
    H = table.stats.entropy.sum(-1)
    S = table.stats.logp.sum(-1)
    mask = table.mask.double()
    alive = table.p[..., None] * mask
    mu = (alive * G).sum((0, 1)) / alive.sum((0, 1))
    forms = {
        "score": Weights(-S[..., None] * mask),
        "centred": Weights(-(S - (table.p * S).sum(1, keepdim=True))[..., None] * mask),
        "whole": Weights(H[..., None] * mask, mask),
        "to_go": table.single(),
        "to_go_mu": table.single(baseline=mu),
    }
    traces = {}
    for name, weights in forms.items():
        X = table.gradients(weights)
        torch.testing.assert_close(table.mean(X), table.truth, rtol=0, atol=1e-12)
        traces[name] = table.trace(X)
    assert traces["to_go_mu"] < traces["to_go"] < traces["whole"] and traces["to_go_mu"] < traces["centred"]
    assert traces["centred"] < traces["score"] and traces["centred"] < traces["whole"]


def test_per_token_weights_give_the_gradient_of_the_ratio(table):
    """On the whole population: each response with its probability, so that h is exact."""
    h = table.w.per_token()
    truth = table.w.gradient(h)
    rate = h.item()
    length = float((table.p * table.mask.sum(-1)).sum(1).mean())
    G = entropy_to_go((table.stats.entropy - rate) * table.mask)
    by_hand = Weights(G * table.mask / length, table.mask.double() / length)
    torch.testing.assert_close(table.mean(table.gradients(by_hand)), truth, rtol=0, atol=1e-12)
    # The function on a batch uses the batch's own h and length.
    stats, mask = SequenceStats(*(x[:, :3] for x in table.stats)), table.mask[:, :3]
    found = to_go_weights(stats, mask, 0.25, per_token=True)
    own = stats.entropy.sum() / mask.sum()
    reward = entropy_to_go((stats.entropy - own) * mask)
    torch.testing.assert_close(found.logp, (reward - 0.25) * mask * 2 / mask.sum())
    torch.testing.assert_close(found.entropy, mask * 2 / mask.sum().double())


def test_the_other_prompts_baseline_is_unbiased_and_ones_own_mean_is_not():
    """Expectation over all pairs of responses, one each to two prompts drawn with return."""
    table = Table(world(0, 3, 2))
    p, R = (table.p / 2).flatten(), table.p.numel()
    pick = tuples(R, 2)
    chance = p[pick].prod(-1)
    stats = SequenceStats(*(x.flatten(0, 1)[pick][:, :, None] for x in table.stats))  # (C, B, G=1, L)
    mask = table.mask.flatten(0, 1)[pick][:, :, None]

    def expected(mu):
        weights = to_go_weights(stats, mask, mu)
        ds, dh = (x.flatten(0, 1)[pick] for x in (table.ds, table.dh))  # (C, B, L, P)
        X = torch.einsum("cbl,cblp->cp", weights.logp[:, :, 0], ds)
        X = X + torch.einsum("cbl,cblp->cp", weights.entropy[:, :, 0], dh)
        return (chance[:, None] * X / 2).sum(0)

    torch.testing.assert_close(expected(others_to_go(stats, mask)), table.truth, rtol=0, atol=1e-12)
    togo = entropy_to_go(stats.entropy) * mask
    own = togo.sum((1, 2), keepdim=True) / mask.sum((1, 2), keepdim=True).clamp(min=1)
    assert (expected(own) - table.truth).norm() > 0.02 * table.truth.norm()


def test_the_running_baseline_is_used_first_and_updated_after():
    first = torch.tensor([[1.0, 2.0, 3.0], [1.0, 4.0, 0.0]], dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]], dtype=torch.bool)
    empty = RunningBaseline.empty(4, rate=0.25)
    once = empty.updated(first, mask)
    assert empty.mean.tolist() == [0, 0, 0, 0]  # what was used stays as it was
    assert once.mean.tolist() == [4.5, 1.5, 0, 0] and once.seen.tolist() == [True, True, True, False]
    twice = once.updated(torch.tensor([[1.0, 0.5]]).double(), torch.ones(1, 2, dtype=torch.bool))
    assert twice.mean.tolist() == [0.75 * 4.5 + 0.25 * 0.5, 0.75 * 1.5, 0, 0]
    with pytest.raises(UsageError, match="responses of 5 tokens"):
        once.updated(torch.zeros(1, 5), torch.ones(1, 5, dtype=torch.bool))
    with pytest.raises(UsageError, match="rate 0"):
        RunningBaseline.empty(3, rate=0.0)


@pytest.mark.parametrize("form", ["score", "to_go"])
def test_the_gradient_of_a_batch_and_its_noise_are_those_of_its_prompts(form):
    w = world(2, 3, 3)
    batch = w.batch_of([[0, 1, 3], [2, 2, 5], [4, 0, 1]], [0, 1, 1])
    policy = Policy(w.policy)
    found = entropy_gradient(policy, batch, form=form, rows=2)
    stats, mask = sequence_stats(policy, batch), batch.mask
    weights = score_weights(stats, mask) if form == "score" else to_go_weights(stats, mask, others_to_go(stats, mask))
    X = row_gradients(policy, batch, weights).sum(1)  # (B, P)
    torch.testing.assert_close(flatten(found.gradient), X.mean(0), rtol=0, atol=1e-12)
    assert found.covariance_trace == pytest.approx(float(X.var(0).sum()), rel=1e-9) and found.prompts == 3


def test_the_update_is_divided_by_a_constant_not_by_the_longest_response():
    advantages = torch.tensor([[1.0, -1.0]])
    mask = torch.tensor([[[1, 1, 0], [1, 0, 0]]], dtype=torch.bool)
    assert update_weights(advantages, mask, norm=10.0).logp.tolist() == [[[0.05, 0.05, 0], [-0.05, 0, 0]]]
    with pytest.raises(UsageError, match="norm 0"):
        update_weights(advantages, mask, norm=0)


def test_one_response_a_prompt_has_no_leave_one_out_baseline():
    w = world()
    one = w.batch_of([[0], [1]], [0, 1])
    with pytest.raises(UsageError, match="1 response a prompt"):
        entropy_gradient(Policy(w.policy), one, form="score")
    assert entropy_gradient(Policy(w.policy), one).covariance_trace > 0  # to-go needs none
    alone = entropy_gradient(Policy(w.policy), w.batch_of([[0, 1]], [0]))
    assert alone.covariance_trace != alone.covariance_trace  # NaN: one prompt has no spread


def test_cut_samplers_are_refused():
    w = world()
    cut = responses(w.prompts, w.batch.tokens, eos=0, sampler=Sampler(top_k=2))
    with pytest.raises(UsageError, match="top_k 2, top_p None: the gradient of the entropy needs"):
        entropy_gradient(Policy(w.policy), cut)
