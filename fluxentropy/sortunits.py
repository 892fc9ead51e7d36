"""Units of a sort that workers share: files, or ranges of their row groups, each sorted into runs on disk."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from fluxentropy.mergesort import Keys, sorted_runs
from fluxentropy.tablefiles import TableFiles, reading


@dataclass(frozen=True, kw_only=True)
class SortUnit:
    """A file, or some of its row groups."""

    number: int
    path: Path
    groups: range | None = None

    def __str__(self) -> str:
        return str(self.path) + (f", row groups {self.groups[0]} to {self.groups[-1]}" if self.groups else "")


def cut_units(files: Sequence[Path], least: int) -> list[SortUnit]:
    """The units of `files`, in the order of their rows: a file each, or ranges of it where `least` units need that."""
    found: list[SortUnit] = []
    for path in files:
        for groups in _ranges(path, -(-least // len(files))):
            found.append(SortUnit(number=len(found), path=path.absolute(), groups=groups))
    return found


def _ranges(path: Path, pieces: int) -> list[range] | list[None]:
    """The row groups of a file in about `pieces` ranges of about as many rows; None for all of the file."""
    if pieces == 1:
        return [None]
    with reading(path):
        meta = pq.read_metadata(path)
    last = meta.num_row_groups - 1
    stops, rows = [0], 0
    for group in range(last + 1):
        rows += meta.row_group(group).num_rows
        if rows * pieces >= meta.num_rows * len(stops) or group == last:
            stops.append(group + 1)
    return [range(*ends) for ends in itertools.pairwise(stops)] if len(stops) > 2 else [None]


@dataclass(frozen=True, kw_only=True)
class UnitRuns:
    """The sorted runs of a unit of `num_rows` rows."""

    num_rows: int
    runs: list[Path]


@dataclass(frozen=True, kw_only=True)
class SortRuns:
    """The job that sorts a unit into runs, in a folder of its own in `spill`; repeated, it makes them afresh."""

    table: TableFiles
    schema: pa.Schema
    keys: Keys
    memory: int
    spill: Path
    limit: int | None  # rows of a run at most

    def __call__(self, unit: SortUnit) -> UnitRuns:
        folder = self.spill / f"unit-{unit.number:05d}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        table = dataclasses.replace(self.table, files=[unit.path])
        rows = 0

        def counted() -> Iterator[pa.RecordBatch]:
            nonlocal rows
            for batch in table.batches(self.schema, self.memory // 32, unit.groups):
                rows += batch.num_rows
                yield batch

        runs = sorted_runs(counted(), self.schema, self.keys, memory=self.memory, spill=folder, limit=self.limit)
        return UnitRuns(num_rows=rows, runs=runs)
