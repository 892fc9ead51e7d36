"""The two steps from scored files to bins, each a picklable job of one unit.

    split    one scored file -> .pieces/part-00003/bin=07.arrow …     its rows, by bin
    gather   one bin's pieces -> bin=07/part-00000.arrow …            in the bin's order

A row's place among all rows of the input is carried along in the column ROW: it decides the shuffled order, so that
this does not depend on how the input is cut into files.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fluxentropy.bins import UNSCORED, Binning
from fluxentropy.columnsummary import ColumnSummary
from fluxentropy.histogram import Histogram
from fluxentropy.mergesort import sorted_blocks
from fluxentropy.quantiles import Selection
from fluxentropy.rowhash import mix, sum_of_rows
from fluxentropy.scorecolumn import ScoreColumn
from fluxentropy.shards import bin_folder, read_manifest, write_bin
from fluxentropy.store import atomic_folder, read_json, sha256_file, write_json
from fluxentropy.tablefiles import reading

PIECES = ".pieces"
ROW, PLACE = "__row", "__place"  # a row's number in the input, and its place in a shuffled bin; not in the shards
BATCH_BYTES, BATCH_ROWS = 2**24, 2**14


@dataclass(frozen=True, kw_only=True)
class ScoredFile:
    """A file of the input: rows `start`, `start` + 1, … of all rows; `scores` is beside it where scores are joined."""

    number: int
    path: Path
    start: int
    rows: int
    row_bytes: int
    scores: Path | None = None

    def __str__(self) -> str:
        return str(self.path)

    def columns(self, names: tuple[str, ...], joined: tuple[str, ...]) -> pa.Table:
        """The columns `names`, of which `joined` come from the file beside."""
        with reading(self.path):
            table = pq.read_table(self.path, columns=[name for name in names if name not in joined])
        if joined:
            assert self.scores is not None
            beside = pq.read_table(self.scores, columns=list(joined))
            for name in joined:
                table = table.append_column(name, beside[name])
        return table


@dataclass(frozen=True, kw_only=True)
class Scan:
    """The job of a pass over the score columns: summaries first, then the cells that the selections ask for."""

    by: tuple[str, ...]
    weight: str | None
    joined: tuple[str, ...] = ()
    selections: tuple[Selection | None, ...] = ()

    def __call__(self, file: ScoredFile) -> list[ColumnSummary | Histogram | None]:
        weights = (self.weight,) if self.weight else ()
        table = file.columns(tuple(dict.fromkeys((*self.by, *weights))), self.joined)
        found: list[ColumnSummary | Histogram | None] = []
        for axis, name in enumerate(self.by):
            column = ScoreColumn.read(
                table[name], table[self.weight] if self.weight else None, name=name, weight_name=self.weight or ""
            )
            selection = self.selections[axis] if self.selections else None
            if not self.selections:
                found.append(ColumnSummary.of(column))
            else:
                found.append(None if selection is None else selection.scan(column.values, column.weights))
        return found


@dataclass(frozen=True, kw_only=True)
class Split:
    """The job that cuts one scored file into pieces. Repeated, it finds them made."""

    out: Path
    binning: Binning
    schema: pa.Schema  # of the shards
    renamed: tuple[tuple[str, str], ...]  # (name in the input, name in the shards) where they differ
    joined: tuple[str, ...]
    only: frozenset[int] | None = None  # bins to make again; None makes all

    def __call__(self, file: ScoredFile) -> dict[str, Any]:
        folder = self.out / PIECES / f"part-{file.number:05d}"
        record = folder.with_name(f".{folder.name}.json")
        if (facts := read_json(record)) is not None and folder.is_dir():
            return facts
        shutil.rmtree(folder, ignore_errors=True)
        facts = {"rows": 0, "hash": 0, "source": str(file.path.name), "bins": {}}
        schema = self.schema.append(pa.field(ROW, pa.int64()))
        with atomic_folder(folder) as aside:
            writers: dict[int, pa.ipc.RecordBatchFileWriter] = {}
            for batch in self._batches(file):
                facts["rows"] += batch.num_rows
                facts["hash"] = (facts["hash"] + sum_of_rows(batch)) % 2**64
                for number, rows in _by_bin(batch):
                    if self.only is not None and number not in self.only:
                        continue
                    if number not in writers:
                        name = f"{bin_folder(number, self.binning.bins)}.arrow"
                        writers[number] = pa.ipc.new_file(str(aside / name), schema)
                    writers[number].write_batch(rows)
                    facts["bins"][str(number)] = facts["bins"].get(str(number), 0) + rows.num_rows
            for writer in writers.values():
                writer.close()
        write_json(record, facts)
        return facts

    def _batches(self, file: ScoredFile) -> Iterator[pa.RecordBatch]:
        """The file's rows in the shards' columns, with their bin and their number."""
        rows = max(1, min(BATCH_ROWS, BATCH_BYTES // max(file.row_bytes, 1)))
        names = dict(self.renamed)
        beside = None if file.scores is None else pq.read_table(file.scores, columns=list(self.joined))
        at = 0
        with reading(file.path), pq.ParquetFile(file.path, pre_buffer=False, buffer_size=2**16) as parquet:
            for batch in parquet.iter_batches(batch_size=rows, use_threads=False):
                table = pa.Table.from_batches([batch])
                table = table.rename_columns([names.get(name, name) for name in table.column_names])
                for name in self.joined:
                    assert beside is not None
                    table = table.append_column(name, beside[name].slice(at, len(table)))
                bins = self.binning.assign(*(table[axis.by] for axis in self.binning.axes))
                table = table.append_column("bin", pa.array(bins, pa.int32(), mask=bins == UNSCORED))
                numbers = np.arange(file.start + at, file.start + at + len(table))
                at += len(table)
                whole = table.select(self.schema.names).cast(self.schema).append_column(ROW, pa.array(numbers))
                yield whole.combine_chunks().to_batches()[0]


def _by_bin(batch: pa.RecordBatch) -> Iterator[tuple[int, pa.RecordBatch]]:
    """The rows of each bin, in their order."""
    bins = batch.column("bin").fill_null(UNSCORED).to_numpy()
    order = np.argsort(bins, kind="stable")
    arranged = batch.take(pa.array(order))
    numbers, starts = np.unique(bins[order], return_index=True)
    for number, start, stop in zip(numbers, starts, [*starts[1:], len(bins)], strict=True):
        yield int(number), arranged.slice(start, stop - start)


@dataclass(frozen=True, kw_only=True)
class Gather:
    """The job that makes one bin of its pieces. Repeated, it finds it made."""

    out: Path
    bins: int
    schema: pa.Schema
    order: str  # shuffle, score or source
    by: str
    seed: int
    shard_bytes: int
    memory: int

    def __call__(self, number: int) -> dict[str, Any]:
        folder = self.out / bin_folder(number, self.bins)
        if (facts := read_manifest(folder)) is not None:
            return facts
        shutil.rmtree(folder, ignore_errors=True)
        keys = {
            "shuffle": [(PLACE, "ascending")],
            "score": [(self.by, "ascending"), (ROW, "ascending")],
            "source": [(ROW, "ascending")],
        }[self.order]
        schema = self.schema.append(pa.field(ROW, pa.int64())).append(pa.field(PLACE, pa.uint64()))
        spill = self.out / PIECES / f".spill-{number}"
        shutil.rmtree(spill, ignore_errors=True)
        spill.mkdir(parents=True)
        try:
            tables = sorted_blocks(self._pieces(folder.name), schema, keys, memory=self.memory, spill=spill)
            return write_bin(tables, self.schema, folder, shard_bytes=self.shard_bytes)
        finally:
            shutil.rmtree(spill, ignore_errors=True)

    def _pieces(self, name: str) -> Iterator[pa.RecordBatch]:
        for path in sorted((self.out / PIECES).glob(f"part-*/{name}.arrow")):
            with reading(path), pa.memory_map(str(path)) as source:
                file = pa.ipc.open_file(source)
                for number in range(file.num_record_batches):
                    batch = file.get_batch(number)
                    places = mix(batch.column(ROW).to_numpy().astype(np.uint64) ^ mix(np.array([self.seed], np.uint64)))
                    yield batch.append_column(PLACE, pa.array(places))


def sha256_of_input(path: Path) -> str:
    """What identifies a scored file: its part's manifest where it has one, else its bytes."""
    record = read_json(path.with_name(f".{path.stem}.json")) or {}
    return str(record.get("sha256") or sha256_file(path))
