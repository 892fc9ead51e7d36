"""One reader a format: its schema, its number of rows, and its rows from any one on, as Arrow batches."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc as ipc
import pyarrow.parquet as pq

from fluxentropy.corpus.scan import Scan, chunks, column_type, to_array
from fluxentropy.corpus.sources import HUB_NAME
from fluxentropy.corpus.textfiles import Record, Rejected, TextFile, reading
from fluxentropy.errors import SourceError

PIECE_ROWS, PIECE_BYTES = 1024, 2**25  # how much of a file is decoded at a time
HUB_ROWS = 128
END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"


@dataclass(frozen=True)
class Piece:
    """Some consecutive rows (n of them) of a file, as they are in it; `settled`: its types are those of the corpus."""

    batch: pa.RecordBatch
    rows: pa.Array  # (n,) int64: the row of each in its file
    status: pa.Array  # (n,) string: null, or how its strings had to be mended
    settled: bool = False


Keep = Callable[[str], bool]  # whether a column of this name is wanted


def keep_all(_: str) -> bool:
    """Every column is wanted."""
    return True


class Reader(Protocol):
    """Rows of one file. `pieces(start)` begins with the row after the first `start` rows that can be used.

    `schema` is of the columns that are wanted, `names` are those of all.
    """

    @property
    def schema(self) -> pa.Schema: ...

    @property
    def names(self) -> tuple[str, ...]: ...

    @property
    def n_rows(self) -> int | None: ...

    def pieces(self, start: int) -> Iterator[Piece]: ...


# --- text formats -----------------------------------------------------------------------------------------------------


class TextReader:
    """JSON Lines, CSV, TSV and plain text, with the types of an earlier scan.

    `types` are others that a column shall have, None being JSON text.
    """

    def __init__(
        self,
        file: TextFile,
        scan: Scan,
        keep: Keep = keep_all,
        types: Mapping[str, pa.DataType | None] | None = None,
    ) -> None:
        self.file, self.scan = file, scan
        self.found = {name: found for name, found in scan.types.items() if keep(name)}
        self.types = {name: column_type(file, found) for name, found in self.found.items()} | dict(types or {})
        self.names = tuple(scan.types)
        self.schema = pa.schema({name: kind or pa.string() for name, kind in self.types.items()})
        self.n_rows, self.n_rejected = scan.n_rows, scan.n_rejected

    def with_types(self, types: Mapping[str, pa.DataType | None]) -> TextReader:
        """The same rows, with these types of the columns that are among its own."""
        return TextReader(
            self.file, self.scan, self.found.__contains__, {name: types[name] for name in self.found if name in types}
        )

    def pieces(self, start: int) -> Iterator[Piece]:
        blind = 0 if self.n_rejected else start
        left = start - blind
        for _, chunk in chunks(self.file.records(blind)):
            left, kept = max(left - len(chunk), 0), chunk[left:]
            if kept:
                yield self._piece(kept)

    def fields(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """The rows that can be used, each with its number, as they are parsed."""
        for _, chunk in chunks(self.file.records(), self.scan.limit):
            yield from ((record[0], record[1]) for record in chunk)

    def rejected(self) -> Iterator[Rejected]:
        """The rows that cannot be used."""
        if self.n_rejected:
            for rejected, _ in chunks(self.file.records(), self.scan.limit):
                yield from rejected

    def _piece(self, chunk: list[Record]) -> Piece:
        with reading(self.file.path):
            columns = [
                to_array(self.file, [row[1].get(name) for row in chunk], kind, self.found[name])
                for name, kind in self.types.items()
            ]
            batch = pa.RecordBatch.from_arrays(columns, schema=self.schema)
        rows = pa.array([row[0] for row in chunk], pa.int64())
        return Piece(batch, rows, pa.array([row[2] for row in chunk], pa.string()), settled=True)


# --- Parquet ----------------------------------------------------------------------------------------------------------


class ParquetReader:
    """A Parquet file; whole row groups before `start` are not read."""

    def __init__(self, path: Path, text_field: str | None, keep: Keep = keep_all) -> None:
        self.path, self.text_field = path, text_field
        with reading(path), self._open() as file:
            self.schema, self.n_rows = plain_schema(path, file.schema_arrow, keep), file.metadata.num_rows
            self.names = tuple(file.schema_arrow.names)
            groups = [file.metadata.row_group(group) for group in range(file.metadata.num_row_groups)]
            self._groups = [(group.num_rows, group.total_byte_size) for group in groups]

    def _open(self) -> pq.ParquetFile:
        """Set up so that a column of a row group is read in pages instead of whole."""
        return pq.ParquetFile(self.path, pre_buffer=False, buffer_size=2**16)

    def pieces(self, start: int) -> Iterator[Piece]:
        first = 0
        with reading(self.path, lambda: f" after row {first}"), self._open() as file:
            for group, (n_rows, n_bytes) in enumerate(self._groups):
                if first + n_rows <= start:
                    first += n_rows
                    continue
                size = max(min(PIECE_ROWS, PIECE_BYTES * n_rows // max(n_bytes, 1)), 1)
                columns = None if len(self.schema) == len(self.names) else self.schema.names
                for batch in file.iter_batches(batch_size=size, row_groups=[group], columns=columns, use_threads=False):
                    skip = min(max(start - first, 0), batch.num_rows)
                    if skip < batch.num_rows:
                        yield _columnar(batch.slice(skip), first + skip, self.text_field)
                    first += batch.num_rows


# --- Arrow ------------------------------------------------------------------------------------------------------------


class ArrowReader:
    """An Arrow IPC (Feather) file or stream, mapped into memory.

    Record batches before `start` are not decoded; those of a compressed stream, which has no index, are.
    """

    def __init__(self, path: Path, text_field: str | None, keep: Keep = keep_all) -> None:
        self.path, self.text_field = path, text_field
        with reading(path):
            mapped = _mapped(path)
            self._is_file = mapped[:6] == b"ARROW1"
            whole = self._open(mapped, None).schema
            self.names, self.schema = tuple(whole.names), plain_schema(path, whole, keep)
            kept = [place for place, name in enumerate(self.names) if keep(name)]
            self._fields = None if len(kept) == len(self.names) else kept
            if not self._is_file and mapped[-8:] != END_OF_STREAM:
                raise SourceError(f"{path}: cannot be read: the Arrow stream ends without its end mark, it was cut off")
            narrow = next((i for i, field in enumerate(whole) if pa.types.is_primitive(field.type)), 0)
            self._sizes = [batch.num_rows for _, batch in self._batches(mapped, 0, [narrow])]
        self.n_rows = sum(self._sizes)

    def _open(self, mapped: mmap.mmap, fields: list[int] | None) -> Any:
        options = ipc.IpcReadOptions(included_fields=fields)
        return (ipc.open_file if self._is_file else ipc.open_stream)(pa.py_buffer(mapped), options=options)

    def _batches(self, mapped: mmap.mmap, first: int, fields: list[int] | None) -> Iterator[tuple[int, pa.RecordBatch]]:
        file = self._open(mapped, fields)
        batches = (
            map(file.get_batch, range(first, file.num_record_batches)) if self._is_file else islice(file, first, None)
        )
        for number, batch in enumerate(batches, first):
            yield number, batch
            mapped.madvise(mmap.MADV_DONTNEED)  # else all that was read counts as memory of this process

    def pieces(self, start: int) -> Iterator[Piece]:
        ends = np.cumsum(self._sizes, dtype=np.int64)
        row = 0
        with reading(self.path, lambda: f" after row {row}"):
            mapped = _mapped(self.path)
            for number, batch in self._batches(mapped, int(np.searchsorted(ends, start, side="right")), self._fields):
                first = int(ends[number]) - batch.num_rows
                for row in range(max(start, first), int(ends[number]), PIECE_ROWS):
                    yield _columnar(batch.slice(row - first, PIECE_ROWS), row, self.text_field)
                    mapped.madvise(mmap.MADV_DONTNEED)


def _mapped(path: Path) -> mmap.mmap:
    if path.stat().st_size == 0:
        raise EOFError("the file is empty")
    with open(path, "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


# --- the Hub ----------------------------------------------------------------------------------------------------------


class HubReader:
    """A dataset on the Hub, streamed. The number of its rows is not known in advance.

    Where the Hub does not tell the types, those of the first 1024 rows count. Images and sounds stay undecoded.
    """

    n_rows = None

    def __init__(self, name: str, text_field: str | None, keep: Keep = keep_all) -> None:
        match = HUB_NAME.fullmatch(name)
        assert match is not None
        self.name, self.text_field = name, text_field
        with _hub_errors(lambda: f"{name}: no file or folder here, and as a Hub dataset it cannot be read"):
            import datasets

            self._dataset = datasets.load_dataset(
                match["name"],
                match["config"],
                split=match["split"] or "train",
                revision=match["revision"],
                streaming=True,
            )
            if self._dataset.features is not None:
                self._dataset = self._dataset.decode(False)
                schema = self._dataset.features.arrow_schema
            else:
                head: dict[str, list[Any]] = next(self._dataset.iter(PIECE_ROWS), {})
                schema = pa.schema([(field, pa.array(values).type) for field, values in head.items()])
        self.names, self.schema = tuple(schema.names), plain_schema(name, schema, keep)

    def pieces(self, start: int) -> Iterator[Piece]:
        row = start
        dataset = self._dataset.skip(start) if start else self._dataset
        with _hub_errors(lambda: f"{self.name}: the Hub dataset cannot be read after row {row}"):
            for fields in dataset.iter(HUB_ROWS):
                if new := fields.keys() - set(self.names):
                    raise KeyError(f"fields that the first rows do not have: {', '.join(sorted(new))}")
                n_rows = len(next(iter(fields.values())))
                columns = [pa.array(fields.get(field.name, [None] * n_rows), field.type) for field in self.schema]
                yield _columnar(pa.RecordBatch.from_arrays(columns, schema=self.schema), row, self.text_field)
                row += n_rows


@contextmanager
def _hub_errors(message: Callable[[], str]) -> Iterator[None]:
    """`datasets` and what it uses raise errors of many kinds; all of them are about the source."""
    try:
        yield
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        raise SourceError(f"{message()}: {type(error).__name__}: {reason}") from error


# --- columns ----------------------------------------------------------------------------------------------------------


def plain_schema(path: Path | str, schema: pa.Schema, keep: Keep = keep_all) -> pa.Schema:
    """`schema` without metadata, of the columns to `keep`.

    Errors: `SourceError` where two of them share a name, or Parquet has no such type.
    """
    schema = pa.schema([pa.field(field.name, field.type) for field in schema if keep(field.name)])
    twice = [name for name in schema.names if schema.names.count(name) > 1]
    if twice:
        raise SourceError(f"{path}: two columns are named {twice[0]!r}: rename one, or leave both out with --drop")
    if not _storable(schema):
        odd = next(field for field in schema if not _storable(pa.schema([field])))
        raise SourceError(
            f"{path}: column {odd.name!r} is {odd.type}, which no Parquet file can hold: convert it, or leave "
            f"it out with --drop"
        )
    return schema


def _storable(schema: pa.Schema) -> bool:
    try:
        pq.write_table(schema.empty_table(), pa.BufferOutputStream())
        return True
    except pa.ArrowException:
        return False


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type can be the text: strings in any of Arrow's forms, or nothing but nulls."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return is_string(kind) or pa.types.is_null(kind)


def is_string(kind: pa.DataType) -> bool:
    """Whether a column of this type holds strings as they are."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _columnar(batch: pa.RecordBatch, first: int, text_field: str | None) -> Piece:
    """A piece whose first row is row `first`; strings that are not UTF-8 are mended, but not in lists and structs."""
    columns = []
    mended = np.zeros(batch.num_rows, bool)
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        column, bad = _valid(column)  # before anything else looks at it: what is damaged may crash a kernel
        mended |= bad
        if name == text_field and not pa.types.is_string(column.type):
            column, bad = _valid(column.cast(pa.string()))
            mended |= bad
        columns.append(column)
    status = pc.if_else(pa.array(mended), "invalid_utf8", pa.scalar(None, pa.string()))
    rows = pa.array(np.arange(first, first + batch.num_rows, dtype=np.int64))
    return Piece(pa.RecordBatch.from_arrays(columns, batch.schema.names), rows, status)


def _valid(column: pa.Array) -> tuple[pa.Array, Any]:
    """`column` with valid UTF-8, and which rows had none. Raises `pa.ArrowInvalid` when the data is damaged."""
    try:
        column.validate(full=True)
        return column, False
    except pa.ArrowInvalid as error:
        if not is_string(column.type):
            if "UTF8" in str(error):
                return column, False
            raise
    raw = column.cast(pa.large_binary())
    raw.validate(full=True)
    values = raw.to_pylist()
    texts = [None if value is None else value.decode(errors="replace") for value in values]
    bad = [text is not None and text.encode() != value for text, value in zip(texts, values, strict=True)]
    return pa.array(texts, column.type), np.array(bad)
