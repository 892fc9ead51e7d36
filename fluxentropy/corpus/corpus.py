"""Any source -> batches of records with stable ids: the input side of scoring.

    corpus = open_corpus(["reviews.jsonl.gz", "web/"], text_field="text")
    for batch in corpus.batches(start=0):   # pa.RecordBatch: id, source_file, source_row, text, input_status, …

Sources are described in `sources.py`: files, folders, globs, standard input, run directories, Hub datasets. A `.txt`
file is one text; every other file has one text a row. Memory does not grow with the corpus.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fluxentropy.corpus.layout import OWN_COLUMNS, Choice, Columns, Layout, can_be_id, make_layout
from fluxentropy.corpus.readers import ArrowReader, HubReader, ParquetReader, Reader, TextReader, is_string
from fluxentropy.corpus.scan import Scan, scan_file
from fluxentropy.corpus.sources import Found, find_sources
from fluxentropy.corpus.textfiles import Rejected, TextFile, kind_of, reading
from fluxentropy.errors import SourceError, UsageError
from fluxentropy.runs.files import fingerprint_file, fingerprint_json

BATCH_ROWS, BATCH_BYTES = 1024, 2**25  # of a batch, at most; a row that is larger comes alone
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """One file of a corpus, or one Hub dataset (`path` None, `n_rows` None)."""

    name: str  # relative to the folder or glob that was given; the same on every machine
    path: Path | None
    format: str
    n_rows: int | None  # rows that can be used, up to the limit
    fingerprint: str


class RejectedRows:
    """Rejected rows: their number is known, the rows themselves are read again each time they are asked for."""

    def __init__(self, readers: Sequence[TextReader]) -> None:
        self._readers = readers

    def __len__(self) -> int:
        return sum(reader.n_rejected for reader in self._readers)

    def __iter__(self) -> Iterator[Rejected]:
        return chain.from_iterable(reader.rejected() for reader in self._readers)


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Rows in the order of `files`; see `open_corpus`.

    `scans` is a JSON object to hand to the next `open_corpus`, which then need not read the text files twice.
    """

    files: tuple[SourceFile, ...]
    schema: pa.Schema
    n_rows: int | None  # None where a Hub dataset is among the sources
    text_field: str  # empty where no column is the text
    scans: Mapping[str, Any] = field(repr=False)
    _layout: Layout = field(repr=False)
    _readers: tuple[Reader, ...] = field(repr=False)
    _limit: int | None = field(repr=False)

    def batches(self, start: int = 0, batch_rows: int = BATCH_ROWS) -> Iterator[pa.RecordBatch]:
        """All rows from row `start` on, in batches of at most `batch_rows` rows and about 32 MiB.

        Where a batch ends depends on the rows alone: reading again from the start of any batch gives the same batches.

        Errors: `SourceError` names a file that cannot be read to its end, or that changed since it was opened.
        """
        return _rebatch(self._pieces(start), batch_rows, BATCH_BYTES)

    @property
    def json_text(self) -> tuple[str, ...]:
        """The columns that hold JSON text, since no type holds all values of the text files among the sources."""
        return self._layout.json_text

    @property
    def rejected(self) -> RejectedRows:
        """The rows that were left out with `on_error="skip"`, in order."""
        return RejectedRows([reader for reader in self._readers if isinstance(reader, TextReader)])

    def _pieces(self, start: int) -> Iterator[pa.RecordBatch]:
        left = None if self._limit is None else max(self._limit - start, 0)
        if left == 0:
            return
        for file, reader in zip(self.files, self._readers, strict=True):
            if file.n_rows is not None and start >= file.n_rows:
                start -= file.n_rows
                continue
            # Where the length is not known, and another source follows, the rows to pass over must be counted.
            skip = start if file.n_rows is not None or file is self.files[-1] else 0
            start -= skip
            due = None if file.n_rows is None else file.n_rows - skip
            for piece in reader.pieces(skip):
                passed = min(start, piece.batch.num_rows)
                start -= passed
                wanted = min(n for n in (piece.batch.num_rows - passed, left, due) if n is not None)
                if wanted:
                    with reading(file.path or file.name):
                        batch = self._layout.batch(file.name, piece)
                    yield batch.slice(passed, wanted)
                left = None if left is None else left - wanted
                due = None if due is None else due - wanted
                if left == 0:
                    return
            if due:
                raise SourceError(f"{file.path}: {due} rows fewer than when it was opened: it changed meanwhile")


def open_corpus(
    sources: Sequence[str],
    *,
    text_field: str | None = "text",
    id_field: str | None = None,
    on_error: Literal["fail", "skip"] = "fail",
    limit: int | None = None,
    spool: Path | None = None,
    offline: bool = False,
    scans: Mapping[str, Any] | None = None,
    reserved: Collection[str] = (),
    columns: Sequence[str] | None = None,
    drop: Sequence[str] = (),
) -> Corpus:
    """Find the files, read their schemas, and pass once over the text files among them.

    The columns of the batches:
    - `id`: string, never null: the column `id_field`, by default `id` if every file has it. Where it is null or
      missing, `source_file:source_row`.
    - `source_file`: string; `source_row`: int64, the row in that file from 0. Rejected rows count, so that the number
      stays; in JSON Lines it is the line, blank ones included.
    - the text, under its own name: string, null where the row has none.
    - `input_status`: string: null, `null_text`, or `invalid_utf8` or `lone_surrogates` where a string of the row was
      mended with U+FFFD (inside lists and structs of Parquet and Arrow, bytes are left as they are).
    - all other columns with their types, or those named in `columns`, or all but those in `drop`. Columns that one file
      lacks are null there; types that differ between files are merged as Arrow's "permissive" rule does. Where no type
      holds all values of a field of a text file unchanged, they become JSON text (of CSV, the cells). A column of the
      source whose name is one of those above or in `reserved` gets `source_` in front, more than once if need be. An
      `id` that serves as the id is not repeated.

    `on_error="skip"` leaves bad rows of text files out; they are in `Corpus.rejected`. `limit` keeps
    the first rows, and reads no further. `spool` is where standard input is kept. `offline` refuses Hub datasets.
    Without a `text_field` no column is the text, all are as any other, and rows may have none.
    `scans` are those of an earlier corpus; they count for files that did not change since.

    Errors: `SourceError` names the file and, where there is one, the line; `UsageError` for impossible arguments.
    """
    if not sources:
        raise UsageError("no source: give files, folders or globs, - for standard input, or a dataset")
    if text_field in OWN_COLUMNS or text_field in reserved:
        raise UsageError(f"the text field cannot be named {text_field!r}: the result has a column of that name")
    choice = Choice(columns=columns, drop=drop, needed=(text_field or "", id_field or "id"), text_field=text_field)
    files: list[SourceFile] = []
    readers: list[Reader] = []
    new_scans: dict[str, Any] = {}
    left = limit
    for found in find_sources(sources, spool=spool):
        if left == 0:
            break
        if found.path is None and offline:
            raise SourceError(f"{found.name}: no such file or folder, and --offline refuses to look for it on the Hub")
        request = _ScanRequest(text_field=text_field, id_field=id_field or "id", limit=left, skip=on_error == "skip")
        file, reader = _open(found, request, choice, scans or {}, new_scans)
        files.append(file)
        readers.append(reader)
        left = left if left is None or file.n_rows is None else left - file.n_rows
    described = [_columns(file, reader) for file, reader in zip(files, readers, strict=True)]
    if found_field := _other_spelling(described, text_field):
        log.info(f"no field {text_field!r}: the texts are taken from {found_field!r}")
        return open_corpus(
            sources,
            text_field=found_field,
            id_field=id_field,
            on_error=on_error,
            limit=limit,
            spool=spool,
            offline=offline,
            scans=scans,
            reserved=reserved,
            columns=columns,
            drop=drop,
        )
    choice.check(described)
    layout = make_layout(described, text_field, id_field, reserved)
    readers = [reader.with_types(layout.types) if isinstance(reader, TextReader) else reader for reader in readers]
    if layout.id_field is not None:
        for file, reader in zip(files, readers, strict=True):
            _check_ids(file, reader, layout.id_field)
    if layout.json_text:
        log.info(f"values of several types, kept as JSON text: {', '.join(layout.json_text)}")
    return Corpus(
        files=tuple(files),
        schema=layout.schema,
        n_rows=None if any(file.n_rows is None for file in files) else sum(file.n_rows or 0 for file in files),
        text_field=text_field or "",
        scans=new_scans,
        _layout=layout,
        _readers=tuple(readers),
        _limit=limit,
    )


def _columns(file: SourceFile, reader: Reader) -> Columns:
    text = reader if isinstance(reader, TextReader) else None
    return Columns(
        label=str(file.path or file.name),
        schema=reader.schema,
        names=reader.names,
        empty=reader.n_rows == 0,
        found=text.found if text else None,
        cells=text is not None and text.file.cells,
    )


def _other_spelling(columns: Sequence[Columns], text_field: str | None) -> str | None:
    """`Text` where the default field `text` stands in no source, and `Text`, or `TEXT`, in all of them."""
    names = [set(source.names) for source in columns if not source.empty]
    if text_field != "text" or not names or any("text" in found for found in names):
        return None
    spellings = {name for name in set.intersection(*names) if name.lower() == "text"}
    return spellings.pop() if len(spellings) == 1 else None


def _check_ids(file: SourceFile, reader: Reader, name: str) -> None:
    """Refuse ids that are neither strings nor whole numbers; the first one is named. Null ones do not matter."""
    if isinstance(reader, TextReader):
        if name not in reader.found or reader.found[name].kinds <= {"string", "integer"}:
            return
        ids = ((row, fields.get(name)) for row, fields in reader.fields())
        row, value = next((row, value) for row, value in ids if value is not None and type(value) not in (str, int))
        said = f"{kind_of(value)}, {str(value)[:40]}, in line {row + 1}"
    else:
        if name not in reader.schema.names or can_be_id(kind := reader.schema.field(name).type):
            return
        first = next(
            (
                (piece.rows[place].as_py(), piece.batch.column(name)[place])
                for piece in reader.pieces(0)
                for place in np.flatnonzero(piece.batch.column(name).is_valid())[:1]
            ),
            None,
        )
        if first is None:
            return
        said = f"{kind}, {str(first[1])[:40]} in row {first[0]}"
    raise SourceError(
        f"{file.path or file.name}: the id field {name!r} holds {said}: make the ids strings or whole numbers, or "
        f"{'leave the column out with --drop id' if name == 'id' else 'name another with --id-field'}"
    )


# --- opening ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _ScanRequest:
    """What the result of a scan depends on beside the file, and whether bad rows may be skipped."""

    text_field: str | None
    id_field: str
    limit: int | None
    skip: bool


def _open(
    found: Found, request: _ScanRequest, choice: Choice, scans: Mapping[str, Any], new_scans: dict[str, Any]
) -> tuple[SourceFile, Reader]:
    """A reader for `found`. For a text file, takes the scan from `scans` or makes it, and puts it into `new_scans`."""
    reader: Reader
    if found.path is None:
        reader = HubReader(found.name, request.text_field, choice.keeps)
        fingerprint = "schema:" + fingerprint_json([found.name, str(reader.schema)])
    else:
        with reading(found.path):
            fingerprint = fingerprint_file(found.path)
        if found.format == "parquet":
            reader = ParquetReader(found.path, request.text_field, choice.keeps)
        elif found.format == "arrow":
            reader = ArrowReader(found.path, request.text_field, choice.keeps)
        else:
            text_file = TextFile(path=found.path, name=found.name, format=found.format, text_field=request.text_field)
            key = {**asdict(request), "fingerprint": fingerprint}
            scan = _known_scan(scans.get(found.name), key)
            scan = scan or scan_file(text_file, id_field=request.id_field, limit=request.limit, skip=request.skip)
            new_scans[found.name] = {"request": key, **scan.to_json()}
            reader = TextReader(text_file, scan, choice.keeps)
    n_rows = reader.n_rows
    if n_rows is not None and request.limit is not None:
        n_rows = min(n_rows, request.limit)
    file = SourceFile(name=found.name, path=found.path, format=found.format, n_rows=n_rows, fingerprint=fingerprint)
    return file, reader


def _known_scan(value: Any, request: Mapping[str, Any]) -> Scan | None:
    """The scan that an earlier corpus made of the same file with the same arguments; None if this is another's."""
    try:
        return Scan.from_json(value) if value["request"] == request else None
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


# --- batches ----------------------------------------------------------------------------------------------------------


def _rebatch(batches: Iterable[pa.RecordBatch], max_rows: int, max_bytes: int) -> Iterator[pa.RecordBatch]:
    """The same rows in batches that are filled until the next row would exceed a limit; one row is always taken."""
    held: list[pa.RecordBatch] = []
    held_rows = held_bytes = 0
    for batch in batches:
        ends = np.concatenate([[0], np.cumsum(sum(map(row_bytes, batch.columns)))])
        row = 0
        while row < batch.num_rows:
            fitting = int(np.searchsorted(ends, ends[row] + max_bytes - held_bytes, side="right")) - 1 - row
            taken = min(max(fitting, 0 if held else 1), max_rows - held_rows, batch.num_rows - row)
            if taken:
                held.append(batch.slice(row, taken))
            held_rows += taken
            held_bytes += int(ends[row + taken] - ends[row])
            row += taken
            if row < batch.num_rows or held_rows == max_rows:
                yield pa.concat_batches(held)
                held, held_rows, held_bytes = [], 0, 0
    if held:
        yield pa.concat_batches(held)


def row_bytes(column: pa.Array) -> np.ndarray:
    """About how many bytes each value takes: the length of strings and bytes, 8 for anything of fixed width.

    >>> row_bytes(pa.array(["abc", None])).tolist(), row_bytes(pa.array([[1, 2], [], None])).tolist()
    ([3, 0], [16, 0, 0])
    """
    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):
        return row_bytes(column.storage)
    if pa.types.is_string_view(kind) or pa.types.is_binary_view(kind):
        column, kind = column.cast(pa.large_binary()), pa.large_binary()
    if is_string(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return np.asarray(pc.fill_null(pc.binary_length(column), 0), np.int64)
    if pa.types.is_struct(kind):
        return sum(map(row_bytes, column.flatten()), start=np.zeros(len(column), np.int64))
    if pa.types.is_map(kind):
        kind = pa.list_(pa.struct([kind.key_field, kind.item_field]))
        column = column.cast(kind)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        lengths = np.asarray(pc.fill_null(pc.list_value_length(column), 0), np.int64)
        ends = np.concatenate([[0], np.cumsum(row_bytes(column.flatten()))])
        stops = np.cumsum(lengths)
        return np.asarray(ends[stops] - ends[stops - lengths])
    return np.full(len(column), 8, np.int64)
