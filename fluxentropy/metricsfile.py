"""`metrics.csv`: rows are appended while training goes on, and cut back to the checkpoint that a run resumes from."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from fluxentropy.store import write_text


class MetricsFile:
    """A CSV file with fixed columns, the first of which is `step`; what is not known stays empty."""

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self.path, self.columns = path, tuple(columns)

    def start(self, step: int) -> None:
        """Keep the rows up to `step`, and no half-written one; a new file where there is none."""
        kept = [self._line(dict(zip(self.columns, self.columns, strict=True)))]
        if self.path.is_file():
            for line in self.path.read_text(encoding="utf-8").splitlines(keepends=True)[1:]:
                if line.endswith("\n") and int(line.split(",", 1)[0]) <= step:
                    kept.append(line)
        write_text(self.path, "".join(kept))

    def append(self, row: Mapping[str, float | int | str]) -> None:
        with open(self.path, "a", encoding="utf-8", newline="") as file:
            file.write(self._line(row))

    def _line(self, row: Mapping[str, float | int | str]) -> str:
        unknown = set(row) - set(self.columns)
        assert not unknown, unknown
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerow([_cell(row.get(name)) for name in self.columns])
        return text.getvalue()


def last_row(path: Path) -> dict[str, float]:
    """The last row, without its empty cells."""
    with open(path, encoding="utf-8", newline="") as file:
        *_, row = csv.DictReader(file)
    return {
        name: float(value) if name not in ("step", "tokens") else int(value) for name, value in row.items() if value
    }


def _cell(value: float | int | str | None) -> str:
    """A number with the digits that bring it back; nothing where there is none.

    >>> _cell(0.1), _cell(3), _cell(None), _cell(float("nan"))
    ('0.1', '3', '', '')
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return repr(float(value)) if isinstance(value, float) else str(value)
