"""The scores of a text: their names, types and columns."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import pyarrow as pa

from fluxentropy.outcome import html_table


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The scores of one text, in nats, nats² and bits per byte. None where the text has no such value."""

    entropy_mean: float | None = None
    entropy_sum: float | None = None
    entropy_last: float | None = None
    varentropy_mean: float | None = None
    varentropy_sum: float | None = None
    varentropy_last: float | None = None
    sqrt_varentropy_mean: float | None = None
    surprisal_mean: float | None = None
    surprisal_sum: float | None = None
    perplexity: float | None = None
    bits_per_byte: float | None = None
    n_tokens: int = 0
    n_bytes: int = 0
    n_predicted_bytes: int = 0
    truncated: bool = False
    status: str = "ok"  # "empty": no tokens; "nan": the model gave NaN

    def _repr_html_(self) -> str:
        return html_table([dataclasses.asdict(self)])


SCORE_FIELDS = [
    pa.field(field.name, pa.int64() if field.name.startswith("n_") else pa.float64())
    for field in dataclasses.fields(Scores)
    if field.name not in ("truncated", "status")
] + [pa.field("truncated", pa.bool_()), pa.field("status", pa.string())]
SCORE_NAMES = tuple(field.name for field in SCORE_FIELDS)


def score_columns(scores: list[Scores], input_status: pa.ChunkedArray | None = None) -> dict[str, pa.Array]:
    """The scores as columns, by name. A status from reading the text wins over "ok" and "empty"."""
    columns = {
        field.name: pa.array([getattr(row, field.name) for row in scores], type=field.type) for field in SCORE_FIELDS
    }
    if input_status is not None:
        damaged = [status or None for status in input_status.to_pylist()]
        merged = [
            row.status if status is None or row.status == "nan" else status
            for row, status in zip(scores, damaged, strict=True)
        ]
        columns["status"] = pa.array(merged, type=pa.string())
    return columns
