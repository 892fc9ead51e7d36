"""A schedule of the user's own: a CSV of weights, or a function."""

from __future__ import annotations

import csv
import importlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fluxentropy.errors import SourceError, UsageError
from fluxentropy.mixtures import Reweighting


@dataclass(frozen=True, kw_only=True)
class Custom(Reweighting):
    """Weights from `weights`: a CSV with columns u, w_0, ..., w_(K-1), or `module:function`.

    Rows of the CSV need not sum to 1. Between rows weights are interpolated, or with interpolation step kept; outside
    of them they stay. The function takes u (n,) and sizes (K,) and returns weights (n, K), 0 or more.
    """

    weights: str = ""
    interpolation: Literal["linear", "step"] = "linear"

    def __post_init__(self) -> None:
        if self.interpolation not in ("linear", "step"):
            raise UsageError(f"schedule.interpolation {self.interpolation}: use linear or step")
        if not self.weights:
            raise UsageError(
                "schedule.weights is missing: give a CSV with columns u, w_0, w_1, ..., or module:function"
            )

    def mixture(self, u: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        u = np.asarray(u, np.float64)
        if self.weights.endswith(".csv"):
            return _checked(self._from_table(u, len(sizes)), (len(u), len(sizes)), self.weights)
        try:
            found = np.asarray(self._function(u, np.asarray(sizes)), np.float64)
        except Exception as error:
            raise UsageError(f"schedule.weights {self.weights}: {type(error).__name__}: {error}") from error
        return _checked(found, (len(u), len(sizes)), self.weights)

    def _from_table(self, u: np.ndarray, bins: int) -> np.ndarray:
        rows = self._table
        if rows.shape[1] != bins + 1:
            raise UsageError(f"{self.weights}: weights of {rows.shape[1] - 1} bins, here are {bins}")
        rows = np.column_stack([rows[:, 0], _checked(rows[:, 1:], (len(rows), bins), self.weights)])
        if self.interpolation == "step":
            return rows[np.maximum(np.searchsorted(rows[:, 0], u, side="right") - 1, 0), 1:]
        return np.stack([np.interp(u, rows[:, 0], column) for column in rows[:, 1:].T], axis=1)

    @cached_property
    def _table(self) -> np.ndarray:
        return read_weights(Path(self.weights))

    @cached_property
    def _function(self) -> Any:
        module, _, name = self.weights.partition(":")
        try:
            return getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise UsageError(
                f"schedule.weights {self.weights}: no .csv file, and no module:function: {error}"
            ) from error


def read_weights(path: Path) -> np.ndarray:
    """The rows u, w_0, ..., w_(K-1) of a CSV. -> float64 (rows, K+1). Errors: `SourceError` names the file and line."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            header, *lines = list(csv.reader(file)) or [[]]
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"schedule.weights {path}: {getattr(error, 'strerror', None) or error}") from error
    expected = ["u", *(f"w_{k}" for k in range(len(header) - 1))]
    if [name.strip() for name in header] != expected or len(header) < 2:
        raise SourceError(f"{path}, line 1: columns {','.join(header) or '(none)'}: write u,w_0,w_1,...")
    rows = []
    for number, line in enumerate(lines, start=2):
        try:
            rows.append([float(cell) for cell in line])
        except ValueError as error:
            raise SourceError(f"{path}, line {number}: {error}") from error
        if len(line) != len(header):
            raise SourceError(f"{path}, line {number}: {len(line)} cells, expected {len(header)}")
    table = np.array(rows, np.float64).reshape(-1, len(header))
    if not len(table) or not np.isfinite(table).all():
        raise SourceError(f"{path}: " + ("a weight is not finite" if len(table) else "no rows below the header"))
    if (np.diff(table[:, 0]) <= 0).any() or table[0, 0] < 0 or table[-1, 0] > 1:
        raise SourceError(f"{path}: u must rise from row to row, from 0 to 1 at most")
    return table


def _checked(weights: np.ndarray, shape: tuple[int, int], name: str) -> np.ndarray:
    """`weights` with rows that sum to 1; UsageError where they cannot."""
    if weights.shape != shape:
        raise UsageError(f"schedule.weights {name}: weights of shape {weights.shape}, expected {shape}")
    sums = weights.sum(axis=1, keepdims=True)
    if not np.isfinite(weights).all() or (weights < 0).any() or (sums <= 0).any():
        raise UsageError(f"schedule.weights {name}: weights must be finite, 0 or more, and not all 0")
    return weights / sums
