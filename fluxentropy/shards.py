"""The files of a binned corpus: Arrow IPC files of a target size, and the bins' folders that hold them.

DIR/data/bin=00/part-00000.arrow …  rows of the lowest scores
DIR/data/bin=00/.manifest.json      rows, tokens, sum of row hashes, and each file's rows, bytes and SHA-256
DIR/unscored/part-00000.arrow …     rows without a score

Nothing else lies in `data/`, because Arrow takes every visible file below a folder for a shard. Versions up to 0.1 had
the bins' folders in DIR itself, beside `bins.json`: such a DIR stays as it is, and all of this reads it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fluxentropy.bins import UNSCORED
from fluxentropy.errors import RunError
from fluxentropy.mergesort import Part
from fluxentropy.parts import prefetch
from fluxentropy.rowhash import sum_of_rows
from fluxentropy.rowsizes import row_sizes
from fluxentropy.store import atomic_folder, read_json, sha256_file, write_json

# Of a record batch, which a reader holds whole; the row that reaches one of them is its last.
BATCH_ROWS, BATCH_BYTES = 1024, 2**24
MANIFEST = ".manifest.json"
DATA = "data"  # holds the bins' folders, and nothing else
FORMAT = 2  # of bins.json and blocks.json; those of the old layout say none


def bins_top(out: Path, index: str = "bins.json") -> str:
    """The folder in `out` that holds, or shall hold, the bins' folders: `data`; empty for `out` itself.

    The old layout stays as it is, also of a run that was killed or damaged: the `index`, a finished manifest and the
    folders that are there are asked, in this order.

    Errors: `RunError` where the `index` is of a later format.
    """
    for path in (out / index, out / "manifest.json"):
        found: Any = None
        with contextlib.suppress(RunError):  # a damaged one, which is named where it is read
            found = read_json(path)
        said = found.get("format") if isinstance(found, dict) else None
        if isinstance(said, int):
            if said > FORMAT:
                raise RunError(f"{path} has format {said}, and this version knows {FORMAT}: install a later one")
            return DATA
    if isinstance(found, dict) and found.get("complete") is True:
        return ""
    old = (path for pattern in ("bin=*", ".damaged-bin=*") for path in out.glob(pattern))
    return "" if any(old) and not any((out / DATA).glob("bin=*")) else DATA


def bin_folder(number: int, bins: int, top: str) -> Path:
    """The folder of a bin below that of its `bins.json`, with as many digits as the last one needs, and at least two.

    >>> [str(bin_folder(*of)) for of in ((3, 12, "data"), (3, 200, ""), (-1, 12, "data"))]
    ['data/bin=03', 'bin=003', 'unscored']
    """
    return Path("unscored") if number == UNSCORED else Path(top, f"bin={number:0{max(2, len(str(bins - 1)))}d}")


def stamp(top: str) -> dict[str, int]:
    """What the index of folders in `top` says of its format."""
    return {"format": FORMAT} if top else {}


def write_bin(parts: Iterable[Part], schema: pa.Schema, folder: Path, *, shard_bytes: int) -> dict[str, Any]:
    """Write the rows of `parts` as the shards of `folder`, all of them or none, and return its manifest.

    A part is a table and the order in which its rows are taken; they are taken, counted and hashed in a thread, while
    the rows before them are written. A shard ends with the batch in which it reaches `shard_bytes` of Arrow data,
    before compression.
    """
    with atomic_folder(folder) as aside:
        facts: dict[str, Any] = {"rows": 0, "tokens": 0, "hash": 0, "files": []}
        shard: ShardWriter | None = None
        with contextlib.closing(prefetch(_counted(_regular(parts, schema), facts))) as batches:
            for batch in batches:
                shard = shard or ShardWriter(aside / f"part-{len(facts['files']):05d}.arrow", schema)
                shard.write(batch)
                if shard.size >= shard_bytes:
                    facts["files"].append(shard.close())
                    shard = None
        if shard or not facts["files"]:  # a bin without rows has one file, so that its columns are known
            facts["files"].append((shard or ShardWriter(aside / "part-00000.arrow", schema)).close())
        write_json(aside / MANIFEST, facts)
    return facts


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a bin's folder; None where the folder is not there, or not whole."""
    return read_json(folder / MANIFEST)


def _counted(batches: Iterable[pa.RecordBatch], facts: dict[str, Any]) -> Iterator[pa.RecordBatch]:
    """The batches, after their rows, tokens and hashes have been added to `facts`."""
    for batch in batches:
        facts["rows"] += batch.num_rows
        facts["hash"] = (facts["hash"] + sum_of_rows(batch)) % 2**64
        if "n_tokens" in batch.schema.names and pa.types.is_integer(batch.schema.field("n_tokens").type):
            facts["tokens"] += pc.sum(batch.column("n_tokens"), min_count=0).as_py()
        yield batch


def _regular(parts: Iterable[Part], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The rows in batches that end at the same rows, whatever parts they come in."""
    held: list[pa.Table] = []
    rows = size = 0
    for table, order in parts:
        table = table.select(schema.names)
        sizes = sum(map(row_sizes, table.columns), np.zeros(len(table), np.int64))
        ends = np.cumsum(sizes[np.asarray(order)])
        start = 0
        while start < len(order):
            before = int(ends[start - 1]) if start else 0
            full = int(np.searchsorted(ends, before + BATCH_BYTES - size)) + 1
            stop = min(start + BATCH_ROWS - rows, full, len(order))
            held.append(table.take(order.slice(start, stop - start)))
            rows, size, start = rows + stop - start, size + int(ends[stop - 1]) - before, stop
            if rows == BATCH_ROWS or size >= BATCH_BYTES:
                yield _batch(held, schema)
                held, rows, size = [], 0, 0
        del table  # not held while the next part is made
    if rows:
        yield _batch(held, schema)


def _batch(taken: list[pa.Table], schema: pa.Schema) -> pa.RecordBatch:
    """One batch whose bytes follow from the rows alone: `take` leaves nothing where a slice or a null hides memory."""
    (batch,) = pa.concat_tables(taken).combine_chunks().cast(schema).to_batches()
    return batch if len(taken) == 1 else batch.take(pa.array(np.arange(batch.num_rows)))


class ShardWriter:
    """An open shard. `size` is what it holds in bytes, before compression; `close` says what has been written."""

    def __init__(self, path: Path, schema: pa.Schema, *, compress: bool = True) -> None:
        self.path, self.rows, self.size = path, 0, 0
        options = pa.ipc.IpcWriteOptions(compression=pa.Codec("zstd", compression_level=1) if compress else None)
        self.writer = pa.ipc.new_file(str(path), schema, options=options)

    def write(self, batch: pa.RecordBatch) -> None:
        self.writer.write_batch(batch)
        self.rows += batch.num_rows
        self.size += pa.ipc.get_record_batch_size(batch)  # as it is written: `nbytes` depends on the batch's past

    def close(self) -> dict[str, Any]:
        self.writer.close()
        return {
            "name": self.path.name,
            "rows": self.rows,
            "bytes": self.path.stat().st_size,
            "sha256": sha256_file(self.path),
        }
