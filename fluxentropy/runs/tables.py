"""Tables in files: the Parquet parts of a run or a folder, read in small batches; Parquet or JSON Lines, written."""

from __future__ import annotations

import base64
import csv
import glob
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fluxentropy.errors import RunError, SourceError, UsageError
from fluxentropy.runs.files import read_json, sha256_file, write_text

# --- bytes of rows ----------------------------------------------------------------------------------------------------


def fixed_width(kind: pa.DataType) -> int:
    """Bytes that each value takes beside those of `row_sizes`; of texts and lists, those of an offset.

    >>> fixed_width(pa.float64()), fixed_width(pa.string()), fixed_width(pa.list_(pa.float32(), 3))
    (8, 4, 12)
    """
    if pa.types.is_fixed_size_list(kind):
        return int(kind.list_size * fixed_width(kind.value_type))
    if pa.types.is_struct(kind):
        return sum(fixed_width(field.type) for field in kind)
    try:
        return int(kind.bit_width + 7) // 8
    except ValueError:
        return 4


def row_sizes(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Bytes (n,) of each row's texts and lists. They follow from the rows alone, however these are laid out in memory.

    >>> row_sizes(pa.array(["abc", None, ""])), row_sizes(pa.array([["abc"], [], None]))
    (array([3, 0, 0]), array([11,  0,  0]))
    """
    if isinstance(column, pa.ChunkedArray):
        return np.concatenate([np.zeros(0, np.int64), *map(row_sizes, column.chunks)])
    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):
        return row_sizes(column.storage)
    if _is_text(kind):
        return np.asarray(pc.binary_length(column).fill_null(0).cast(pa.int64()))
    if pa.types.is_struct(kind):
        return sum(map(row_sizes, column.flatten()), np.zeros(len(column), np.int64))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        offsets = np.asarray(column.offsets).astype(np.int64)
        items = row_sizes(column.values.slice(offsets[0], offsets[-1] - offsets[0])) + 8
        running = np.concatenate([[0], np.cumsum(items)])[offsets - offsets[0]]
        return np.diff(running)
    return np.zeros(len(column), np.int64)


def _is_text(kind: pa.DataType) -> bool:
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    return any(test(kind) for test in tests)


# --- tables in files --------------------------------------------------------------------------------------------------


COMPRESSION = {".parquet": "zstd", ".jsonl": None, ".jsonl.gz": "gzip", ".jsonl.zst": "zstd"}
GROUP_BYTES, GROUP_ROWS = 2**25, 2**16  # a Parquet row group is as small as either asks for
BATCH_ROWS, JSON_ROWS = 4096, 512


# --- which files ------------------------------------------------------------------------------------------------------


def table_files(source: str) -> list[Path]:
    """The Parquet files of a run directory, a file, a folder or a glob, sorted by name.

    Of a run directory only finished parts count, and each is checked against the SHA-256 in its manifest.

    Errors: `SourceError` when there is no Parquet file; `RunError` when a run is unfinished or damaged.
    """
    path = Path(source)
    if path.name == "scores" and (path.parent / "manifest.json").exists():
        path = path.parent
    if (path / "scores").is_dir() or (path / "manifest.json").exists() or any(path.glob("*/scores")):
        return run_parts(path)  # or an error: rows of several runs, maybe unfinished, are never mixed
    if path.is_dir():
        found = [file for file in path.rglob("*.parquet") if not _hidden(file.relative_to(path))]
    elif path.is_file():
        found = [path]
    else:
        names = glob.glob(source, recursive=True)  # noqa: PTH207  (Path.glob refuses absolute patterns)
        found = [Path(name) for name in names if name.endswith(".parquet")]
    if not found:
        raise SourceError(
            f"{source}: no Parquet file there; give a run directory, or Parquet files, a folder or a glob"
        )
    return sorted(found)


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def run_parts(run: Path) -> list[Path]:
    """The finished `scores/part-*.parquet` of a run directory, after checking that the run is complete and whole."""
    scores = run / "scores"
    if not scores.is_dir():
        inside = sorted(folder.parent.name for folder in run.glob("*/scores"))
        hint = f"; it holds the runs {', '.join(inside)}: give one of them" if inside else ""
        raise RunError(f"{run} has no folder scores{hint}")
    manifest = read_json(run / "manifest.json") or {}
    if manifest.get("complete") is not True:
        raise RunError(f"{run} is not finished: give the command that writes it once more, it resumes where it stopped")
    parts = []
    for record in sorted(scores.glob(".part-*.json")):
        part = scores / record.name[1:].replace(".json", ".parquet")
        expected = read_json(record) or {}
        if not part.is_file():
            raise RunError(f"{part} is missing: the command that wrote {run} makes it again")
        with reading(part):
            whole = sha256_file(part) == expected.get("sha256")
        if not whole:
            raise RunError(f"{part} is damaged: remove it, and the command that wrote {run} makes it again")
        parts.append(part)
    if not parts or len(parts) != manifest.get("parts", len(parts)):
        count = f"{len(parts)} of {manifest['parts']} parts" if "parts" in manifest else "no finished part"
        raise RunError(f"{scores} holds {count}: the command that wrote {run} makes what is missing")
    return parts


# --- reading ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class TableFiles:
    """Parquet files of one schema, read as one table.

    `beside` names, for the absolute path of each file, an Arrow file with more columns of its rows.
    """

    files: Sequence[Path]
    schema: pa.Schema
    rows: int
    row_bytes: float  # mean size of a row, before compression
    beside: Mapping[Path, Path] = field(default_factory=dict)

    @classmethod
    def open(cls, files: Sequence[Path]) -> TableFiles:
        """Read the footers. `RunError` names a damaged file, `SourceError` one whose columns differ."""
        schema, rows, size = None, 0, 0
        for file in files:
            with reading(file), _open(file) as parquet:
                meta, found = parquet.metadata, parquet.schema_arrow
            rows += meta.num_rows
            size += sum(meta.row_group(group).total_byte_size for group in range(meta.num_row_groups))
            schema = found if schema is None else _unified(schema, found, file, files[0])
        assert schema is not None
        return cls(files=files, schema=schema, rows=rows, row_bytes=size / max(rows, 1))

    def batches(self, schema: pa.Schema, size: int, groups: Sequence[int] | None = None) -> Iterator[pa.RecordBatch]:
        """All rows in order, cast to `schema`, in batches of about `size` bytes and at most 4096 rows.

        `groups` are the row groups to read of each file, all by default; they follow each other.

        Errors: `RunError` names a file that cannot be read to its end.
        """
        rows = int(min(max(size / max(self.row_bytes, 1), 1), BATCH_ROWS))
        for file in self.files:
            with reading(file), _open(file) as parquet, self._more(file) as more:
                meta = parquet.metadata
                at = sum(meta.row_group(group).num_rows for group in range(groups[0])) if groups else 0
                for batch in parquet.iter_batches(batch_size=rows, row_groups=groups, use_threads=False):
                    for name in more.column_names:
                        column = more[name].slice(at, batch.num_rows).combine_chunks()
                        batch = batch.append_column(name, column)
                    at += batch.num_rows
                    yield batch.select(schema.names).cast(schema)

    @contextmanager
    def _more(self, file: Path) -> Iterator[pa.Table]:
        """The columns beside `file`, mapped into memory."""
        path = self.beside.get(file.absolute())
        if path is None:
            yield pa.table({})
            return
        with pa.memory_map(str(path)) as source:
            yield pa.ipc.open_file(source).read_all()


def without_dictionary(column: pa.Field) -> pa.Field:
    """`column` with the values themselves: files have dictionaries of their own, which do not mix."""
    return column.with_type(column.type.value_type) if pa.types.is_dictionary(column.type) else column


@contextmanager
def reading(file: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise RunError(f"{file} cannot be read, it may be damaged: {_first_line(error)}") from error


def _open(file: Path) -> pq.ParquetFile:
    """`file`, set up to be read in pieces: without this, Arrow loads a whole row group at a time."""
    return pq.ParquetFile(file, pre_buffer=False, buffer_size=2**16)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _unified(schema: pa.Schema, other: pa.Schema, file: Path, first: Path) -> pa.Schema:
    """One schema for both: the names must be the same; a column that is all null takes the type of the other file."""
    if sorted(schema.names) != sorted(other.names):
        odd = ", ".join(sorted(set(schema.names) ^ set(other.names)))
        raise SourceError(f"{file} and {first} have different columns ({odd}): sort them one by one")
    try:
        return pa.unify_schemas([schema, other])
    except pa.ArrowException as error:
        raise SourceError(f"{file} and {first} do not fit together: {_first_line(error)}") from error


# --- writing ----------------------------------------------------------------------------------------------------------


class Writer(Protocol):
    """Takes tables, in order."""

    def write(self, table: pa.Table) -> None: ...


def output_suffix(path: Path) -> str:
    """The suffix that decides the format. `UsageError` names the choices.

    >>> output_suffix(Path("a.b.jsonl.gz"))
    '.jsonl.gz'
    """
    for suffix in COMPRESSION:
        if path.name.endswith(suffix):
            return suffix
    raise UsageError(f"--out {path}: use a name that ends in {', '.join(COMPRESSION)}")


@contextmanager
def open_writer(path: Path, suffix: str, schema: pa.Schema, *, row_bytes: float, memory: int) -> Iterator[Writer]:
    """Write tables to `path` in the format of `suffix`, with columns of the types in `schema`.

    Parquet is compressed with zstd, in row groups of about 32 MiB (judged by `row_bytes`) and at most 65,536 rows; at
    most `memory` / 8 bytes wait to be written, which makes smaller groups where memory is short. JSON Lines are
    described at `json_line`.
    """
    if suffix == ".parquet":
        rows = int(min(max(GROUP_BYTES / max(row_bytes, 1), 1), GROUP_ROWS))
        with pq.ParquetWriter(path, schema, compression="zstd") as file:
            writer = _ParquetGroups(file, schema, rows, memory // 8)
            yield writer
            writer.flush()
    else:
        with pa.output_stream(str(path), compression=COMPRESSION[suffix]) as stream:
            yield _JsonLines(stream, schema)


class _ParquetGroups:
    """Gathers rows into row groups whose size does not depend on how the rows arrive."""

    def __init__(self, file: pq.ParquetWriter, schema: pa.Schema, rows: int, limit: int) -> None:
        self.file, self.schema, self.rows, self.limit = file, schema, rows, limit
        self.width = sum(fixed_width(column.type) for column in schema)
        self.held: list[pa.Table] = []
        self.free, self.size = rows, 0

    def write(self, table: pa.Table) -> None:
        while len(table):
            part = table.slice(0, self.free)
            sizes = self.size + np.cumsum(sum(map(row_sizes, part.columns), np.full(len(part), self.width)))
            rows = min(int(np.searchsorted(sizes, self.limit, side="right")) + 1, len(sizes))
            self.held.append(table.slice(0, rows))
            table = table.slice(rows)
            self.free -= rows
            self.size = sizes[rows - 1]
            if self.free == 0 or self.size > self.limit:
                self.flush()

    def flush(self) -> None:
        if self.held:
            group = pa.concat_tables(self.held).combine_chunks().cast(self.schema)
            self.held, self.free, self.size = [], self.rows, 0
            self.file.write_table(group, row_group_size=len(group))
            pa.default_memory_pool().release_unused()


class _JsonLines:
    def __init__(self, stream: pa.NativeFile, schema: pa.Schema) -> None:
        self.stream = stream
        self.schema = pa.schema([field.with_type(json_type(field.type)) for field in schema])

    def write(self, table: pa.Table) -> None:
        for start in range(0, len(table), JSON_ROWS):
            try:
                rows = table.slice(start, JSON_ROWS).cast(self.schema).to_pylist()
            except UnicodeDecodeError as error:
                raise RunError(f"a text is not UTF-8 ({error}): write .parquet, which keeps its bytes") from error
            self.stream.write("".join(map(json_line, rows)).encode())


def json_line(row: dict[str, Any]) -> str:
    """A row as one line of JSON; NaN and infinities, which JSON cannot write, become null, and bytes base64.

    >>> json_line({"text": "a\\nb", "x": float("nan"), "y": [1.5, None]})
    '{"text": "a\\\\nb", "x": null, "y": [1.5, null]}\\n'
    """
    try:
        return json.dumps(row, ensure_ascii=False, allow_nan=False, default=json_value) + "\n"
    except ValueError:
        return json.dumps(_finite(row), ensure_ascii=False, allow_nan=False, default=json_value) + "\n"


def json_value(value: Any) -> str:
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def json_type(kind: pa.DataType) -> pa.DataType:
    """The type a column is cast to before it becomes JSON: dates, times and decimals turn into strings."""
    if isinstance(kind, pa.BaseExtensionType):
        return json_type(kind.storage_type)
    if pa.types.is_dictionary(kind):
        return json_type(kind.value_type)
    if (pa.types.is_temporal(kind) and not pa.types.is_interval(kind)) or pa.types.is_decimal(kind):
        return pa.large_string()
    if pa.types.is_float16(kind):
        return pa.float32()
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(json_type(field.type)) for field in kind])
    if pa.types.is_map(kind):
        return pa.map_(json_type(kind.key_type), json_type(kind.item_type))
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(json_type(kind.value_type), kind.list_size)
    if pa.types.is_large_list(kind):
        return pa.large_list(json_type(kind.value_type))
    if pa.types.is_list(kind):
        return pa.list_(json_type(kind.value_type))
    return kind


# --- metrics.csv ------------------------------------------------------------------------------------------------------
#
#     step,tokens,train_loss,val_loss
#     0,0,,5.54                           what is not known stays empty
#     10,2560,5.12,
#
# Rows are appended while training goes on, and cut back to the checkpoint that a run resumes from.


Columns = Mapping[str, np.ndarray]  # name -> (rows,) float64, NaN for an empty cell
WHOLE = ("step", "tokens")  # columns of whole numbers


class MetricsFile:
    """A CSV file whose first column is `step`. Later columns are added on the right, empty in the rows before."""

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self.path, self.columns = path, tuple(columns)

    def start(self, step: int) -> None:
        """Keep the rows up to `step`, and no half-written one; a new file where there is none."""
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True) if self.path.is_file() else []
        before = next(csv.reader(lines), [])
        self.columns = tuple(dict.fromkeys([*before, *self.columns]))
        self._rewrite(
            [line for line in lines[1:] if line.endswith("\n") and int(line.split(",", 1)[0]) <= step],
            new=len(self.columns) - len(before),
        )

    def replace(self, rows: Iterable[Mapping[str, str]]) -> None:
        """Write the file with these rows, of which it takes its own columns."""
        self._rewrite([_line([row.get(name) for name in self.columns]) for row in rows], 0)

    def append(self, row: Mapping[str, float | int | str]) -> None:
        if new := [name for name in row if name not in self.columns]:
            self.columns += tuple(new)
            self._rewrite(self.path.read_text(encoding="utf-8").splitlines(keepends=True)[1:], len(new))
        with open(self.path, "a", encoding="utf-8", newline="") as file:
            file.write(_line([row.get(name) for name in self.columns]))

    def _rewrite(self, lines: Sequence[str], new: int) -> None:
        """The header and these rows, with so many new cells at their end."""
        rows = [line.removesuffix("\n") + "," * new + "\n" for line in lines]
        write_text(self.path, "".join([_line(self.columns), *rows]))


def read_metrics(path: Path, *, words: bool = False) -> Columns:
    """The columns of a metrics.csv as float64, NaN where a cell is empty; with `words` those of words too, as str.

    Errors: `RunError` names the line and what is wrong with it, and says when there is no row or no column `step`.
    """
    try:
        with open(path, encoding="utf-8", newline="") as file:
            reader = csv.reader(file)
            head, lines = next(reader, []), [(reader.line_num, cells) for cells in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise RunError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    if not lines or "step" not in head:
        raise RunError(f"{path}: no row, or no column 'step': the run has not trained a step yet")
    for number, cells in lines:
        if len(cells) != len(head):
            raise RunError(f"{path}, line {number}: {len(cells)} cells where the header has {len(head)}")
    columns = {}
    for place, name in enumerate(head):
        cells = [row[place] for _, row in lines]
        try:
            columns[name] = np.array([float(cell or "nan") for cell in cells])
        except ValueError as error:
            if not words:
                odd = next(number for number, row in lines if row[place] and not _is_number(row[place]))
                raise RunError(f"{path}, line {odd}, column {name}: {error}") from error
            columns[name] = np.array(cells)
    return columns


def last_row(path: Path) -> dict[str, float]:
    """The last row, without its empty cells. Errors: those of `read_metrics`."""
    last = {name: float(column[-1]) for name, column in read_metrics(path).items()}
    return {name: int(value) if name in WHOLE else value for name, value in last.items() if not math.isnan(value)}


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _line(cells: Sequence[float | int | str | None]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(map(_cell, cells))
    return text.getvalue()


def _cell(value: float | int | str | None) -> str:
    """A number with the digits that bring it back; nothing where there is none.

    >>> _cell(0.1), _cell(3), _cell(None), _cell(float("nan"))
    ('0.1', '3', '', '')
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return repr(float(value)) if isinstance(value, float) else str(value)
