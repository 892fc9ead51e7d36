"""The columns of a corpus: which there are, their names and types, and the batches that have them."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from fluxentropy.errors import SourceError
from fluxentropy.readers import Piece, is_text
from fluxentropy.scan import merge

OWN_COLUMNS = ("id", "source_file", "source_row", "input_status")


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The columns of one source: `label` for messages, `empty` where it has no row, so that it may lack any."""

    label: str
    schema: pa.Schema
    empty: bool


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How the columns of a source become those of the batches."""

    schema: pa.Schema
    text_field: str
    id_field: str | None  # None: ids are made of file and row
    others: Mapping[str, str]  # name in the batches -> name in the source

    def batch(self, source_file: str, piece: Piece) -> pa.RecordBatch:
        """The rows of `piece` with all columns of `schema`."""
        n_rows = piece.batch.num_rows
        file = pa.repeat(pa.scalar(source_file), n_rows)
        ids = pc.binary_join_element_wise(file, piece.rows.cast(pa.string()), ":")
        if self.id_field in piece.batch.schema.names:
            ids = pc.coalesce(piece.batch.column(self.id_field).cast(pa.string()), ids)
        text = _column(piece, self.text_field, pa.string())
        status = pc.if_else(pc.is_null(text), "null_text", piece.status)
        others = [_column(piece, source, self.schema.field(name).type) for name, source in self.others.items()]
        return pa.RecordBatch.from_arrays([ids, file, piece.rows, text, status, *others], schema=self.schema)


def make_layout(sources: Sequence[Columns], text_field: str, id_field: str | None, reserved: Collection[str]) -> Layout:
    """Settle names and types over all sources.

    Errors: `SourceError` when a source lacks the text field or `id_field`, when one of these cannot be a text or an
    id, or when types cannot be merged.
    """
    filled = [source for source in sources if not source.empty]
    for source in filled:
        for name in (text_field, id_field):
            if name is not None and name not in source.schema.names:
                raise SourceError(f"{source.label}: {_no_field(name, source.schema.names)}")
    if id_field is None and filled and all("id" in source.schema.names for source in filled):
        id_field = "id"
    for source in sources:
        _check_types(source, text_field, id_field)
    types = _merged_types(sources, {text_field, "id"} if id_field == "id" else {text_field})
    taken = {*OWN_COLUMNS, text_field, *reserved}
    others: dict[str, str] = {}
    for name in types:
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
            text_field: pa.string(),
            "input_status": pa.string(),
        }
        | {free: types[name] for free, name in others.items()}
    )
    return Layout(schema=schema, text_field=text_field, id_field=id_field, others=others)


def _no_field(name: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1) or [there for there in names if there.lower() == name.lower()]
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"no field {name!r} in any row, the fields are {', '.join(map(repr, names)) or 'none'}{hint}"


def _check_types(source: Columns, text_field: str, id_field: str | None) -> None:
    for field in source.schema:
        if field.name == text_field and not is_text(field.type):
            raise SourceError(f"{source.label}: the text field {field.name!r} holds {field.type}, not strings")
        if field.name == id_field and not _castable(field.type, pa.string()):
            raise SourceError(f"{source.label}: the id field {field.name!r} holds {field.type}: use strings or numbers")


def _merged_types(sources: Sequence[Columns], left_out: Collection[str]) -> dict[str, pa.DataType]:
    types: dict[str, pa.DataType] = {}
    labels: dict[str, str] = {}  # the source that a type came from
    for source in sources:
        for field in source.schema:
            name, found = field.name, field.type
            if name in left_out:
                continue
            seen = types.setdefault(name, found)
            try:
                types[name] = merge(seen, found)
                fits = _castable(seen, types[name]) and _castable(found, types[name])
            except pa.ArrowException:
                fits = False
            if not fits:
                raise SourceError(
                    f"{labels[name]} and {source.label}: column {name!r} is {seen} in the first and {found} in the "
                    f"second, which do not fit together: convert one, or read them one by one"
                )
            if not seen.equals(types[name]) or name not in labels:
                labels[name] = source.label
    return types


def _castable(kind: pa.DataType, to: pa.DataType) -> bool:
    try:
        return kind.equals(to) or pa.array([], kind).cast(to) is not None
    except pa.ArrowException:
        return False


def _column(piece: Piece, name: str, kind: pa.DataType) -> pa.Array:
    """The column of that type, null where the source has none; integers among floats are rounded to them."""
    if name not in piece.batch.schema.names:
        return pa.nulls(piece.batch.num_rows, kind)
    column = piece.batch.column(name)
    return column if column.type.equals(kind) else column.cast(kind, safe=not pa.types.is_floating(kind))
