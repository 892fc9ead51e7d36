"""`fluxentropy compare`: arms x seeds, each cell a run of `pretrain`, and what their differences say.

    OUT/cells/ARM/seed-0/       the run
    OUT/cells/ARM/seed-0.json   its curve, its final losses by bin and by source, the mixture it was trained on
    OUT/tuning/                 with --rates, the comparison that each arm's peak learning rate is chosen by

The second is made from the first, which it names by a fingerprint; a cell with both is finished.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from fluxentropy.config.results import command
from fluxentropy.config.yaml import to_plain
from fluxentropy.errors import RunError
from fluxentropy.evaluation.questions import ACCURACIES
from fluxentropy.experiments.arms import RANDOM, Arm, Record, all_arms, depth
from fluxentropy.experiments.cells import Cell, Comparison, ComparisonResult, run_comparison
from fluxentropy.experiments.judging import judge
from fluxentropy.experiments.options import CompareConfig
from fluxentropy.experiments.tuning import FOLDER, choices, grid, with_rates
from fluxentropy.models.tokenizers import token_bytes
from fluxentropy.pretraining.export import from_export
from fluxentropy.pretraining.ledger import read_steps
from fluxentropy.pretraining.optim import BATCHED, WARMED_UP
from fluxentropy.pretraining.options import PretrainConfig
from fluxentropy.pretraining.pretrain import FREE, open_blocks, pretrain, read_tokenizer
from fluxentropy.pretraining.trainer import checkpoint_path
from fluxentropy.pretraining.trunk import OPTIONS, split_place
from fluxentropy.pretraining.validation import bpb_by_source, read_sources
from fluxentropy.runs.directory import RunRecord
from fluxentropy.runs.files import fingerprint_json, versions
from fluxentropy.runs.tables import read_metrics
from fluxentropy.schedules.options import ScheduleConfig

OWNED = ("curves.*", "differences.*", "mixture.*", "effects.*", FOLDER)
PIECES = 60  # of the budget, at most, in which the realised mixture is kept


class CompareResult(ComparisonResult):
    """Schedules compared; differences are in per cent of the other arm's final bits per byte: below 0 is better."""

    command = "compare"
    measure = "percent"


@command
def compare(config: CompareConfig) -> CompareResult:
    """Train what is not finished, then judge all arms of `config`; arms and seeds may be added later."""
    arms = all_arms(config)
    plain = Arm(name=RANDOM, own={}, kind="random")
    blocks, held_out = open_blocks(plain.config(config.base, config.bins, config.out))
    if config.sources is not None:
        read_sources(held_out.blocks, config.sources)

    def comparison(arms: Sequence[Arm], tuning: dict[str, Any]) -> Comparison:
        def judged(records: Sequence[Record]) -> dict[str, Any]:
            found = judge(arms, records, seeds=config.seeds, margin=config.margin) | {"bins": str(config.bins)}
            return found | ({"tuning": tuning} if tuning else {})

        return Comparison(
            owned=OWNED,
            arms={arm.name: to_plain(dict(arm.own)) for arm in arms},
            cells=[  # whole seeds first: a comparison that is stopped has pairs
                cell for place in range(config.seeds) for cell in make_cells(config, arms, place)
            ],
            base={name: value for name, value in to_plain(config.base).items() if name not in (*FREE, "schedule")},
            data={"blocks": blocks.fingerprint, "validation": held_out.blocks.fingerprint},
            versions=versions(),
            work=functools.partial(trained, sources=config.sources),
            judge=judged,
        )

    def settled() -> Comparison:
        tuning = choices(config, arms, compare(grid(config, arms)).record)
        return comparison(with_rates(arms, tuning), tuning)

    this = comparison(arms, {})
    return run_comparison(config, dataclasses.replace(this, settle=settled) if config.rates else this, CompareResult)


def make_cells(config: CompareConfig, arms: Sequence[Arm], place: int) -> list[Cell]:
    """The cells of the seed at `place`; those that others start from keep the checkpoints that these need."""
    runs = {arm.name: arm.config(config.base, config.bins, config.out, place) for arm in arms}
    kept: dict[str, set[float]] = {}
    for arm in arms:
        if arm.trunk is not None:
            kept.setdefault(arm.trunk.name, set()).add(float(_start(runs[arm.name])[1]))
    cells: dict[str, Cell] = {}
    for arm in sorted(arms, key=depth):
        run = runs[arm.name]
        if arm.name in kept:
            run = dataclasses.replace(run, checkpoint_at=(*run.checkpoint_at, *sorted(kept[arm.name])))
        trunk = None if arm.trunk is None else cells[arm.trunk.name]
        cell = make_cell(arm.name, run, config.sources, trunk)
        cells[arm.name] = dataclasses.replace(cell, seed=config.base.seed + place, kept=arm.name in kept)
    return [cells[arm.name] for arm in arms]


def _start(run: PretrainConfig) -> tuple[Path, int]:
    """The run and the step that a run starts from."""
    path, step = split_place(str(run.from_))
    assert step is not None
    return path, step


def make_cell(arm: str, config: PretrainConfig, sources: str | None, trunk: Cell | None = None) -> Cell:
    """The cell of `config`; `sources`: the column that says the source of a text; `trunk`: what it starts from."""
    options = {name: value for name, value in to_plain(config).items() if name not in (*FREE, *OPTIONS)}
    options["schedule"] = ScheduleConfig.identity(options["schedule"])
    if options["schedule"]["balanced_labels"] is None:  # as in the cells of earlier versions, which stay finished
        options["schedule"] = {k: v for k, v in options["schedule"].items() if k != "balanced_labels"}
    blocks, held_out = open_blocks(config)
    facts = [options, blocks.fingerprint, held_out.blocks.fingerprint, held_out.first.tolist(), sources]
    facts += [WARMED_UP] if config.average.kind == "ema" else []
    facts += [BATCHED] if config.optim.kind == "muon" else []
    start = None
    if trunk is not None:
        path, step = _start(config)
        start = checkpoint_path(path / "checkpoints", step, for_good=True)
        facts += [
            {"trunk": trunk.fingerprint, "step": step, "branch": config.branch, "optimizer": config.keep_optimizer}
        ]
    fingerprint = fingerprint_json(facts)
    return Cell(arm=arm, seed=config.seed, config=config, fingerprint=fingerprint, trunk=trunk, start=start)


# --- what a cell is judged by -----------------------------------------------------------------------------------------


def trained(cell: Cell, sources: str | None) -> dict[str, Any]:
    """Train a cell, or go on with it. -> its record. Averaged weights, where there are any, are what counts."""
    config = cell.config
    pretrain(config)
    suffixes = config.average.suffixes()
    suffix = next(iter(suffixes), "")  # where there are several averages, that of the first decay
    _, held_out = open_blocks(config)
    tokens, curve, by_bin, last = read_curve(config.out / "metrics.csv", held_out.blocks.bins, suffix)
    mixture = realised(config.out / "ledger.parquet", PIECES)
    if cell.trunk is not None and not config.branch:  # a new training goes on where its trunk was left
        path, step = _start(config)
        past = read_curve(path / "metrics.csv", held_out.blocks.bins, suffix)
        begun = int(read_steps(path, step)["tokens"][-1].as_py())
        early = past[0] < begun
        tokens = np.concatenate([past[0][early], tokens + begun])
        curve, by_bin = (
            np.concatenate([one[early], other]) for one, other in zip(past[1:3], (curve, by_bin), strict=True)
        )
        mixture = realised(config.out / "ledger.parquet", PIECES, before=read_steps(path, step))
    found: dict[str, Any] = {
        "arm": cell.arm,
        "seed": cell.seed,
        "fingerprint": cell.fingerprint,
        "weights": "averaged" if suffix else "last",
        "tokens": tokens,
        "bpb": curve,
        "bpb_by_bin": by_bin,
        "mixture": mixture,
        "questions": {
            name: last[name + suffix] for name in (*ACCURACIES, "answer_loglikelihood") if name + suffix in last
        },
        "parameters": RunRecord.read(config.out).facts.get("parameters"),
    }
    if len(suffixes) > 1:
        found["averages"] = {f"{decay!r}": last[f"val_bpb{name}"] for name, decay in suffixes.items()}
    if sources is not None:
        found["sources"] = _by_source(config, sources, suffix)
    return found


def _by_source(config: PretrainConfig, column: str, suffix: str) -> dict[str, Any]:
    """Bits per byte and bytes of each source, of the exported model."""
    _, held_out = open_blocks(config)
    blocks = held_out.blocks
    device = torch.device("cuda" if config.accelerator != "cpu" and torch.cuda.is_available() else "cpu")
    model = from_export(config.out / f"export{suffix.replace('_', '-')}").to(device)
    sizes = torch.from_numpy(token_bytes(read_tokenizer(blocks), blocks.vocabulary))
    options: dict[str, Any] = {"batch": config.eval_batch, "document_masks": config.model.document_masks}
    found = bpb_by_source(model, held_out, read_sources(blocks, column), sizes, **options)
    return {name: {"bpb": bpb, "bytes": size} for name, (bpb, size) in found.items()}


def read_curve(path: Path, bins: int, suffix: str = "") -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, float]]:
    """The validations in metrics.csv: tokens (E,), bits per byte (E,), of each bin (E, K), and all of the last row.

    With a `suffix` the columns of the averaged weights count; the first row has none, and there both are the same.
    """
    columns = read_metrics(path)
    rows = np.flatnonzero(~np.isnan(columns["val_loss"]))
    if not len(rows):
        raise RunError(f"{path} holds no validation: start the cell afresh, remove {path.parent}")

    def measured(name: str) -> np.ndarray:
        plain, averaged = columns[name][rows], columns.get(name + suffix, columns[name])[rows]
        return np.where(np.isnan(averaged), plain, averaged)

    by_bin = np.stack([measured(f"val_bpb_bin_{number:02d}") for number in range(bins)], axis=1)
    last = {name: float(value) for name, column in columns.items() if not math.isnan(value := column[rows[-1]])}
    return columns["tokens"][rows].astype(np.int64), measured("val_bpb"), by_bin, last


def realised(path: Path, pieces: int, before: pa.Table | None = None) -> np.ndarray:
    """The share of each bin in equal parts of the steps, by the ledger. -> (at most pieces, K)

    before: the rows of steps before those, which count where they are of as many bins.
    """
    drawn = _bins(pq.read_table(path, columns=["bins"]))
    if before is not None and len(earlier := _bins(before)) and earlier.shape[1] == drawn.shape[1]:
        drawn = np.concatenate([earlier, drawn])
    cuts = np.linspace(0, len(drawn), min(pieces, len(drawn)) + 1).round().astype(np.int64)
    sums = np.add.reduceat(drawn, cuts[:-1], axis=0)
    return np.asarray(sums / sums.sum(axis=1, keepdims=True))


def _bins(ledger: pa.Table) -> np.ndarray:
    """Blocks of each bin in each step. -> float64 (T, K)"""
    return np.array(ledger["bins"].to_pylist(), np.float64)
