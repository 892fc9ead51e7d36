"""A verifiable task: problems by number, and the reward of a response. Problems that are held out are never trained on.

    task = open_task("chain_sum", options={"min_digits": 2}, template="{expression} =")
    problem = task.train(7)                      # always the same
    task.score(problem, "42")                    # 1.0, or 0.0, or something between

A task is any object with these three methods; those by name are the data sets of reasoning-gym and GSM8K.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from fluxentropy.errors import FluxentropyError, RunError, UsageError

GSM8K = "gsm8k"

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What is asked, the answer as text, where there is one that a model can be shown, and what the checker needs."""

    prompt: str
    answer: str
    data: Mapping[str, Any] = field(default_factory=dict)


class Task(Protocol):
    """Problems and their checker.

    Attributes:
        name: for messages.
        held_out: problems that are none of those of `train`, as texts.
        fingerprint: says which problems these are.
    """

    name: str
    held_out: tuple[Problem, ...]
    fingerprint: str

    def train(self, number: int) -> Problem:
        """Problem `number` >= 0 of an endless row."""
        ...

    def score(self, problem: Problem, response: str) -> float:
        """The reward of a response, 1 for a right one. What it raises is a reward of 0: see `Scores`."""
        ...


class Scores:
    """The rewards of a task's checker; `errors` counts responses on which it raised, whose reward is 0.

    Errors: RunError names the prompt and the response whose reward is not finite.
    """

    def __init__(self, task: Task) -> None:
        self.task, self.errors = task, 0

    def __call__(self, problem: Problem, response: str) -> float:
        try:
            reward = float(self.task.score(problem, response))
        except FluxentropyError:
            raise
        except Exception as error:  # the checkers of others expect some answers and not others
            self.errors += 1
            if self.errors == 1:
                said = f"{type(error).__name__}: {error}"
                log.warning(f"the checker of {self.task.name} fails on the response {response!r} ({said}): reward 0")
            return 0.0
        if not math.isfinite(reward):
            raise RunError(
                f"the reward of the response {response!r} to the prompt {problem.prompt!r} is {reward}: look at task "
                f"{self.task.name}"
            )
        return reward


@dataclass(frozen=True, kw_only=True)
class TaskChoice:
    """Which task: what the section `task` of a configuration says, and how many problems are held out."""

    name: str
    data: str | None = None
    template: str = "{question}"
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    held_out: int = 200


def open_task(choice: TaskChoice) -> Task:
    """The task of that name. Errors: UsageError names an unknown one and what can be used."""
    if choice.name == GSM8K:
        from fluxentropy.rl.gsm8k import GSM8KTask

        return GSM8KTask(choice)
    from fluxentropy.rl.gymtask import GymTask

    return GymTask(choice)


def shown(choice: TaskChoice, fields: Mapping[str, Any]) -> str:
    """The problem as a model sees it: the template with its fields filled in.

    >>> shown(TaskChoice(name="chain_sum", template="{expression} ="), {"expression": "1 + 2"})
    '1 + 2 ='
    """
    try:
        return choice.template.format(**fields)
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        known = ", ".join(f"{{{name}}}" for name in fields)
        raise UsageError(
            f"--task.template {choice.template!r}: {error} is no field of {choice.name}: use {known}"
        ) from (error)
