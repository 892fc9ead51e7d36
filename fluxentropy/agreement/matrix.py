"""Run directories of `score` -> the scores of their models, side by side."""

from __future__ import annotations

import csv
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fluxentropy.config.yaml import did_you_mean
from fluxentropy.errors import RunError, SourceError, UsageError
from fluxentropy.runs.directory import RunRecord, difference
from fluxentropy.runs.files import fingerprint_file
from fluxentropy.runs.tables import run_parts
from fluxentropy.scoring.scores import ALL_NAMES

# --- the matrix -------------------------------------------------------------------------------------------------------
#
#             small   large
#     id-1     2.31    1.97
#     id-2      NaN    2.40       NaN: the model has no score for the text
#
# `agreement/matrix.py` reads it from one table, `agreement/matrix.py` from runs of `score`.


@dataclass(frozen=True, kw_only=True)
class ScoreMatrix:
    """Scores (n, M) of M models, NaN where a model has none, and the texts that they belong to."""

    models: tuple[str, ...]
    scores: np.ndarray  # (n, M) float64
    measure: str  # what the scores are
    inputs: dict[str, str]  # model or file -> fingerprint of its scores
    absent: dict[str, int]  # model -> texts of the others that its run does not hold
    texts: Callable[[], Iterator[tuple[pa.Table, np.ndarray]]]
    """Yields every text once: the columns that describe it, and the rows of `scores` (k,) they belong to."""
    left_out: dict[str, str] = field(default_factory=dict)  # column of numbers that is no model -> why

    def select(self, names: Sequence[str]) -> ScoreMatrix:
        """Only the models `names`, in that order. UsageError names one that is not there."""
        for name in names:
            if name not in self.models:
                raise UsageError(f"--models {name}: no such model{did_you_mean(name, self.models)}")
        kept = [self.models.index(name) for name in dict.fromkeys(names)]
        models = tuple(self.models[column] for column in kept)
        absent = {model: self.absent.get(model, 0) for model in models}
        return replace(self, models=models, scores=self.scores[:, kept], absent=absent)


def unusable(scores: np.ndarray, models: Sequence[str]) -> dict[str, str]:
    """Models whose column has no order, and why."""
    found = {}
    for model, column in zip(models, scores.T, strict=True):
        values = column[np.isfinite(column)]
        if len(values) == 0:
            found[model] = "has not scored a single text"
        elif values.min() == values.max():
            found[model] = f"has the same score, {values[0]:g}, for all {len(values)} texts"
    return found


UNCOMPARED = ("bos_added", "tokenizer")  # policies that a tokenizer decides by itself


def read_runs(runs: Sequence[Path], by: str) -> ScoreMatrix:
    """The column `by` of several runs. Texts are matched by id; what a run does not hold is NaN and counted.

    Runs that hold the same ids in the same order, as those of a zoo do, are matched row by row, so that ids may repeat.
    """
    parts = [run_parts(run) for run in runs]
    manifests = [_manifest(run) for run in runs]
    names = _names(runs, manifests)
    _check_policies(dict(zip(names, manifests, strict=True)))
    columns = [_read_column(files, by, run) for files, run in zip(parts, runs, strict=True)]
    ids, rows = _match([ids for ids, _ in columns], names)
    scores = np.full((ids, len(runs)), np.nan)
    for model, (_, values) in enumerate(columns):
        scores[rows[model], model] = values
    present = np.zeros((len(runs), ids), dtype=bool)
    for model, places in enumerate(rows):
        present[model, places] = True
    owner = present.argmax(axis=0)  # the first run that holds each text describes it
    return ScoreMatrix(
        models=tuple(names),
        scores=scores,
        measure=by,
        inputs={
            name: manifest["identity"]["model"]["fingerprint"] for name, manifest in zip(names, manifests, strict=True)
        },
        absent={name: int(ids - present[model].sum()) for model, name in enumerate(names)},
        texts=lambda: _texts(parts, rows, owner),
    )


def _manifest(run: Path) -> Mapping[str, Any]:
    manifest = RunRecord.read(run).facts
    if "policies" not in manifest:
        raise RunError(f"{run} is not a run of `fluxentropy score`: its manifest names no policies")
    return manifest


def _names(runs: Sequence[Path], manifests: Sequence[Mapping[str, Any]]) -> list[str]:
    """A name for each run: its model's, or its folder's where a model has several runs."""
    for names in (
        [manifest["identity"]["model"]["name"] for manifest in manifests],
        [run.resolve().name for run in runs],
        [str(run) for run in runs],
    ):
        if len(set(names)) == len(names):
            return names
    repeated = next(name for name, times in Counter(map(str, runs)).items() if times > 1)
    raise UsageError(f"{repeated} is given twice")


def _check_policies(manifests: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse to compare scores that were made by different rules, or of different versions of a file."""
    (first, there), *others = manifests.items()
    for name, here in others:
        for what in ("policies", "sources"):
            old, new = _comparable(there, what), _comparable(here, what)
            if what == "sources":  # a file that only one of them has read is no contradiction
                old, new = ({file: part[file] for file in old.keys() & new.keys()} for part in (old, new))
            if text := difference(old, new):
                text = text.replace(" there and ", f" in {first} and ").removesuffix(" here") + f" in {name}"
                raise RunError(f"runs of different {what} cannot be compared: {text}")


def _comparable(manifest: Mapping[str, Any], what: str) -> dict[str, Any]:
    if what == "sources":
        return dict(manifest["identity"]["sources"])
    rules = {key: value for key, value in manifest["policies"].items() if key not in UNCOMPARED}
    identity = manifest["identity"]
    return {**rules, "stride": identity.get("stride"), "text_field": identity.get("text_field")}


def _read_column(files: Sequence[Path], by: str, run: Path) -> tuple[pa.ChunkedArray, np.ndarray]:
    """Ids and scores of a run; a text that was not scored is NaN."""
    schema = pq.read_schema(files[0])
    if by not in schema.names:
        raise UsageError(f"--by {by}: no such column in {run}{did_you_mean(by, schema.names)}")
    kind = schema.field(by).type
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
        raise UsageError(f"--by {by}: the values in {run} are of type {kind}, not numbers")
    table = pa.concat_tables(pq.read_table(file, columns=["id", by]) for file in files)
    values = table[by].cast(pa.float64()).to_numpy()
    return table["id"], np.where(np.isfinite(values), values, np.nan)


def _match(ids: Sequence[pa.ChunkedArray], names: Sequence[str]) -> tuple[int, list[np.ndarray]]:
    """How many texts there are in all, and for each run the row of the matrix that each of its texts has."""
    if all(column.equals(ids[0]) for column in ids[1:]):
        return len(ids[0]), [np.arange(len(ids[0]))] * len(ids)
    codes = pa.chunked_array(
        [chunk for column in ids for chunk in column.cast(pa.large_string()).chunks]
    ).dictionary_encode()
    flat = codes.combine_chunks()
    places = flat.indices.to_numpy(zero_copy_only=False)
    rows = np.split(places, np.cumsum([len(column) for column in ids])[:-1])
    for name, row in zip(names, rows, strict=True):
        repeated = len(row) - len(np.unique(row))
        if repeated:
            value, times = Counter(row.tolist()).most_common(1)[0]
            raise RunError(
                f"{repeated} texts of {name} share an id with another one ({flat.dictionary[value]} stands there "
                f"{times} times), so they cannot be matched with other runs: score with an --id-field that is unique"
            )
    return len(flat.dictionary), rows


def _texts(
    parts: Sequence[Sequence[Path]], rows: Sequence[np.ndarray], owner: np.ndarray
) -> Iterator[tuple[pa.Table, np.ndarray]]:
    """What describes each text: the columns that are no scores, and that all runs have."""
    schemas = [pq.read_schema(files[0]) for files in parts]
    shared = [
        field.name
        for field in schemas[0]
        if (field.name not in ALL_NAMES or field.name in ("n_tokens", "n_bytes"))
        and all(field.name in schema.names and schema.field(field.name).type == field.type for schema in schemas)
    ]
    for model, files in enumerate(parts):
        start = 0
        for file in files:
            with pq.ParquetFile(file) as parquet:
                for batch in parquet.iter_batches(batch_size=4096, columns=shared):
                    places = rows[model][start : start + len(batch)]
                    start += len(batch)
                    mine = owner[places] == model
                    if mine.any():
                        yield pa.Table.from_batches([batch]).select(shared).filter(pa.array(mine)), places[mine]


# --- wide tables ------------------------------------------------------------------------------------------------------
#
# Text,small,large                  or, as published:  Text,small_Rank,small_Characteristic_Value,…
# "To be, or not to be",2.31,1.97


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
    values = _floats(column)
    if values is not None:
        return len(values) > 2 and values[0] in (0, 1) and np.array_equal(values, values[0] + np.arange(len(values)))
    numbers = [_number(cell) for cell in column.to_pylist()]
    return len(numbers) > 2 and any(numbers == list(range(first, first + len(numbers))) for first in (0, 1))


def _is_whole(column: pa.ChunkedArray) -> bool:
    values = _floats(column.drop_null())
    if values is not None:
        return bool((np.isfinite(values) & (values == np.floor(values))).all())
    return all(number is None or number % 1 == 0 for number in map(_number, column.to_pylist()))


def _ranks(columns: dict[str, str]) -> set[str]:
    return {model + RANK for model in columns}


def _has_number(column: pa.ChunkedArray) -> bool:
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return any(_number(cell) is not None for cell in column.to_pylist() if cell)
    return pa.types.is_floating(column.type) or pa.types.is_integer(column.type) or pa.types.is_decimal(column.type)


def _floats(column: pa.ChunkedArray) -> np.ndarray | None:
    """A column of floats or integers as float64 (n,), NaN for null; None of another type."""
    if not (pa.types.is_floating(column.type) or pa.types.is_integer(column.type)):
        return None
    return np.asarray(column.cast(pa.float64(), safe=False).to_numpy())


def _number(cell: Any) -> float | None:
    try:
        return float(cell)
    except (TypeError, ValueError):
        return None


def _numbers(column: pa.ChunkedArray, name: str, path: Path) -> np.ndarray:
    """A column as float64 (n,); an empty cell or NaN is no score. SourceError names another cell."""
    floats = _floats(column)
    if floats is not None and not np.isinf(floats).any():
        return floats
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
        if pa.types.is_string(described[name].type) and pc.count_distinct(described[name], mode="all") == len(
            described
        ):
            continue
        first: dict[Any, int] = {}
        for row, cell in enumerate(described[name].to_pylist(), 1):
            if cell in first:
                shown = str(cell) if len(str(cell)) <= 60 else str(cell)[:59] + "…"
                raise SourceError(f"{path}: rows {first[cell]} and {row} have the same {name}, {shown!r}: remove one")
            first[cell] = row
