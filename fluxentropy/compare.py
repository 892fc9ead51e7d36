"""`fluxentropy compare`: arms x seeds, each cell a run of `pretrain`, and what their differences say.

arms.py -> cells.py -> judging.py, which knows verdict.py -> comparison_text.py, comparison_figures.py
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fluxentropy.arms import RANDOM, Arm, all_arms
from fluxentropy.cells import RunCell, make_cell
from fluxentropy.cellwork import (
    ARMS,
    Cell,
    comparison_outcome,
    finish,
    finished_records,
    remember_arms,
    threads_each,
)
from fluxentropy.compareoptions import CompareConfig
from fluxentropy.config import to_yaml
from fluxentropy.engine import make_engine
from fluxentropy.judging import judge
from fluxentropy.outcome import Outcome
from fluxentropy.pretrain import FREE, open_blocks
from fluxentropy.sourceloss import read_sources
from fluxentropy.store import RunDirectory, write_json, write_text
from fluxentropy.threads import as_begun
from fluxentropy.versions import versions
from fluxentropy.yamlfile import to_plain

OWNED = ("comparison.*", ARMS, "curves.*", "differences.*", "mixture.*", "effects.*")


def compare(config: CompareConfig) -> Outcome:
    """Train what is not finished, then judge all arms of `config`; arms and seeds may be added later."""
    arms = all_arms(config)
    cells = [
        make_cell(arm.name, arm.config(config.base, config.bins, config.out, place), config.sources)
        for place in range(config.seeds)  # whole seeds first: a comparison that is stopped has pairs
        for arm in arms
    ]
    plain = Arm(name=RANDOM, own={}, kind="random")
    blocks, held_out = open_blocks(plain.config(config.base, config.bins, config.out))
    if config.sources is not None:
        read_sources(held_out.blocks, config.sources)
    with (
        RunDirectory(config.out, overwrite=config.overwrite, folder="cells", owned=OWNED) as run,
        as_begun(config.out, config.base.accelerator, new=threads_each(config)) as threads,
    ):
        base = {name: value for name, value in to_plain(config.base).items() if name not in (*FREE, "schedule")}
        data = {"blocks": blocks.fingerprint, "validation": held_out.blocks.fingerprint}
        run.begin({"kind": "compare", "base": base, **data, **threads}, to_yaml(config), last=True)
        remember_arms(config.out, {arm.name: to_plain(dict(arm.own)) for arm in arms})
        failed = _train(config, [cell for cell in cells if not cell.record()], threads) if config.train else {}
        outcome = _judge(config, arms, cells, failed, data)
        run.finish({"arms": [arm.name for arm in arms], "failed": failed, "versions": versions()})
    return outcome


def _train(config: CompareConfig, cells: Sequence[Cell], threads: dict[str, int]) -> dict[str, str]:
    """Finish the cells. -> those that failed, and why"""
    job = RunCell(config.sources, threads.get("threads", threads_each(config)), config.keep_checkpoints)
    return finish(make_engine(config.engine, config.workers, config.address, config.gpus_per_worker), job, cells)


def _judge(
    config: CompareConfig, arms: Sequence[Arm], cells: Sequence[Cell], failed: dict[str, str], data: dict[str, str]
) -> Outcome:
    """Write what the finished cells say."""
    from fluxentropy.comparison_figures import draw_comparison
    from fluxentropy.comparison_text import markdown, summary

    records = finished_records(cells, failed, config.out)
    record: dict[str, Any] = judge(arms, records, seeds=config.seeds, margin=config.margin) | {
        "command": f"fluxentropy compare --config {config.out / 'config.resolved.yaml'}",
        "bins": str(config.bins),
        "base": to_plain(config.base),
        "fingerprints": {**data, "cells": {f"{one['arm']}/seed-{one['seed']}": one["fingerprint"] for one in records}},
        "failed": failed,
        "versions": versions(),
    }
    write_json(config.out / "comparison.json", record)
    figures = draw_comparison(record, records, config.out)
    write_text(config.out / "comparison.md", markdown(record))
    return comparison_outcome(config.out, "comparison", record, summary(record), figures, len(cells))
