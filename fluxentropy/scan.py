"""The pass over a text file before anything else: it counts the rows, finds the bad ones, and settles the types."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import pyarrow as pa

from fluxentropy.errors import SourceError
from fluxentropy.fieldtypes import FieldType, csv_field, json_field
from fluxentropy.tablefiles import json_value
from fluxentropy.textfiles import Record, Rejected, TextFile

CHUNK_ROWS, CHUNK_BYTES = 1024, 2**23  # of source text; how many rows become Arrow arrays at a time


@dataclass(frozen=True, kw_only=True)
class Scan:
    """What one pass over a text file found, up to the row `limit`."""

    n_rows: int  # rows that can be used
    n_rejected: int
    types: Mapping[str, FieldType]
    limit: int | None

    def to_json(self) -> dict[str, Any]:
        """A JSON value that `from_json` reads back."""
        types = {name: kind.to_json() for name, kind in self.types.items()}
        return {"n_rows": self.n_rows, "n_rejected": self.n_rejected, "types": types, "limit": self.limit}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Scan:
        """Raises KeyError, TypeError, ValueError or AttributeError for anything but a result of `to_json`."""
        types = {name: FieldType.from_json(kind) for name, kind in value["types"].items()}
        return cls(n_rows=value["n_rows"], n_rejected=value["n_rejected"], types=types, limit=value["limit"])


def scan_file(file: TextFile, *, id_field: str, limit: int | None, skip: bool) -> Scan:
    """Read `file` once. With `skip`, bad rows are counted, else the first one is an error.

    The types of a field are joined over all rows: see `FieldType`. Text and id of a CSV file are strings, whatever they
    look like.

    Errors: `SourceError` names the file and the line of a bad row.
    """
    types: dict[str, FieldType] = {file.text_field: json_field([""])} if file.format == "txt" else {}
    n_rows = n_rejected = 0
    records: Iterable[Record | Rejected] = file.records()
    for rejected, chunk in chunks(records, limit):
        if rejected and not skip:
            raise SourceError(f"{file.path}:{rejected[0].line}: {rejected[0].reason}")
        n_rejected += len(rejected)
        n_rows += len(chunk)
        for name in dict.fromkeys(chain.from_iterable(fields for _, fields, _, _ in chunk)):
            values = [fields.get(name) for _, fields, _, _ in chunk]
            parse = csv_field if file.cells and name not in (file.text_field, id_field) else json_field
            types[name] = types.get(name, FieldType()) | parse(values)
    return Scan(n_rows=n_rows, n_rejected=n_rejected, types=types, limit=limit)


def chunks(
    records: Iterable[Record | Rejected], limit: int | None = None
) -> Iterator[tuple[list[Rejected], list[Record]]]:
    """Groups of at most 1024 records and about 8 MiB, and the rejected ones among them; ends after `limit` records."""
    rejected: list[Rejected] = []
    chunk: list[Record] = []
    size = 0
    left = limit
    for record in records if limit != 0 else ():
        if isinstance(record, Rejected):
            rejected.append(record)
        else:
            chunk.append(record)
            size += record[3]
        if len(chunk) + len(rejected) == CHUNK_ROWS or size >= CHUNK_BYTES or len(chunk) == left:
            yield rejected, chunk
            left = None if left is None else left - len(chunk)
            rejected, chunk, size = [], [], 0
            if left == 0:
                return
    yield rejected, chunk


# --- columns ----------------------------------------------------------------------------------------------------------


def column_type(file: TextFile, found: FieldType) -> pa.DataType | None:
    """The Arrow type of a column of `file`; None where the values become JSON text."""
    return pa.string() if found.arrow is None and file.cells else found.arrow


def to_array(file: TextFile, values: Sequence[Any], kind: pa.DataType | None, found: FieldType) -> pa.Array:
    """A column of `file`, where the scan found `found`, as an array of type `kind`, or as JSON text where that is None.

    >>> from pathlib import Path
    >>> file = TextFile(path=Path("a.jsonl"), name="a.jsonl", format="jsonl", text_field="text")
    >>> to_array(file, [1, "x", None], None, FieldType()).to_pylist()
    ['1', '"x"', None]
    """
    if kind is None:
        if file.cells:
            values = to_array(file, values, column_type(file, found), found).to_pylist()
        return pa.array([None if value is None else json_text(value) for value in values], pa.string())
    if file.cells and not pa.types.is_null(kind):
        return pa.array(values, pa.string()).cast(kind)
    try:
        return pa.array(values, kind)
    except (pa.ArrowInvalid, pa.ArrowTypeError):  # integers among floats, an empty object, or ids of both kinds
        return pa.array([_fitted(value, kind) for value in values], kind)


def json_text(value: Any) -> str:
    """A value as JSON, characters as they are, and bytes in base64."""
    return json.dumps(value, ensure_ascii=False, default=json_value)


def _fitted(value: Any, kind: pa.DataType) -> Any:
    """`value` with integers as floats or strings, and empty objects left out, where the type asks for it."""
    if pa.types.is_null(kind) and value == {}:
        return None
    if type(value) is int and pa.types.is_floating(kind):
        return float(value)
    if type(value) is int and pa.types.is_string(kind):
        return str(value)
    if type(value) is list and pa.types.is_list(kind):
        return [_fitted(item, kind.value_type) for item in value]
    if type(value) is dict and pa.types.is_struct(kind):
        return {field.name: _fitted(value.get(field.name), field.type) for field in kind}
    return value
