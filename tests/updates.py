"""The update of GRPO on responses of an enumerable policy, for tests of its gradient."""

from __future__ import annotations

from typing import Any

import torch
from rl_enumeration import World
from torch import Tensor

from fluxentropy.rl.grpo.experiment import Experiment
from fluxentropy.rl.grpo.loss import advantages, all_values
from fluxentropy.rl.grpo.options import GRPOConfig
from fluxentropy.rl.grpo.policies import TrainedPolicy
from fluxentropy.rl.grpo.rollouts import Rollout
from fluxentropy.rl.grpo.tasks import Problem
from fluxentropy.rl.grpo.update import BatchUpdate

CHOSEN, PROMPTS = [[0, 5, 9], [3, 14, 7], [2, 2, 11], [13, 1, 6]], [0, 1, 0, 1]


def rewards_of(chosen: list[list[int]]) -> Tensor:
    """A reward for each response by its number."""
    return torch.tensor([[float(number * 7 % 5) for number in row] for row in chosen], dtype=torch.float64)


def update_of(
    small: World, chosen: list[list[int]], prompts: list[int], settings: GRPOConfig, **more: Any
) -> BatchUpdate:
    """The update on responses of those numbers; `old` are other log-probabilities than the policy's."""
    batch = small.batch_of(chosen, prompts)
    old = more.pop("old", None)
    if old is None:
        old = all_values(small.policy, batch, rows=99).logp.view(*batch.shape, -1)
    batch = small.batch_of(chosen, prompts, logp=old)
    policy = TrainedPolicy(model=small.policy, tokenizer=None, ends=(0,), pad=0, fingerprint="")
    experiment = Experiment(
        config=settings,
        task=None,
        policy=policy,
        controller=more.pop("controller", None),
        reference=more.pop("ref", None),
    )  # type: ignore[arg-type]
    rollout = Rollout(
        problems=tuple(Problem(prompt=f"problem {n}", answer="") for n in prompts),
        responses=batch,
        texts=tuple(tuple(f"text {number}" for number in row) for row in chosen),
        rewards=rewards_of(chosen),
    )
    found = advantages(rollout.rewards, settings.loss.advantages)
    return BatchUpdate(experiment, rollout, found, step=0, beta=settings.kl.beta, **more)


def gradient_of(update: BatchUpdate, epoch: int = 0) -> tuple[Tensor, Any]:
    module = update.experiment.policy.model
    module.zero_grad()
    found = update.gradient(epoch, lambda loss: loss.backward())
    return torch.cat([p.grad.reshape(-1) for p in module.parameters()]), found


def drifted(small: World, chosen: list[list[int]], prompts: list[int], along: Tensor | None = None) -> Tensor:
    """Log-probabilities of an older policy: as after some inner epochs. `along`: how its parameters differ."""
    if along is None:
        along = torch.ones(sum(p.numel() for p in small.policy.parameters()), dtype=torch.float64)
    batch = small.batch_of(chosen, prompts)
    return all_values(small.moved(along, 0.2).policy, batch, rows=99).logp.view(*batch.shape, -1)
