"""The pieces between the two steps of binning: what one scored file holds, in record batches of one bin each.

    .pieces/part-00003.arrow    the rows of scored file 3, in record batches of one bin and one range of places each
    .pieces/.part-00003.json    written last: {"rows": 9, "hash": …, "bins": {"0": 5, "1": 4},
                                "batches": {"0": [[0], [1]], "1": [[2, 4], [3]]}, "ranges": 2, "boot": …, "format": 3}

`batches` says which record batches hold a bin's first range of places, its second, and so on. Places of a shuffled bin
are hashes, so its ranges are about equal, and the bin is sorted range by range.

Pieces are not forced to the disk: a process may be killed at any time, but after a power cut they may be torn. Their
records therefore name the machine's start in which they were written, and count only as long as it lasts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from fluxentropy.bins import UNSCORED
from fluxentropy.shards import FORMAT
from fluxentropy.store import atomic_path, part_numbers, part_paths, read_json, write_json
from fluxentropy.tablefiles import reading

PIECES = ".pieces"
PLACE = "__place"  # where a row stands in its bin, among the rows of all pieces; not in the shards
PLACE_FIELD = pa.field(PLACE, pa.uint64())
SUFFIX = ".arrow"


class PieceWriter:
    """An open piece, and what its record says of its record batches."""

    def __init__(self, path: Path, schema: pa.Schema, ranges: int) -> None:
        self.writer = pa.ipc.new_file(str(path), schema.append(PLACE_FIELD))
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
    with atomic_path(path, durable=not boot) as aside:
        piece = PieceWriter(aside, schema, ranges)
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
