"""`fluxentropy sort`: a globally sorted corpus of any size, in bounded memory."""

from __future__ import annotations

import dataclasses
import itertools
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fluxentropy.config.results import Result, command
from fluxentropy.config.yaml import did_you_mean
from fluxentropy.corpus.sources import file_format
from fluxentropy.errors import UsageError
from fluxentropy.ordering.inputs import Input
from fluxentropy.ordering.options import SortConfig
from fluxentropy.runs.engine import Engine, make_engine, prefetch
from fluxentropy.runs.files import atomic_path
from fluxentropy.runs.mergesort import Keys, merged_blocks, sort_order, sorted_blocks, sorted_runs
from fluxentropy.runs.progress import Progress
from fluxentropy.runs.tables import TableFiles, open_writer, output_suffix, reading, without_dictionary

if TYPE_CHECKING:
    from fluxentropy.ordering.expressions import Derived


# --- what a worker does -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class SortUnit:
    """A file, or some of its row groups."""

    number: int
    path: Path
    groups: range | None = None

    def __str__(self) -> str:
        return str(self.path) + (f", row groups {self.groups[0]} to {self.groups[-1]}" if self.groups else "")


def cut_units(files: Sequence[Path], least: int) -> list[SortUnit]:
    """The units of `files`, in the order of their rows: a file each, or ranges of it where `least` units need that."""
    found: list[SortUnit] = []
    for path in files:
        for groups in _ranges(path, -(-least // len(files))):
            found.append(SortUnit(number=len(found), path=path.absolute(), groups=groups))
    return found


def _ranges(path: Path, pieces: int) -> list[range] | list[None]:
    """The row groups of a file in about `pieces` ranges of about as many rows; None for all of the file."""
    if pieces == 1:
        return [None]
    with reading(path):
        meta = pq.read_metadata(path)
    last = meta.num_row_groups - 1
    stops, rows = [0], 0
    for group in range(last + 1):
        rows += meta.row_group(group).num_rows
        if rows * pieces >= meta.num_rows * len(stops) or group == last:
            stops.append(group + 1)
    return [range(*ends) for ends in itertools.pairwise(stops)] if len(stops) > 2 else [None]


@dataclass(frozen=True, kw_only=True)
class UnitRuns:
    """The sorted runs of a unit of `num_rows` rows."""

    num_rows: int
    runs: list[Path]


@dataclass(frozen=True, kw_only=True)
class SortRuns:
    """The job that sorts a unit into runs, in a folder of its own in `spill`; repeated, it makes them afresh."""

    table: TableFiles
    schema: pa.Schema
    keys: Keys
    memory: int
    spill: Path
    limit: int | None  # rows of a run at most

    def __call__(self, unit: SortUnit) -> UnitRuns:
        folder = self.spill / f"unit-{unit.number:05d}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        table = dataclasses.replace(self.table, files=[unit.path])
        rows = 0

        def counted() -> Iterator[pa.RecordBatch]:
            nonlocal rows
            for batch in table.batches(self.schema, self.memory // 32, unit.groups):
                rows += batch.num_rows
                yield batch

        runs = sorted_runs(counted(), self.schema, self.keys, memory=self.memory, spill=folder, limit=self.limit)
        return UnitRuns(num_rows=rows, runs=runs)


# --- `fluxentropy sort` -----------------------------------------------------------------------------------------------


TIE_BREAKERS = ("id", "source_file", "source_row")  # in this order, always ascending, where the columns exist
LEAST_MEMORY = 2**24  # bytes
SYNC_BYTES = 2**26  # of rows
SHOWN_ROWS, SHOWN_LETTERS = 3, 70


@dataclass(frozen=True, kw_only=True)
class SortResult(Result):
    """What a sort wrote to `out`, in how many `seconds`."""

    rows: int  # written
    rows_read: int
    nulls: int  # rows without a value; they are last
    nan: int  # rows whose value is NaN; they come before those without a value
    by: str
    descending: bool
    out: Path
    seconds: float
    lowest: list[tuple[Any, Any]] = field(repr=False)  # (value, text), the lowest first; NaN and null are left out
    highest: list[tuple[Any, Any]] = field(repr=False)  # the highest first

    def lines(self) -> list[str]:
        direction = "descending" if self.descending else "ascending"
        of_all = f" of {self.rows_read:,}" if self.rows < self.rows_read else ""
        lines = [f"{self.rows:,}{of_all} rows by {self.by}, {direction}"]
        if self.nan or self.nulls:
            lines.append(f"last: {self.nan:,} with NaN, then {self.nulls:,} without a value")
        for title, rows in (("lowest", self.lowest), ("highest", self.highest)):
            lines += [f"{title} {self.by}:", *(f"  {_shown(value)}  {_shown(text)}" for value, text in rows)]
        return [*lines, str(self.out)]


@command
def sort(config: SortConfig) -> SortResult:
    """Sort the rows of a run, or of Parquet files, into one file; `config` documents the options.

    Errors: those of `sort_scores`.
    """
    from fluxentropy.config.options import parse_bytes

    return sort_scores(
        config.run,
        config.out,
        by=config.by,
        scores=config.scores,
        descending=config.descending,
        limit=config.limit,
        memory=parse_bytes(config.memory),
        workers=config.workers,
        engine=config.engine,
        address=config.address,
        progress=True,
    )


def _shown(value: Any) -> str:
    r"""A value in at most 70 characters, without any that a terminal would act on.

    >>> _shown("a\nb \x1b[31m"), _shown(2.123456789)
    ('a\\nb \\x1b[31m', '2.12346')
    """
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(value)[: SHOWN_LETTERS + 1]
    text = "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)
    return text if len(text) <= SHOWN_LETTERS else text[: SHOWN_LETTERS - 1] + "…"


def sort_scores(
    source: str,
    out: Path,
    *,
    by: str = "entropy_mean",
    scores: str | None = None,
    descending: bool = False,
    limit: int | None = None,
    memory: int = 10**9,
    workers: int = 1,
    engine: str = "local",
    address: str | None = None,
    progress: bool = False,
) -> SortResult:
    """Write the rows of `source` to `out`, in the order of the column `by`.

    `by` may also be an expression of columns, or a column of `scores`, another run of the same texts, joined by id;
    then the rows get a column with these values. In an expression NAME_joined is the column NAME of `scores`.

    `source` is a run directory, a Parquet file, or a folder or glob of them; or Arrow, JSON Lines and CSV files, whose
    rows get the columns of a corpus (`open_corpus`). Rows with equal values are ordered by
    `id`, then `source_file`, then `source_row`, as far as these columns exist, and then keep the order they have.
    -0.0 equals 0.0. NaN comes after all numbers and null after NaN, in both directions; no row is lost. `limit` keeps
    the first rows only. Columns and their types stay as they are.

    `out` is Parquet or JSON Lines by its suffix. It is put in place whole, over a file that is there already. The
    sort holds at most about `memory` bytes, beside the 150 MB or so that Python and Arrow take for themselves; what
    does not fit waits in a folder beside `out`, removed at the end. `progress` shows progress on stderr.

    With several `workers`, or `engine` "ray" (a cluster at `address`, or this machine), each worker sorts files, or
    ranges of their row groups where there are fewer files than workers, in `memory` bytes of its own; then this process
    merges what they made. The result is the same. A cluster needs the input and the folder of `out` on all its nodes.

    Errors: `UsageError` for an unknown column, one without an order, or an output that is part of the input;
    `SourceError` and `RunError` for an input that is missing, unfinished or damaged; `RunError` when `out` cannot be
    written, and where a worker is killed, with the name of what it sorted.
    """
    started = time.perf_counter()
    suffix = output_suffix(out)
    if limit is not None and limit < 1:
        raise UsageError(f"--limit {limit}: use 1 or more")
    if memory < LEAST_MEMORY:
        raise UsageError(f"--memory {memory} bytes: use {LEAST_MEMORY // 2**20} MiB or more")
    opened = Input.open(source)
    _check_output(out, source, opened.paths)
    table = opened.table
    derived = _find_derived(by, table.schema.names, source, scores)
    names = table.schema.names
    column = by
    if derived is not None:
        column = derived.column
        table = dataclasses.replace(table, schema=table.schema.append(pa.field(column, pa.float64())))
    keys = _keys(table.schema, column, descending, source)
    plain = pa.schema([without_dictionary(one) for one in table.schema], table.schema.metadata)
    written = min(table.rows, limit or table.rows)
    tally = _Tally(by=column, text=next((name for name in ("text", "id") if name in plain.names), column))
    with atomic_path(out) as aside, _spill_folder(out) as spill:
        if opened.corpus is not None:
            table = dataclasses.replace(opened.in_parquet(spill / "input"), schema=table.schema)
        if derived is not None:
            table = _with_derived(
                table, derived, names, scores, spill.absolute(), make_engine(engine, workers, address)
            )
        if workers > 1 or engine != "local":
            job = SortRuns(table=table, schema=plain, keys=keys, memory=memory, spill=spill.absolute(), limit=limit)
            made = make_engine(engine, workers, address).run(job, cut_units(table.files, workers))
            runs = [path for unit in _counted(made, table.rows, "rows read", progress) for path in unit.runs]
            blocks = merged_blocks(runs, plain, keys, memory=memory, spill=spill, limit=limit)
        else:
            batches = _counted(table.batches(plain, memory // 32), table.rows, "rows read", progress)
            blocks = sorted_blocks(batches, plain, keys, memory=memory, spill=spill, limit=limit)
        with open_writer(aside, suffix, table.schema, row_bytes=table.row_bytes, memory=memory) as writer:
            for block in _counted(_ahead(blocks, aside), written, "rows written", progress):
                tally.add(block)
                writer.write(block)
    lowest, highest = (tally.last[::-1], tally.first) if descending else (tally.first, tally.last[::-1])
    return SortResult(
        rows=written,
        rows_read=table.rows,
        nulls=tally.nulls,
        nan=tally.nan,
        by=by,
        descending=descending,
        out=out,
        seconds=round(time.perf_counter() - started, 3),
        lowest=lowest,
        highest=highest,
    )


def _find_derived(by: str, names: Sequence[str], source: str, scores: str | None) -> Derived | None:
    """What `by` is, where it is no column of `source`; UsageError where it is nothing at all."""
    if by in names and scores is None:
        return None
    from fluxentropy.ordering.expressions import (
        JOINED,
        find_derived,  # with DuckDB, which most sorts do without
    )

    name = f"{by}{JOINED}" if by in names else by  # where both have it, that of the other run is meant
    found = find_derived((name,), names, source, scores)
    if not found:
        raise UsageError(f"{source} has a column {name}, a name that is needed here: rename it")
    return found[name]


def _with_derived(
    table: TableFiles, derived: Derived, names: Sequence[str], scores: str | None, folder: Path, engine: Engine
) -> TableFiles:
    """`table`, whose own columns are `names`, with the values of `derived` in files beside, in `folder`."""
    from fluxentropy.ordering.expressions import derive_columns, numbered

    def run(job: Any, units: Sequence[Any], *_: object) -> list[Any]:
        return list(engine.run(job, units))

    files = numbered(table.files, int(table.row_bytes))
    written = dataclasses.replace(derived, name=derived.column)
    found, _ = derive_columns(files, [written], names=names, other=scores, folder=folder, run=run)
    return dataclasses.replace(table, beside={file.path.absolute(): file.scores for file in found if file.scores})


def _check_output(out: Path, source: str, files: Sequence[Path]) -> None:
    """Refuse an output that would become part of the input, or replace it."""
    if out.is_dir():
        raise UsageError(f"--out {out} is a folder: give the name of a file")
    target = out.resolve()
    folder = Path(source).resolve()
    run = files[0].resolve().parent if files[0].parent.name == "scores" else None
    if target in [file.resolve() for file in files]:
        raise UsageError(f"--out {out} is part of the input: give another name")
    if run is not None and target.is_relative_to(run):
        raise UsageError(f"--out {out} lies among the scores in {run}: give a name outside of that folder")
    if run is None and folder.is_dir() and target.is_relative_to(folder) and _would_be_read(target, files):
        raise UsageError(f"--out {out} lies in {source} and would be part of the input next time: give a name outside")


def _would_be_read(target: Path, files: Sequence[Path]) -> bool:
    """Whether a file of this name in the folder of `files` would be one of them."""
    return target.suffix == ".parquet" or (files[0].suffix != ".parquet" and file_format(target.name) is not None)


def _keys(schema: pa.Schema, by: str, descending: bool, source: str) -> Keys:
    """The order of the rows: `by`, then the tie breakers there are. `UsageError` where there is no such order."""
    names = schema.names
    if by not in names:
        near = did_you_mean(by, names)
        columns = "" if ": use one of" in near else f"; the columns are {', '.join(names)}"
        raise UsageError(f"--by {by}: no such column in {source}{near}{columns}")
    repeated = sorted(name for name in {by, *TIE_BREAKERS} if names.count(name) > 1)
    if repeated:
        raise UsageError(f"{source} has several columns named {repeated[0]}: rename all but one")
    if not _has_order(schema.field(by)):
        raise UsageError(f"--by {by}: values of type {schema.field(by).type} have no order, use a number or a string")
    ties = [name for name in TIE_BREAKERS if name in names and name != by and _has_order(schema.field(name))]
    return [(by, "descending" if descending else "ascending"), *((name, "ascending") for name in ties)]


def _has_order(column: pa.Field) -> bool:
    try:
        sort_order(pa.schema([column]).empty_table(), [(column.name, "ascending")])
    except (pa.ArrowTypeError, pa.ArrowNotImplementedError):
        return False
    return not pa.types.is_nested(column.type)


def _ahead(blocks: Iterator[pa.Table], path: Path) -> Iterator[pa.Table]:
    """`blocks`, each merged while the one before is compressed. What comes before the first is done in this thread."""
    yield from itertools.islice(blocks, 1)
    with closing(prefetch(_synced(blocks, path))) as ready:
        yield from ready


def _synced(blocks: Iterator[pa.Table], path: Path) -> Iterator[pa.Table]:
    """`blocks`; now and then what `path` holds is brought to the disk, or the last fsync would wait for all of it."""
    waiting = 0
    for block in blocks:
        yield block
        waiting += block.nbytes
        if waiting > SYNC_BYTES:
            with open(path, "rb+") as file:
                os.fsync(file.fileno())
            waiting = 0


def _counted(tables: Iterator[Any], total: int, unit: str, progress: bool) -> Iterator[Any]:
    """`tables`, and their progress on stderr where `progress` asks for it."""
    if not progress:
        yield from tables
        return
    first = list(itertools.islice(tables, 1))  # sorted rows come late: the clock starts with the first of them
    with Progress(total, unit=unit) as line:
        for table in itertools.chain(first, tables):
            yield table
            line.update(table.num_rows)


class _Tally:
    """Looks at the sorted rows as they pass, for the summary."""

    def __init__(self, *, by: str, text: str) -> None:
        self.by, self.text = by, text
        self.nulls = self.nan = 0
        self.first: list[tuple[Any, Any]] = []
        self.last: list[tuple[Any, Any]] = []

    def add(self, table: pa.Table) -> None:
        values = table.column(self.by)
        nulls = values.null_count
        nan = pc.sum(pc.is_nan(values), min_count=0).as_py() if pa.types.is_floating(values.type) else 0
        self.nulls += nulls
        self.nan += nan
        shown = table.select([self.by, self.text]).slice(0, len(table) - nulls - nan)
        if len(self.first) < SHOWN_ROWS:
            self.first += _rows(shown.slice(0, SHOWN_ROWS - len(self.first)))
        self.last = (self.last + _rows(shown.slice(max(len(shown) - SHOWN_ROWS, 0))))[-SHOWN_ROWS:]


def _rows(table: pa.Table) -> list[tuple[Any, Any]]:
    return [(_python(table[0][row]), _python(table[1][row])) for row in range(len(table))]


def _python(scalar: pa.Scalar) -> Any:
    """The value; of text that is not UTF-8, what can be read."""
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return scalar.as_buffer().to_pybytes().decode(errors="replace")


@contextmanager
def _spill_folder(out: Path) -> Iterator[Path]:
    """A folder for sorted runs; what a killed process left in it is removed first."""
    folder = out.with_name(f".spill-{out.name}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
