"""What a run of GRPO is made of, and where each step gets its problems and its random numbers.

Problems of the training come in one row: first those of the warm-up, then those of the rollouts; the entropy batches of
the probe take theirs from far behind. Every random number follows from the seed, its stream and the step.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fluxentropy.errors import RunError
from fluxentropy.pretraining.optim import build_optimizer, scale_learning_rates
from fluxentropy.pretraining.options import OptimConfig, cosine
from fluxentropy.rl.control import control
from fluxentropy.rl.control.base import Base
from fluxentropy.rl.grpo.loss import all_logits
from fluxentropy.rl.grpo.options import GRPOConfig, WarmUpOptions
from fluxentropy.rl.grpo.policies import TrainedPolicy
from fluxentropy.rl.grpo.rollouts import Rollout, greedy, roll_out, sample, stream_seed
from fluxentropy.rl.grpo.tasks import Problem, Scores, Task, TaskChoice
from fluxentropy.rl.probe.policy import Parameters
from fluxentropy.rl.probe.samples import Responses, Sampler
from fluxentropy.runs.progress import Progress
from fluxentropy.schedules.orders import keys, permuted

# --- the warm-up ------------------------------------------------------------------------------------------------------
#
# The loss is the mean over the tokens of answers, their ends included; the prompts are given. A warm-up follows from
# the seed alone, and is not resumed within: the first checkpoint is that of after it.


IGNORE = -100
CLIP = 1.0  # largest norm of the gradient
log = logging.getLogger(__name__)


def shown_problems(options: WarmUpOptions) -> int:
    """How many problems of the training a warm-up shows: those of the rollouts come after them."""
    return min(options.problems or options.steps * options.batch_size, options.steps * options.batch_size)


def warm_up(policy: TrainedPolicy, task: Task, options: WarmUpOptions, *, seed: int) -> float | None:
    """Train the policy in place; the mean loss of the last tenth of the steps, nats a token. None without steps.

    Errors: RunError where the loss is not finite.
    """
    if not options.steps:
        return None
    model, device = policy.model, next(policy.model.parameters()).device
    optimizer = build_optimizer(model, OptimConfig(kind=options.kind, lr=options.lr, weight_decay=options.weight_decay))
    losses, progress = [], Progress(options.steps, unit="warm-up steps")
    encoded: dict[int, tuple[list[int], int]] = {}  # of problems that come again
    for step in range(options.steps):
        scale_learning_rates(optimizer, cosine(step + 0.5, options.steps, warmup=0.1, floor=options.floor))
        numbers = _numbers(options, seed, step)
        encoded |= {number: example(policy, task, number) for number in numbers if number not in encoded}
        ids, targets = pad_examples([encoded[number] for number in numbers], policy.pad)
        if options.problems is None:
            encoded.clear()
        logits = all_logits(model, ids[:, :-1].to(device))
        loss = functional.cross_entropy(logits.float().flatten(0, 1), targets[:, 1:].flatten().to(device))
        if not math.isfinite(value := float(loss.detach())):
            raise RunError(f"the loss of the warm-up at step {step} is {value}: lower --warmup.lr {options.lr:g}")
        losses.append(value)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.trainable().values(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        progress.update(1, loss=f"{value:.4f}")
    progress.close()
    return float(np.mean(losses[-max(len(losses) // 10, 1) :]))


def example(policy: TrainedPolicy, task: Task, number: int) -> tuple[list[int], int]:
    """The ids of a problem with its answer and its end, and the number of those that are given."""
    problem = task.train(number)
    prompt = policy.encode(problem.prompt)
    return prompt + policy.encode_answer(problem.answer), len(prompt)


def pad_examples(examples: Sequence[tuple[list[int], int]], pad: int) -> tuple[Tensor, Tensor]:
    """Ids int64 (n, W) with padding on the right, and targets: the ids, or -100 where a token was given or is none.

    >>> pad_examples([([5, 6, 7], 1), ([5, 8], 1)], 0)[1].tolist()
    [[-100, 6, 7], [-100, 8, -100]]
    """
    width = max(len(ids) for ids, _ in examples)
    ids = torch.full((len(examples), width), pad)
    targets = torch.full_like(ids, IGNORE)
    for n, (tokens, given) in enumerate(examples):
        ids[n, : len(tokens)] = torch.tensor(tokens)
        targets[n, given : len(tokens)] = ids[n, given : len(tokens)]
    return ids, targets


def _numbers(options: WarmUpOptions, seed: int, step: int) -> list[int]:
    """The problems of a step: every one of those shown, in another order each time, before one comes again."""
    size, places = shown_problems(options), np.arange(step * options.batch_size, (step + 1) * options.batch_size)
    rounds = keys(stream_seed(seed, "warmup"), places // size)
    return permuted(places % size, np.array([size]), rounds).tolist()


# --- the experiment ---------------------------------------------------------------------------------------------------


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
