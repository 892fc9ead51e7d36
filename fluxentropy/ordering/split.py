"""The two steps from scored files to bins, each a picklable job of one unit.

    split    one scored file -> .pieces/part-00003.arrow      its rows, ordered by bin
    gather   all rows of a bin -> data/bin=07/part-00000.arrow … in the bin's order

A row's place in its bin follows from its number among all rows of the input, so the order does not depend on how the
input is cut into files.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fluxentropy.errors import UsageError
from fluxentropy.ordering.edges import UNSCORED, Binning
from fluxentropy.ordering.quantiles import ColumnSummary, Histogram, ScoreColumn, Selection
from fluxentropy.ordering.shards import FORMAT, bin_folder, read_manifest, readable_table, sum_of_rows, write_bin
from fluxentropy.runs.directory import part_numbers, part_paths
from fluxentropy.runs.engine import Local, prefetch, usable_cores
from fluxentropy.runs.files import atomic_path, read_json, sha256_file, write_json
from fluxentropy.runs.mergesort import Part, sorted_parts
from fluxentropy.runs.tables import reading

# --- pieces -----------------------------------------------------------------------------------------------------------
#
#     .pieces/part-00003.arrow    the rows of scored file 3, in record batches of one bin and one range of places each
#     .pieces/.part-00003.json    written last: {"rows": 9, "hash": …, "bins": {"0": 5, "1": 4},
#                                 "batches": {"0": [[0], [1]], "1": [[2, 4], [3]]}, "ranges": 2, "boot": …, "format": 3}
#
# `batches` says which record batches hold a bin's first range of places, its second, and so on. Places of a shuffled
# bin are hashes, so its ranges are about equal, and the bin is sorted range by range.
#
# Pieces are not forced to the disk: a process may be killed at any time, but after a power cut they may be torn. Their
# records therefore name the machine's start in which they were written, and count only as long as it lasts.


PIECES = ".pieces"
PLACE = "__place"  # where a row stands in its bin, among the rows of all pieces; not in the shards
PLACE_FIELD = pa.field(PLACE, pa.uint64())
SUFFIX = ".arrow"


class PieceWriter:
    """An open piece, and what its record says of its record batches."""

    def __init__(self, sink: pa.NativeFile, schema: pa.Schema, ranges: int) -> None:
        self.writer = pa.ipc.new_file(sink, schema.append(PLACE_FIELD))
        self.ranges = ranges
        self.written = 0
        self.bins: dict[str, int] = {}
        self.batches: dict[str, list[list[int]]] = {}

    def write(self, batch: pa.RecordBatch, only: frozenset[int] | None) -> None:
        """Write the rows of `batch`, or those that are in the bins `only`."""
        bins = batch.column("bin").fill_null(UNSCORED).to_numpy().astype(np.int64)
        groups = bins * self.ranges + range_of(batch.column(PLACE).to_numpy(), self.ranges)
        order = np.argsort(groups, kind="stable")
        if only is not None:
            order = order[np.isin(bins[order], list(only))]
        batch = batch.take(pa.array(order))
        found = np.unique(groups[order], return_index=True, return_counts=True)
        for group, start, rows in zip(*(column.tolist() for column in found), strict=True):
            number, part = divmod(group, self.ranges)
            self.writer.write_batch(batch.slice(start, rows))
            self.bins[str(number)] = self.bins.get(str(number), 0) + rows
            self.batches.setdefault(str(number), [[] for _ in range(self.ranges)])[part].append(self.written)
            self.written += 1


def range_of(places: np.ndarray, ranges: int) -> np.ndarray:
    """Which of `ranges` equal ranges of the 64-bit numbers each place lies in. uint64 (n,) -> int64 (n,)

    >>> range_of(np.array([0, 2**63 - 1, 2**63, 2**64 - 1], np.uint64), 2)
    array([0, 0, 1, 1])
    """
    return ((places >> np.uint64(32)) * np.uint64(ranges) >> np.uint64(32)).astype(np.int64)


def finished(folder: Path, number: int, ranges: int) -> dict[str, Any] | None:
    """The record of piece `number` where it is whole, and cut into so many ranges."""
    piece, record = part_paths(folder, number, SUFFIX)
    facts = read_json(record)
    said = [(facts or {}).get(name) for name in ("ranges", "boot", "format")]
    return facts if said == [ranges, _boot(), FORMAT] and piece.is_file() else None


@contextmanager
def writing(folder: Path, number: int, schema: pa.Schema, ranges: int, facts: dict[str, Any]) -> Iterator[PieceWriter]:
    """Yield the writer of piece `number`; afterwards its record is added to `facts`, which are written with it."""
    path, record = part_paths(folder, number, SUFFIX)
    boot = _boot()
    with (
        atomic_path(path, durable=not boot) as aside,
        pa.output_stream(str(aside), compression=None, buffer_size=2**20) as sink,  # of many small batches
    ):
        piece = PieceWriter(sink, schema, ranges)
        with piece.writer:
            yield piece
    facts |= {"bins": piece.bins, "batches": piece.batches, "ranges": ranges, "boot": boot, "format": FORMAT}
    write_json(record, facts)


def _boot() -> str:
    """What tells this start of the machine from all others; empty where the system does not say (other than Linux)."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def bin_ranges(folder: Path, number: int) -> Iterator[Iterator[pa.RecordBatch]]:
    """The rows of a bin in all pieces: range after range, and the rows of each in the order of the input."""
    found: list[tuple[Path, list[list[int]]]] = []
    for part in sorted(part_numbers(folder)):
        piece, record = part_paths(folder, part, SUFFIX)
        if batches := (read_json(record) or {})["batches"].get(str(number)):
            found.append((piece, batches))
    for part in range(max((len(batches) for _, batches in found), default=0)):
        yield _batches([(piece, batches[part]) for piece, batches in found])


def _batches(places: list[tuple[Path, list[int]]]) -> Iterator[pa.RecordBatch]:
    for path, numbers in places:
        if numbers:
            with reading(path), pa.OSFile(str(path)) as source:
                file = pa.ipc.open_file(source)
                for number in numbers:
                    yield file.get_batch(number)


# --- the two steps ----------------------------------------------------------------------------------------------------


BATCH_BYTES, BATCH_ROWS = 2**22, 2**16  # of the input at a time
RANGE_BYTES = 2**24  # a shuffled bin is cut into ranges of this size, each sorted by itself,
LEAST_BATCH = 2**14  # as long as the input's batches are not cut into smaller pieces than this
SCAN_ROWS = 2**16


@contextlib.contextmanager
def frugal_memory() -> Iterator[None]:
    """Arrow takes memory from jemalloc, or the system; its own keeps much of what its threads have given back.

    The system's leaves large blocks that threads have given back in pieces: two units at a time then hold 80 MB more.
    A pool that the user has chosen stays.
    """
    before = pa.default_memory_pool()
    if "ARROW_DEFAULT_MEMORY_POOL" not in os.environ:
        there = "jemalloc" in pa.supported_memory_backends()
        pa.set_memory_pool(pa.jemalloc_memory_pool() if there else pa.system_memory_pool())
    try:
        yield
    finally:
        pa.set_memory_pool(before)


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
    seed: int | None  # of the order in the bins; None keeps that of the input
    ranges: int  # of places in a bin
    only: frozenset[int] | None = None  # bins to make again; None makes all

    @frugal_memory()
    def __call__(self, file: ScoredFile) -> dict[str, Any]:
        folder = self.out / PIECES
        if (facts := finished(folder, file.number, self.ranges)) is not None:
            return facts
        facts = {"rows": 0, "hash": 0}
        with writing(folder, file.number, self.schema, self.ranges, facts) as piece:
            for batch in self._batches(file):
                facts["rows"] += batch.num_rows
                facts["hash"] = (facts["hash"] + sum_of_rows(batch)) % 2**64
                piece.write(batch, self.only)
                del batch  # not held while the next one is made
        return facts

    def _batches(self, file: ScoredFile) -> Iterator[pa.RecordBatch]:
        """The file's rows in the shards' columns, with their bin and their place in it."""
        rows = max(1, min(BATCH_ROWS, BATCH_BYTES // max(file.row_bytes, 1)))
        names = dict(self.renamed)
        at = file.start
        with contextlib.closing(prefetch(file.batches(rows, None, self.joined))) as tables:
            for table in tables:
                bins = self.binning.assign(*(table[name] for name in self.binning.inputs))
                places = self._places(np.arange(at, at + len(table), dtype=np.uint64))
                at += len(table)
                table = table.rename_columns([names.get(name, name) for name in table.column_names])
                table = table.append_column("bin", pa.array(bins, pa.int32(), mask=bins == UNSCORED))
                table = readable_table(table.select(self.schema.names), self.schema)
                table = table.append_column(PLACE_FIELD, pa.array(places))
                (batch,) = table.combine_chunks().to_batches()
                del table
                yield batch

    def _places(self, numbers: np.ndarray) -> np.ndarray:
        """The places of the rows with these `numbers`: in a shuffled bin a hash, so that they are spread evenly."""
        return numbers if self.seed is None else mix(numbers ^ mix(np.array([self.seed], np.uint64)))


def mix(x: np.ndarray) -> np.ndarray:
    """A permutation of the 64-bit integers in which every bit depends on every other (splitmix64, Steele et al. 2014).

    >>> mix(np.array([0, 1], np.uint64))
    array([16294208416658607535, 10451216379200822465], dtype=uint64)
    """
    with np.errstate(over="ignore"):
        z = x + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def ranges(size: int, bins: int) -> int:
    """Into how many ranges of places the shuffled bins of an input of `size` bytes are cut.

    >>> ranges(10**6, 8), ranges(10**9, 8), ranges(10**12, 8)
    (1, 8, 32)
    """
    return max(1, min(-(-size // (bins * RANGE_BYTES)), BATCH_BYTES // (bins * LEAST_BATCH)))


@dataclass(frozen=True, kw_only=True)
class Gather:
    """The job that makes one bin of its pieces. Repeated, it finds it made."""

    out: Path
    top: str  # of the bins' folders in `out`
    bins: int
    schema: pa.Schema
    order: str  # shuffle, score or source
    by: str
    shard_bytes: int
    memory: int

    @frugal_memory()
    def __call__(self, number: int) -> dict[str, Any]:
        folder = self.out / bin_folder(number, self.bins, self.top)
        if (facts := read_manifest(folder)) is not None:
            return facts
        shutil.rmtree(folder, ignore_errors=True)
        spill = self.out / PIECES / f".spill-{number}"
        shutil.rmtree(spill, ignore_errors=True)
        spill.mkdir(parents=True)
        try:
            return write_bin(self._parts(number, spill), self.schema, folder, shard_bytes=self.shard_bytes)
        finally:
            shutil.rmtree(spill, ignore_errors=True)

    def _parts(self, number: int, spill: Path) -> Iterator[Part]:
        """The rows of the bin in its order."""
        keys = [*([(self.by, "ascending")] if self.order == "score" else []), (PLACE, "ascending")]
        for rows in bin_ranges(self.out / PIECES, number):
            if self.order == "source":
                for batch in rows:
                    yield pa.Table.from_batches([batch]), pa.array(np.arange(batch.num_rows))
            else:
                yield from sorted_parts(rows, self.schema.append(PLACE_FIELD), keys, memory=self.memory, spill=spill)


def fingerprints(source: str, paths: Sequence[Path]) -> dict[str, str]:
    """The SHA-256 of each file of `source`, by its name below the folder that holds all of them.

    A run's parts have been checked against their manifests by `table_files`; all other files are read.
    """
    top = Path(os.path.commonpath([path.parent for path in paths]))
    is_run = (Path(source) / "manifest.json").exists()

    def fingerprint(path: Path) -> str:
        record = read_json(path.with_name(f".{path.stem}.json")) if is_run else None
        return str(record["sha256"]) if record else sha256_file(path)

    found = Local(usable_cores()).run(fingerprint, paths)
    return {str(path.relative_to(top)): one for path, one in zip(paths, found, strict=True)}
