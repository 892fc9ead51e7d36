"""The two steps from scored files to bins, each a picklable job of one unit.

    split    one scored file -> .pieces/part-00003.arrow      its rows, in record batches of one bin each
    gather   all batches of a bin -> bin=07/part-00000.arrow …      in the bin's order

A row's place among all rows of the input is carried along in the column ROW: it decides the shuffled order, so that
this does not depend on how the input is cut into files.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fluxentropy.bins import UNSCORED, Binning
from fluxentropy.columnsummary import ColumnSummary
from fluxentropy.errors import UsageError
from fluxentropy.histogram import Histogram
from fluxentropy.mergesort import sorted_blocks
from fluxentropy.quantiles import Selection
from fluxentropy.rowhash import mix, sum_of_rows
from fluxentropy.scorecolumn import ScoreColumn
from fluxentropy.shards import bin_folder, read_manifest, write_bin
from fluxentropy.store import atomic_path, read_json, sha256_file, write_json
from fluxentropy.tablefiles import reading

PIECES = ".pieces"
ROW, PLACE = "__row", "__place"  # a row's number in the input, and its place in a shuffled bin; not in the shards
ROW_FIELD = pa.field(ROW, pa.int64())
BATCH_BYTES, BATCH_ROWS = 2**25, 2**16  # of the input at a time
SCAN_ROWS = 2**18


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

    def batches(self, rows: int, columns: Sequence[str] | None, joined: Sequence[str]) -> Iterator[pa.Table]:
        """The file in tables of up to `rows` rows: `columns` (None: all), then `joined` from the file beside."""
        at = 0
        with contextlib.ExitStack() as files:
            beside = None
            if joined:
                assert self.scores is not None
                beside = pa.ipc.open_file(files.enter_context(pa.memory_map(str(self.scores)))).read_all()
            files.enter_context(reading(self.path))
            parquet = files.enter_context(pq.ParquetFile(self.path, pre_buffer=False, buffer_size=2**16))
            for batch in parquet.iter_batches(batch_size=rows, columns=columns, use_threads=False):
                table = pa.Table.from_batches([batch])
                for name in joined:
                    assert beside is not None
                    table = table.append_column(name, beside[name].slice(at, batch.num_rows))
                at += batch.num_rows
                if batch.num_rows:
                    yield table


@dataclass(frozen=True, kw_only=True)
class Scan:
    """The job of a pass over the score columns: summaries first, then the cells that the selections ask for."""

    by: tuple[str, ...]
    weight: str | None
    joined: tuple[str, ...] = ()
    selections: tuple[Selection | None, ...] = ()

    def __call__(self, file: ScoredFile) -> list[ColumnSummary | Histogram | None]:
        found: list[Any] = [None] * len(self.by)
        columns = dict.fromkeys(name for name in (*self.by, self.weight) if name and name not in self.joined)
        at = 0
        for table in file.batches(SCAN_ROWS, list(columns), self.joined):
            try:
                parts = self._scan(table)
            except UsageError as error:
                raise UsageError(f"{file}, rows {at:,} to {at + len(table):,}: {error}") from error
            found = [part if whole is None else whole + part for whole, part in zip(found, parts, strict=True)]
            at += len(table)
        return found if at else self._scan(self._nothing())

    def _scan(self, table: pa.Table) -> list[Any]:
        found: list[Any] = []
        for axis, name in enumerate(self.by):
            weights = table[self.weight] if self.weight else None
            column = ScoreColumn.read(table[name], weights, name=name, weight_name=self.weight or "")
            if not self.selections:
                found.append(ColumnSummary.of(column))
            else:
                selection = self.selections[axis]
                found.append(None if selection is None else selection.scan(column.values, column.weights))
        return found

    def _nothing(self) -> pa.Table:
        """The columns of a file without rows."""
        fields = {name: pa.float64() for name in self.by} | ({self.weight: pa.int64()} if self.weight else {})
        return pa.schema(fields).empty_table()


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
        piece = self.out / PIECES / f"part-{file.number:05d}.arrow"
        record = piece.with_name(f".{piece.stem}.json")
        if (facts := read_json(record)) is not None and piece.is_file():
            return facts
        facts = {"rows": 0, "hash": 0, "bins": {}, "batches": {}}
        written = 0
        with atomic_path(piece) as aside, pa.ipc.new_file(str(aside), self.schema.append(ROW_FIELD)) as writer:
            for batch in self._batches(file):
                facts["rows"] += batch.num_rows
                facts["hash"] = (facts["hash"] + sum_of_rows(batch)) % 2**64
                for number, rows in _by_bin(batch):
                    if self.only is None or number in self.only:
                        writer.write_batch(rows)
                        facts["bins"][str(number)] = facts["bins"].get(str(number), 0) + rows.num_rows
                        facts["batches"].setdefault(str(number), []).append(written)
                        written += 1
        write_json(record, facts)
        return facts

    def _batches(self, file: ScoredFile) -> Iterator[pa.RecordBatch]:
        """The file's rows in the shards' columns, with their bin and their number."""
        rows = max(1, min(BATCH_ROWS, BATCH_BYTES // max(file.row_bytes, 1)))
        names = dict(self.renamed)
        at = file.start
        for table in file.batches(rows, None, self.joined):
            bins = self.binning.assign(*(table[name] for name in self.binning.columns))
            numbers = pa.array(np.arange(at, at + len(table)))
            at += len(table)
            table = table.rename_columns([names.get(name, name) for name in table.column_names])
            table = table.append_column("bin", pa.array(bins, pa.int32(), mask=bins == UNSCORED))
            table = table.select(self.schema.names).cast(self.schema).append_column(ROW_FIELD, numbers)
            (batch,) = table.combine_chunks().to_batches()
            yield batch


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
        schema = self.schema.append(ROW_FIELD).append(pa.field(PLACE, pa.uint64()))
        spill = self.out / PIECES / f".spill-{number}"
        shutil.rmtree(spill, ignore_errors=True)
        spill.mkdir(parents=True)
        try:
            tables = sorted_blocks(self._pieces(number), schema, keys, memory=self.memory, spill=spill)
            return write_bin(tables, self.schema, folder, shard_bytes=self.shard_bytes)
        finally:
            shutil.rmtree(spill, ignore_errors=True)

    def _pieces(self, number: int) -> Iterator[pa.RecordBatch]:
        seed = mix(np.array([self.seed], np.uint64))
        for path in sorted((self.out / PIECES).glob("part-*.arrow")):
            record = read_json(path.with_name(f".{path.stem}.json")) or {}
            with reading(path), pa.memory_map(str(path)) as source:
                file = pa.ipc.open_file(source)
                for place in record["batches"].get(str(number), []):
                    batch = file.get_batch(place)
                    places = mix(batch.column(ROW).to_numpy().astype(np.uint64) ^ seed)
                    yield batch.append_column(PLACE, pa.array(places))


def fingerprints(source: str, paths: Sequence[Path]) -> dict[str, str]:
    """The SHA-256 of each file of `source`, by its name below the folder that holds all of them.

    A run's parts have been checked against their manifests by `table_files`; all other files are read.
    """
    top = Path(os.path.commonpath([path.parent for path in paths]))
    is_run = (Path(source) / "manifest.json").exists()
    found = {}
    for path in paths:
        record = read_json(path.with_name(f".{path.stem}.json")) if is_run else None
        found[str(path.relative_to(top))] = record["sha256"] if record else sha256_file(path)
    return found
