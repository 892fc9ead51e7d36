"""What a run of GRPO is made of, and where each step gets its problems and its random numbers.

Problems of the training come in one row: first those of the warm-up, then those of the rollouts; the entropy batches of
the probe take theirs from far behind. Every random number follows from the seed, its stream and the step.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fluxentropy.rl import control
from fluxentropy.rl.controllers.base import Base
from fluxentropy.rl.grpooptions import GRPOConfig
from fluxentropy.rl.policies import TrainedPolicy
from fluxentropy.rl.policy import Parameters
from fluxentropy.rl.responses import Responses, Sampler
from fluxentropy.rl.rollouts import Rollout, greedy, roll_out, sample, stream_seed
from fluxentropy.rl.tasks import Problem, Scores, Task, TaskChoice
from fluxentropy.rl.warmup import shown_problems

FAR = 2**31  # where the problems of entropy batches begin
EVAL_ROWS = 256


@dataclass(kw_only=True)
class Experiment:
    """A run: the same for every step but its state, `start_step` and `reference` (the policy after the warm-up)."""

    config: GRPOConfig
    task: Task
    policy: TrainedPolicy
    controller: Base | None = None
    start_step: int = 0
    reference: Parameters | None = None

    @property
    def sampler(self) -> Sampler:
        options = self.config.rollout
        return Sampler(temperature=options.temperature, top_k=options.top_k, top_p=options.top_p)

    def problems(self, step: int) -> list[Problem]:
        """Those that the rollout of a step is about."""
        count, first = self.config.rollout.prompts, shown_problems(self.config.warmup)
        return [self.task.train(first + step * count + place) for place in range(count)]

    def roll_out(self, step: int) -> Rollout:
        """The responses that a step learns from."""
        options = self.config.rollout
        return roll_out(
            self.policy,
            self.task,
            self.problems(step),
            responses_each=options.responses,
            sampler=self.sampler,
            max_tokens=options.max_tokens,
            seed=stream_seed(self.config.seed, "rollout", step),
            rows=options.rows,
        )

    def entropy_batch(self, step: int, epoch: int) -> Responses:
        """Responses of the policy as it is now that no update uses."""
        options, probe = self.config.rollout, self.config.probe
        first = FAR + (step * self.config.inner_epochs + epoch) * probe.prompts
        own = [] if probe.same_prompts else [self.task.train(first + place) for place in range(probe.prompts)]
        return sample(
            self.policy,
            own or self.problems(step)[: probe.prompts],
            probe.responses,
            sampler=self.sampler,
            max_tokens=options.max_tokens,
            seed=stream_seed(self.config.seed, "entropy", step, epoch),
            rows=options.rows,
        )

    def generator(self, step: int, epoch: int) -> torch.Generator:
        """What a controller draws from."""
        return torch.Generator().manual_seed(stream_seed(self.config.seed, "controller", step, epoch))

    def evaluate(self) -> dict[str, float]:
        """Mean reward on the problems held out, and the share of those with a reward of 1."""
        options, rows = self.config.rollout, self.config.rollout.rows or EVAL_ROWS
        if self.config.eval_sampled:
            found = roll_out(
                self.policy,
                self.task,
                self.task.held_out,
                responses_each=1,
                sampler=self.sampler,
                max_tokens=options.max_tokens,
                seed=stream_seed(self.config.seed, "evaluation"),
                rows=rows,
            )
            rewards, errors = found.rewards[:, 0].tolist(), found.checker_errors
        else:
            texts = greedy(self.policy, self.task.held_out, max_tokens=options.max_tokens, rows=rows)
            score = Scores(self.task)
            rewards = [score(problem, text) for problem, text in zip(self.task.held_out, texts, strict=True)]
            errors = score.errors
        return {
            "eval_reward": sum(rewards) / len(rewards),
            "eval_solved": sum(reward >= 1 for reward in rewards) / len(rewards),
            "eval_checker_errors": errors,
        }


def task_choice(config: GRPOConfig) -> TaskChoice:
    """The task that a configuration asks for."""
    options = config.task
    return TaskChoice(
        name=options.name,
        data=options.data,
        template=options.template,
        options=options.options,
        seed=config.seed,
        held_out=config.eval_problems,
    )


def open_controller(config: GRPOConfig) -> Base | None:
    """The controller of a configuration, None where it names none."""
    if config.controller.get("name", "none") == "none":
        return None
    return control.open_controller(config.controller)
