"""Scores of another run for the same texts, joined by id: a file of scores beside each file of the input."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fluxentropy.errors import RunError, UsageError
from fluxentropy.registry import PER_TOKEN
from fluxentropy.split import ScoredFile
from fluxentropy.store import atomic_path, read_json
from fluxentropy.tablefiles import reading, table_files
from fluxentropy.yamlfile import did_you_mean

MEMORY = "1GB"  # what the join holds; the rest is on disk
JOINED = "_joined"  # what is added to the name of a column that the input has as well
ALIKE = ("tokenizer", "bos_added", "max_tokens", "window", "stride", "text_field")  # what values per token rest on
INSTEAD = "use bits_per_byte, which compares between them, or score both runs alike"


def join_scores(files: Sequence[ScoredFile], run: str, names: Sequence[str], folder: Path) -> list[ScoredFile]:
    """`files` with the columns `names` of `run` beside them, written into `folder`; a text not in it has no score.

    `x_joined` is the column `x` of `run`, where `run` has no column of this very name.

    Errors: UsageError for a column that `run` lacks, or that holds no numbers, and for values per token where a text
    has other tokens or bytes in `run`; RunError where ids of `run` repeat: a text would have two scores.
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
    per_token = _per_token(names, there.names)
    counts = [name for name in ("n_tokens", "n_bytes") if name in there.names and per_token]
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
            here = pq.read_schema(file.path).names
            if "id" not in here:
                raise UsageError(f"--scores joins by id, but {file.path} has no such column")
            both = [name for name in counts if name in here]
            checked = "".join(f", TRY_CAST(a.{name} AS BIGINT), TRY_CAST(b.{name} AS BIGINT), a.id" for name in both)
            table: pa.Table = connection.sql(
                f"SELECT a.file_row_number{columns}{checked} "
                f"FROM read_parquet({_text(file.path)}, file_row_number = true) a "
                f"LEFT JOIN b ON CAST(a.id AS VARCHAR) = CAST(b.id AS VARCHAR)"
            ).to_arrow_table()
            for place, name in enumerate(both):
                _check_counts(table.columns[1 + len(names) + 3 * place :][:3], name, per_token[0], file.path, run)
            ordered = table.take(pc.sort_indices(table.column(0))).select(range(1, 1 + len(names)))
            assert len(ordered) == file.rows
            with atomic_path(beside) as aside, pa.ipc.new_file(str(aside), schema) as writer:
                writer.write_table(ordered.rename_columns(list(names)).cast(schema))
    return joined


def check_alike(source: str, run: str, names: Sequence[str], there: Sequence[str]) -> None:
    """Refuse values per token of `run`, whose columns are `there`, beside rows of `source`, if these were made
    otherwise: with another tokenizer, length, window or text field.

    What is no run directory, or does not say, is not compared here; `join_scores` looks at the numbers of tokens.

    Errors: UsageError that names both runs and how each was made.
    """
    found = _per_token(names, there)
    if not found:
        return
    one, two = _made(source), _made(run)
    for what in ALIKE:
        if what in one and what in two and one[what] != two[what]:
            raise UsageError(
                f"--by {found[0]}: {what} is {_said(one, what)} in {source} and {_said(two, what)} in {run}, and "
                f"values per token do not compare between them: {INSTEAD}"
            )


def _per_token(names: Sequence[str], there: Sequence[str]) -> list[str]:
    """Those of the joined columns `names` that are made of values per token."""
    return [name for name in names if (name if name in there else name.removesuffix(JOINED)) in PER_TOKEN]


def _made(run: str) -> dict[str, Any]:
    """How the scores of a run directory, or of a part of it, were made; nothing for other files."""
    path = Path(run)
    path = path.parent if path.suffix == ".parquet" and not path.is_dir() else path
    path = path.parent if path.name == "scores" else path
    manifest = read_json(path / "manifest.json") or {}
    identity, policies = manifest.get("identity") or {}, manifest.get("policies")
    if not isinstance(policies, dict) or not isinstance(identity, dict):
        return {}
    return policies | {name: identity[name] for name in ("model", "stride", "text_field") if name in identity}


def _said(made: Mapping[str, Any], what: str) -> str:
    """A value in words: a tokenizer by its model and the beginning of its fingerprint."""
    if what != "tokenizer":
        return repr(made[what])
    return f"that of {(made.get('model') or {}).get('name')!r} ({str(made[what])[:15]})"


def _check_counts(columns: Sequence[pa.ChunkedArray], name: str, by: str, path: Path, run: str) -> None:
    """Refuse texts that have another number of tokens, or bytes, here (first column) than there (second)."""
    here, there, ids = columns
    different = pc.fill_null(pc.not_equal(here, there), False)
    if pc.any(different).as_py():
        first = pc.index(different, True).as_py()
        what = "tokens" if name == "n_tokens" else "bytes"
        raise UsageError(
            f"--by {by}: text {ids[first]} has {here[first]} {what} in {path} and {there[first]} in {run}, and "
            f"values per token do not compare between them: {INSTEAD}"
        )


def _quoted(name: str) -> str:
    """`name` as SQL writes a column's name."""
    return '"' + name.replace('"', '""') + '"'


def _text(path: Path) -> str:
    """`path` as a SQL text, in which DuckDB finds no pattern."""
    plain = "".join(f"[{letter}]" if letter in "*?[" else letter for letter in str(path))
    return "'" + plain.replace("'", "''") + "'"
