"""Tables in files: the Parquet parts of a run or a folder, read in small batches; Parquet or JSON Lines, written."""

from __future__ import annotations

import base64
import glob
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fluxentropy.errors import RunError, SourceError, UsageError
from fluxentropy.rowsizes import fixed_width, row_sizes
from fluxentropy.store import read_json, sha256_file

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
