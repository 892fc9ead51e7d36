"""Sort Arrow tables of any size in bounded memory: sorted runs on disk, merged block by block.

Every comparison is made by `pyarrow.compute.sort_indices`, a stable sort over several columns that puts NaN after the
numbers and null after NaN, whatever the direction. The order of the result therefore depends on the rows only, never
on the memory limit or on threads.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fluxentropy.runs.engine import prefetch

Keys = Sequence[tuple[str, str]]  # (column, "ascending" | "descending"), the most important first
Part = tuple[pa.Table, pa.UInt64Array]  # rows, and the order in which they are to be taken
RUN_LIMIT = 2**30  # bytes; the 32-bit offsets of string columns overflow at 2 GiB
SMALL = 2**25  # bytes; runs and steps of the merge need not be smaller, as more and smaller ones cost more
BLOCK = 2**18  # bytes; the least that is written of a run, or read back, at a time
FAN_IN = 128  # runs merged at a time, which is also the number of open files


def sort_order(table: pa.Table, keys: Keys) -> pa.UInt64Array:
    """The permutation that sorts `table`: stable, NaN after the numbers, null last. (n,) -> (n,)

    >>> table = pa.table({"x": [2.0, None, float("nan"), 1.0], "id": ["a", "b", "c", "d"]})
    >>> sort_order(table, [("x", "descending"), ("id", "ascending")]).to_pylist()
    [0, 3, 2, 1]

    Errors: `pyarrow.ArrowTypeError` for a type without an order, such as a list.
    """
    names = [str(number) for number in range(len(keys))]
    columns = [_sortable(table.column(name)) for name, _ in keys]
    order = [(name, direction) for name, (_, direction) in zip(names, keys, strict=True)]
    return pc.sort_indices(pa.table(columns, names=names), sort_keys=order)


def _sortable(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """`column` in a type of the same order that Arrow can sort, where it cannot sort its own."""
    if pa.types.is_float16(column.type):
        return column.cast(pa.float32())
    if pa.types.is_dictionary(column.type):
        return column.cast(column.type.value_type)
    return column


def sorted_blocks(
    batches: Iterable[pa.RecordBatch],
    schema: pa.Schema,
    keys: Keys,
    *,
    memory: int,
    spill: Path,
    limit: int | None = None,
) -> Iterator[pa.Table]:
    """Yield the rows of `batches` in the order of `keys`, as tables of about `memory` / 32 bytes.

    The parameters are those of `sorted_parts`.
    """
    yield from _taken(sorted_parts(batches, schema, keys, memory=memory, spill=spill, limit=limit), memory // 32)


def sorted_parts(
    batches: Iterable[pa.RecordBatch],
    schema: pa.Schema,
    keys: Keys,
    *,
    memory: int,
    spill: Path,
    limit: int | None = None,
) -> Iterator[Part]:
    """Yield the rows of `batches` as tables, each with the order its rows are to be taken in, to sort all by `keys`.

    Rows with equal keys keep the order they came in. `memory` (bytes) limits what the sort holds at a time, except
    that one row and one incoming batch are always held whole. Up to `memory` / 4 bytes of rows are sorted without
    touching the disk; beyond that, sorted runs go to the folder `spill`, which the caller makes and removes. `limit`
    keeps the first rows only.
    """
    runs: list[Path] = []
    with closing(prefetch(_chunks(batches, schema, memory))) as chunks:
        for table, is_last in chunks:
            if is_last and not runs:
                yield from _first([(table, sort_order(table, keys))], limit)
                return
            runs.append(_sorted_run(table, spill / f"run-{len(runs)}.arrows", keys, limit, _block(memory)))
            del table
    yield from merged_parts(runs, schema, keys, memory=memory, spill=spill, limit=limit)


def sorted_runs(
    batches: Iterable[pa.RecordBatch],
    schema: pa.Schema,
    keys: Keys,
    *,
    memory: int,
    spill: Path,
    limit: int | None = None,
) -> list[Path]:
    """The first half of `sorted_parts`, all on disk: sorted runs in the folder `spill`, in the order of the rows."""
    runs: list[Path] = []
    with closing(prefetch(_chunks(batches, schema, memory))) as chunks:
        for table, _ in chunks:
            runs.append(_sorted_run(table, spill / f"run-{len(runs)}.arrows", keys, limit, _block(memory)))
            del table
    return runs


def merged_parts(
    runs: Sequence[Path], schema: pa.Schema, keys: Keys, *, memory: int, spill: Path, limit: int | None = None
) -> Iterator[Part]:
    """The second half of `sorted_parts`: merge `runs`, which may be of several `sorted_runs`, one after the other."""
    level = 0
    while len(runs) > FAN_IN:  # neighbours are merged, so that equal rows keep the order they came in
        level += 1
        groups = [runs[start : start + FAN_IN] for start in range(0, len(runs), FAN_IN)]
        runs = []
        for group in groups:
            merged = _taken(_first(_merged(group, keys, _share(memory, 6, 24)), limit), _block(memory))
            runs.append(_spill(spill / f"merged-{level}-{len(runs)}.arrows", merged, schema))
            for path in group:
                path.unlink()
    yield from _first(_merged(runs, keys, _share(memory, 6, 24)), limit)


def merged_blocks(
    runs: Sequence[Path], schema: pa.Schema, keys: Keys, *, memory: int, spill: Path, limit: int | None = None
) -> Iterator[pa.Table]:
    """`merged_parts` as tables of about `memory` / 32 bytes."""
    yield from _taken(merged_parts(runs, schema, keys, memory=memory, spill=spill, limit=limit), memory // 32)


def _sorted_run(table: pa.Table, path: Path, keys: Keys, limit: int | None, block: int) -> Path:
    """Sort `table` into the file `path`, in blocks of about `block` bytes."""
    table = table.combine_chunks()
    return _spill(path, _taken(_first([(table, sort_order(table, keys))], limit), block), table.schema)


def _share(memory: int, most: int, least: int) -> int:
    """Bytes: `memory` / `least`, which memory and caches like, but up to `SMALL` rather `memory` / `most`."""
    return max(memory // least, min(memory // most, SMALL))


def _block(memory: int) -> int:
    """Bytes: how finely runs are written and read back."""
    return max(BLOCK, memory // (8 * FAN_IN))


def _first(parts: Iterable[Part], limit: int | None) -> Iterator[Part]:
    """The first `limit` rows of `parts`."""
    for table, order in parts:
        if limit is not None:
            order = order[:limit]
            limit -= len(order)
        yield table, order
        if limit == 0:
            return


def _chunks(batches: Iterable[pa.RecordBatch], schema: pa.Schema, memory: int) -> Iterator[tuple[pa.Table, bool]]:
    """Gather `batches` into tables; True marks the last, which is one array a column.

    One table holds up to `memory` / 4 bytes. Where there is more than one, the next is read while one is sorted, and
    those after the first are smaller.
    """
    limit = min(memory // 4, RUN_LIMIT)
    held: list[pa.RecordBatch] = []
    size = 0
    for batch in batches:
        if held and size + batch.nbytes > limit:
            yield pa.Table.from_batches(held, schema), False
            held.clear()
            limit = min(_share(memory, 4, 8), RUN_LIMIT)
            size = 0
        held.append(batch)
        size += batch.nbytes
    table = pa.Table.from_batches(held, schema).combine_chunks()
    held.clear()
    yield table, True


def _taken(parts: Iterable[Part], piece: int) -> Iterator[pa.Table]:
    """The rows of `parts` in order, in tables of about `piece` bytes, and never more than twice that."""
    for table, order in parts:
        rows = max(1, piece * len(table) // max(table.nbytes, 1))
        for start in range(0, len(order), rows):
            yield from _halved(table.take(order[start : start + rows]), 2 * piece)


def _halved(table: pa.Table, limit: int) -> Iterator[pa.Table]:
    """`table` cut into pieces of at most `limit` bytes, or of one row."""
    if table.nbytes <= limit or len(table) == 1:
        yield table
    else:
        middle = len(table) // 2
        yield from _halved(table.slice(0, middle), limit)
        yield from _halved(table.slice(middle), limit)


def _spill(path: Path, tables: Iterable[pa.Table], schema: pa.Schema) -> Path:
    """Write a sorted run as an Arrow stream."""
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        for table in tables:
            writer.write_table(table)
    return path


class _Cursor:
    """A sorted run read from its start: `table` holds the next rows, `ended` says that none follow them."""

    def __init__(self, path: Path, files: ExitStack) -> None:
        self.reader = pa.ipc.open_stream(files.enter_context(pa.OSFile(str(path), "rb")))
        self.table = self.reader.schema.empty_table()
        self.ended = False

    def fill(self, size: int) -> None:
        """Read on until `table` holds at least `size` bytes, and a row."""
        batches = self.table.to_batches()
        held = self.table.nbytes if batches else 0
        while held < max(size, 1) and not self.ended:
            try:
                batches.append(self.reader.read_next_batch())
                held += batches[-1].nbytes
            except StopIteration:
                self.ended = True
        self.table = pa.Table.from_batches(batches, self.reader.schema)

    def pop(self, rows: int) -> pa.Table:
        """Take the next `rows` rows away."""
        taken, self.table = self.table.slice(0, rows), self.table.slice(rows)
        return taken


def _merged(paths: Sequence[Path], keys: Keys, memory: int) -> Iterator[Part]:
    """Merge sorted runs, earlier ones first where keys are equal; about `memory` bytes of rows are loaded at a time."""
    with ExitStack() as files:
        cursors = [_Cursor(path, files) for path in paths]
        while cursors:
            for cursor in cursors:
                cursor.fill(memory // len(cursors))
            cursors = [cursor for cursor in cursors if len(cursor.table)]
            if cursors:
                ready = [cursor.pop(rows) for cursor, rows in zip(cursors, _ready_rows(cursors, keys), strict=True)]
                table = pa.concat_tables(ready).combine_chunks()
                yield table, sort_order(table, keys)


def _ready_rows(cursors: Sequence[_Cursor], keys: Keys) -> list[int]:
    """For each cursor, how many of its loaded rows come before every row that is still on disk.

    Rows on disk follow the last loaded row of their run, so the least of these last rows is the limit. Only runs whose
    first row comes before the limit are looked at: where the input was sorted already, that is a single one.
    """
    loaded = [cursor.table.select([name for name, _ in keys]) for cursor in cursors]
    ends = pa.concat_tables([part for table in loaded for part in (table.slice(0, 1), table.slice(len(table) - 1))])
    limit = -1  # the cursor whose last row is the limit
    active: list[int] = []
    for end in sort_order(ends, keys).to_pylist():  # 2i is the first row of cursor i, 2i + 1 its last
        if end % 2 == 0:
            active.append(end // 2)
        elif not cursors[end // 2].ended:
            limit = end // 2
            break
    if limit < 0:
        return [len(table) for table in loaded]
    active.sort()
    stops = np.cumsum([len(loaded[index]) for index in active])
    order = np.asarray(sort_order(pa.concat_tables([loaded[index] for index in active]), keys))
    before = order[: np.flatnonzero(order == stops[active.index(limit)] - 1)[0] + 1]
    counts = np.bincount(np.searchsorted(stops, before, side="right"), minlength=len(active))
    rows = [0] * len(cursors)
    for index, count in zip(active, counts.tolist(), strict=True):
        rows[index] = count
    return rows
