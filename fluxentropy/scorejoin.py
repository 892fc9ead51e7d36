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
from fluxentropy.tablefiles import table_files
from fluxentropy.yamlfile import did_you_mean

MEMORY = "1GB"  # what the join holds; the rest is on disk


def join_scores(files: Sequence[ScoredFile], run: str, names: Sequence[str], folder: Path) -> list[ScoredFile]:
    """`files` with the columns `names` of `run` beside them, written into `folder`; a text not in it has no score.

    Errors: UsageError for a column that `run` has not; RunError where ids of `run` repeat: a text would have two scores.
    """
    other = [str(path) for path in table_files(run)]
    there = pq.read_schema(other[0]).names
    for name in ("id", *names):
        if name not in there:
            raise UsageError(f"--by {name}: no such column in {run}{did_you_mean(name, there)}")
    columns = ", ".join(f'CAST(b."{name}" AS DOUBLE) AS "{name}"' for name in names)
    folder.mkdir(parents=True, exist_ok=True)
    config: dict[str, str | bool | int | float | list[str]] = {
        "memory_limit": MEMORY,
        "temp_directory": str(folder / ".spill"),
        "preserve_insertion_order": True,
    }
    joined = []
    with duckdb.connect(config=config) as connection:
        repeated = connection.execute(
            "SELECT count(id) - count(DISTINCT id) FROM read_parquet(?)", [other]
        ).fetchone() or (0,)
        if repeated[0]:
            raise RunError(f"{repeated[0]} texts of {run} share an id with another one: their scores cannot be joined")
        for file in files:
            beside = folder / f"part-{file.number:05d}.parquet"
            joined.append(dataclasses.replace(file, scores=beside))
            if beside.exists():
                continue
            table: pa.Table = connection.execute(
                f"SELECT a.file_row_number AS at, {columns} FROM read_parquet(?, file_row_number = true) a "
                f"LEFT JOIN read_parquet(?) b ON a.id = b.id",
                [str(file.path), other],
            ).to_arrow_table()
            ordered = table.take(pc.sort_indices(table["at"])).drop_columns(["at"])
            assert len(ordered) == file.rows
            with atomic_path(beside) as aside:
                pq.write_table(ordered.cast(pa.schema([(name, pa.float64()) for name in names])), aside)
    return joined
