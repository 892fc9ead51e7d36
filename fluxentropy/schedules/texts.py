"""The texts of bins in any order, in bounded memory.

Shards are compressed, so a text costs the whole of its record batch: texts in a random order cannot be fetched one by
one. A corpus that fits into memory is read once. A larger one is read once too, and its rows go to the disk by where
they are to come, as an external sort would do it, but that the places are known beforehand:

    places   (position, row) of all that is asked for, in a file for each load, a stretch of rows that fits into memory
    load     its rows in the order of their positions, a record batch for each piece of positions -> run-N.arrow
    piece    the record batches of all runs for it, put in order

Rows are numbered over all bins: those of bin 0, then those of bin 1, and so on.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from fluxentropy.errors import RunError
from fluxentropy.ordering.bins import Bins
from fluxentropy.ordering.shards import read_manifest
from fluxentropy.runs.check import damage
from fluxentropy.runs.files import fingerprint_json
from fluxentropy.runs.mergesort import Part
from fluxentropy.runs.tables import fixed_width, reading, row_sizes

ROW, POSITION = "__row", "__position"
LARGEST = 2**29  # bytes of a load or a piece: the 32-bit offsets of texts overflow at 2 GiB
CHUNK = 2**18  # positions that are looked up together
Numbers = Callable[[int, int], np.ndarray]  # the rows at the positions from the first to before the second


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Positions `start` to `stop - 1`, which are put in order in memory."""

    start: int
    stop: int


@dataclass(frozen=True, kw_only=True)
class TextSet:
    """The rows of all bins."""

    bins: Bins
    counts: np.ndarray  # (K,)
    schema: pa.Schema  # of the shards, and `id`, which is made where there is none
    row_bytes: np.ndarray  # (K,) of a row of each bin, in memory, by a look at a few
    fingerprint: str  # of all shards

    @classmethod
    def open(cls, bins: Bins) -> TextSet:
        """Errors: `RunError` where a shard is missing or cannot be read."""
        facts = [read_manifest(one.folder) or {} for one in bins]
        first = _reader(bins[0].files[0]).schema
        return cls(
            bins=bins,
            counts=np.array(bins.counts, np.int64),
            schema=first if "id" in first.names else pa.schema([pa.field("id", pa.string()), *first]),
            row_bytes=np.array([_row_bytes(one.files, first) for one in bins]),
            fingerprint="sha256:" + fingerprint_json([[file["sha256"] for file in one["files"]] for one in facts]),
        )

    @property
    def first(self) -> np.ndarray:
        """The number of each bin's first row, and at the end that of all rows. (K+1,)"""
        return np.append(0, np.cumsum(self.counts))

    @property
    def full_schema(self) -> pa.Schema:
        """The columns, and `ROW`, the row's number."""
        return self.schema.append(pa.field(ROW, pa.int64()))

    def pieces(self, wanted: Sequence[Piece], numbers: Numbers, *, memory: int, spill: Path) -> Generator[Part]:
        """The rows of each of the pieces, each with the order in which they are to be taken; columns: `full_schema`.

        `memory` (bytes) is about what is held; what does not fit goes to the folder `spill`, which is removed.
        """
        if not wanted:
            return
        if float(self.counts @ self.row_bytes) <= 2 * load_bytes(memory):
            table = pa.concat_tables(table for _, table in self._loads([int(self.counts.sum())])).combine_chunks()
            for piece in wanted:
                yield table, pa.array(numbers(piece.start, piece.stop))
            return
        shutil.rmtree(spill, ignore_errors=True)
        spill.mkdir(parents=True)
        try:
            ends = self._load_ends(load_bytes(memory))
            _write_places(spill, ends, wanted, numbers)
            found = self._write_runs(spill, ends, wanted)
            for number in range(len(wanted)):
                yield _in_order(spill, found[number])
        finally:
            shutil.rmtree(spill, ignore_errors=True)

    def _load_ends(self, size: int) -> list[int]:
        """The row before which each load ends, of about `size` bytes."""
        ends: list[int] = []
        for number, count in enumerate(self.counts.tolist()):
            start, rows = int(self.first[number]), max(int(size / float(self.row_bytes[number])), 1)
            ends += [start + min(end + rows, count) for end in range(0, count, rows)]
        return ends

    def _write_runs(self, spill: Path, ends: Sequence[int], wanted: Sequence[Piece]) -> list[list[tuple[int, int]]]:
        """Write the runs, and say which record batches, by run and number, hold the rows of each piece."""
        starts = np.array([piece.start for piece in wanted])
        found: list[list[tuple[int, int]]] = [[] for _ in wanted]
        schema = self.full_schema.append(pa.field(POSITION, pa.int64()))
        for load, table in self._loads(ends, lambda load: places_file(spill, load).exists()):
            places = places_file(spill, load)
            pairs = np.fromfile(places, np.int64).reshape(-1, 2)
            places.unlink()
            pairs = pairs[np.argsort(pairs[:, 0])]
            piece = np.searchsorted(starts, pairs[:, 0], side="right") - 1
            rows = pairs[:, 1] - (ends[load - 1] if load else 0)
            with pa.ipc.new_file(str(run_file(spill, load)), schema) as writer:
                edges = np.flatnonzero(np.diff(piece, prepend=-1, append=-1))
                for batch, (a, b) in enumerate(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)):
                    taken = table.take(pa.array(rows[a:b])).append_column(POSITION, pa.array(pairs[a:b, 0]))
                    writer.write_batch(taken.cast(schema).combine_chunks().to_batches()[0])
                    found[piece[a]].append((load, batch))
        return found

    def _loads(
        self, ends: Sequence[int], needed: Callable[[int], bool] = lambda _: True
    ) -> Iterator[tuple[int, pa.Table]]:
        """The loads that are needed, by number, each as a table of one chunk with the columns of `full_schema`."""
        load, at = 0, 0
        held: list[pa.RecordBatch] = []
        for one in self.bins:
            stop = at + one.rows
            if not any(needed(load + ahead) for ahead, start in enumerate([at, *ends[load:-1]]) if start < stop):
                load, at = load + sum(at < end <= stop for end in ends), stop
                continue
            for batch in self._batches(one.number):
                while batch.num_rows:
                    rows = min(batch.num_rows, ends[load] - at)
                    held.append(self._numbered(batch.slice(0, rows), one.number, at))
                    batch, at = batch.slice(rows), at + rows
                    if at == ends[load]:
                        if needed(load):
                            yield load, pa.Table.from_batches(held).combine_chunks()
                        held, load = [], load + 1
            if at != stop:
                raise RunError(f"{one.folder} holds {at - stop + one.rows:,} rows where bins.json says {one.rows:,}")
        if not ends or ends[-1] == 0:
            yield 0, self.full_schema.empty_table()

    def _batches(self, number: int) -> Iterator[pa.RecordBatch]:
        """The record batches of a bin. Errors: `RunError` where a shard is not as it was written."""
        records = (read_manifest(self.bins[number].folder) or {})["files"]
        for path, record in zip(self.bins[number].files, records, strict=True):
            if problem := damage(path, record):
                raise RunError(f"{path}: {problem}; `fluxentropy verify {self.bins.path} --repair` makes it again")
            with reading(path), pa.OSFile(str(path)) as source:
                file = pa.ipc.open_file(source)
                for place in range(file.num_record_batches):
                    yield file.get_batch(place)

    def _numbered(self, batch: pa.RecordBatch, number: int, at: int) -> pa.RecordBatch:
        """`batch`, whose first row is row `at` over all bins, with `id` and `ROW`."""
        rows = np.arange(at, at + batch.num_rows)
        if "id" not in batch.schema.names:
            names = [f"{number}/{row}" for row in (rows - self.first[number]).tolist()]
            batch = batch.add_column(0, "id", pa.array(names, pa.string()))
        return batch.append_column(ROW, pa.array(rows)).cast(self.full_schema)


def load_bytes(memory: int) -> int:
    """Bytes of a load, and of a piece."""
    return min(memory // 8, LARGEST)


def places_file(spill: Path, load: int) -> Path:
    return spill / f"places-{load:05d}"


def run_file(spill: Path, load: int) -> Path:
    return spill / f"run-{load:05d}.arrow"


def _write_places(spill: Path, ends: Sequence[int], wanted: Sequence[Piece], numbers: Numbers) -> None:
    """Append (position, row) of all positions of the pieces to the file of the load that holds the row."""
    bounds = np.array(ends)
    for start, stop in _stretches(wanted):
        for first in range(start, stop, CHUNK):
            last = min(first + CHUNK, stop)
            rows = numbers(first, last)
            loads = np.searchsorted(bounds, rows, side="right")
            order = np.argsort(loads, kind="stable")
            pairs = np.stack([np.arange(first, last), rows], axis=1)[order]
            edges = np.flatnonzero(np.diff(loads[order], prepend=-1, append=-1))
            for a, b in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
                with open(places_file(spill, int(loads[order[a]])), "ab") as file:
                    file.write(pairs[a:b].tobytes())


def _stretches(wanted: Sequence[Piece]) -> Iterable[tuple[int, int]]:
    """Pieces that follow each other, put together.

    >>> _stretches([Piece(start=0, stop=2), Piece(start=2, stop=5), Piece(start=7, stop=8)])
    [(0, 5), (7, 8)]
    """
    found: list[tuple[int, int]] = []
    for piece in wanted:
        if found and found[-1][1] == piece.start:
            found[-1] = found[-1][0], piece.stop
        else:
            found.append((piece.start, piece.stop))
    return found


def _in_order(spill: Path, batches: Sequence[tuple[int, int]]) -> Part:
    """The rows in these record batches of the runs, and their order."""
    found = []
    for load, number in batches:
        with pa.OSFile(str(run_file(spill, load))) as source:
            found.append(pa.ipc.open_file(source).get_batch(number))
    table = pa.Table.from_batches(found)
    order = np.argsort(table.column(POSITION).to_numpy())
    return table.drop_columns(POSITION).combine_chunks(), pa.array(order)


def _reader(path: Path) -> pa.ipc.RecordBatchFileReader:
    with reading(path):
        return pa.ipc.open_file(pa.memory_map(str(path)))


def _row_bytes(files: Sequence[Path], schema: pa.Schema) -> float:
    """Mean bytes of a row, by the first record batch of the shard in the middle."""
    rows = size = 0
    path = files[len(files) // 2]
    file = _reader(path)
    if file.num_record_batches:
        with reading(path):
            batch = file.get_batch(0)
        rows = batch.num_rows
        size = int(sum(row_sizes(column).sum() for column in batch.columns))
    width = sum(fixed_width(field.type) for field in schema) + 24  # the row's number, its position, and its id
    return size / max(rows, 1) + width
