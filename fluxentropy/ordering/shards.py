"""The files of a binned corpus: Arrow IPC files of a target size, and the bins' folders that hold them.

DIR/data/bin=00/part-00000.arrow …  rows of the lowest scores
DIR/data/bin=00/.manifest.json      rows, tokens, sum of row hashes, and each file's rows, bytes and SHA-256
DIR/unscored/part-00000.arrow …     rows without a score

The hashes of rows add up: their sum does not depend on the order of the rows or on their files. A corpus and its bins
hold the same rows when the counts and the sums are the same; no list of ids is kept.

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
from xxhash import xxh3_64_intdigest

from fluxentropy.errors import RunError, SourceError
from fluxentropy.ordering.edges import UNSCORED
from fluxentropy.runs.engine import prefetch
from fluxentropy.runs.files import atomic_folder, read_json, sha256_file, write_json
from fluxentropy.runs.mergesort import Part
from fluxentropy.runs.tables import row_sizes

# Of a record batch, which a reader holds whole; the row that reaches one of them is its last.
BATCH_ROWS, BATCH_BYTES = 1024, 2**24
MANIFEST = ".manifest.json"
DATA = "data"  # holds the bins' folders, and nothing else

# Of bins.json, and the bins' manifests; those up to 2 have other hashes of rows, those of the old layout say none. A
# bins.json says 4 where it has edges for each value of a column, or null for numbers of tokens.
FORMAT = 3
FORMATS = {"bins.json": 4, "blocks.json": 2}
NAMES = ("id", "source_file", "source_row")  # what tells a row from all others, as far as these columns are there


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
            if said > FORMATS[index]:
                raise RunError(f"{path} has format {said}, this version knows {FORMATS[index]}: install a later one")
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


def write_bin(parts: Iterable[Part], schema: pa.Schema, folder: Path, *, shard_bytes: int) -> dict[str, Any]:
    """Write the rows of `parts` as the shards of `folder`, all of them or none, and return its manifest.

    A part is a table and the order in which its rows are taken; they are taken, counted and hashed in a thread, while
    the rows before them are written. A shard ends with the batch in which it reaches `shard_bytes` of Arrow data,
    before compression.
    """
    with atomic_folder(folder) as aside:
        facts: dict[str, Any] = {"rows": 0, "tokens": 0, "hash": 0, "files": [], "format": FORMAT}
        shard: ShardWriter | None = None
        with contextlib.closing(prefetch(_counted(regular_batches(parts, schema), facts))) as batches:
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


def sum_of_rows(table: pa.Table | pa.RecordBatch) -> int:
    """The sum modulo 2^64 of the hashes (XXH3, 64 bits) of all rows, over the columns `NAMES` that there are.

    A column is hashed as text, with the hash of those before it as the seed.

    >>> whole = pa.table({"id": ["a", "b", "c"]})
    >>> (sum_of_rows(whole.slice(0, 1)) + sum_of_rows(whole.slice(1))) % 2**64 == sum_of_rows(whole.take([2, 0, 1]))
    True
    """
    names = [name for name in NAMES if name in table.schema.names]
    hashes = [0] * table.num_rows
    for name in names:
        texts = _as_bytes(table.column(name)).to_pylist()
        hashes = [
            xxh3_64_intdigest(text, seed) if text is not None else xxh3_64_intdigest(b"", ~seed % 2**64)
            for text, seed in zip(texts, hashes, strict=True)
        ]
    return sum(hashes) % 2**64 if names else 0


def _as_bytes(column: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):
        chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
        return _as_bytes(pa.chunked_array([chunk.storage for chunk in chunks], kind.storage_type))
    if pa.types.is_dictionary(kind):
        return _as_bytes(column.cast(kind.value_type))
    if pa.types.is_nested(kind):
        return pa.array([None if value is None else str(value).encode() for value in column.to_pylist()], pa.binary())
    texts = pa.types.is_large_string(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    if not (texts or pa.types.is_fixed_size_binary(kind)):
        column = column.cast(pa.string())
    return column.cast(pa.large_binary())


def _counted(batches: Iterable[pa.RecordBatch], facts: dict[str, Any]) -> Iterator[pa.RecordBatch]:
    """The batches, after their rows, tokens and hashes have been added to `facts`."""
    for batch in batches:
        facts["rows"] += batch.num_rows
        facts["hash"] = (facts["hash"] + sum_of_rows(batch)) % 2**64
        facts["tokens"] += sum_of_tokens(batch)
        yield batch


def counts_tokens(schema: pa.Schema) -> bool:
    """Whether rows say how many tokens they have: whole numbers in a column `n_tokens`."""
    return "n_tokens" in schema.names and pa.types.is_integer(schema.field("n_tokens").type)


def sum_of_tokens(batch: pa.RecordBatch) -> int:
    """The tokens of all rows; 0 where they do not say it."""
    return int(pc.sum(batch.column("n_tokens"), min_count=0).as_py()) if counts_tokens(batch.schema) else 0


def regular_batches(parts: Iterable[Part], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
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


def readable_type(kind: pa.DataType) -> pa.DataType:
    """The type that a column of type `kind` has in the shards: what `datasets` reads, with the same values.

    Maps become lists of key and value, decimals get 128 bits, list views are lists, extension types (other than JSON)
    what they store, such as a UUID its 16 bytes, and dictionaries and run-end encoding give way to the values, as files
    have dictionaries of their own, which do not mix. Raises `SourceError` for what cannot be converted.

    >>> readable_type(pa.list_view(pa.decimal32(5, 2)))
    ListType(list<item: decimal128(5, 2)>)
    """
    if isinstance(kind, pa.BaseExtensionType):
        return kind if isinstance(kind, pa.JsonType) else readable_type(kind.storage_type)
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return readable_type(kind.value_type)
    if pa.types.is_decimal(kind):
        return kind if kind.bit_width >= 128 else pa.decimal128(kind.precision, kind.scale)
    if pa.types.is_map(kind):
        fields = [_readable(field) for field in (kind.key_field, kind.item_field)]
        return pa.list_(pa.field("entries", pa.struct(fields), nullable=False))
    if pa.types.is_struct(kind):
        return pa.struct([_readable(field) for field in kind])
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(_readable(kind.value_field), kind.list_size)
    if pa.types.is_list(kind) or pa.types.is_list_view(kind):
        return pa.list_(_readable(kind.value_field))
    if pa.types.is_large_list(kind) or pa.types.is_large_list_view(kind):
        return pa.large_list(_readable(kind.value_field))
    if pa.types.is_union(kind) or pa.types.is_interval(kind):
        raise SourceError(f"{kind} is a type that the shards cannot hold: convert the column, or drop it")
    return kind


def _readable(field: pa.Field) -> pa.Field:
    return field.with_type(readable_type(field.type))


def readable_schema(schema: pa.Schema) -> tuple[pa.Schema, list[str]]:
    """`schema` as the shards have it, and what was changed, a line a column; see `readable_type`.

    Errors: `SourceError` names a column that cannot be converted.
    """
    fields, notes = [], []
    for field in schema:
        try:
            new = _readable(field)
        except SourceError as error:
            raise SourceError(f"column {field.name!r}: {error}") from error
        fields.append(new)
        if not new.equals(field) and not pa.types.is_dictionary(field.type):
            notes.append(f"column {field.name!r} is {field.type}, in the shards {new.type}, which `datasets` can read")
    return pa.schema(fields), notes


def readable_table(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """`table`, whose types `readable_type` has turned into those of `schema`, in these types."""
    columns = []
    for column, field in zip(table.columns, schema, strict=True):
        if not column.type.equals(field.type):
            column = pa.chunked_array([_converted(chunk, field.type) for chunk in column.chunks], field.type)
        columns.append(column)
    return pa.Table.from_arrays(columns, schema=schema)


def _converted(array: pa.Array, to: pa.DataType) -> pa.Array:
    """The values of `array` in the type `to`. `cast` alone knows no list views and nothing inside of extensions."""
    kind = array.type
    if kind.equals(to):
        return array
    if pa.types.is_null(kind):
        return pa.nulls(len(array), to)
    if isinstance(kind, pa.BaseExtensionType):
        return _converted(array.storage, to)
    if pa.types.is_dictionary(kind):
        return _converted(array.dictionary_decode(), to)
    if pa.types.is_map(kind):
        array = array.cast(pa.list_(pa.field("entries", pa.struct([kind.key_field, kind.item_field]), nullable=False)))
    if pa.types.is_struct(kind):
        inner = [_converted(column, field.type) for column, field in zip(array.flatten(), to, strict=True)]
        return pa.StructArray.from_arrays(inner, fields=list(to), mask=array.is_null())
    if pa.types.is_fixed_size_list(kind):
        size = kind.list_size
        inner = _converted(array.values.slice(array.offset * size, len(array) * size), to.value_type)
        return pa.FixedSizeListArray.from_arrays(inner, type=to, mask=array.is_null())
    if pa.types.is_list(to) or pa.types.is_large_list(to):
        ends = np.cumsum(np.asarray(pc.fill_null(pc.list_value_length(array), 0), np.int64))
        offsets = pa.array(np.concatenate([[0], ends]), pa.int32() if pa.types.is_list(to) else pa.int64())
        made = pa.ListArray if pa.types.is_list(to) else pa.LargeListArray
        return made.from_arrays(offsets, _converted(array.flatten(), to.value_type), type=to, mask=array.is_null())
    return pc.run_end_decode(array).cast(to) if pa.types.is_run_end_encoded(kind) else array.cast(to)


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
