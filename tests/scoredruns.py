"""Run directories of `score`, written without a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fluxentropy.agreement.matrix import ScoreMatrix
from fluxentropy.runs.directory import RunDirectory

POLICIES = {"bos_policy": "tokenizer", "bos_added": False, "max_tokens": 512, "window": "first"}


def write_run(
    folder: Path,
    scores: Sequence[float | None],
    *,
    ids: Sequence[str] | None = None,
    model: str | None = None,
    policies: dict[str, Any] | None = None,
    sources: dict[str, str] | None = None,
    part_rows: int = 4,
    finish: bool = True,
    **identity: Any,
) -> Path:
    """A run of `model` with these mean entropies, in parts of `part_rows` rows."""
    ids = [f"id-{row}" for row in range(len(scores))] if ids is None else list(ids)
    table = pa.table(
        {
            "id": pa.array(ids, pa.string()),
            "source_row": pa.array(range(len(ids)), pa.int64()),
            "text": pa.array([f"text of {name}" for name in ids], pa.string()),
            "n_tokens": pa.array([7] * len(ids), pa.int64()),
            "entropy_mean": pa.array(scores, pa.float64()),
            "surprisal_mean": pa.array([None if x is None else -x for x in scores], pa.float64()),
            "status": pa.array(["ok" if x is not None else "empty" for x in scores], pa.string()),
        }
    )
    name = model or folder.name
    with RunDirectory(folder) as run:
        facts = {"text_field": "text", "sources": {"web.jsonl": "sha256:1"} if sources is None else sources, **identity}
        run.begin({"model": {"name": name, "fingerprint": f"sha256:{name}"}, **facts}, "")
        starts = range(0, len(ids), part_rows)
        for number, start in enumerate(starts):
            with run.part(number, {"rows": min(part_rows, len(ids) - start)}) as path:
                pq.write_table(table.slice(start, part_rows), path)
        if finish:
            run.finish({"parts": len(starts), "policies": POLICIES | (policies or {})})
    return folder


def described(matrix: ScoreMatrix) -> list[tuple[int, dict[str, Any]]]:
    """Each text's row in the matrix, and what describes it."""
    return [
        (int(row), record)
        for piece, rows in matrix.texts()
        for row, record in zip(rows, piece.to_pylist(), strict=True)
    ]
