"""Writers of the formats that a corpus can come in, for the tests of reading them."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq
import zstandard

Rows = Sequence[dict[str, Any]]


def write_jsonl(path: Path, rows: Rows) -> Path:
    return write_bytes(path, "".join(json.dumps(row) + "\n" for row in rows).encode())


def write_csv(path: Path, rows: Rows) -> Path:
    plain = path.with_name("plain")
    with open(plain, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t" if ".tsv" in path.name else ",")
        writer.writerow(rows[0])
        writer.writerows([row[name] for name in rows[0]] for row in rows)
    content = plain.read_bytes()
    plain.unlink()
    return write_bytes(path, content)


def write_bytes(path: Path, content: bytes) -> Path:
    """`content`, compressed as the suffix says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".gz":
        content = gzip.compress(content)
    elif path.suffix == ".zst":
        content = zstandard.compress(content)
    path.write_bytes(content)
    return path


def write_parquet(path: Path, rows: Rows | pa.Table, row_group_size: int = 3) -> Path:
    pq.write_table(_table(rows), path, row_group_size=row_group_size)
    return path


def write_arrow(path: Path, rows: Rows | pa.Table, *, stream: bool = False, compression: str | None = None) -> Path:
    table = _table(rows)
    options = ipc.IpcWriteOptions(compression=compression)
    new = ipc.new_stream if stream else ipc.new_file
    with new(path, table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=3)
    return path


def _table(rows: Rows | pa.Table) -> pa.Table:
    return rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(list(rows))


WRITERS: dict[str, Callable[[Path, Rows], Path]] = {
    "a.jsonl": write_jsonl,
    "a.ndjson.gz": write_jsonl,
    "a.json.zst": write_jsonl,
    "a.csv": write_csv,
    "a.csv.gz": write_csv,
    "a.tsv.zst": write_csv,
    "a.parquet": write_parquet,
    "a.arrow": write_arrow,
    "a.feather": lambda path, rows: write_arrow(path, rows, compression="zstd"),
    "s.arrow": lambda path, rows: write_arrow(path, rows, stream=True),
    "z.arrow": lambda path, rows: write_arrow(path, rows, stream=True, compression="lz4"),
}
