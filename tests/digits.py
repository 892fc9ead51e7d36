"""A task without any library, a policy for it, and a controller: what the tests of GRPO train on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from fluxentropy.rl.control import control
from fluxentropy.rl.control.base import TokenBatch, TokenPlan
from fluxentropy.rl.grpo.options import GRPOConfig, PolicyOptions, ProbeOptions, RolloutOptions, WarmUpOptions
from fluxentropy.rl.grpo.tasks import Problem

SUMS: dict[str, Any] = {  # the options of a run on sums of two digits
    "task": {
        "name": "chain_sum",
        "template": "{expression} =",
        "options": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1},
    },
    "policy": {"n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 32},
    "warmup": {"steps": 20, "batch_size": 16, "lr": 0.01},
    "rollout": {"prompts": 4, "responses": 4, "max_tokens": 3},
    "optim": {"lr": 0.01},
    "eval_problems": 5,
    "accelerator": "cpu",
    "plots": False,
}


class Digits:
    """Say the digit again: prompts of different lengths, `xx3=` is answered by `3`."""

    name = "digits"
    fingerprint = "digits"
    held_out = tuple(Problem(prompt=f"y{digit}=", answer=str(digit)) for digit in range(6))

    def train(self, number: int) -> Problem:
        digit = number * 7 % 10
        return Problem(prompt=f"{'x' * (number % 3)}{digit}=", answer=str(digit))

    def score(self, problem: Problem, response: str) -> float:
        return (
            float(response == problem.answer) + 0.1 * float(response.startswith(problem.answer)) + 0.01 * len(response)
        )


def config(out: Path, **options: Any) -> GRPOConfig:
    """Some steps of a policy of some thousand parameters."""
    sections: dict[str, Any] = {
        "policy": PolicyOptions(n_layer=1, n_head=2, n_embd=16, block_size=16),
        "warmup": WarmUpOptions(steps=5, batch_size=16, problems=20, lr=0.01),
        "rollout": RolloutOptions(prompts=4, responses=3, max_tokens=3),
        "probe": ProbeOptions(),
        "steps": 4,
        "eval_every": 2,
        "eval_problems": 6,
        "accelerator": "cpu",
        "checkpoint_every": 1,
        "plots": False,
    }
    return GRPOConfig(out=out, **{**sections, **options})


@dataclass
class Steering:
    """A controller with a state: it scales step n by scales[n], and counts what it saw."""

    name: str = "steering"
    statistics: frozenset[str] = frozenset()
    adjusts: bool = True
    scales: tuple[float, ...] = (1.0,)
    count: int = 0
    views: list[Any] = field(default_factory=list)
    asks: Callable[[Any], None] | None = None

    def plan(self, batch: TokenBatch, generator: torch.Generator) -> TokenPlan:
        weight = 1.0 + 0.1 * torch.rand(batch.mask.shape, generator=generator)
        return TokenPlan(weight=weight, bonus=0.01, facts={"count": float(self.count)})

    def adjust(self, step: Any) -> float:
        if self.asks is not None:
            self.asks(step)
        self.count += 1
        return self.scales[(self.count - 1) % len(self.scales)]

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]


def steer(patch: pytest.MonkeyPatch, controller: Steering) -> None:
    """Let `controller: {name: steering}` mean this one."""

    def open_controller(mapping: dict[str, Any]) -> Steering:
        assert mapping["name"] == "steering"
        controller.count = 0
        return controller

    patch.setattr(control, "open_controller", open_controller)
