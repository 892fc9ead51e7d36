"""The gradient of an optimizer step: exact on an enumerable policy, and the same however the batch is cut."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from rl_enumeration import world
from updates import CHOSEN, PROMPTS, drifted, gradient_of, rewards_of, update_of

from fluxentropy.errors import RunError
from fluxentropy.rl.control.base import TokenBatch, TokenPlan
from fluxentropy.rl.grpo.options import GRPOConfig, KLOptions, LossOptions, RolloutOptions

LIMIT = 3


def config(**options: Any) -> GRPOConfig:
    loss = {"advantages": "leave_one_out", "average": "constant"} | options.pop("loss", {})
    rollout = RolloutOptions(max_tokens=LIMIT, temperature=options.pop("temperature", 1.0))
    return GRPOConfig(out=Path("none"), loss=LossOptions(**loss), rollout=rollout, **options)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_its_expectation_is_the_exact_policy_gradient(temperature: float) -> None:
    """Over all pairs of responses: minus the gradient of the expected reward, over the constant length."""
    small = world(limit=2, prompts=1, temperature=temperature)
    p = small.logp()[0].exp()
    count = len(small.every)
    expected = -small.gradient((p * rewards_of([list(range(count))])[0]).sum()) / LIMIT
    settings, total = config(temperature=temperature), torch.zeros_like(expected)
    for i in range(count):
        for j in range(count):
            gradient, found = gradient_of(update_of(small, [[i, j]], [0], settings))
            assert found.clip_fraction == 0 and found.gap == 0
            total += float(p[i].detach() * p[j].detach()) * gradient
    torch.testing.assert_close(total, expected, rtol=1e-6, atol=1e-9)


@dataclass
class Everything:
    """A controller that uses every field of a plan."""

    name: str = "everything"
    statistics: frozenset[str] = frozenset({"nucleus_entropy"})
    adjusts: bool = False
    nucleus: bool = False
    seen: list[TokenBatch] = field(default_factory=list)

    def plan(self, batch: TokenBatch, generator: torch.Generator) -> TokenPlan:
        self.seen.append(batch)
        weight = torch.rand(batch.mask.shape, generator=generator)
        target = (batch.mask & (batch.entropy > batch.entropy[batch.mask].median()), 0.3, 2.0)
        kl = 0.5 * (weight > 0.8)
        return TokenPlan(
            weight=weight,
            kl=kl,
            bonus=0.05,
            target=target,
            nucleus=self.nucleus,
            clip=(0.1, 0.3),
            facts={"left_out": 0.5},
        )


LOSSES: list[dict[str, Any]] = [
    {"average": "tokens"},
    {"average": "responses", "ratio": "sequence"},
    {"average": "constant", "advantages": "standardised", "clip_low": 0.05, "clip_high": 0.1, "entropy_bonus": 0.1},
]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("controlled", [False, True])
def test_accumulation_does_not_change_the_gradient(loss: dict[str, Any], controlled: bool) -> None:
    small = world(limit=LIMIT, prompts=2)
    ref = {name: p.detach() + 0.1 for name, p in small.policy.named_parameters()}
    old = drifted(small, CHOSEN, PROMPTS)
    found = []
    for micro in (None, 1, 5):
        settings = config(loss=loss, micro_batch=micro, kl=KLOptions(beta=0.2))
        controller = Everything() if controlled else None
        found.append(
            gradient_of(update_of(small, CHOSEN, PROMPTS, settings, old=old, ref=ref, controller=controller), 1)
        )
    for gradient, facts in found[1:]:
        torch.testing.assert_close(gradient, found[0][0], rtol=1e-6, atol=1e-9)
        for name in ("loss", "kl", "clip_fraction", "facts"):
            assert getattr(facts, name) == pytest.approx(getattr(found[0][1], name), rel=1e-6)
    assert found[0][1].kl > 0


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("controlled", [False, True, "nucleus"])
def test_the_gradient_is_that_of_the_loss_it_reports(loss: dict[str, Any], controlled: bool | str) -> None:
    """Central differences of the reported loss, with the bonus, the reference and a controller's target in it."""
    small = world(limit=LIMIT, prompts=2)
    ref = {name: p.detach() + 0.1 for name, p in small.policy.named_parameters()}
    old, settings = drifted(small, CHOSEN, PROMPTS), config(loss=loss, kl=KLOptions(beta=0.2))

    class Fixed(Everything):
        """The plan of the first time: a controller's choice of tokens has no gradient."""

        made: TokenPlan | None = None

        def plan(self, batch: TokenBatch, generator: torch.Generator) -> TokenPlan:
            self.made = self.made or super().plan(batch, generator)
            return self.made

    controller = Fixed(nucleus=controlled == "nucleus") if controlled else None
    update = update_of(small, CHOSEN, PROMPTS, settings, old=old, ref=ref, controller=controller)
    gradient, _ = gradient_of(update, 1)
    torch.manual_seed(3)
    direction, eps = torch.randn_like(gradient), 1e-6
    theta = torch.nn.utils.parameters_to_vector(small.policy.parameters()).detach()
    values = []
    for sign in (1, -1):
        torch.nn.utils.vector_to_parameters(theta + sign * eps * direction, small.policy.parameters())
        values.append(gradient_of(update, 1)[1].loss)
    assert (values[0] - values[1]) / (2 * eps) == pytest.approx(float(gradient @ direction), rel=1e-5, abs=1e-8)


def test_a_controller_sees_the_whole_batch_once() -> None:
    small, controller = world(limit=LIMIT, prompts=2), Everything()
    update = update_of(small, CHOSEN, PROMPTS, config(micro_batch=2), controller=controller)
    _, found = gradient_of(update)
    (seen,) = controller.seen
    assert seen.mask.shape == (12, LIMIT) and torch.equal(seen.advantages, update.advantages)
    torch.testing.assert_close(seen.logp, found.logp)
    torch.testing.assert_close(seen.entropy, found.entropy)
    assert (seen.ratio == 1).all()  # on its own responses, exactly
    assert found.facts == {"left_out": 0.5}


def test_rounding_is_taken_out_of_stored_log_probabilities_and_more_is_not() -> None:
    small, settings = world(limit=LIMIT, prompts=2), config(max_logp_gap=0.1)
    own = update_of(small, CHOSEN, PROMPTS, settings).rollout.responses.logp
    assert own is not None
    mask = small.batch_of(CHOSEN, PROMPTS).mask
    update = update_of(small, CHOSEN, PROMPTS, settings, old=own + 3e-6 * mask)
    _, found = gradient_of(update)
    assert found.gap == pytest.approx(3e-6, rel=1e-3)
    torch.testing.assert_close(update.old_logp, found.logp, rtol=0, atol=0)
    update = update_of(small, CHOSEN, PROMPTS, settings, old=own + 0.05 * mask)
    assert gradient_of(update)[1].gap == pytest.approx(0.05)
    torch.testing.assert_close(update.old_logp, (own + 0.05 * mask).flatten(0, 1))
    shifted = own.clone()
    shifted[2, 1, 0] += 0.2
    with pytest.raises(RunError, match=r"'text 2' to the prompt 'problem 0'.*by 0.2 nats, more than --max-logp-gap"):
        gradient_of(update_of(small, CHOSEN, PROMPTS, settings, old=shifted))


def test_a_loss_that_is_not_finite_names_its_prompt() -> None:
    small = world(limit=LIMIT, prompts=2)
    update = update_of(small, CHOSEN, PROMPTS, config(micro_batch=5))
    update.advantages[7] = float("nan")
    with pytest.raises(RunError, match=r"step 0: the loss of the response 'text 2' to the prompt 'problem 0' is nan"):
        gradient_of(update)
