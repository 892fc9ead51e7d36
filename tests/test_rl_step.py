"""Realised steps and AdamW's parts, against torch's optimizers and the history of gradients."""

from __future__ import annotations

import pytest
import torch
from rl_enumeration import TinyPolicy, direction, world

from fluxentropy.errors import UsageError
from fluxentropy.rl.policy import dot, flatten
from fluxentropy.rl.step import AdamWRecorder, clip_factor, difference, learning_rates, snapshot


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
