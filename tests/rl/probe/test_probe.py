"""The probe: its parts are those of the library, its refusals, and 50 real AdamW steps of a small transformer."""

from __future__ import annotations

import dataclasses
import math
import statistics
import subprocess
import sys

import pytest
import torch
from rl_enumeration import TinyPolicy, World, direction, outcomes, world
from transformers import LlamaConfig, LlamaForCausalLM

from fluxentropy.errors import ModelError, UsageError
from fluxentropy.rl import probe as rl
from fluxentropy.rl.probe.attribution import row as attribution_row
from fluxentropy.rl.probe.step import update_weights

NORM = 5.0


def _rewarded(batch, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return dataclasses.replace(batch, advantages=torch.randn(batch.shape, generator=rng, dtype=torch.float64))


def _ascend(w, update, optimizer):
    """Set the gradients of the loss whose descent is policy-gradient ascent, and take the step."""
    weights = update_weights(update.advantages, update.mask, NORM)
    optimizer.zero_grad()
    gradient = rl.weighted_gradient(rl.Policy(w.policy), update, weights)
    for name, p in w.policy.named_parameters():
        p.grad = -gradient[name]
    optimizer.step()


@pytest.fixture
def scene():
    w = world(0, 4, 3)
    rng = torch.Generator().manual_seed(0)
    return w, w.sample(6, 2, rng), _rewarded(w.sample(4, 3, rng))


def test_every_part_is_that_of_the_library(scene):
    w, batch, update = scene
    optimizer = torch.optim.AdamW(w.policy.parameters(), lr=0.02)
    for _ in range(2):
        _ascend(w, update, optimizer)
    batch = w.sample(6, 2, torch.Generator().manual_seed(1))
    probe = rl.EntropyProbe(
        w.policy, batch, optimizer=optimizer, update=update, norm=NORM, parts=rl.PARTS, sketch=None, rows=5
    )
    before = rl.snapshot(w.policy)
    stats = rl.sequence_stats(rl.Policy(w.policy), batch)
    _ascend(w, update, optimizer)
    record = probe.measure(clip=0.5)
    step, policy = rl.difference(w.policy, before), rl.Policy(w.policy)

    assert set(record.seconds) == {"entropy", *rl.PARTS} - {"first_order"}  # which comes with the second
    assert record.entropy == rl.sequence_entropy(stats, batch.mask)
    assert record.step_norm == pytest.approx(float(rl.flatten(step).norm()))
    assert record.measured == rl.measured_change(stats, rl.sequence_stats(policy, batch), batch.mask)
    assert record.expansion == rl.expand(policy, batch, step, params=before)
    radius = rl.ghost_radius(policy, batch, step, params=before).min()
    assert record.ghost_radius == pytest.approx(float(radius))
    for unit in ("per_sequence", "per_token"):
        whole = sum(getattr(change, unit).value for change in record.split.values())
        assert whole == pytest.approx(getattr(record.expansion, unit).first.value, rel=1e-9)
    assert abs(record.split["momentum"].per_sequence.value) > 0

    # The update's parts: its mean is the batch part of the step, so their numbers have to agree with each other.
    batch_part = record.split["batch"].per_sequence.value
    togo = record.two_batch.value / 0.5
    assert float(togo) == pytest.approx(
        rl.known_step(policy, batch, _batch_part(w, update, optimizer, before), params=before).value
    )
    assert probe.attribute(clip=0.5).total.value == pytest.approx(float(record.two_batch.value), rel=1e-9)
    scored = rl.known_step(policy, batch, _batch_part(w, update, optimizer, before), form="score", params=before)
    assert record.kernel.change.total == pytest.approx(0.5 * scored.value)
    assert math.copysign(1, batch_part) == math.copysign(1, float(togo))
    assert record.kernel.statistics.eigenvalues.shape == (12,) and record.kernel.sketch is None
    X = rl.to_go_weights(
        upd := rl.sequence_stats(policy, update, before), update.mask, rl.others_to_go(upd, update.mask)
    )
    Y = update_weights(update.advantages, update.mask, NORM)
    x, y = (rl.row_gradients(policy, update, weights, before).sum(1) for weights in (X, Y))
    P = rl.flatten(_preconditioner(optimizer, w))
    torch.testing.assert_close(record.u_statistic.value, rl.multi_prompt_u(0.5 * (x * P) @ y.T).value)


def _preconditioner(optimizer, w):
    group = optimizer.param_groups[0]
    beta1, beta2 = group["betas"]
    found = {}
    for name, p in w.policy.named_parameters():
        state = optimizer.state[p]
        t = float(state["step"])
        root = (state["exp_avg_sq"] / (1 - beta2**t)).sqrt() + group["eps"]
        found[name] = group["lr"] * (1 - beta1) / (1 - beta1**t) / root
    return found


def _batch_part(w, update, optimizer, before):
    Y = update_weights(update.advantages, update.mask, NORM)
    gradient = rl.weighted_gradient(rl.Policy(w.policy), update, Y, before)
    P = _preconditioner(optimizer, w)
    return {name: P[name] * gradient[name] for name in gradient}


def test_plain_descent_uses_its_learning_rate_and_the_sketch_agrees(scene):
    w, batch, update = scene
    optimizer = torch.optim.SGD([{"params": [w.policy.bias, w.policy.head]}], lr=0.03)
    parts = ["two_batch", "kernel", "first_order"]
    probe = rl.EntropyProbe(w.policy, batch, optimizer=optimizer, update=update, norm=NORM, parts=parts, sketch=64)
    _ascend(w, update, optimizer)
    record = probe.measure()
    assert float(record.two_batch.value) == pytest.approx(
        rl.known_step(rl.Policy(w.policy), batch, rl.difference(w.policy, probe._before), params=probe._before).value
    )
    assert record.kernel.sketch == 64
    assert record.expansion.per_token.first.se > 0 and math.isnan(record.expansion.per_token.second.value)


def test_the_row_has_every_number_by_name(scene):
    w, batch, update = scene
    optimizer = torch.optim.AdamW(w.policy.parameters(), lr=0.01)
    probe = rl.EntropyProbe(w.policy, batch, optimizer=optimizer, update=update, norm=NORM, parts=rl.PARTS, sketch=2)
    _ascend(w, update, optimizer)
    record = probe.measure()
    row = record.row()
    assert all(isinstance(value, float) for value in row.values())
    assert row["measured_per_token_se"] == record.measured.per_token.se
    assert row["predicted_per_sequence"] == record.expansion.per_sequence.quadratic.value
    assert {"batch_per_token", "momentum_per_token_se", "kernel_total", "u_statistic_per_sequence"} <= set(row)
    short = rl.EntropyProbe(w.policy, w.sample(6, 2, torch.Generator()), parts=["measured"]).measure().row()
    assert "first_per_token" not in short and short["measured_per_token"] == 0


def test_two_descriptions_of_one_update_have_one_record(scene):
    """Advantages, norm and clipping: the record knows A / norm times the clipping alone."""
    w, batch, update = scene
    relative = update.advantages - update.advantages.mean(1, keepdim=True)
    start = rl.snapshot(w.policy)
    descriptions = [
        (relative, NORM, 1.0),
        (relative / NORM, 1.0, 1.0),
        (3 / 2 * relative, 3 / 2 * NORM, 1.0),  # leave-one-out advantages of three responses
        (relative, NORM / 2, 0.5),
    ]
    rows = []
    for advantages, norm, clip in descriptions:
        w.policy.load_state_dict(start)
        told = dataclasses.replace(update, advantages=advantages)
        sgd = torch.optim.SGD(w.policy.parameters(), lr=0.03)
        parts = ["two_batch", "kernel", "u_statistic"]
        probe = rl.EntropyProbe(w.policy, batch, optimizer=sgd, update=told, norm=norm, parts=parts, sketch=None)
        _ascend(w, dataclasses.replace(update, advantages=relative), sgd)
        rows.append(probe.measure(clip=clip).row() | attribution_row(probe.attribute(clip=clip)))
    assert rows[0]["covariance_per_lr"] != 0
    for row in rows[1:]:
        assert row == pytest.approx(rows[0], rel=1e-9)


def test_differences_to_predictions_have_the_errors_of_paired_numbers(scene):
    w, *_ = scene
    step = w.named(0.3 * direction(w))
    after = rl.Policy(w.moved(direction(w), 0.3).policy)
    rows = []
    for seed in range(40):
        batch = w.sample(12, 2, torch.Generator().manual_seed(seed))
        stats, moved = (rl.sequence_stats(policy, batch) for policy in (rl.Policy(w.policy), after))
        record = rl.ProbeRecord(
            entropy=rl.sequence_entropy(stats, batch.mask),
            step_norm=0.0,
            measured=rl.measured_change(stats, moved, batch.mask),
            snis=rl.measured_change(stats, moved, batch.mask, weights="sequence"),
            expansion=rl.expand(rl.Policy(w.policy), batch, step),
        )
        rows.append(record.row())
    for unit in ("per_sequence", "per_token"):
        for name in ("first", "predicted", "snis"):
            gaps = [row[f"measured_minus_{name}_{unit}"] for row in rows]
            assert gaps == pytest.approx([row[f"measured_{unit}"] - row[f"{name}_{unit}"] for row in rows], abs=1e-12)
            errors = [row[f"measured_minus_{name}_{unit}_se"] for row in rows]
            spread = statistics.stdev(gaps) / statistics.mean(error**2 for error in errors) ** 0.5
            assert 0.65 < spread < 1.4, (name, unit, spread)
        both = statistics.mean(row[f"measured_{unit}_se"] + row[f"predicted_{unit}_se"] for row in rows)
        assert statistics.mean(row[f"measured_minus_predicted_{unit}_se"] for row in rows) < both / 4


def test_parts_are_chosen_by_what_is_there_and_by_the_budget(scene):
    w, batch, update = scene
    probe = rl.EntropyProbe
    adam = torch.optim.AdamW(w.policy.parameters())
    assert probe(w.policy, batch).parts == ("measured", "range", "second_order")
    assert "split" in probe(w.policy, batch, optimizer=adam).parts
    assert probe(w.policy, batch, optimizer=adam, update=update, norm=1.0).parts[-1] == "two_batch"
    assert probe(w.policy, batch, optimizer=adam, budget=2.5).parts == ("measured",)
    assert probe(w.policy, batch, optimizer=adam, budget=8).parts == ("measured", "first_order")
    assert probe(w.policy, batch, parts=["kernel"], optimizer=adam, update=update, norm=1.0, budget=100).parts == ()
    coupled = torch.optim.Adam(w.policy.parameters(), weight_decay=0.1)
    assert "split" not in probe(w.policy, batch, optimizer=coupled).parts
    with pytest.raises(UsageError, match="Adam with its options: how it scales"):
        probe(w.policy, batch, optimizer=coupled, update=update, norm=1.0)
    assert probe(w.policy, batch, budget=0).measure().measured is None


def test_the_policy_is_left_as_it_was(scene):
    w, batch, _ = scene
    w.policy.train()
    probe = rl.EntropyProbe(w.policy, batch)
    before = rl.snapshot(w.policy)
    probe.measure()
    assert w.policy.training and not rl.flatten(rl.difference(w.policy, before)).any()
    assert all(p.grad is None and p.requires_grad for p in w.policy.parameters())


def test_one_response_a_prompt_is_enough(scene):
    w, _, _ = scene
    batch = w.sample(5, 1, torch.Generator().manual_seed(0))
    probe = rl.EntropyProbe(w.policy, batch)
    torch.nn.utils.vector_to_parameters(
        torch.nn.utils.parameters_to_vector(w.policy.parameters()).detach() + 0.01 * direction(w), w.policy.parameters()
    )
    assert probe.measure().expansion.per_token.first.se > 0


def test_a_step_too_large_for_the_batch_is_said(scene):
    w, _, _ = scene
    batch = w.sample(30, 1, torch.Generator().manual_seed(0))
    probe = rl.EntropyProbe(w.policy, batch)
    with torch.no_grad():
        w.policy.bias[1] += 6.0
    record = probe.measure()
    assert record.measured.effective_sample_size < 15
    assert any(said.startswith("effective sample size") for said in record.warnings)
    assert any(said.startswith("ghost radius") for said in record.warnings)


def test_batches_that_the_policy_did_not_sample_are_refused_with_the_gap(scene):
    w, batch, _ = scene
    stats = rl.sequence_stats(rl.Policy(w.policy), batch)
    stored = dataclasses.replace(batch, logp=stats.logp + 5e-3)
    rl.EntropyProbe(w.policy, stored)  # the noise of another engine passes
    with pytest.raises(UsageError, match=r"by up to 0.005 nats a token \(mean 0.005\), more than 0.001"):
        rl.EntropyProbe(w.policy, stored, max_gap=1e-3)
    other = dataclasses.replace(stored, sampler=rl.Sampler(temperature=0.8))
    with pytest.raises(UsageError, match=r"another policy or temperature than 0.8 sampled"):
        rl.EntropyProbe(w.policy, other)
    with pytest.raises(UsageError, match="another policy"):
        rl.EntropyProbe(TinyPolicy(4, seed=9), stored)
    impossible = torch.zeros(4).double()
    impossible[int(batch.tokens[0, 0, 0])] = -torch.inf

    class Forbids(TinyPolicy):
        def forward(self, ids):
            return super().forward(ids) + impossible

    with pytest.raises(UsageError, match=r"token \(0, 0, 0\) .* has probability 0"):
        rl.EntropyProbe(Forbids(4), batch)


def test_what_a_probe_cannot_use_is_refused(scene):
    w, batch, update = scene
    probe = rl.EntropyProbe
    adam = torch.optim.AdamW(w.policy.parameters())
    with pytest.raises(UsageError, match="2 prompts in the batch: a probe with standard errors needs at least 3"):
        probe(w.policy, w.batch)
    cut = dataclasses.replace(batch, sampler=rl.Sampler(top_p=0.9))
    with pytest.raises(UsageError, match="top_p 0.9"):
        probe(w.policy, cut)
    with pytest.raises(UsageError, match="part 'all'"):
        probe(w.policy, batch, parts=["all"])
    with pytest.raises(UsageError, match="'split' needs optimizer=, an AdamW or"):
        probe(w.policy, batch, parts=["split"], optimizer=torch.optim.SGD(w.policy.parameters()))
    with pytest.raises(UsageError, match="'kernel' needs update=, norm= and optimizer="):
        probe(w.policy, batch, parts=["kernel"], optimizer=adam, update=update)
    with pytest.raises(UsageError, match="1 responses a prompt: the kernel's"):
        single = w.sample(5, 1, torch.Generator().manual_seed(0))
        probe(w.policy, single, parts=["kernel"], optimizer=adam, update=update, norm=1.0)
    with pytest.raises(
        UsageError, match="2 prompts in the batch: the part 'u_statistic' of the update needs at least 3"
    ):
        two = update.select(slice(0, 2))
        probe(w.policy, batch, parts=["u_statistic"], optimizer=adam, update=two, norm=1.0)
    with pytest.raises(UsageError, match="the attribution needs update="):
        probe(w.policy, batch, optimizer=adam, parts=["measured"]).attribute()
    with pytest.raises(UsageError, match="'two_batch' needs advantages"):
        probe(w.policy, batch, optimizer=adam, update=batch, norm=1.0)
    with torch.no_grad():
        w.policy.bias[0] = torch.nan
    with pytest.raises(ModelError, match="NaN or infinite"):
        probe(w.policy, batch)


def test_the_library_needs_torch_alone():
    code = """
import sys
import fluxentropy.rl
import fluxentropy.rl.probe as rl
assert "torch" not in sys.modules
assert fluxentropy.rl.EntropyProbe is rl.EntropyProbe
assert {"EntropyProbe", "EntropyProbeCallback"} <= {*dir(fluxentropy.rl)}
assert len([getattr(rl, name) for name in dir(rl) if not name.startswith("_")]) == 79
print({'transformers', 'datasets', 'duckdb'} & set(sys.modules))
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "set()\n" and not found.stderr


# --- a small real transformer -----------------------------------------------------------------------------------------


def test_fifty_adamw_steps_are_predicted_and_measured_within_the_stated_intervals():
    """Against the exact change of the entropy over all 85 responses to each of four prompts."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=5, hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=16, initializer_range=0.4,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    w = World(policy=model, prompts=[[1], [2, 3], [4, 4, 1], [3]], every=outcomes(5, 3))
    rng = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.1)
    reward = torch.randn(len(w.every), generator=rng)
    z = {"first": [], "predicted": [], "measured": [], "measured_per_token": []}
    changes, left = [], {"first": [], "predicted": []}  # what each order leaves of the measured change

    def exact():
        """(𝓗, h)."""
        with torch.no_grad():
            S = w.logp()
        return -(S.exp() * S).sum(1).mean().item(), (-(S.exp() * S).sum() / (S.exp() * w.lengths()).sum()).item()

    before = exact()
    for _ in range(50):
        update = w.sample(8, 4, rng)
        rows = zip(update.tokens.view(32, -1).tolist(), update.lengths.flatten().tolist(), strict=True)
        gains = torch.stack([reward[w.every.index(tuple(tokens[:T]))] for tokens, T in rows]).view(8, 4)
        update = dataclasses.replace(update, advantages=rl.leave_one_out_advantages(gains))
        probe = rl.EntropyProbe(model, w.sample(48, 2, rng), parts=["measured", "second_order"], rows=96)
        _ascend(w, update, optimizer)
        after = exact()
        change, per_token = after[0] - before[0], after[1] - before[1]
        before = after
        record = probe.measure()
        expansion = record.expansion.per_sequence
        for name, estimate, truth in (
            ("first", expansion.first, change),
            ("predicted", expansion.quadratic, change),
            ("measured", record.measured.per_sequence, change),
            ("measured_per_token", record.measured.per_token, per_token),
        ):
            z[name].append((estimate.value - truth) / estimate.se)
        changes.append(change)
        for name, estimate in (("first", expansion.first), ("predicted", expansion.quadratic)):
            left[name].append(abs(estimate.value - record.measured.per_sequence.value))
        assert record.measured.effective_sample_size > 60
    assert sum(abs(c) > 2e-3 for c in changes) > 25  # steps worth measuring
    assert statistics.median(left["predicted"]) < 0.2 * statistics.median(left["first"])
    for name in ("predicted", "measured", "measured_per_token"):
        inside = sum(abs(value) < 1.96 for value in z[name])
        assert inside >= 43, (name, inside)  # 47.5 expected; fewer than 43 has a chance of 0.4%
        assert 25 < sum(value**2 for value in z[name]) < 90, name  # and the errors are not overstated
