"""The ledger of a training: what each step saw. `fluxentropy ledger` says of each document how often and when.

ledger.parquet      step, tokens (seen after it), bins (blocks of each bin), lr, ids_hash (of the blocks, in order)
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fluxentropy.errors import RunError
from fluxentropy.runs.files import atomic_path

SCHEMA = pa.schema(
    {
        "step": pa.int64(),
        "tokens": pa.int64(),
        "bins": pa.list_(pa.int32()),
        "lr": pa.float64(),
        "ids_hash": pa.string(),
    }
)

PIECES = ".ledger"


def hash_ids(ids: np.ndarray) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of the ids as little-endian int64, in their order.

    >>> hash_ids(np.array([3, 1, 2]))
    '7c4cec7a82e1aa57'
    """
    return hashlib.sha256(np.ascontiguousarray(ids, "<i8").tobytes()).hexdigest()[:16]


def step_row(step: int, tokens: int, ids: np.ndarray, first: np.ndarray, lr: float) -> dict[str, Any]:
    """The row of a step, counted from 1; `first` (K+1,) is where the numbers of each bin's blocks begin."""
    bins = np.bincount(np.searchsorted(first, ids, side="right") - 1, minlength=len(first) - 1)
    return {"step": step, "tokens": tokens, "bins": bins.tolist(), "lr": lr, "ids_hash": hash_ids(ids)}


class Ledger:
    """The ledger of a run while it grows: a piece for each checkpoint, in `.ledger`, and at the end one file."""

    def __init__(self, out: Path) -> None:
        self.out, self.folder = out, out / PIECES
        self.rows: list[Mapping[str, Any]] = []

    def start(self, step: int) -> None:
        """Forget all after `step`."""
        self.rows = []
        for path, last in _pieces(self.folder):
            if last > step:
                path.unlink()

    def inherit(self, run: Path, steps: int) -> None:
        """Begin with the first steps of another run."""
        with atomic_path(self.folder / f"steps-{1:08d}-{steps:08d}.parquet") as path:
            pq.write_table(read_steps(run, steps), path, compression="zstd")

    def add(self, row: Mapping[str, Any]) -> None:
        self.rows.append(row)

    def save(self) -> None:
        """Write down the rows since the last piece."""
        if self.rows:
            with atomic_path(
                self.folder / f"steps-{self.rows[0]['step']:08d}-{self.rows[-1]['step']:08d}.parquet"
            ) as path:
                pq.write_table(_table(self.rows), path, compression="zstd")
            self.rows = []

    def finish(self, steps: int) -> None:
        """Write `ledger.parquet`. Errors: RunError where it does not hold each of the steps once."""
        self.save()
        found = _joined(self.folder, steps)
        with atomic_path(self.out / "ledger.parquet") as path:
            pq.write_table(found, path, compression="zstd")


def read_steps(run: Path, steps: int) -> pa.Table:
    """The rows of the first steps of a run, finished or not. Errors: RunError where it has not each of them once."""
    whole = run / "ledger.parquet"
    return _checked(pq.read_table(whole), whole, steps) if whole.is_file() else _joined(run / PIECES, steps)


def _pieces(folder: Path) -> list[tuple[Path, int]]:
    """The pieces in order, each with its last step."""
    return [(path, int(path.stem.rpartition("-")[2])) for path in sorted(folder.glob("steps-*.parquet"))]


def _joined(folder: Path, steps: int) -> pa.Table:
    return _checked(
        pa.concat_tables([SCHEMA.empty_table(), *(pq.read_table(path) for path, _ in _pieces(folder))]), folder, steps
    )


def _checked(found: pa.Table, path: Path, steps: int) -> pa.Table:
    """The first `steps` rows."""
    found = found.slice(0, steps)
    if found["step"].to_pylist() != list(range(1, steps + 1)):
        raise RunError(f"{path} does not hold each of the {steps} steps once: start afresh with --overwrite")
    return found


def _table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist([dict(row) for row in rows], schema=SCHEMA)
