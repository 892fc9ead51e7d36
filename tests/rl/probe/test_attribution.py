"""The parts of a change: against the two-batch estimate, gradients of every response, and closed forms."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from rl_enumeration import world
from torch import nn

from fluxentropy.errors import UsageError
from fluxentropy.rl import probe as rl
from fluxentropy.rl.probe import attribution as at
from fluxentropy.rl.probe.step import update_weights

NORM, LR = 5.0, 0.3


@pytest.fixture(scope="module")
def scene():
    w = world(0, 4, 3)
    rng = torch.Generator().manual_seed(0)
    update = w.sample(5, 3, rng)
    A = torch.randn(5, 3, generator=rng, dtype=torch.float64)
    A[0, 0] = 0
    theta = rl.Policy(w.policy).parameters()
    P = {name: torch.rand(t.shape, generator=rng, dtype=t.dtype) for name, t in theta.items()}
    return w, w.sample(6, 2, rng), dataclasses.replace(update, advantages=A), P


@pytest.mark.parametrize("form", ["to_go", "score"])
def test_parts_sum_to_the_two_batch_estimate_and_are_products_of_gradients(scene, form):
    w, batch, update, P = scene
    policy, options = rl.Policy(w.policy), {"norm": NORM, "lr": LR, "preconditioner": P, "form": form}
    found = at.attribute(policy, batch, update, rows=4, **options)
    two = rl.update_change(policy, batch, update, **options)
    assert found.total.value == pytest.approx(float(two.value), rel=1e-10)
    assert found.total.se == pytest.approx(float(two.update_variance) ** 0.5, rel=1e-10)

    X = at.entropy_weights(rl.sequence_stats(policy, batch), batch.mask, form)
    xbar = rl.flatten(P) * rl.flatten(rl.weighted_gradient(policy, batch, X))
    for k in range(update.longest):  # ∇S of one position of each response
        only = torch.zeros_like(update.mask, dtype=torch.float64)
        only[..., k] = update.mask[..., k]
        gradients = rl.row_gradients(policy, update, rl.Weights(only))
        expected = LR / 15 / NORM * update.advantages * (gradients @ xbar)
        torch.testing.assert_close(found.tokens[..., k], expected)
    Y = update_weights(update.advantages, update.mask, NORM)
    rows = LR / 5 * rl.row_gradients(policy, update, Y) @ xbar
    torch.testing.assert_close(found.responses, rows)
    assert not found.tokens[~update.mask].any() and not found.tokens[0, 0].any()


def test_quadrants_partition_the_tokens_and_the_change(scene):
    w, batch, update, P = scene
    policy, options = rl.Policy(w.policy), {"norm": NORM, "lr": LR, "preconditioner": P}
    found = at.attribute(policy, batch, update, **options)
    parts, masks = at.quadrants(found, 0.3), at.quadrant_masks(found, 0.3)
    assert set(parts) == set(at.QUADRANTS) == set(masks)
    assert sum(part.change.value for part in parts.values()) == pytest.approx(found.total.value, rel=1e-12)
    used = update.mask & (update.advantages != 0)[..., None]
    assert (sum(mask.int() for mask in masks.values()) == used.int()).all()
    assert sum(part.share for part in parts.values()) == pytest.approx(float(used.sum() / update.mask.sum()))
    rare = (masks["positive_rare"] | masks["negative_rare"])[used]
    assert found.logp[used][rare].max() < found.logp[used][~rare].min()
    for name, mask in masks.items():
        other = at.part_change(policy, batch, update, mask, **options)
        assert other.value == pytest.approx(parts[name].change.value, rel=1e-9)
        assert other.se > 0
        # the jackknife over prompts, by hand: leave each out, and scale the rest up
        c = (found.tokens * mask).sum((-1, -2))
        without = torch.stack([5 / 4 * (c.sum() - one) for one in c])
        se = (4 / 5 * (without - without.mean()).square().sum()).sqrt()
        assert parts[name].change.se == pytest.approx(float(se))
    whole = at.part_change(policy, batch, update, update.mask, **options)
    two = rl.update_change(policy, batch, update, **options)
    assert whole.se == pytest.approx(float(two.entropy_variance) ** 0.5, rel=1e-9)


class FreeLogits(nn.Module):
    """One softmax for every position: its logits are the parameters."""

    def __init__(self, logits):
        super().__init__()
        self.z = nn.Parameter(logits)

    def forward(self, ids):
        return self.z.expand(*ids.shape, -1)


@pytest.fixture(scope="module")
def bandit():
    """Every token once with either advantage, so that each quadrant is there."""
    z = torch.tensor([2.0, 1.5, 0.2, -0.5, -1.0, -2.0], dtype=torch.float64)
    policy, V = rl.Policy(FreeLogits(z)), len(z)
    batch = rl.responses([[0]] * 3, torch.zeros(3, 1, 1, dtype=torch.long))
    tokens = torch.arange(V).repeat(2)[None, :, None]
    A = torch.tensor([1.0] * V + [-1.0] * V, dtype=torch.float64)[None]
    update = rl.responses([[0]], tokens, advantages=A)
    p = z.softmax(0)
    return policy, batch, update, p, -(p * p.log()).sum()


def test_natural_gradient_on_free_logits_is_the_covariance_formula_token_by_token(bandit):
    policy, batch, update, p, H = bandit
    found = at.attribute(policy, batch, update, norm=1.0, lr=LR, preconditioner={"z": 1 / p})
    A, logp = update.advantages[0], p.log().repeat(2)
    torch.testing.assert_close(found.tokens[0, :, 0], -LR * A * (logp + H) / A.numel())
    # in expectation over the policy that is -η Cov(ln p, A): for advantages of mean 0 under p
    a = torch.randn(len(p), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = -LR * ((p * p.log() * a).sum() - (p * p.log()).sum() * (p * a).sum())
    every = torch.arange(len(p))[None, :, None]  # each once, weighted by how often the policy gives it
    weighted = rl.responses([[0]], every, advantages=(6 * p * a)[None])
    change = at.attribute(policy, batch, weighted, norm=1.0, lr=LR, preconditioner={"z": 1 / p})
    assert float(change.tokens.sum()) == pytest.approx(float(expected), rel=1e-12)


def test_quadrants_of_natural_gradient_have_the_stated_signs(bandit):
    policy, batch, update, p, H = bandit
    natural = at.attribute(policy, batch, update, norm=1.0, preconditioner={"z": 1 / p})
    for name, part in at.quadrants(natural, None).items():
        assert part.share > 0 and part.change.value * at.QUADRANTS[name] > 0
    agreement, logp = at.covariance_agreement(natural), p.log()
    sd, shift = logp.std(correction=0), logp.mean() + H  # c has -H where the covariance has the batch's mean of ln p
    assert agreement.correlation == pytest.approx(float(sd / (sd**2 + shift**2).sqrt()))
    agrees = (logp - logp.mean()).sign() == (logp + H).sign()
    assert agreement.same_sign == pytest.approx(float(agrees.double().mean()))


def test_plain_gradient_on_free_logits_follows_the_sensitivity_instead(bandit):
    policy, batch, update, p, H = bandit
    found = at.attribute(policy, batch, update, norm=1.0, lr=LR)
    sensitivity = p * (H + p.log())
    A = update.advantages[0]
    expected = -LR * A * (sensitivity - (p * sensitivity).sum()).repeat(2) / A.numel()
    torch.testing.assert_close(found.tokens[0, :, 0], expected)
    # the second token is common by ln p > -H, yet a positive advantage raises the entropy: S* has to exceed E S*
    assert p[1].log() > -H and found.tokens[0, 1, 0] > 0


def test_the_table_and_the_row_hold_what_was_found(scene, tmp_path):
    w, batch, update, _ = scene
    found = at.attribute(rl.Policy(w.policy), batch, update, norm=NORM)
    at.write_attribution(tmp_path / "a.parquet", found, step=7)
    table = pq.read_table(tmp_path / "a.parquet").to_pandas()
    assert len(table) == int(update.mask.sum()) and set(table.step) == {7}
    assert table.change.sum() == pytest.approx(found.total.value)
    sums = table.groupby(["prompt", "response"]).change.sum().to_numpy().reshape(5, 3)
    np.testing.assert_allclose(sums, found.responses.numpy())
    line = table.iloc[4]
    place = (int(line.prompt), int(line.response), int(line.position))
    assert line.token == update.tokens[place] and line.logp == found.logp[place]
    row = at.row(found)
    assert row["attribution_total"] == found.total.value and all(isinstance(v, float) for v in row.values())
    assert sum(row[f"attribution_{name}"] for name in at.QUADRANTS) == pytest.approx(found.total.value)


def test_what_cannot_be_attributed_is_refused(scene):
    w, batch, update, _ = scene
    policy = rl.Policy(w.policy)
    with pytest.raises(UsageError, match="no advantages"):
        at.attribute(policy, batch, batch, norm=1.0)
    cut = dataclasses.replace(batch, sampler=rl.Sampler(top_k=2))
    with pytest.raises(UsageError, match="top_k 2"):
        at.attribute(policy, cut, update, norm=1.0)
    with pytest.raises(UsageError, match="quantile 1.5"):
        at.quadrants(at.attribute(policy, batch, update, norm=1.0), 1.5)
