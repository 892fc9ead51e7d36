"""`fluxentropy ledger`: which documents a training has seen, how often and when; and that the ledger is true."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fluxentropy.binset import Bin, Bins
from fluxentropy.blockset import BlockSet
from fluxentropy.config import LedgerConfig
from fluxentropy.errors import RunError, UsageError
from fluxentropy.ledger import hash_ids
from fluxentropy.outcome import Outcome
from fluxentropy.pretrainoptions import PretrainConfig
from fluxentropy.sampler import Draws
from fluxentropy.store import atomic_path, read_json
from fluxentropy.yamlfile import from_plain, read_yaml

if TYPE_CHECKING:
    from fluxentropy.trainer import Training

LINEAGE = ("id", "source_file", "source_row")


def ledger(config: LedgerConfig) -> Outcome:
    """Draw all blocks of a finished run again, compare them with its ledger, and sum up their documents.

    Errors: RunError where the run is not complete, its blocks have changed, or a step's hash is not that of its blocks.
    """
    training, drawn = draw_again(config.run)
    blocks = training.blocks
    times = np.zeros(int(blocks.first[-1]), np.int64)
    first = np.full(len(times), np.iinfo(np.int64).max)
    last = np.zeros(len(times), np.int64)
    steps = 0
    for steps, ids in enumerate(drawn, 1):
        np.add.at(times, ids, 1)
        np.minimum.at(first, ids, steps)
        np.maximum.at(last, ids, steps)
    out = config.out or config.run / "documents.parquet"
    table = pa.concat_tables(_documents(blocks, times, first, last))
    with atomic_path(out) as path:
        pq.write_table(table, path, compression="zstd")
    seen = np.asarray(table["times"])
    lines = [
        f"{steps:,} steps, each with the blocks that its hash says",
        f"{len(table):,} documents: {(seen > 0).sum():,} seen, {(seen == 0).sum():,} not; "
        f"at most {seen.max(initial=0):,} times",
        str(out),
    ]
    data = {
        "run": str(config.run),
        "steps": steps,
        "documents": len(table),
        "seen": int((seen > 0).sum()),
        "out": str(out),
    }
    return Outcome(lines=lines, data=data)


def draw_again(run: Path) -> tuple[Training, Iterator[np.ndarray]]:
    """What a finished run was trained on, and the blocks (B,) of each of its steps, compared with the ledger.

    Errors: UsageError where `run` is no such run; RunError names the step whose hash is another.
    """
    from fluxentropy.pretrain import open_training

    manifest = read_json(run / "manifest.json") or {}
    if manifest.get("identity", {}).get("kind") != "pretrain" or not manifest.get("complete"):
        raise UsageError(f"{run} is no finished run of pretrain")
    training = open_training(read_config(run))
    return training, _drawn(run, training.sampler, manifest.get("losses") or [])


def _drawn(run: Path, sampler: Draws, losses: Sequence[Sequence[float]]) -> Iterator[np.ndarray]:
    for step, hashed in enumerate(pq.read_table(run / "ledger.parquet")["ids_hash"].to_pylist()):
        while step >= sampler.plan.known and losses:
            sampler.learn(losses[len(sampler.plan.history)])
        ids = sampler.batch(step)
        if hash_ids(ids) != hashed:
            raise RunError(f"{run}: step {step + 1} of the ledger does not hold the blocks that its hash says")
        yield ids


def read_config(path: Path, **changes: Any) -> PretrainConfig:
    """The configuration in a YAML file, or of a run, with changes."""
    file = path / "config.resolved.yaml" if path.is_dir() else path
    config: PretrainConfig = from_plain(PretrainConfig, {**read_yaml(file, PretrainConfig), **changes})
    return config


def _documents(blocks: BlockSet, times: np.ndarray, first: np.ndarray, last: np.ndarray) -> Iterator[pa.Table]:
    """A table for each bin: its documents in their order. One that no block holds was seen 0 times."""
    bins = Bins.load(blocks.path)
    for number, start in enumerate(blocks.first[:-1].tolist()):
        sources = _lineage(bins[number])
        columns = {
            "times": np.zeros(len(sources), np.int64),
            "first_step": np.full(len(sources), np.iinfo(np.int64).max),
            "last_step": np.zeros(len(sources), np.int64),
        }
        for index in range(int(blocks.counts[number])):
            documents = np.unique(blocks.read(number, index).documents)
            block = start + index
            np.maximum.at(columns["times"], documents, times[block])
            np.minimum.at(columns["first_step"], documents, first[block])
            np.maximum.at(columns["last_step"], documents, last[block])
        unseen = columns["times"] == 0
        table = sources.append_column("bin", pa.array(np.full(len(sources), number, np.int32)))
        table = table.append_column("times", pa.array(columns["times"]))
        for name in ("first_step", "last_step"):
            table = table.append_column(name, pa.array(columns[name], mask=unseen))
        yield table


def _lineage(one: Bin) -> pa.Table:
    """Where the rows of a bin's shards come from."""
    tables = []
    for path in one.files:
        with pa.memory_map(str(path)) as source:
            table = pa.ipc.open_file(source).read_all()
            tables.append(table.select([name for name in LINEAGE if name in table.column_names]))
    return pa.concat_tables(tables)
