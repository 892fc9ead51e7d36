"""The columns of a corpus: which there are, their names and types, and the batches that have them."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from fluxentropy.config.yaml import did_you_mean
from fluxentropy.corpus.readers import Piece, is_string, is_text
from fluxentropy.corpus.scan import FieldType, json_text
from fluxentropy.errors import SourceError, UsageError
from fluxentropy.runs.tables import json_type

OWN_COLUMNS = ("id", "source_file", "source_row", "input_status")


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The columns of one source: `label` for messages, `empty` where it has no row, so that it may lack any.

    `names` are all columns, `schema` those that are wanted. Of a text file, `found` is what its fields hold, and
    `cells` whether it is a CSV file.
    """

    label: str
    schema: pa.Schema
    names: Sequence[str]
    empty: bool
    found: Mapping[str, FieldType] | None = None
    cells: bool = False


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which columns of the source are wanted beside those that are `needed`: `columns`, if given, and none of `drop`.

    Errors: `UsageError` where a column is to be dropped that is needed, or both lists are given.
    """

    columns: Sequence[str] | None
    drop: Sequence[str]
    needed: Collection[str]  # the text and the id
    text_field: str | None

    def __post_init__(self) -> None:
        if self.columns is not None and self.drop:
            raise UsageError("--columns and --drop: give one of them")
        if named := {*self.drop} & {*self.needed} - {"id"}:
            raise UsageError(f"--drop {min(named)}: it is needed, name another text or id field, or leave it out")

    def keeps(self, name: str) -> bool:
        """Whether the column is wanted; that with the text also where it is spelled in another case."""
        if name in self.drop:
            return False
        needed = name in self.needed or (self.text_field == "text" and name.lower() == "text")
        return needed or self.columns is None or name in self.columns

    def check(self, sources: Sequence[Columns]) -> None:
        """UsageError where a named column is in no source."""
        names = {name for source in sources for name in source.names}
        for flag, given in (("columns", self.columns or ()), ("drop", self.drop)):
            for name in given:
                if name not in names and not all(source.empty for source in sources):
                    raise UsageError(f"--{flag} {name}: no source has such a field{did_you_mean(name, sorted(names))}")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How the columns of a source become those of the batches."""

    schema: pa.Schema
    text_field: str | None
    id_field: str | None  # None: ids are made of file and row
    others: Mapping[str, str]  # name in the batches -> name in the source
    types: Mapping[str, pa.DataType | None]  # of the columns by their names in the source; None: JSON text

    @property
    def json_text(self) -> tuple[str, ...]:
        """The columns of the batches that hold JSON text, since the types in the source do not fit together."""
        return tuple(name for name, source in self.others.items() if self.types[source] is None)

    def batch(self, source_file: str, piece: Piece) -> pa.RecordBatch:
        """The rows of `piece` with all columns of `schema`."""
        n_rows = piece.batch.num_rows
        file = pa.repeat(pa.scalar(source_file), n_rows)
        ids = pc.binary_join_element_wise(file, piece.rows.cast(pa.string()), ":")
        if self.id_field in piece.batch.schema.names:
            ids = pc.coalesce(piece.batch.column(self.id_field).cast(pa.string()), ids)
        others = [_column(piece, source, self.types[source]) for source in self.others.values()]
        if self.text_field is None:
            return pa.RecordBatch.from_arrays([ids, file, piece.rows, piece.status, *others], schema=self.schema)
        text = _column(piece, self.text_field, pa.string())
        status = pc.if_else(pc.is_null(text), "null_text", piece.status)
        return pa.RecordBatch.from_arrays([ids, file, piece.rows, text, status, *others], schema=self.schema)


def make_layout(
    sources: Sequence[Columns], text_field: str | None, id_field: str | None, reserved: Collection[str]
) -> Layout:
    """Settle names and types over all sources; without a `text_field` no column is the text.

    Errors: `SourceError` when a source lacks the text field or `id_field`, when the first cannot be a text, or when
    types cannot be merged.
    """
    filled = [source for source in sources if not source.empty]
    for source in filled:
        for name in (text_field, id_field):
            if name is not None and name not in source.schema.names:
                raise SourceError(f"{source.label}: {_no_field(name, source.names)}")
    if id_field is None and filled and all("id" in source.schema.names for source in filled):
        id_field = "id"
    for source in sources:
        for field in source.schema:
            if field.name == text_field and source.found is None and not is_text(field.type):
                raise SourceError(f"{source.label}: the text field {field.name!r} holds {field.type}, not strings")
    named = dict.fromkeys(name for source in sources for name in source.schema.names)
    text = {} if text_field is None else {text_field: pa.string()}
    apart = (*text, "id") if id_field == "id" else (*text,)
    types = {name: _common_type(name, sources) for name in named if name not in apart} | text
    if id_field is not None:
        types[id_field] = types.get(id_field) or pa.string()
    taken = {*OWN_COLUMNS, *text, *reserved}
    others: dict[str, str] = {}
    for name in named:
        if name == text_field or name == id_field == "id":
            continue
        free = name
        while free in taken or (free != name and free in types):
            free = f"source_{free}"
        taken.add(free)
        others[free] = name
    schema = pa.schema(
        {
            "id": pa.string(),
            "source_file": pa.string(),
            "source_row": pa.int64(),
            **text,
            "input_status": pa.string(),
        }
        | {free: types[name] or pa.string() for free, name in others.items()}
    )
    return Layout(schema=schema, text_field=text_field, id_field=id_field, others=others, types=types)


def _no_field(name: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1) or [there for there in names if there.lower() == name.lower()]
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"no field {name!r} in any row, the fields are {', '.join(map(repr, names)) or 'none'}{hint}"


def _common_type(name: str, sources: Sequence[Columns]) -> pa.DataType | None:
    """The type of a column in all sources; None where it becomes JSON text.

    That happens only where a text file is among those that have it. Errors: `SourceError` names two other sources whose
    types do not fit together.
    """
    there = [source for source in sources if name in source.schema.names]
    typed = [(source.label, source.schema.field(name).type) for source in there if source.found is None]
    label: str
    kind: Any
    label, kind = typed[0] if typed else ("", None)
    for other_label, other in typed[1:]:
        merged = _merged(kind, other)
        if merged is None:
            raise SourceError(
                f"{label} and {other_label}: column {name!r} is {kind} in the first and {other} in the second, which "
                f"do not fit together: convert one, read them one by one, or leave it out with --drop {name}"
            )
        if not kind.equals(merged):
            kind, label = merged, other_label
    seen = [(source, source.found[name]) for source in there if source.found is not None]
    if not seen:
        return kind
    found = reduce(or_, (one for _, one in seen))
    parsed = pa.string() if found.arrow is None and all(source.cells for source, _ in seen) else found.arrow
    if kind is None or parsed is None:
        return parsed
    merged = _merged(kind, parsed)
    return merged if merged is not None and found.fits(merged) else None


def _merged(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """The type that both can be converted to; None where there is none.

    >>> _merged(pa.int64(), pa.float64()), _merged(pa.null(), pa.string()), _merged(pa.int64(), pa.string())
    (DataType(double), DataType(string), None)
    """
    if one.equals(other):
        return one
    schemas = [pa.schema({"x": one}), pa.schema({"x": other})]
    try:
        merged = pa.unify_schemas(schemas, promote_options="permissive").field("x").type
    except pa.ArrowException:
        return None
    if pa.types.is_floating(merged) and (pa.types.is_decimal(one) or pa.types.is_decimal(other)):
        return None  # a decimal would lose digits
    return merged if _castable(one, merged) and _castable(other, merged) else None


def _castable(kind: pa.DataType, to: pa.DataType) -> bool:
    try:
        return kind.equals(to) or pa.array([], kind).cast(to) is not None
    except pa.ArrowException:
        return False


def can_be_id(kind: pa.DataType) -> bool:
    """Whether values of this type name rows exactly, as strings: fractions, NaN and bytes do not."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    unfit = pa.types.is_floating(kind) or pa.types.is_boolean(kind) or not _castable(kind, pa.string())
    return not unfit and (is_string(kind) or not _is_bytes(kind))


def _is_bytes(kind: pa.DataType) -> bool:
    return any(
        test(kind)
        for test in (
            pa.types.is_binary,
            pa.types.is_large_binary,
            pa.types.is_binary_view,
            pa.types.is_fixed_size_binary,
        )
    )


def _column(piece: Piece, name: str, kind: pa.DataType | None) -> pa.Array:
    """The column of that type, or as JSON text; null where the source has none.

    Raises `pa.ArrowInvalid` for a value that the type cannot hold, such as an integer that would be rounded.
    """
    if name not in piece.batch.schema.names:
        return pa.nulls(piece.batch.num_rows, kind or pa.string())
    column = piece.batch.column(name)
    if kind is None:
        return column if piece.settled else _as_json(column)
    try:
        return column if column.type.equals(kind) else column.cast(kind)
    except pa.ArrowInvalid as error:
        reason = str(error).splitlines()[0]
        raise pa.ArrowInvalid(
            f"column {name!r} is {column.type}, and {kind} with the other files: {reason}: convert one, or leave it "
            f"out with --drop {name}"
        ) from error


def _as_json(column: pa.Array) -> pa.Array:
    """The values of a column of any type as JSON text."""
    values = column.cast(json_type(column.type)).to_pylist()
    return pa.array([None if value is None else json_text(value) for value in values], pa.string())
