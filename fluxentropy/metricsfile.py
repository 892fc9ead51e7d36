"""`metrics.csv` and `timings.csv`, a row a step: the one writer and the one reader of both.

    step,tokens,train_loss,val_loss
    0,0,,5.54                           what is not known stays empty
    10,2560,5.12,

Rows are appended while training goes on, and cut back to the checkpoint that a run resumes from.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from fluxentropy.errors import RunError
from fluxentropy.store import write_text

Columns = Mapping[str, np.ndarray]  # name -> (rows,) float64, NaN for an empty cell
WHOLE = ("step", "tokens")  # columns of whole numbers


class MetricsFile:
    """A CSV file whose first column is `step`. Later columns are added on the right, empty in the rows before."""

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self.path, self.columns = path, tuple(columns)

    def start(self, step: int) -> None:
        """Keep the rows up to `step`, and no half-written one; a new file where there is none."""
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True) if self.path.is_file() else []
        before = next(csv.reader(lines), [])
        self.columns = tuple(dict.fromkeys([*before, *self.columns]))
        self._rewrite(
            [line for line in lines[1:] if line.endswith("\n") and int(line.split(",", 1)[0]) <= step],
            new=len(self.columns) - len(before),
        )

    def append(self, row: Mapping[str, float | int | str]) -> None:
        if new := [name for name in row if name not in self.columns]:
            self.columns += tuple(new)
            self._rewrite(self.path.read_text(encoding="utf-8").splitlines(keepends=True)[1:], len(new))
        with open(self.path, "a", encoding="utf-8", newline="") as file:
            file.write(_line([row.get(name) for name in self.columns]))

    def _rewrite(self, lines: Sequence[str], new: int) -> None:
        """The header and these rows, with so many new cells at their end."""
        rows = [line.removesuffix("\n") + "," * new + "\n" for line in lines]
        write_text(self.path, "".join([_line(self.columns), *rows]))


def read_metrics(path: Path, *, words: bool = False) -> Columns:
    """The columns of a metrics.csv as float64, NaN where a cell is empty; with `words` those of words too, as str.

    Errors: `RunError` names the line and what is wrong with it, and says when there is no row or no column `step`.
    """
    try:
        with open(path, encoding="utf-8", newline="") as file:
            reader = csv.reader(file)
            head, lines = next(reader, []), [(reader.line_num, cells) for cells in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise RunError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    if not lines or "step" not in head:
        raise RunError(f"{path}: no row, or no column 'step': the run has not trained a step yet")
    for number, cells in lines:
        if len(cells) != len(head):
            raise RunError(f"{path}, line {number}: {len(cells)} cells where the header has {len(head)}")
    columns = {}
    for place, name in enumerate(head):
        cells = [row[place] for _, row in lines]
        try:
            columns[name] = np.array([float(cell or "nan") for cell in cells])
        except ValueError as error:
            if not words:
                odd = next(number for number, row in lines if row[place] and not _is_number(row[place]))
                raise RunError(f"{path}, line {odd}, column {name}: {error}") from error
            columns[name] = np.array(cells)
    return columns


def last_row(path: Path) -> dict[str, float]:
    """The last row, without its empty cells. Errors: those of `read_metrics`."""
    last = {name: float(column[-1]) for name, column in read_metrics(path).items()}
    return {name: int(value) if name in WHOLE else value for name, value in last.items() if not math.isnan(value)}


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _line(cells: Sequence[float | int | str | None]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(map(_cell, cells))
    return text.getvalue()


def _cell(value: float | int | str | None) -> str:
    """A number with the digits that bring it back; nothing where there is none.

    >>> _cell(0.1), _cell(3), _cell(None), _cell(float("nan"))
    ('0.1', '3', '', '')
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return repr(float(value)) if isinstance(value, float) else str(value)
