"""What all models of a zoo say together: one order of the texts, written as scores that `sort` reads like any others.

| column | meaning |
|---|---|
| `mean_rank` | mean over the models of the text's rank, 1 for the lowest score |
| `rank_sd` | population standard deviation over the models of these ranks: how far they disagree |
| `pc1` | the text's coordinate on the first principal component of the standardised scores, texts as points |
| `n_models` | models that have scored the text |
| `status` | `ok`, or `incomplete`: not every model has scored the text, which then has no consensus |
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.stats

from fluxentropy.runscores import CONSENSUS
from fluxentropy.scorematrix import ScoreMatrix
from fluxentropy.store import RunDirectory
from fluxentropy.versions import versions
from fluxentropy.yamlfile import to_yaml

ROWS = 2**16  # of a part
SCORES = {"mean_rank": pa.float64(), "rank_sd": pa.float64(), "pc1": pa.float64(), "n_models": pa.int64()}


def consensus_scores(scores: np.ndarray) -> tuple[dict[str, np.ndarray], float]:
    """`mean_rank`, `rank_sd`, `pc1` and `n_models` of texts (n, M), NaN where a model is missing; PC1's share.

    The component is that of the models' correlation matrix, of length 1, with the sign for which it rises with the
    scores. Its share of the variance is near 1 where one order explains all models.

    >>> found, share = consensus_scores(np.array([[1.0, 10.0], [3.0, 20.0], [2.0, 30.0], [1.5, np.nan]]))
    >>> found["mean_rank"], found["pc1"].round(2), round(share, 2)
    (array([1. , 2.5, 2.5, nan]), array([-1.73,  0.87,  0.87,   nan]), 0.75)
    """
    n, m = scores.shape
    complete = np.isfinite(scores).all(axis=1)
    whole = scores[complete]
    ranks = scipy.stats.rankdata(whole.T, axis=1)  # (M, n)
    spread = whole.std(axis=0)
    standard = (whole - whole.mean(axis=0)) / np.where(spread > 0, spread, 1)
    values, vectors = np.linalg.eigh(standard.T @ standard / len(whole))
    direction = vectors[:, -1] * np.sign(vectors[:, -1].sum() or 1.0)
    found = {"mean_rank": ranks.mean(axis=0), "rank_sd": ranks.std(axis=0), "pc1": standard @ direction}
    columns: dict[str, np.ndarray] = {}
    for name, column in found.items():
        columns[name] = np.full(n, np.nan)
        columns[name][complete] = column
    columns["n_models"] = np.isfinite(scores).sum(axis=1)
    return columns, float(values[-1] / m)


def write_consensus(matrix: ScoreMatrix, out: Path, identity: dict[str, Any]) -> float:
    """Write the consensus of all models as the run directory `out`; return PC1's share of the variance."""
    columns, share = consensus_scores(matrix.scores)
    with RunDirectory(out, overwrite=True) as run:
        run.begin({"kind": CONSENSUS, **identity}, to_yaml({"consensus": identity}))
        number, held, size = 0, [], 0
        for described, rows in matrix.texts():
            held.append(_with_scores(described, rows, columns, len(matrix.models)))
            size += len(rows)
            if size >= ROWS:
                _write_part(run, number, held)
                number, held, size = number + 1, [], 0
        if held:
            _write_part(run, number, held)
            number += 1
        complete = int((columns["n_models"] == len(matrix.models)).sum())
        counts = {"rows": len(matrix.scores), "status_ok": complete, "status_incomplete": len(matrix.scores) - complete}
        run.finish({"counts": counts, "parts": number, "pc1_share": share, "versions": versions()})
    return share


def _with_scores(described: pa.Table, rows: np.ndarray, columns: dict[str, np.ndarray], models: int) -> pa.Table:
    table = described.drop_columns([name for name in (*SCORES, "status") if name in described.column_names])
    for name, kind in SCORES.items():
        table = table.append_column(name, pa.array(columns[name][rows], kind, from_pandas=True))  # NaN becomes null
    status = np.where(columns["n_models"][rows] == models, "ok", "incomplete")
    return table.append_column("status", pa.array(status, pa.string()))


def _write_part(run: RunDirectory, number: int, tables: list[pa.Table]) -> None:
    table = pa.concat_tables(tables).combine_chunks()
    with run.part(number, {"rows": len(table), "counts": {"rows": len(table)}}) as path:
        pq.write_table(table, path, compression="zstd", row_group_size=4096)
