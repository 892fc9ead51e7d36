"""The pieces between the two steps of binning: what one scored file holds, ordered by bin, and in a bin by PLACE.

    .pieces/part-00003.arrow    the rows of scored file 3, in record batches that are each ordered by bin and PLACE
    .pieces/.part-00003.json    written last: {"rows": 9, "hash": …, "bins": {"0": 5, "1": 4}, "bytes": {"0": …},
                                "spans": [{"0": [0, 5], "1": [5, 9]}], "boot": …}; a span is of rows of a record batch

Pieces are not compressed, so that the rows of a bin, and those in a range of places, are read without the others.
They are not forced to the disk either: a process may be killed at any time, but after a power cut they may be torn.
Their records therefore name the machine's start in which they were written, and count only as long as it lasts.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from fluxentropy.bins import UNSCORED
from fluxentropy.store import atomic_path, part_numbers, part_paths, read_json, write_json
from fluxentropy.tablefiles import reading

PIECES = ".pieces"
PLACE = "__place"  # where a row stands in its bin, among the rows of all pieces; not in the shards
PLACE_FIELD = pa.field(PLACE, pa.uint64())
SUFFIX = ".arrow"
MOST_FILES = 256  # open at a time
LEAST_READ = 2**12  # bytes of a bin that are read at a time, in the mean


class PieceWriter:
    """An open piece, and the record that it will have."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.writer = pa.ipc.new_file(str(path), schema.append(PLACE_FIELD))
        self.bins: dict[str, int] = {}
        self.bytes: dict[str, int] = {}
        self.spans: list[dict[str, list[int]]] = []

    def write(self, batch: pa.RecordBatch, only: frozenset[int] | None) -> None:
        """Write the rows of `batch`, or those that are in the bins `only`."""
        bins = batch.column("bin").fill_null(UNSCORED).to_numpy()
        order = np.lexsort((batch.column(PLACE).to_numpy(), bins))
        if only is not None:
            order = order[np.isin(bins[order], list(only))]
        batch = batch.take(pa.array(order))
        numbers, starts = np.unique(bins[order], return_index=True)
        ends = [*starts[1:].tolist(), len(order)]
        spans = {str(n): [start, end] for n, start, end in zip(numbers, starts.tolist(), ends, strict=True)}
        for name, (start, end) in spans.items():
            self.bins[name] = self.bins.get(name, 0) + end - start
            self.bytes[name] = self.bytes.get(name, 0) + batch.slice(start, end - start).nbytes
        self.spans.append(spans)
        self.writer.write_batch(batch)


def made(folder: Path, number: int) -> dict[str, Any] | None:
    """The record of piece `number` where it is whole."""
    piece, record = part_paths(folder, number, SUFFIX)
    facts = read_json(record)
    return facts if facts is not None and facts["boot"] == _boot() and piece.is_file() else None


@contextmanager
def writing(folder: Path, number: int, schema: pa.Schema, facts: dict[str, Any]) -> Iterator[PieceWriter]:
    """Yield the writer of piece `number`; afterwards `facts` holds its record, which is written too."""
    piece, record = part_paths(folder, number, SUFFIX)
    boot = _boot()
    with atomic_path(piece, durable=not boot) as aside:
        pieces = PieceWriter(aside, schema)
        with pieces.writer:
            yield pieces
    facts |= {"bins": pieces.bins, "bytes": pieces.bytes, "spans": pieces.spans, "boot": boot}
    write_json(record, facts)


def _boot() -> str:
    """What tells this start of the machine from all others; empty where the system does not say (other than Linux)."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


class BinPieces:
    """The rows of bin `number` in all pieces of `folder`: `size` is their bytes."""

    def __init__(self, folder: Path, number: int) -> None:
        self.files: list[tuple[Path, list[tuple[int, int, int]]]] = []  # spans: (record batch, first row, last + 1)
        self.size = 0
        for part in sorted(part_numbers(folder)):
            piece, record = part_paths(folder, part, SUFFIX)
            facts = read_json(record) or {}
            if spans := [
                (place, *span[str(number)]) for place, span in enumerate(facts["spans"]) if str(number) in span
            ]:
                self.files.append((piece, spans))
                self.size += facts["bytes"][str(number)]

    def batches(self) -> Iterator[pa.RecordBatch]:
        """All rows, in the order of the input where this is that of their places."""
        for path, spans in self.files:
            file = _Mapped(path)
            for span in spans:
                yield file.rows(span)
                file.forget()

    def ranges(self, size: int) -> Iterator[Iterator[pa.RecordBatch]]:
        """The rows of range after range of places, about `size` bytes each. Places shall be spread evenly (a hash).

        All rows are one range where that would mean to read too little at a time, or from too many files.
        """
        count = -(-self.size // size)
        reads = sum(len(spans) for _, spans in self.files)
        if count <= 1 or len(self.files) > MOST_FILES or self.size < count * reads * LEAST_READ:
            yield self.batches()
            return
        inner = np.array([2**64 * n // count for n in range(1, count)], np.uint64)
        files = [(_Mapped(path), spans) for path, spans in self.files]
        found = [file.rows(span) for file, spans in files for span in spans]
        cuts = [np.searchsorted(rows.column(PLACE).to_numpy(), inner) for rows in found]
        bounds = [np.concatenate([[0], cut, [rows.num_rows]]) for cut, rows in zip(cuts, found, strict=True)]
        for n in range(count):
            yield (rows.slice(cut[n], cut[n + 1] - cut[n]) for rows, cut in zip(found, bounds, strict=True))
            for file, _ in files:
                file.forget()


class _Mapped:
    """A piece that is mapped into memory, and read where it is looked at; closed once none of its rows is held."""

    def __init__(self, path: Path) -> None:
        with reading(path):
            with open(path, "rb") as file:
                self.map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self.file = pa.ipc.open_file(pa.BufferReader(pa.py_buffer(self.map)))

    def rows(self, span: Sequence[int]) -> pa.RecordBatch:
        place, start, end = span
        return self.file.get_batch(place).slice(start, end - start)

    def forget(self) -> None:
        """Give back the memory of what has been looked at; it is read again where it is looked at again."""
        self.map.madvise(mmap.MADV_DONTNEED)
