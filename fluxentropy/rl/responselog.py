"""`responses.parquet`: a row for each response of the probed steps, kept in pieces until a run is finished."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from fluxentropy.store import atomic_path

if TYPE_CHECKING:
    from torch import Tensor

    from fluxentropy.rl.grpoupdate import Gradient
    from fluxentropy.rl.rollouts import Rollout

PIECES = ".responses"
SCHEMA = pa.schema(
    [
        ("step", pa.int32()),
        ("prompt", pa.int32()),
        ("response", pa.int32()),
        ("prompt_text", pa.string()),
        ("response_text", pa.string()),
        ("answer", pa.string()),
        ("reward", pa.float64()),
        ("advantage", pa.float64()),
        ("length", pa.int32()),
        ("logp", pa.float64()),
        ("entropy", pa.float64()),
    ]
)


def response_rows(step: int, rollout: Rollout, advantages: Tensor, gradient: Gradient) -> list[dict[str, Any]]:
    """A row for each response: `prompt` and `response` count from 0; `logp` is S and `entropy` the sum of H_k, nats."""
    B, G = rollout.responses.shape
    logp, entropy = (values.double().sum(1).view(B, G).tolist() for values in (gradient.logp, gradient.entropy))
    return [
        {
            "step": step,
            "prompt": n,
            "response": g,
            "prompt_text": problem.prompt,
            "response_text": rollout.texts[n][g],
            "answer": problem.answer,
            "reward": float(rollout.rewards[n, g]),
            "advantage": float(advantages[n, g]),
            "length": int(rollout.responses.lengths[n, g]),
            "logp": logp[n][g],
            "entropy": entropy[n][g],
        }
        for n, problem in enumerate(rollout.problems)
        for g in range(G)
    ]


def write_piece(out: Path, step: int, rows: list[dict[str, Any]]) -> None:
    """Keep the rows of a step; those of an earlier try are replaced."""
    with atomic_path(out / PIECES / f"step-{step:08d}.parquet", durable=False) as aside:
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), aside)


def gather(out: Path) -> None:
    """Write `responses.parquet` of all pieces, in the order of steps."""
    with atomic_path(out / "responses.parquet") as aside, pq.ParquetWriter(aside, SCHEMA) as writer:
        for piece in sorted((out / PIECES).glob("step-*.parquet")):
            writer.write_table(pq.read_table(piece, schema=SCHEMA))


def drop_pieces(out: Path) -> None:
    """Remove what `gather` has put together."""
    shutil.rmtree(out / PIECES, ignore_errors=True)
