"""What a field of a text file holds in all its rows, and the Arrow type that keeps every value as it is.

A `FieldType` grows with the rows: `json_field` and `csv_field` look at some values, and `|` joins what was seen.
Neither the order of the rows nor how they are grouped matters, except that the fields of an object keep their order.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

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
            "fields": {n: f.to_json() for n, f in self.fields.items()},
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
            fields={name: cls.from_json(inner) for name, inner in value["fields"].items()},
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
