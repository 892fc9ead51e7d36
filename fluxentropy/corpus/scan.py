"""The pass over a text file before anything else: it counts the rows, finds the bad ones, and settles the types."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from fluxentropy.corpus.textfiles import Record, Rejected, TextFile
from fluxentropy.errors import SourceError
from fluxentropy.runs.tables import json_value

# --- types of fields --------------------------------------------------------------------------------------------------
#
# A `FieldType` grows with the rows: `json_field` and `csv_field` look at some values, and `|` joins what was seen.
# Neither the order of the rows nor how they are grouped matters, except that the fields of an object keep their order.


MAX_DEPTH = 32  # of nested arrays and objects; Arrow files allow 64, and lists cost two
MAX_FIELDS = 256  # of an object; more are keys that are data
EXACT = 2**53  # every integer up to here is a float64
INTEGER = r"^-?(0|[1-9][0-9]{0,17})$"  # "007", "+1" and longer ones stay strings, which keeps their digits
NUMBER = r"^-?((0|[1-9][0-9]{0,17})(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?$|^-?inf$|^nan$|^NaN$"
KINDS = {str: "string", bool: "boolean", int: "integer", float: "number", list: "array", dict: "object"}


@dataclass(frozen=True, kw_only=True)
class FieldType:
    """Which values a field has; null is in every type.

    `kinds` are JSON's, "number" being one with a fraction or an exponent, and "deep" or "wide" for what is nested too
    deeply or has too many keys. `low` and `high` bound the integers, and zero. `rounded`: an integer is no float64.
    `items` are those of arrays, `fields` those of objects.
    """

    kinds: frozenset[str] = frozenset()
    low: int = 0
    high: int = 0
    rounded: bool = False
    items: FieldType | None = None
    fields: Mapping[str, FieldType] = field(default_factory=dict)

    def __or__(self, other: FieldType) -> FieldType:
        """What either holds.

        >>> (json_field([2**53 + 1]) | json_field([7])).arrow, (json_field([2**53 + 1]) | json_field([0.5])).arrow
        (DataType(int64), None)
        """
        if self == other:
            return self
        items = self.items | other.items if self.items and other.items else self.items or other.items
        names = dict.fromkeys([*self.fields, *other.fields])
        wide = len(names) > MAX_FIELDS
        nothing = FieldType()
        return FieldType(
            kinds=self.kinds | other.kinds | ({"wide"} if wide else set()),
            low=min(self.low, other.low),
            high=max(self.high, other.high),
            rounded=self.rounded or other.rounded,
            items=items,
            fields={}
            if wide
            else {name: self.fields.get(name, nothing) | other.fields.get(name, nothing) for name in names},
        )

    @property
    def arrow(self) -> pa.DataType | None:
        """The type that holds all values unchanged, integers among numbers as equal floats; None where there is none.

        Objects without any field are null, since Parquet cannot hold them.

        >>> json_field([1, 2.5, None]).arrow, json_field([1, "2"]).arrow, json_field([2**64 - 1]).arrow
        (DataType(double), None, DataType(uint64))
        """
        if not self.kinds:
            return pa.null()
        if self.kinds == {"integer"}:
            return next((kind for kind, low, high in INTEGERS if low <= self.low and self.high <= high), None)
        if self.kinds <= {"integer", "number"}:
            return None if self.rounded else pa.float64()
        if self.kinds == {"array"}:
            items = pa.null() if self.items is None else self.items.arrow
            return None if items is None else pa.list_(items)
        if self.kinds == {"object"}:
            types = {name: inner.arrow for name, inner in self.fields.items()}
            return None if None in types.values() else pa.struct(types) if types else pa.null()
        return SIMPLE.get(self.kinds)

    def fits(self, kind: pa.DataType) -> bool:
        """Whether `kind`, which Arrow found for these values and others, holds their integers unchanged.

        >>> json_field([2**53 + 1]).fits(pa.float64()), json_field([[2**63]]).fits(pa.list_(pa.int64()))
        (False, False)
        """
        if pa.types.is_floating(kind):
            return not self.rounded
        if pa.types.is_integer(kind):
            bits = kind.bit_width - (1 if pa.types.is_signed_integer(kind) else 0)
            return (-(2**bits) if pa.types.is_signed_integer(kind) else 0) <= self.low and self.high < 2**bits
        if pa.types.is_struct(kind):
            return all(self.fields[inner.name].fits(inner.type) for inner in kind if inner.name in self.fields)
        if pa.types.is_list(kind) and self.items is not None:
            return self.items.fits(kind.value_type)
        return True

    def to_json(self) -> dict[str, Any]:
        """A JSON value that `from_json` reads back."""
        value: dict[str, Any] = {
            "kinds": sorted(self.kinds),
            "fields": [[n, f.to_json()] for n, f in self.fields.items()],  # in their order, also in sorted JSON
        }
        value |= {"low": self.low, "high": self.high, "rounded": self.rounded}
        return value | {"items": None if self.items is None else self.items.to_json()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> FieldType:
        """Raises KeyError, TypeError, ValueError or AttributeError for anything but a result of `to_json`."""
        return cls(
            kinds=frozenset(value["kinds"]),
            low=int(value["low"]),
            high=int(value["high"]),
            rounded=bool(value["rounded"]),
            items=None if value["items"] is None else cls.from_json(value["items"]),
            fields={name: cls.from_json(inner) for name, inner in value["fields"]},
        )


INTEGERS = ((pa.int64(), -(2**63), 2**63 - 1), (pa.uint64(), 0, 2**64 - 1))
SIMPLE = {frozenset({"string"}): pa.string(), frozenset({"boolean"}): pa.bool_()}


def json_field(values: Iterable[Any], depth: int = MAX_DEPTH) -> FieldType:
    """The type of a field that has these parsed JSON values, of at most `depth` levels.

    >>> json_field([{"a": [1]}, {"b": "x"}]).arrow
    StructType(struct<a: list<item: int64>, b: string>)
    """
    values = list(values)
    types = set(map(type, values)) - {type(None)}
    kinds = {KINDS[kind] for kind in types}
    if not depth and kinds & {"array", "object"}:
        return FieldType(kinds=frozenset({"deep"}))
    items = None
    fields: dict[str, FieldType] = {}
    if "array" in kinds:
        items = json_field(chain.from_iterable(value for value in values if type(value) is list), depth - 1)
    if "object" in kinds:
        rows = [value for value in values if type(value) is dict]
        names = dict.fromkeys(chain.from_iterable(rows))
        if len(names) > MAX_FIELDS:
            kinds.add("wide")
        else:
            fields = {name: json_field([row[name] for row in rows if name in row], depth - 1) for name in names}
    low, high, rounded = (
        _integers([value for value in values if type(value) is int]) if "integer" in kinds else (0, 0, False)
    )
    return FieldType(kinds=frozenset(kinds), low=low, high=high, rounded=rounded, items=items, fields=fields)


def csv_field(cells: Sequence[str | None]) -> FieldType:
    """The type of a CSV column with these cells: integers, numbers, or strings as soon as a cell is neither.

    >>> [csv_field(cells).arrow for cells in (["1", None], ["1", ".5"], ["007"])]
    [DataType(int64), DataType(double), DataType(string)]
    """
    column = pa.array(cells, pa.string()).drop_null()
    if not len(column):
        return FieldType()
    if not pc.all(pc.match_substring_regex(column, NUMBER)).as_py():
        return FieldType(kinds=frozenset({"string"}))
    whole = pc.match_substring_regex(column, INTEGER)
    integers = [int(cell) for cell in column.filter(whole).to_pylist()]
    low, high, rounded = _integers(integers)
    kinds = {*(["integer"] if integers else []), *(["number"] if len(integers) < len(column) else [])}
    return FieldType(kinds=frozenset(kinds), low=low, high=high, rounded=rounded)


def _integers(values: Collection[int]) -> tuple[int, int, bool]:
    low, high = min(values, default=0), max(values, default=0)
    return min(low, 0), max(high, 0), (low < -EXACT or high > EXACT) and not all(map(_is_float, values))


def _is_float(value: int) -> bool:
    try:
        return float(value) == value
    except OverflowError:
        return False


# --- the first pass ---------------------------------------------------------------------------------------------------


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
        types = [[name, kind.to_json()] for name, kind in self.types.items()]  # in their order, also in sorted JSON
        return {"n_rows": self.n_rows, "n_rejected": self.n_rejected, "types": types, "limit": self.limit}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Scan:
        """Raises KeyError, TypeError, ValueError or AttributeError for anything but a result of `to_json`."""
        types = {name: FieldType.from_json(kind) for name, kind in value["types"]}
        return cls(n_rows=value["n_rows"], n_rejected=value["n_rejected"], types=types, limit=value["limit"])


def scan_file(file: TextFile, *, id_field: str, limit: int | None, skip: bool) -> Scan:
    """Read `file` once. With `skip`, bad rows are counted, else the first one is an error.

    The types of a field are joined over all rows: see `FieldType`. Text and id of a CSV file are strings, whatever they
    look like.

    Errors: `SourceError` names the file and the line of a bad row.
    """
    types: dict[str, FieldType] = {file.text_field or "": json_field([""])} if file.format == "txt" else {}
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
