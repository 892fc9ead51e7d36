"""A table of items -> what a diagnosis needs: metrics as floats, the target as booleans, and what had to be left out.

    read_metric_table("items.parquet", "correct", ["entropy", "sqrt_varentropy"])

Tables are CSV, TSV, JSON Lines, Parquet or Arrow files, folders or globs of them, or a run directory.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fluxentropy.config.yaml import did_you_mean
from fluxentropy.corpus.readers import ArrowReader, ParquetReader, Reader, TextReader, is_string
from fluxentropy.corpus.scan import scan_file
from fluxentropy.corpus.sources import Found, find_sources
from fluxentropy.corpus.textfiles import TextFile, reading
from fluxentropy.errors import SourceError, UsageError
from fluxentropy.runs.files import fingerprint_file

KNOWN_METRIC = re.compile(
    r"(sqrt_)?(var)?entropy(_(mean|sum|last|top\d+))*|surprisal(_(mean|sum))?|perplexity|bits_per_byte"
)

TRUTH = dict.fromkeys(("true", "t", "yes", "y", "1", "1.0"), 1.0)
TRUTH |= dict.fromkeys(("false", "f", "no", "n", "0", "0.0"), 0.0) | {"nan": math.nan}
MISSING_WORDS = ("", "na", "n/a", "null", "none")
PER_CHARACTER = ("correct_norm", "margin_norm", "pred_norm")
ITEMS = "items.parquet"  # the table in a run directory of `hellaswag`
NO_TEXT = "\0"  # the readers want the name of a text column; no column has this one


@dataclass(frozen=True, kw_only=True)
class MetricTable:
    """The rows that have the target and every metric as a finite number, in the order of the file.

    `excluded` says, for each column that costs rows, how many of its values are `missing`, `nan` or `infinite`; a row
    may count in several. `skipped` are metrics that were found but not taken, with the reason, and `derived` those that
    were computed, with the column they come from.
    """

    target_name: str
    target: np.ndarray  # (n,) bool
    metrics: Mapping[str, np.ndarray]  # each (n,) float64
    n_rows: int  # before rows were left out
    excluded: Mapping[str, Mapping[str, int]]
    skipped: Mapping[str, str]
    derived: Mapping[str, str]
    fingerprints: Mapping[str, str]  # of the files, by name

    @property
    def n(self) -> int:
        return len(self.target)


def read_metric_table(source: str, target: str, metrics: Sequence[str] = ()) -> MetricTable:
    """Read `target` and `metrics` (by default every metric that this project knows) from the table at `source`.

    A metric `sqrt_varentropy…` that is not in the table is the square root of its `varentropy…`. The target is
    boolean, 0 and 1, or text such as True, yes and 1.

    Errors: `UsageError` for unknown columns; `SourceError` names the file, the row and the value that cannot be used,
    and says when too few rows are left, or when all of them have the same target.
    """
    files = _open(source)
    names = [name for name in files[0].reader.schema.names if all(name in f.reader.schema.names for f in files)]
    chosen, derived = _choose(names, target, metrics, source)
    wanted = list(dict.fromkeys([target, *(derived.get(name, name) for name in chosen)]))
    columns = _read_columns(files, wanted, target)
    values = {name: columns[derived[name]].sqrt() if name in derived else columns[name] for name in chosen}
    skipped: dict[str, str] = {}
    for name, column in values.items():
        if not np.isfinite(column.values).any():
            if metrics:
                raise SourceError(f"{source}: column {name!r} has no finite value in {len(column.values):,} rows")
            skipped[name] = "it has no finite value"
    kept = {name: column for name, column in values.items() if name not in skipped}
    used = {target: columns[target], **kept}
    rows = np.logical_and.reduce([np.isfinite(column.values) for column in used.values()])
    table = MetricTable(
        target_name=target,
        target=columns[target].values[rows] == 1,
        metrics={name: column.values[rows] for name, column in kept.items()},
        n_rows=len(rows),
        excluded={name: faults for name, column in used.items() if (faults := column.faults())},
        skipped=skipped,
        derived=derived,
        fingerprints={file.name: file.fingerprint for file in files},
    )
    _check_rows(table, source)
    return table


def balanced(table: MetricTable, seed: int) -> MetricTable:
    """As many rows of either class: those of the larger class are a random sample, drawn with `seed`."""
    classes = [np.flatnonzero(table.target == value) for value in (False, True)]
    size = min(map(len, classes))
    rng = np.random.default_rng(seed)
    rows = np.sort(np.concatenate([rng.choice(rows, size, replace=False) for rows in classes]))
    return replace(
        table, target=table.target[rows], metrics={name: values[rows] for name, values in table.metrics.items()}
    )


def counted(faults: Mapping[str, int]) -> str:
    """What is wrong with some values, and how often.

    >>> counted({"missing": 1200, "nan": 1})
    '1,200 missing, 1 nan'
    """
    return ", ".join(f"{count:,} {fault}" for fault, count in faults.items())


def _check_rows(table: MetricTable, source: str) -> None:
    lost = "; ".join(f"{name}: {counted(faults)}" for name, faults in table.excluded.items())
    why = f" ({lost})" if lost else ""
    if table.n < 3:
        raise SourceError(
            f"{source}: {table.n} of {table.n_rows} rows have the target and all metrics{why}: a model of one metric "
            "has 2 parameters and needs at least 3 rows"
        )
    positive = int(table.target.sum())
    if positive in (0, table.n):
        raise SourceError(
            f"{source}: the target {table.target_name!r} is {'true' if positive else 'false'} in all {table.n:,} rows "
            f"that can be used{why}: there is nothing to predict, both outcomes must occur"
        )


# --- which columns ----------------------------------------------------------------------------------------------------


def _choose(names: Sequence[str], target: str, metrics: Sequence[str], source: str) -> tuple[list[str], dict[str, str]]:
    """The metrics to read, and for those that are derived the column they come from."""
    if target not in names:
        raise UsageError(f"--target {target}: no such column in {source}{_hint(target, names)}")
    old = sorted({target, *metrics} & {*PER_CHARACTER}) if "ending_bytes" in names else []
    if old and "ending_chars" not in names:
        raise UsageError(
            f"{source}: {old[0]} was made by an earlier version, per byte; it is per character now: give the command "
            f"that answered the questions once more with --overwrite"
        )
    if not metrics:
        known = [name for name in names if KNOWN_METRIC.fullmatch(name) and name != target]
        if not known:
            raise UsageError(
                f"{source} has no column with a known metric such as entropy or varentropy_mean: name the columns to "
                f"test with --metrics; there are {', '.join(names)}"
            )
        return known, {}
    twice = sorted({name for name in metrics if metrics.count(name) > 1})
    if twice:
        raise UsageError(f"--metrics names {twice[0]} twice: name it once")
    if target in metrics:
        raise UsageError(f"--metrics {target} is the target, which cannot predict itself: leave it out")
    derived = {}
    for name in metrics:
        if name not in names:
            base = name.replace("sqrt_varentropy", "varentropy", 1)
            if base == name or base not in names:
                raise UsageError(f"--metrics {name}: no such column in {source}{_hint(name, names)}")
            derived[name] = base
    return list(metrics), derived


def _hint(name: str, names: Sequence[str]) -> str:
    near = did_you_mean(name, names)
    same = [there for there in names if there.lower() == name.lower()]
    return f": did you mean {same[0]}?" if same else near


# --- reading ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _File:
    name: str
    reader: Reader
    fingerprint: str


def _open(source: str) -> list[_File]:
    items = Path(source) / ITEMS
    found = find_sources([str(items) if items.is_file() else source])
    if Path(source).is_dir():  # where notes and the summaries of an earlier diagnosis may lie
        found = [file for file in found if file.format != "txt"]
    files = [_open_file(file, source) for file in found]
    if not any(file.reader.n_rows for file in files):
        raise SourceError(f"{source}: no rows")
    return files


def _open_file(found: Found, source: str) -> _File:
    if found.path is None:
        raise SourceError(f"{source}: no such file or folder")
    reader: Reader
    with reading(found.path):
        fingerprint = fingerprint_file(found.path)
    if found.format == "parquet":
        reader = ParquetReader(found.path, NO_TEXT)
    elif found.format == "arrow":
        reader = ArrowReader(found.path, NO_TEXT)
    elif found.format == "txt":
        raise SourceError(f"{found.path}: plain text is no table: give CSV, TSV, JSON Lines, Parquet or Arrow")
    else:
        text = TextFile(path=found.path, name=found.name, format=found.format, text_field=NO_TEXT)
        reader = TextReader(text, scan_file(text, id_field=NO_TEXT, limit=None, skip=False))
    return _File(name=found.name, reader=reader, fingerprint=fingerprint)


@dataclass(frozen=True)
class _Column:
    values: np.ndarray  # (n,) float64, NaN where missing
    missing: np.ndarray  # (n,) bool

    def sqrt(self) -> _Column:
        return _Column(np.sqrt(np.where(self.values < 0, np.nan, self.values)), self.missing)

    def faults(self) -> dict[str, int]:
        """How many values cannot be used, by what is wrong with them."""
        nan = np.isnan(self.values) & ~self.missing
        counts = {"missing": self.missing, "nan": nan, "infinite": np.isinf(self.values)}
        return {fault: int(where.sum()) for fault, where in counts.items() if where.any()}


def _read_columns(files: Sequence[_File], wanted: Sequence[str], target: str) -> dict[str, _Column]:
    """The columns `wanted` of all files, one after the other; the target as 1 and 0."""
    parts: dict[str, list[_Column]] = {name: [] for name in wanted}
    for file in files:
        mixed = {name for name, kind in getattr(file.reader, "types", {}).items() if kind is None}
        batches = [piece.batch.select(list(wanted)) for piece in file.reader.pieces(0)]
        for name in wanted if batches else ():
            column = pa.chunked_array([batch.column(name) for batch in batches])
            where = f"{file.name}: column {name!r}"
            parts[name].append(_column(column, where, truth=name == target, mixed=name in mixed))
    return {
        name: _Column(np.concatenate([c.values for c in columns]), np.concatenate([c.missing for c in columns]))
        for name, columns in parts.items()
    }


def _column(column: pa.ChunkedArray, where: str, *, truth: bool, mixed: bool) -> _Column:
    """`column`, JSON text if `mixed`, as floats; `SourceError` names the first value that stands for none.

    >>> _column(pa.chunked_array([["Yes", "0", None, "n/a"]]), "a.csv", truth=True, mixed=False).values
    array([ 1.,  0., nan, nan])
    """
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if not truth and not is_string(column.type):
        try:
            numbers = column.cast(pa.float64(), safe=False)
        except pa.ArrowException:
            raise SourceError(f"{where} holds {column.type}, not numbers") from None
        return _Column(np.asarray(pc.fill_null(numbers, math.nan)), np.asarray(column.is_null()))
    cells = [json.loads(cell or "null") if mixed else cell for cell in column.to_pylist()]
    words = ["" if cell is None else str(cell).strip().lower() for cell in cells]
    missing = np.array([word in MISSING_WORDS for word in words], bool)
    values = np.full(len(cells), np.nan)
    for row in np.flatnonzero(~missing):
        try:
            values[row] = TRUTH[words[row]] if truth else float(words[row])
        except (KeyError, ValueError):
            expected = "neither true nor false: use True and False, yes and no, or 1 and 0" if truth else "no number"
            raise SourceError(f"{where}, row {row + 1}: {cells[row]!r} is {expected}") from None
    return _Column(values, missing)
