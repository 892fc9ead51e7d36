"""The pass over a text file before anything else: it counts the rows, finds the bad ones, and settles the types."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from fluxentropy.errors import SourceError
from fluxentropy.textfiles import Record, Rejected, TextFile, kind_of

CHUNK_ROWS, CHUNK_BYTES = 1024, 2**23  # of source text; how many rows become Arrow arrays at a time
INTEGER = r"^-?(0|[1-9][0-9]{0,17})$"  # "007", "+1" and longer ones stay strings, which keeps their digits
NUMBER = r"^-?((0|[1-9][0-9]{0,17})(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?$|^-?inf$|^nan$|^NaN$"


@dataclass(frozen=True, kw_only=True)
class Scan:
    """What one pass over a text file found, up to the row `limit`."""

    n_rows: int  # rows that can be used
    n_rejected: int
    schema: pa.Schema
    limit: int | None

    def to_json(self) -> dict[str, Any]:
        """A JSON value that `from_json` reads back."""
        schema = base64.b64encode(self.schema.serialize().to_pybytes()).decode()
        return {"n_rows": self.n_rows, "n_rejected": self.n_rejected, "schema": schema, "limit": self.limit}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Scan:
        """Raises KeyError, TypeError, ValueError or `pa.ArrowException` for anything but a result of `to_json`."""
        schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(value["schema"])))
        return cls(n_rows=value["n_rows"], n_rejected=value["n_rejected"], schema=schema, limit=value["limit"])


def scan_file(file: TextFile, *, id_field: str, limit: int | None, skip: bool) -> Scan:
    """Read `file` once. With `skip`, bad rows are counted, else the first one is an error.

    The types of a JSON field are merged over all rows: null with anything, integers with floats (to float64), objects
    field by field, arrays by their items. Objects without any field become null, since Parquet cannot hold them. A CSV
    column is int64 if all its cells are, else float64, else string; the text and the id are always strings.

    Errors: `SourceError` names the file and the line of a bad row; for types that cannot be merged, the field and
    both lines.
    """
    types: dict[str, pa.DataType] = {file.text_field: pa.string()} if file.format == "txt" else {}
    n_rows = n_rejected = 0
    records: Iterable[Record | Rejected] = file.records()
    for rejected, chunk in chunks(records, limit):
        if rejected and not skip:
            raise SourceError(f"{file.path}:{rejected[0].line}: {rejected[0].reason}")
        n_rejected += len(rejected)
        n_rows += len(chunk)
        for name in dict.fromkeys(chain.from_iterable(fields for _, fields, _, _ in chunk)):
            seen = types.get(name, pa.null())
            try:
                types[name] = _column_type(file, name, [fields.get(name) for _, fields, _, _ in chunk], id_field, seen)
            except pa.ArrowException:
                raise _conflict(file, name, chunk, seen) from None
    types = {name: _storable(kind) for name, kind in types.items()}
    if file.text_field in types:
        types[file.text_field] = pa.string()
    return Scan(n_rows=n_rows, n_rejected=n_rejected, schema=pa.schema(types), limit=limit)


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


# --- types ------------------------------------------------------------------------------------------------------------


def _column_type(file: TextFile, name: str, values: Sequence[Any], id_field: str, seen: pa.DataType) -> pa.DataType:
    if file.format == "jsonl":
        return merge(seen, json_type(values))
    if name in (file.text_field, id_field):
        return pa.string()
    found = csv_type(values)
    return pa.string() if pa.string() in (seen, found) else merge(seen, found)


def json_type(values: Iterable[Any]) -> pa.DataType:
    """The Arrow type of parsed JSON values. Raises `pa.ArrowTypeError` where they do not agree.

    >>> json_type([1, 2.5, None]), json_type([{"a": [1]}, {"b": "x"}])
    (DataType(double), StructType(struct<a: list<item: int64>, b: string>))
    """
    values = list(values)
    kinds = set(map(type, values)) - {type(None)}
    if kinds <= _SCALARS.keys() and len(kinds) < 2:
        return _SCALARS[kinds.pop()] if kinds else pa.null()
    if kinds == {int, float}:
        return pa.float64()
    if kinds == {list}:
        return pa.list_(json_type(chain.from_iterable(filter(None, values))))
    if kinds == {dict}:
        rows = [value for value in values if value]
        names = dict.fromkeys(chain.from_iterable(rows))
        return pa.struct([(name, json_type([row[name] for row in rows if name in row])) for name in names])
    raise pa.ArrowTypeError("mixed")


_SCALARS = {str: pa.string(), bool: pa.bool_(), int: pa.int64(), float: pa.float64()}


def csv_type(values: Sequence[str | None]) -> pa.DataType:
    """int64, float64 or string, whichever comes first and fits all cells; null where all are empty.

    >>> csv_type(["1", None]), csv_type(["1", ".5"]), csv_type(["007"]), csv_type([None])
    (DataType(int64), DataType(double), DataType(string), DataType(null))
    """
    cells = pa.array(values, pa.string())
    if cells.null_count == len(cells):
        return pa.null()
    for pattern, kind in ((INTEGER, pa.int64()), (NUMBER, pa.float64())):
        if pc.all(pc.match_substring_regex(cells, pattern)).as_py():
            return kind
    return pa.string()


def merge(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    """The type that holds both. Raises `pa.ArrowTypeError` or `pa.ArrowInvalid` where there is none.

    >>> merge(pa.int64(), pa.float64()), merge(pa.null(), pa.string())
    (DataType(double), DataType(string))
    """
    if one.equals(other):
        return one
    schemas = [pa.schema({"x": one}), pa.schema({"x": other})]
    return pa.unify_schemas(schemas, promote_options="permissive").field("x").type


def _storable(kind: pa.DataType) -> pa.DataType:
    """`kind` with null in place of objects that have no field in any row.

    >>> _storable(pa.list_(pa.struct([])))
    ListType(list<item: null>)
    """
    if pa.types.is_list(kind):
        return pa.list_(_storable(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, _storable(field.type)) for field in kind]) if kind.num_fields else pa.null()
    return kind


def to_array(file: TextFile, values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """A column of `file` as an array of the type that the scan found."""
    if file.format != "jsonl" and kind in (pa.int64(), pa.float64()):
        return pa.array(values, pa.string()).cast(kind)
    try:
        return pa.array(values, kind)
    except pa.ArrowInvalid:  # an integer beyond 2^53 among floats, or an empty object
        return pa.array([_fitted(value, kind) for value in values], kind)


def _fitted(value: Any, kind: pa.DataType) -> Any:
    """`value` with integers rounded to floats, and empty objects left out, where the type asks for it."""
    if pa.types.is_null(kind) and value == {}:
        return None
    if pa.types.is_floating(kind) and value is not None:
        return float(value)
    if pa.types.is_list(kind) and value:
        return [_fitted(item, kind.value_type) for item in value]
    if pa.types.is_struct(kind) and value:
        return {field.name: _fitted(value.get(field.name), field.type) for field in kind}
    return value


# --- disagreement -----------------------------------------------------------------------------------------------------


def _conflict(file: TextFile, name: str, chunk: Sequence[Record], seen: pa.DataType) -> SourceError:
    """Names the first row of `chunk` that does not fit `seen`, the type of the rows above, and one it contradicts."""
    row, value = -1, None
    for row, fields, _, _ in chunk:  # noqa: B007
        value = fields.get(name)
        merged = _fit(seen, value)
        if merged is None:
            break
        seen = merged
    here = f"{file.path}:{row + 1}: field {name!r}"
    if _fit(pa.null(), value) is None:
        return SourceError(f"{here}: an array whose items are of different types; make them all strings, say")
    kind = json_type([value])
    rows = ((record[0], record[1].get(name)) for record in file.records() if not isinstance(record, Rejected))
    above, other = next((number, found) for number, found in rows if _fit(kind, found) is None)
    kinds = (kind_of(value), kind_of(other))
    if kinds[0] == kinds[1]:  # arrays or objects that differ inside
        kinds = (str(kind), str(json_type([other])))
    return SourceError(
        f"{here} is {kinds[0]}, in line {above + 1} it is {kinds[1]}: a field needs one type in all rows"
    )


def _fit(kind: pa.DataType, value: Any) -> pa.DataType | None:
    try:
        return merge(kind, json_type([value]))
    except pa.ArrowException:
        return None
