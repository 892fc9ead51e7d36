"""The files of a binned corpus: Arrow IPC files of a target size, and the bins' folders that hold them.

DIR/bin=00/part-00000.arrow …       rows of the lowest scores
DIR/bin=00/.manifest.json           rows, tokens, sum of row hashes, and each file's rows, bytes and SHA-256
DIR/unscored/part-00000.arrow …     rows without a score
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from fluxentropy.bins import UNSCORED
from fluxentropy.rowhash import sum_of_rows
from fluxentropy.store import atomic_folder, read_json, sha256_file, write_json

BATCH_ROWS = 1024  # of a record batch: what a reader holds at least
MANIFEST = ".manifest.json"


def bin_folder(number: int, bins: int) -> str:
    """The folder of a bin, with as many digits as the last one needs, and at least two.

    >>> bin_folder(3, 12), bin_folder(3, 200), bin_folder(-1, 12)
    ('bin=03', 'bin=003', 'unscored')
    """
    return "unscored" if number == UNSCORED else f"bin={number:0{max(2, len(str(bins - 1)))}d}"


def write_bin(tables: Iterable[pa.Table], schema: pa.Schema, folder: Path, *, shard_bytes: int) -> dict[str, Any]:
    """Write the rows of `tables` as the shards of `folder`, all of them or none, and return its manifest.

    A shard ends with the batch in which it reaches `shard_bytes` of Arrow data, before compression.
    """
    with atomic_folder(folder) as aside:
        facts: dict[str, Any] = {"rows": 0, "tokens": 0, "hash": 0, "files": []}
        shard: _Shard | None = None
        for batch in _regular(tables, schema):
            shard = shard or _Shard(aside / f"part-{len(facts['files']):05d}.arrow", schema)
            shard.write(batch)
            _count(facts, batch)
            if shard.size >= shard_bytes:
                facts["files"].append(shard.close())
                shard = None
        if shard or not facts["files"]:  # a bin without rows has one file, so that its columns are known
            facts["files"].append((shard or _Shard(aside / "part-00000.arrow", schema)).close())
        write_json(aside / MANIFEST, facts)
    return facts


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a bin's folder; None where the folder is not there, or not whole."""
    return read_json(folder / MANIFEST)


def _count(facts: dict[str, Any], batch: pa.RecordBatch) -> None:
    facts["rows"] += batch.num_rows
    facts["hash"] = (facts["hash"] + sum_of_rows(batch)) % 2**64
    if "n_tokens" in batch.schema.names:
        facts["tokens"] += pc.sum(batch.column("n_tokens"), min_count=0).as_py()


def _regular(tables: Iterable[pa.Table], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The rows in batches of BATCH_ROWS rows, whatever tables they come in."""
    held: list[pa.Table] = []
    rows = 0
    for table in tables:
        held.append(table.select(schema.names))
        rows += len(table)
        if rows >= BATCH_ROWS:
            joined = pa.concat_tables(held)
            whole = rows - rows % BATCH_ROWS
            for start in range(0, whole, BATCH_ROWS):
                yield _batch(joined.slice(start, BATCH_ROWS), schema)
            held, rows = [joined.slice(whole)], rows - whole
    if rows:
        yield _batch(pa.concat_tables(held), schema)


def _batch(table: pa.Table, schema: pa.Schema) -> pa.RecordBatch:
    (batch,) = table.combine_chunks().cast(schema).to_batches()
    return batch


class _Shard:
    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path, self.rows, self.size = path, 0, 0
        options = pa.ipc.IpcWriteOptions(compression=pa.Codec("zstd", compression_level=1))
        self.writer = pa.ipc.new_file(str(path), schema, options=options)

    def write(self, batch: pa.RecordBatch) -> None:
        self.writer.write_batch(batch)
        self.rows += batch.num_rows
        self.size += batch.nbytes

    def close(self) -> dict[str, Any]:
        self.writer.close()
        return {
            "name": self.path.name,
            "rows": self.rows,
            "bytes": self.path.stat().st_size,
            "sha256": sha256_file(self.path),
        }
