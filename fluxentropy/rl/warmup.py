"""A short supervised warm-up: the policy learns the form of answers, and some of them, from problems with answers.

The loss is the mean over the tokens of answers, their ends included; the prompts are given. A warm-up follows from the
seed alone, and is not resumed within: the first checkpoint is that of after it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fluxentropy.errors import RunError
from fluxentropy.lr import cosine
from fluxentropy.optim import build_optimizer, scale_learning_rates
from fluxentropy.optimconfig import OptimConfig
from fluxentropy.progress import Progress
from fluxentropy.rl.grpooptions import WarmUpOptions
from fluxentropy.rl.policies import TrainedPolicy
from fluxentropy.rl.rollouts import stream_seed
from fluxentropy.rl.tasks import Task
from fluxentropy.rl.tokenpass import all_logits
from fluxentropy.shuffling import keys, permuted

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
