"""`fluxentropy compare`: arms x seeds, each cell a run of `pretrain`, and what their differences say.

    OUT/cells/ARM/seed-0/       the run
    OUT/cells/ARM/seed-0.json   its curve, its final losses by bin and by source, the mixture it was trained on

The second is made from the first, which it names by a fingerprint; a cell with both is finished.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from fluxentropy.config.results import command
from fluxentropy.config.yaml import to_plain
from fluxentropy.errors import RunError
from fluxentropy.evaluation.questions import ACCURACIES
from fluxentropy.experiments.arms import RANDOM, Arm, Record, all_arms
from fluxentropy.experiments.cells import Cell, Comparison, ComparisonResult, run_comparison
from fluxentropy.experiments.judging import judge
from fluxentropy.experiments.options import CompareConfig
from fluxentropy.models.tokenizers import token_bytes
from fluxentropy.pretraining.export import from_export
from fluxentropy.pretraining.optim import WARMED_UP
from fluxentropy.pretraining.options import PretrainConfig
from fluxentropy.pretraining.pretrain import FREE, open_blocks, pretrain, read_tokenizer
from fluxentropy.pretraining.validation import bpb_by_source, read_sources
from fluxentropy.runs.directory import RunRecord
from fluxentropy.runs.files import fingerprint_json, versions
from fluxentropy.runs.tables import read_metrics
from fluxentropy.schedules.options import ScheduleConfig

OWNED = ("curves.*", "differences.*", "mixture.*", "effects.*")
PIECES = 60  # of the budget, at most, in which the realised mixture is kept


class CompareResult(ComparisonResult):
    """Schedules compared; differences are in per cent of the other arm's final bits per byte: below 0 is better."""

    command = "compare"
    measure = "percent"


@command
def compare(config: CompareConfig) -> CompareResult:
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

    def judged(records: Sequence[Record]) -> dict[str, Any]:
        return judge(arms, records, seeds=config.seeds, margin=config.margin) | {"bins": str(config.bins)}

    base = {name: value for name, value in to_plain(config.base).items() if name not in (*FREE, "schedule")}
    this = Comparison(
        owned=OWNED,
        arms={arm.name: to_plain(dict(arm.own)) for arm in arms},
        cells=cells,
        base=base,
        data={"blocks": blocks.fingerprint, "validation": held_out.blocks.fingerprint},
        versions=versions(),
        work=functools.partial(trained, sources=config.sources),
        judge=judged,
    )
    return run_comparison(config, this, CompareResult)


def make_cell(arm: str, config: PretrainConfig, sources: str | None) -> Cell:
    """The cell of `config`; `sources`: the column that says the source of a text."""
    options = {name: value for name, value in to_plain(config).items() if name not in FREE}
    options["schedule"] = ScheduleConfig.identity(options["schedule"])
    if options["schedule"]["balanced_labels"] is None:  # as in the cells of earlier versions, which stay finished
        options["schedule"] = {k: v for k, v in options["schedule"].items() if k != "balanced_labels"}
    blocks, held_out = open_blocks(config)
    facts = [options, blocks.fingerprint, held_out.blocks.fingerprint, held_out.first.tolist(), sources]
    facts += [WARMED_UP] if config.average.kind == "ema" else []
    return Cell(arm=arm, seed=config.seed, config=config, fingerprint=fingerprint_json(facts))


# --- what a cell is judged by -----------------------------------------------------------------------------------------


def trained(cell: Cell, sources: str | None) -> dict[str, Any]:
    """Train a cell, or go on with it. -> its record. Averaged weights, where there are any, are what counts."""
    config = cell.config
    pretrain(config)
    suffix = "_averaged" if config.average.kind != "none" else ""
    _, held_out = open_blocks(config)
    tokens, curve, by_bin, last = read_curve(config.out / "metrics.csv", held_out.blocks.bins, suffix)
    found: dict[str, Any] = {
        "arm": cell.arm,
        "seed": cell.seed,
        "fingerprint": cell.fingerprint,
        "weights": "averaged" if suffix else "last",
        "tokens": tokens,
        "bpb": curve,
        "bpb_by_bin": by_bin,
        "mixture": realised(config.out / "ledger.parquet", PIECES),
        "questions": {
            name: last[name + suffix] for name in (*ACCURACIES, "answer_loglikelihood") if name + suffix in last
        },
        "parameters": RunRecord.read(config.out).facts.get("parameters"),
    }
    if sources is not None:
        found["sources"] = _by_source(config, sources, suffix)
    return found


def _by_source(config: PretrainConfig, column: str, suffix: str) -> dict[str, Any]:
    """Bits per byte and bytes of each source, of the exported model."""
    _, held_out = open_blocks(config)
    blocks = held_out.blocks
    device = torch.device("cuda" if config.accelerator != "cpu" and torch.cuda.is_available() else "cpu")
    model = from_export(config.out / ("export-averaged" if suffix else "export")).to(device)
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


def realised(path: Path, pieces: int) -> np.ndarray:
    """The share of each bin in equal parts of the steps, by the ledger. -> (at most pieces, K)"""
    drawn = np.array(pq.read_table(path, columns=["bins"])["bins"].to_pylist(), np.float64)  # (T, K)
    cuts = np.linspace(0, len(drawn), min(pieces, len(drawn)) + 1).round().astype(np.int64)
    sums = np.add.reduceat(drawn, cuts[:-1], axis=0)
    return np.asarray(sums / sums.sum(axis=1, keepdims=True))
