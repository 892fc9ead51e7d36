"""What holds for every controller: options, masks, order of rows, padding, state; and how its answer is applied."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rl_batches import PER_TOKEN, changed, random_batch, same
from torch import nn

from fluxentropy.errors import UsageError
from fluxentropy.rl.control.base import StepView
from fluxentropy.rl.control.control import CONTROLLERS, apply, open_controller
from fluxentropy.rl.probe.step import snapshot

# Options with which a controller does something to a batch of some dozen tokens.
ACTIVE = {
    "clip_cov": {"ratio": 0.2, "low": 0.0},
    "kl_cov": {"ratio": 0.2},
    "clip_b": {"threshold": 0.3},
    "clip_v": {"threshold": 0.1, "most": 0.2},
}

NAMES = sorted(CONTROLLERS)


def opened(name):
    return open_controller({"name": name, **ACTIVE.get(name, {})})


def plan(name, batch, seed=0):
    return opened(name).plan(batch, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", sorted(ACTIVE))
def test_the_batches_of_these_tests_are_acted_on(name):
    found = plan(name, random_batch())
    acted = (found.weight == 0) if found.weight is not None else (found.kl > 0)
    assert acted.sum() > 1


@settings(max_examples=8, deadline=None)
@given(st.data())
@pytest.mark.parametrize("name", NAMES)
def test_what_stands_outside_the_mask_changes_nothing(name, data):
    batch = random_batch(data.draw(st.integers(0, 50)))
    garbage = data.draw(st.sampled_from([float("nan"), float("inf"), -3.0, 1e9]))
    dirty = dataclasses.replace(
        batch, **{x: torch.where(batch.mask, getattr(batch, x), garbage) for x in PER_TOKEN if x != "mask"}
    )
    assert same(plan(name, dirty), plan(name, batch), batch.mask)


@pytest.mark.parametrize("name", NAMES)
def test_more_padding_changes_nothing(name):
    batch = random_batch(1)
    wide = changed(batch, lambda x: torch.cat([x, torch.zeros_like(x)], 1))
    assert same(plan(name, wide), plan(name, batch), batch.mask, lambda x: x[:, : batch.mask.shape[1]])


@pytest.mark.parametrize("name", [name for name in NAMES if name != "clip_cov"])
def test_the_order_of_rows_changes_nothing(name):
    batch, order = random_batch(2), torch.tensor([3, 1, 5, 0, 2, 4])
    turned = dataclasses.replace(changed(batch, lambda x: x[order]), advantages=batch.advantages[order])
    assert same(plan(name, batch), plan(name, turned), turned.mask, lambda x: x[order])


def test_the_draw_of_clip_cov_comes_from_the_generator_alone():
    batch = random_batch(3)
    torch.manual_seed(1)
    first = plan("clip_cov", batch, seed=4)
    torch.manual_seed(2)
    assert same(plan("clip_cov", batch, seed=4), first, batch.mask)
    assert not same(plan("clip_cov", batch, seed=5), first, batch.mask)


@pytest.mark.parametrize("name", [*sorted(ACTIVE), "steer"])
def test_parts_of_a_batch_would_be_planned_otherwise(name):
    """Why the whole batch of an optimizer step is planned at once."""
    batch, half = random_batch(4, N=20), 10
    parts = [
        plan(name, dataclasses.replace(changed(batch, lambda x, p=p: x[p]), advantages=batch.advantages[p]))
        for p in (slice(0, half), slice(half, None))
    ]
    whole = plan(name, batch)
    field = "kl" if name == "kl_cov" else "weight"
    assert not torch.equal(torch.cat([getattr(part, field) for part in parts]), getattr(whole, field))


@pytest.mark.parametrize("name", NAMES)
def test_a_restored_state_plans_the_same(name):
    run, batches = opened(name), [random_batch(seed) for seed in range(3)]
    for seed in range(2):
        run.plan(batches[seed], torch.Generator().manual_seed(seed))
    kept = json.loads(json.dumps(run.state_dict()))
    resumed, fresh = opened(name), opened(name)
    resumed.load_state_dict(kept)
    plans = [c.plan(batches[2], torch.Generator().manual_seed(7)) for c in (run, resumed, fresh)]
    assert same(plans[0], plans[1], batches[2].mask)
    assert resumed.state_dict() == run.state_dict()
    remembers = name in ("follow", "project", "siren")
    assert same(plans[0], plans[2], batches[2].mask) != remembers


@pytest.mark.parametrize("name", NAMES)
def test_a_state_dict_is_a_copy(name):
    run = opened(name)
    before = run.state_dict()
    run.plan(random_batch(), torch.Generator())
    assert before == {}
    run.state_dict()["step"] = -1
    assert run.state_dict().get("step", 1) == 1


@pytest.mark.parametrize("name", NAMES)
def test_a_controller_says_what_it_needs(name):
    controller, batch = opened(name), random_batch()
    bare = {x: None for x in ("expected_sensitivity", "nucleus_entropy") if x not in controller.statistics}
    controller.plan(dataclasses.replace(batch, **bare), torch.Generator())
    for statistic in controller.statistics:
        with pytest.raises(UsageError, match=statistic):
            controller.plan(dataclasses.replace(batch, **{statistic: None}), torch.Generator())
    step = StepView(step=1, entropy_now=1.0)
    if controller.adjusts:
        with pytest.raises(UsageError, match="the trainer did not give"):
            controller.adjust(step)
    else:
        assert controller.adjust(step) == 1.0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"name": "clip-cov"}, "controller.name clip-cov: did you mean clip_cov?"),
        ({"name": "clip_cov", "rato": 1.0}, "controller.rato: no such option of clip_cov: did you mean ratio?"),
        ({"name": "none", "ratio": 1.0}, "controller.ratio: no such option of none, which takes no options"),
        ({"name": "follow", "state": {}}, "controller.state: no such option of follow"),
        ({"name": "clip_cov", "ratio": "much"}, "controller: ratio: 'much' is not a number"),
        ({"name": "clip_cov", "ratio": 0.0}, "clip_cov.ratio 0.0: use a share above 0"),
        ({"name": "clip_cov", "low": 6.0}, "clip_cov.low 6.0: use a number below high, 5.0"),
        ({"name": "steer", "form": "cubic"}, "controller: form: 'cubic' is not one of linear, exponential"),
        ({"name": "follow", "curve": "linear", "end": 0.5}, "follow.steps None: use the number of steps"),
        ({"name": "follow", "end": 0.5}, "follow.end 0.5: use none with a constant curve"),
        ({"name": "follow", "min_bonus": 2.0}, "follow.min_bonus 2.0: use at most max_bonus, 1.0"),
        ({"name": "guard", "fraction": -1}, "guard.fraction -1: use a positive number"),
    ],
)
def test_bad_options_are_refused_with_the_fix(options, said):
    with pytest.raises(UsageError) as error:
        open_controller(options)
    assert said in str(error.value)


def test_no_name_is_no_control():
    assert open_controller({}).name == "none"


# --- applying the answer ----------------------------------------------------------------------------------------------


def moved():
    """(module, parameters before, after) of a step."""
    module = nn.Linear(3, 2)
    before = snapshot(module)
    with torch.no_grad():
        for p in module.parameters():
            p += torch.randn(p.shape, generator=torch.Generator().manual_seed(0))
    return module, before, snapshot(module)


def test_a_factor_scales_the_step():
    module, before, after = moved()
    apply(module, before, 0.25)
    for name, p in module.named_parameters():
        assert torch.allclose(p, 0.75 * before[name] + 0.25 * after[name], atol=1e-6)
    apply(module, before, 0.0)
    assert all(torch.equal(p, before[name]) for name, p in module.named_parameters())


def test_a_factor_of_one_leaves_the_parameters_bit_by_bit():
    module, before, after = moved()
    apply(module, before, 1.0)
    assert all(torch.equal(p, after[name]) for name, p in module.named_parameters())


def test_another_step_takes_its_place():
    module, before, _ = moved()
    step = {name: torch.ones_like(p) for name, p in before.items()}
    apply(module, before, step)
    assert all(torch.equal(p, before[name] + 1) for name, p in module.named_parameters())
