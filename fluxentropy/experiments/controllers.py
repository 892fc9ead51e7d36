"""`fluxentropy grpo-compare`: controllers x seeds, each cell a run of `grpo`, and what their differences say.

    OUT/warmups/seed-0.ckpt     the policy after the warm-up, which all arms share
    OUT/cells/ARM/seed-0/       the run
    OUT/cells/ARM/seed-0.json   its rewards and entropies by step, and what the trained policy does on held-out problems

The last is made from the run, and names by a fingerprint what it follows from; a cell with both is finished.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fluxentropy.config.results import command
from fluxentropy.config.yaml import to_plain
from fluxentropy.errors import UsageError
from fluxentropy.experiments.arms import Record
from fluxentropy.experiments.cells import Cell, Comparison, ComparisonResult, run_comparison
from fluxentropy.experiments.judging import judge_controllers
from fluxentropy.experiments.options import NONE, GRPOCompareConfig
from fluxentropy.pretraining.optim import BATCHED
from fluxentropy.rl.control.control import open_controller
from fluxentropy.rl.grpo.experiment import EVAL_ROWS, Experiment, task_choice
from fluxentropy.rl.grpo.grpo import FREE, RECORDED, grpo, open_experiment
from fluxentropy.rl.grpo.options import GRPOConfig, LoRAOptions
from fluxentropy.rl.grpo.policies import open_policy
from fluxentropy.rl.grpo.rollouts import distinct_right, mean_pass_at_k, roll_out, stream_seed
from fluxentropy.rl.grpo.tasks import open_task
from fluxentropy.runs.files import fingerprint_json, versions
from fluxentropy.runs.tables import read_metrics

OWNED = ("trajectories.*", "pass_at_k.*", "effects.*", "warmups")


class GRPOCompareResult(ComparisonResult):
    """Controllers compared with `none`; a difference is in its family's unit: a share, nats, or a number."""

    command = "grpo-compare"
    measure = "difference"


@command
def grpo_compare(config: GRPOCompareConfig) -> GRPOCompareResult:
    """Train what is not finished, then judge all arms of `config`; arms and seeds may be added later.

    Errors: UsageError names the arm whose controller is none.
    """
    arms = config.all_arms()
    cells = [
        make_cell(name, config.run(name, place), config.samples)
        for place in range(config.seeds)  # whole seeds first: a comparison that is stopped has pairs
        for name in arms
    ]
    for name in arms:
        try:
            open_controller(config.run(name).controller)
        except UsageError as error:
            raise UsageError(f"arms.{name}: {error}") from error
    start = open_experiment(config.run(NONE))

    def judged(records: Sequence[Record]) -> dict[str, Any]:
        found = judge_controllers(arms, records, seeds=config.seeds, share=config.collapse, margin=config.margin)
        return found | {"task": config.base.task.name}

    this = Comparison(
        owned=OWNED,
        arms=arms,
        cells=cells,
        base={name: value for name, value in to_plain(config.base).items() if name not in FREE},
        data={"problems": start.task.fingerprint, "initial_policy": start.policy.fingerprint},
        versions=versions(RECORDED),
        work=functools.partial(trained, samples=config.samples, warmups=config.out / "warmups"),
        judge=judged,
    )
    return run_comparison(config, this, GRPOCompareResult)


def make_cell(arm: str, config: GRPOConfig, samples: int) -> Cell:
    """The cell of `config`, judged by `samples` responses to each held-out problem."""
    options = {name: value for name, value in to_plain(config).items() if name not in FREE}
    facts = [options, open_task(task_choice(config)).fingerprint, samples]
    facts += [BATCHED] if "muon" in (config.optim.kind, config.warmup.kind) else []
    return Cell(arm=arm, seed=config.seed, config=config, fingerprint=fingerprint_json(facts))


# --- what a cell is judged by -----------------------------------------------------------------------------------------


def trained(cell: Cell, samples: int, warmups: Path) -> dict[str, Any]:
    """Train a cell, or go on with it. -> values of each step, and of the held-out problems after the last"""
    grpo(cell.config, warm=warmups / f"seed-{cell.seed}.ckpt")
    known = {"arm": cell.arm, "seed": cell.seed, "fingerprint": cell.fingerprint}
    return known | read_curves(cell.config.out / "metrics.csv") | held_out(cell.config, samples)


def read_curves(path: Path) -> dict[str, list[float]]:
    """From metrics.csv, by step: mean reward of the rollout, and entropy before the step, nats a token."""
    columns = read_metrics(path)
    trained = ~np.isnan(columns["reward"])
    names = {"steps": "step", "reward": "reward", "entropy": "entropy_per_token"}
    return {key: columns[name][trained].tolist() for key, name in names.items()}


def held_out(config: GRPOConfig, samples: int) -> dict[str, Any]:
    """What the exported policy does on the problems held out, greedily and sampled as in training."""
    task = open_task(task_choice(config))
    given = dataclasses.replace(config.policy, model=str(config.out / "export"), lora=LoRAOptions(), offline=True)
    policy = open_policy(given, task, seed=config.seed)
    policy.model.to("cuda" if config.accelerator != "cpu" and torch.cuda.is_available() else "cpu")
    experiment = Experiment(config=dataclasses.replace(config, eval_sampled=False), task=task, policy=policy)
    greedy = experiment.evaluate()
    found = roll_out(
        policy,
        task,
        task.held_out,
        responses_each=samples,
        sampler=experiment.sampler,
        max_tokens=config.rollout.max_tokens,
        seed=stream_seed(config.seed, "evaluation", 1),
        rows=config.rollout.rows or EVAL_ROWS,
    )
    right = found.rewards >= 1
    return {
        "held_out": len(task.held_out),
        "greedy": greedy["eval_solved"],
        "greedy_reward": greedy["eval_reward"],
        "sampled_reward": float(found.rewards.mean()),
        "pass_at_k": {str(k): value._asdict() for k, value in mean_pass_at_k(right, numbers(samples)).items()},
        "distinct": distinct_right(found.texts, right)._asdict(),
        "parameters": policy.model.num_parameters(),
    }


def numbers(samples: int) -> list[int]:
    """The k of pass@k: powers of two up to the samples, and these.

    >>> numbers(12)
    [1, 2, 4, 8, 12]
    """
    return [*(2**n for n in range(samples.bit_length()) if 2**n < samples), samples]
