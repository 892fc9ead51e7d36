"""A wide table -> scores: one row a text, one column a model.

Text,small,large                  or, as published:  Text,small_Rank,small_Characteristic_Value,…
"To be, or not to be",2.31,1.97
"""

from __future__ import annotations

import csv
import logging
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fluxentropy.errors import SourceError, UsageError
from fluxentropy.scorematrix import ScoreMatrix
from fluxentropy.store import fingerprint_file

VALUE, RANK = "_Characteristic_Value", "_Rank"  # endings of columns in the published table
TEXT_NAMES, ID_NAMES = ("text", "prompt"), ("id", "index", "ind")  # of columns that name a row, in lower case
# What pandas and R call the column of row names that they write, or find in a file.
ROW_NAMES = re.compile(r"|unnamed: \d+(\.\d+)?|(__index_)?level_\d+(__)?|row[ _.]?names?|rn", re.IGNORECASE)


log = logging.getLogger(__name__)


def read_wide_table(path: Path) -> ScoreMatrix:
    """The scores in one table, .csv, .tsv or .parquet. SourceError names the row or column that is wrong.

    Row numbers and row names, which pandas and R write beside the data, are no model: `left_out` tells them.
    """
    table = _read_table(path)
    if not len(table):
        raise SourceError(f"{path}: there is no row in it, so there is nothing to compare")
    columns, left_out = _model_columns(table, path)
    taken = {*columns.values(), *_ranks(columns), *(name for name in left_out if _is_run(table[name]))}
    described = table.select([name for name in table.column_names if name not in taken])
    described = described.rename_columns([name or "row_name" for name in described.column_names])
    _check_rows(described, path)
    scores = np.stack([_numbers(table[column], column, path) for column in columns.values()], axis=1)
    return ScoreMatrix(
        models=tuple(columns),
        scores=scores,
        measure="entropy" if any("entropy" in column.lower() for column in columns.values()) else "score",
        inputs={path.name: fingerprint_file(path)},
        absent={},
        texts=lambda: iter([(described, np.arange(len(scores)))]),
        left_out=left_out,
    )


def _read_table(path: Path) -> pa.Table:
    if path.suffix == ".parquet":
        try:
            return pq.read_table(path)
        except (pa.ArrowException, OSError) as error:
            raise SourceError(f"{path} cannot be read: {error}") from error
    if path.suffix not in (".csv", ".tsv"):
        raise UsageError(f"{path}: a table of scores is a .csv, .tsv or .parquet file")
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file, delimiter="\t" if path.suffix == ".tsv" else ",", strict=True)
            header, *body = rows
        longer = body and header and all(len(row) == len(header) + 1 for row in body)
        if longer and any(row[-1] for row in body):  # else the rows only end with a comma
            header = ["", *header]  # as R's write.table does: the row names have no cell in the header
    except (UnicodeDecodeError, csv.Error, ValueError) as error:
        said = "it is empty" if not path.stat().st_size else error
        raise SourceError(f"{path} cannot be read as a table: {said}") from error
    for number, row in enumerate(body, 1):
        if len(row) != len(header):
            raise SourceError(f"{path}, row {number}: {len(row)} cells where the header has {len(header)}")
    repeated = [name for name, times in Counter(header).items() if times > 1]
    if repeated:
        raise SourceError(f"{path} has several columns named {repeated[0]!r}: rename all but one")
    return pa.table({name: pa.array([row[place] for row in body], pa.string()) for place, name in enumerate(header)})


def _model_columns(table: pa.Table, path: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Which column holds the scores of which model, and why other columns of numbers are none."""
    names = table.column_names
    published = {name.removesuffix(VALUE): name for name in names if name.endswith(VALUE)}
    ranked = [name.removesuffix(RANK) for name in names if name.endswith(RANK)]
    for model in ranked:
        if model not in published:
            raise SourceError(f"{path}: column {model}{RANK} has no column {model}{VALUE} beside it")
    if published:
        return published, {}
    numbers = [name for name in names if name.lower() not in TEXT_NAMES and _has_number(table[name])]
    left_out = {name: "it names the rows" for name in numbers if _names_rows(name)}
    found = [name for name in numbers if name not in left_out]
    runs = [name for name in found if _is_run(table[name])]
    if not all(_is_whole(table[name]) for name in found):  # else they may all be ranks
        left_out |= dict.fromkeys(runs, "it counts the rows")
    else:
        for name in runs:
            log.warning(
                f"{path}: column {name!r} counts the rows; it is taken for a model, unless --models leaves it out"
            )
    found = [name for name in found if name not in left_out]
    if not found:
        raise SourceError(
            f"{path} has no column of scores: expected NAME{VALUE}, or a column of numbers for each model; "
            f"its columns are {', '.join(names)}"
        )
    return {name: name for name in found}, left_out


def _names_rows(name: str) -> bool:
    """Whether a column of this name tells the rows apart, as an id or the index that pandas or R writes.

    >>> [_names_rows(name) for name in ("", "Unnamed: 0", "Index", "level_0", "row.names", "small")]
    [True, True, True, True, True, False]
    """
    return name.lower() in ID_NAMES or ROW_NAMES.fullmatch(name.strip()) is not None


def _is_run(column: pa.ChunkedArray) -> bool:
    """Whether a column of three rows or more is 0, 1, 2, … or 1, 2, 3, …"""
    values = [_number(cell) for cell in column.to_pylist()]
    return len(values) > 2 and any(values == list(range(first, first + len(values))) for first in (0, 1))


def _is_whole(column: pa.ChunkedArray) -> bool:
    return all(number is None or number % 1 == 0 for number in map(_number, column.to_pylist()))


def _ranks(columns: dict[str, str]) -> set[str]:
    return {model + RANK for model in columns}


def _has_number(column: pa.ChunkedArray) -> bool:
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return any(_number(cell) is not None for cell in column.to_pylist() if cell)
    return pa.types.is_floating(column.type) or pa.types.is_integer(column.type) or pa.types.is_decimal(column.type)


def _number(cell: Any) -> float | None:
    try:
        return float(cell)
    except (TypeError, ValueError):
        return None


def _numbers(column: pa.ChunkedArray, name: str, path: Path) -> np.ndarray:
    """A column as float64 (n,); an empty cell or NaN is no score. SourceError names another cell."""
    values = np.full(len(column), np.nan)
    for row, cell in enumerate(column.to_pylist()):
        if cell is None or (isinstance(cell, str) and not cell.strip()):
            continue
        number = _number(cell)
        if number is None or np.isinf(number):
            raise SourceError(f"{path}, row {row + 1}, column {name}: {cell!r} is not a finite number")
        values[row] = number
    return values


def _check_rows(described: pa.Table, path: Path) -> None:
    """Refuse a text that stands in the table twice: it would count twice."""
    for name in described.column_names:
        if name.lower() not in (*TEXT_NAMES, "id"):
            continue
        first: dict[Any, int] = {}
        for row, cell in enumerate(described[name].to_pylist(), 1):
            if cell in first:
                shown = str(cell) if len(str(cell)) <= 60 else str(cell)[:59] + "…"
                raise SourceError(f"{path}: rows {first[cell]} and {row} have the same {name}, {shown!r}: remove one")
            first[cell] = row
