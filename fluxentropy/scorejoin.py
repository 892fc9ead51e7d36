"""Scores of another run for the same texts, joined by id: a file of scores beside each file of the input."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fluxentropy.errors import RunError, UsageError
from fluxentropy.split import ScoredFile
from fluxentropy.store import atomic_path
from fluxentropy.tablefiles import reading, table_files
from fluxentropy.yamlfile import did_you_mean

MEMORY = "1GB"  # what the join holds; the rest is on disk
JOINED = "_joined"  # what is added to the name of a column that the input has as well


def join_scores(files: Sequence[ScoredFile], run: str, names: Sequence[str], folder: Path) -> list[ScoredFile]:
    """`files` with the columns `names` of `run` beside them, written into `folder`; a text not in it has no score.

    `x_joined` is the column `x` of `run`, where `run` has no column of this very name.

    Errors: UsageError for a column that `run` lacks, or that holds no numbers; RunError where ids of `run` repeat: a
    text would have two scores.
    """
    other = table_files(run)
    with reading(other[0]):
        there = pq.read_schema(other[0])
    sources = [name if name in there.names else name.removesuffix(JOINED) for name in names]
    for name in ("id", *sources):
        if name not in there.names:
            said = "--scores needs the column id" if name == "id" else f"--by {name}"
            raise UsageError(f"{said}: no such column in {run}{did_you_mean(name, there.names)}")
        kind = there.field(name).type
        if name != "id" and not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
            raise UsageError(f"--by {name}: in {run} its values are of type {kind}, not numbers")
    columns = "".join(f", CAST(b.{_quoted(name)} AS DOUBLE)" for name in sources)
    schema = pa.schema([(name, pa.float64()) for name in names])
    folder.mkdir(parents=True, exist_ok=True)
    joined = []
    with duckdb.connect(config={"memory_limit": MEMORY, "temp_directory": str(folder / ".spill")}) as connection:
        connection.execute("CREATE VIEW b AS SELECT * FROM read_parquet([" + ", ".join(map(_text, other)) + "])")
        ((repeated,),) = connection.sql("SELECT count(id) - count(DISTINCT id) FROM b").fetchall()
        if repeated:
            raise RunError(f"{repeated} texts of {run} share an id with another one: their scores cannot be joined")
        for file in files:
            beside = folder / f"part-{file.number:05d}.arrow"
            joined.append(dataclasses.replace(file, scores=beside))
            if beside.exists():
                continue
            if "id" not in pq.read_schema(file.path).names:
                raise UsageError(f"--scores joins by id, but {file.path} has no such column")
            table: pa.Table = connection.sql(
                f"SELECT a.file_row_number{columns} FROM read_parquet({_text(file.path)}, file_row_number = true) a "
                f"LEFT JOIN b ON CAST(a.id AS VARCHAR) = CAST(b.id AS VARCHAR)"
            ).to_arrow_table()
            ordered = table.take(pc.sort_indices(table.column(0))).select(range(1, 1 + len(names)))
            assert len(ordered) == file.rows
            with atomic_path(beside) as aside, pa.ipc.new_file(str(aside), schema) as writer:
                writer.write_table(ordered.rename_columns(list(names)).cast(schema))
    return joined


def _quoted(name: str) -> str:
    """`name` as SQL writes a column's name."""
    return '"' + name.replace('"', '""') + '"'


def _text(path: Path) -> str:
    """`path` as a SQL text, in which DuckDB finds no pattern."""
    plain = "".join(f"[{letter}]" if letter in "*?[" else letter for letter in str(path))
    return "'" + plain.replace("'", "''") + "'"
