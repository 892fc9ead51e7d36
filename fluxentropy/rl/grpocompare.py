"""`fluxentropy grpo-compare`: controllers x seeds, each cell a run of `grpo`, and what their differences say.

grpocompareoptions.py -> grpocells.py -> grpojudging.py -> grpocomparison_text.py, grpocomparison_figures.py
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fluxentropy.cellwork import (
    ARMS,
    Cell,
    comparison_outcome,
    finish,
    finished_records,
    remember_arms,
    threads_each,
)
from fluxentropy.config import to_yaml
from fluxentropy.engine import make_engine
from fluxentropy.errors import UsageError
from fluxentropy.outcome import Outcome
from fluxentropy.rl.control import open_controller
from fluxentropy.rl.grpo import FREE, RECORDED, open_experiment
from fluxentropy.rl.grpocells import RunGRPOCell, make_cell
from fluxentropy.rl.grpocompareoptions import NONE, GRPOCompareConfig
from fluxentropy.rl.grpojudging import judge
from fluxentropy.store import RunDirectory, write_json, write_text
from fluxentropy.threads import as_begun
from fluxentropy.versions import versions
from fluxentropy.yamlfile import to_plain

OWNED = ("grpo_comparison.*", ARMS, "trajectories.*", "pass_at_k.*", "effects.*", "warmups")


def grpo_compare(config: GRPOCompareConfig) -> Outcome:
    """Train what is not finished, then judge all arms of `config`; arms and seeds may be added later."""
    arms = config.all_arms()
    cells = [
        make_cell(name, config.run(name, place), config.samples)
        for place in range(config.seeds)  # whole seeds first: a comparison that is stopped has pairs
        for name in arms
    ]
    _check_controllers(config)
    start = open_experiment(config.run(NONE))
    with (
        RunDirectory(config.out, overwrite=config.overwrite, folder="cells", owned=OWNED) as run,
        as_begun(config.out, config.base.accelerator, new=threads_each(config)) as threads,
    ):
        base = {name: value for name, value in to_plain(config.base).items() if name not in FREE}
        data = {"problems": start.task.fingerprint, "initial_policy": start.policy.fingerprint}
        run.begin({"kind": "grpo-compare", "base": base, **data, **threads}, to_yaml(config), last=True)
        remember_arms(config.out, arms)
        failed = _train(config, [cell for cell in cells if not cell.record()], threads) if config.train else {}
        outcome = _judge(config, cells, failed, data)
        run.finish({"arms": list(arms), "failed": failed, "versions": versions(RECORDED)})
    return outcome


def _check_controllers(config: GRPOCompareConfig) -> None:
    """UsageError names the arm whose controller is none."""
    for name in config.all_arms():
        try:
            open_controller(config.run(name).controller)
        except UsageError as error:
            raise UsageError(f"arms.{name}: {error}") from error


def _train(config: GRPOCompareConfig, cells: Sequence[Cell], threads: dict[str, int]) -> dict[str, str]:
    """Finish the cells. -> those that failed, and why"""
    job = RunGRPOCell(
        config.samples, threads.get("threads", threads_each(config)), config.keep_checkpoints, config.out / "warmups"
    )
    return finish(make_engine(config.engine, config.workers, config.address, config.gpus_per_worker), job, cells)


def _judge(config: GRPOCompareConfig, cells: Sequence[Cell], failed: dict[str, str], data: dict[str, str]) -> Outcome:
    """Write what the finished cells say."""
    from fluxentropy.rl.grpocomparison_figures import draw_comparison
    from fluxentropy.rl.grpocomparison_text import markdown, summary

    records = finished_records(cells, failed, config.out)
    record: dict[str, Any] = judge(
        config.all_arms(), records, seeds=config.seeds, share=config.collapse, margin=config.margin
    ) | {
        "command": f"fluxentropy grpo-compare --config {config.out / 'config.resolved.yaml'}",
        "task": config.base.task.name,
        "base": to_plain(config.base),
        "fingerprints": {**data, "cells": {f"{one['arm']}/seed-{one['seed']}": one["fingerprint"] for one in records}},
        "failed": failed,
        "versions": versions(RECORDED),
    }
    write_json(config.out / "grpo_comparison.json", record)
    figures = draw_comparison(record, records, config.out)
    write_text(config.out / "grpo_comparison.md", markdown(record))
    return comparison_outcome(config.out, "grpo_comparison", record, summary(record), figures, len(cells))
