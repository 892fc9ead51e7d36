"""What tests of trainings read from a run, or from the runs of a comparison."""

from __future__ import annotations

import csv
from pathlib import Path


def metrics(run: Path) -> list[dict[str, float]]:
    """The rows of metrics.csv, without empty cells."""
    with open(run / "metrics.csv", newline="") as file:
        return [{name: float(cell) for name, cell in row.items() if cell} for row in csv.DictReader(file)]


def cells(out: Path) -> dict[str, bytes]:
    """The records of a comparison's cells."""
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.glob("cells/*/seed-*.json"))}


def times(out: Path) -> dict[Path, int]:
    """When each file of the cells was written."""
    return {path: path.stat().st_mtime_ns for path in out.glob("cells/*/*/*") if path.is_file()}
