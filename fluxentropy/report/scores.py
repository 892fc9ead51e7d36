"""The scores of a run, however large, in what a page shows of them: distributions, and the few texts at either end.

Memory is bounded: numbers pass through histograms of at most 65,536 cells, and texts are read only of the rows shown.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fluxentropy.errors import RunError
from fluxentropy.ordering.quantiles import ExactSums, Histogram, from_ordered_bits
from fluxentropy.runs.tables import reading
from fluxentropy.scoring.scores import ALL_NAMES

PERCENTS = (1, 10, 25, 50, 75, 90, 99)
DRAWN = ("entropy_mean", "varentropy_mean", "surprisal_mean")
UNCOUNTED = ("truncated", "status", "n_predicted_bytes", "entropy_sum", "varentropy_sum", "surprisal_sum")  # say little
BINS = 36  # of a drawn histogram
TAIL = 0.002  # of the texts, at either end, that a histogram may leave outside
SHOWN = 5  # texts at either end
BATCH_ROWS = 2**14
FEW_ROWS = 64  # rows with texts that are held at once


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """A column of numbers, summed up. Quantiles are those of a histogram of up to 65,536 cells."""

    name: str
    count: int  # rows with a finite number
    missing: int  # the others
    mean: float
    std: float | None
    minimum: float
    maximum: float
    quantiles: Sequence[float]  # of PERCENTS
    edges: np.ndarray  # (BINS + 1,)
    counts: np.ndarray  # (BINS,)


@dataclass(frozen=True, kw_only=True)
class TextRow:
    """One text, and its scores."""

    id: str
    text: str | None
    scores: Mapping[str, float | None]
    n_tokens: int | None = None


@dataclass(frozen=True, kw_only=True)
class ScoreSummary:
    """What is shown of a run."""

    rows: int
    by: str | None  # the score that the ends are of
    distributions: Sequence[Distribution]
    lowest: Sequence[TextRow]  # the lowest first
    highest: Sequence[TextRow]  # the highest first


def summarise_scores(files: Sequence[Path], *, text_field: str, names: Sequence[str] = ALL_NAMES) -> ScoreSummary:
    """Read the Parquet `files` of a run. Errors: `RunError` names a file that cannot be read."""
    with reading(files[0]):
        schema = pq.read_schema(files[0])
    present = [name for name in names if name in schema.names and name not in UNCOUNTED]
    present = [name for name in present if pa.types.is_floating(kind := schema.field(name).type) or _whole(kind)]
    by = next((name for name in (*DRAWN, *present) if name in present and name != "n_tokens"), None)
    columns = {name: _Column(name) for name in present}
    ends = _Ends(SHOWN)
    rows = 0
    for number, batch in _batches(files, present):
        for name, column in columns.items():
            values = column.add(batch[name])
            if name == by:
                ends.add(number, rows, values)
        rows += batch.num_rows
    places = {row: number for number, row in (ends.lowest + ends.highest)}
    found = _read_rows(files, places, [name for name in ("id", text_field, *present) if name in schema.names])
    texts = {row: _text_row(record, text_field) for row, record in found.items()}
    return ScoreSummary(
        rows=rows,
        by=by,
        distributions=[column.summed_up() for column in columns.values() if column.histogram.count],
        lowest=[texts[row] for _, row in ends.lowest],
        highest=[texts[row] for _, row in ends.highest],
    )


def _whole(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind)


def _batches(files: Sequence[Path], columns: Sequence[str]) -> Iterator[tuple[int, pa.RecordBatch]]:
    """The batches of all files, each with the number of its file."""
    for number, file in enumerate(files):
        with reading(file), pq.ParquetFile(file, pre_buffer=False) as parquet:
            if lost := [name for name in columns if name not in parquet.schema_arrow.names]:
                raise RunError(f"{file} has no column {lost[0]}, which {files[0].name} has: its run is damaged")
            for batch in parquet.iter_batches(batch_size=BATCH_ROWS, columns=list(columns), use_threads=False):
                yield number, batch


class _Column:
    """A column while it is read."""

    def __init__(self, name: str) -> None:
        self.name, self.missing = name, 0
        self.sums, self.histogram = ExactSums(), Histogram.empty()
        self.minimum, self.maximum = np.inf, -np.inf

    def add(self, column: pa.Array) -> np.ndarray:
        """-> the numbers of the batch, NaN for what is none"""
        values = np.asarray(column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False))
        values = np.where(np.isfinite(values), values, np.nan)
        there = values[~np.isnan(values)]
        self.missing += len(values) - len(there)
        if len(there):
            self.sums += ExactSums.of(there)
            self.histogram += Histogram.of(there)
            self.minimum, self.maximum = min(self.minimum, there.min()), max(self.maximum, there.max())
        return values

    def summed_up(self) -> Distribution:
        values, counts = from_ordered_bits(self.histogram.keys), self.histogram.counts
        upto = np.cumsum(counts)

        def quantile(share: float) -> float:
            value = values[np.searchsorted(upto, share * upto[-1])]
            return float(np.clip(value, self.minimum, self.maximum))

        low, high = quantile(TAIL), quantile(1 - TAIL)
        reach = max(high - low, 1e-9 * max(abs(low), abs(high), 1e-9))
        low = self.minimum if self.minimum > low - 0.15 * reach else low
        high = self.maximum if self.maximum < high + 0.15 * reach else high
        edges = np.linspace(low, high if high > low else low + reach, BINS + 1)
        drawn, _ = np.histogram(np.clip(values, self.minimum, self.maximum), edges, weights=counts)
        return Distribution(
            name=self.name,
            count=int(upto[-1]),
            missing=self.missing,
            mean=self.sums.mean,
            std=self.sums.std if upto[-1] > 1 else None,
            minimum=float(self.minimum),
            maximum=float(self.maximum),
            quantiles=[quantile(percent / 100) for percent in PERCENTS],
            edges=edges,
            counts=drawn,
        )


class _Ends:
    """The `size` smallest and largest of a column, as (file, row). Of equals the first are low, the last are high."""

    def __init__(self, size: int) -> None:
        self.size, self.count = size, 0
        self._low: list[tuple[float, int, int]] = []  # value, row, file
        self._high: list[tuple[float, int, int]] = []

    def add(self, file: int, start: int, values: np.ndarray) -> None:
        """The values of rows from `start` on, counted over all files; NaN are passed over."""
        there = np.flatnonzero(~np.isnan(values))
        order = there[np.argsort(values[there], kind="stable")]
        low, high = (
            [(float(values[row]), start + int(row), file) for row in rows[: self.size]] for rows in (order, order[::-1])
        )
        self.count += len(there)
        self._low = sorted(self._low + low)[: self.size]
        self._high = sorted(self._high + high, reverse=True)[: self.size]

    @property
    def lowest(self) -> list[tuple[int, int]]:
        """The lowest first; of few values the lower half."""
        return [(file, row) for _, row, file in self._low[: self.count // 2]]

    @property
    def highest(self) -> list[tuple[int, int]]:
        """The highest first; of few values the upper half."""
        return [(file, row) for _, row, file in self._high[: self.count - self.count // 2]]


def _read_rows(files: Sequence[Path], places: dict[int, int], columns: Sequence[str]) -> dict[int, dict[str, Any]]:
    """The rows `places`: row -> its file; of each row group with such rows, in batches of FEW_ROWS."""
    found: dict[int, dict[str, Any]] = {}
    first = 0
    for number, file in enumerate(files):
        with reading(file), pq.ParquetFile(file, pre_buffer=False, buffer_size=2**16) as parquet:
            for group in range(parquet.metadata.num_row_groups):
                size = parquet.metadata.row_group(group).num_rows
                wanted = [row for row, where in places.items() if where == number and first <= row < first + size]
                at = first
                for batch in (
                    parquet.iter_batches(
                        batch_size=FEW_ROWS, row_groups=[group], columns=list(columns), use_threads=False
                    )
                    if wanted
                    else ()
                ):
                    for row in wanted:
                        if at <= row < at + batch.num_rows:
                            found[row] = batch.slice(row - at, 1).to_pylist()[0]
                    at += batch.num_rows
                first += size
    return found


def _text_row(record: dict[str, Any], text_field: str) -> TextRow:
    text = record.get(text_field)
    scores = {name: value for name, value in record.items() if name in ALL_NAMES and isinstance(value, float)}
    count = record.get("n_tokens")
    return TextRow(
        id=str(record.get("id", "")),
        text=None if text is None else str(text),
        scores=scores,
        n_tokens=count if isinstance(count, int) else None,
    )
