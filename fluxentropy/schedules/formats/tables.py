"""jsonl, parquet and arrow: tables with a row a text, which `datasets`, polars, DuckDB and PyArrow open in order."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from fluxentropy.ordering.shards import ShardWriter
from fluxentropy.runs.tables import json_line, json_type, open_writer
from fluxentropy.schedules.formats.format import Span, TextLayout

MEMORY = 2**28  # bytes, of which an eighth may wait for a Parquet row group to be full
ROWS = 4096  # whose ids are read back together


def plain_ids(column: pa.Array | pa.ChunkedArray) -> list[Any]:
    """Ids as JSON has them, so that those of two formats can be compared.

    >>> plain_ids(pa.array(["a", None])), plain_ids(pa.array([b"a"]))
    (['a', None], ['YQ=='])
    """
    found = column.cast(json_type(column.type)).to_pylist()
    return [one if type(one) in (str, int) else json.loads(json_line({"id": one}))["id"] for one in found]


class _Table:
    """What the three share."""

    least: ClassVar[int] = 1

    def check(self, layout: TextLayout) -> None:
        """Any text will do."""

    def index(self, layout: TextLayout, parts: Sequence[tuple[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
        return {}


class JsonLines(_Table):
    """A JSON object a line, as `fluxentropy sort` writes it."""

    name: ClassVar[str] = "jsonl"
    suffix: ClassVar[str] = ".jsonl"

    def write(self, path: Path, layout: TextLayout, span: Span, batches: Iterable[pa.RecordBatch]) -> None:
        write_rows(path, self.suffix, layout, batches)

    def ids(self, path: Path) -> Iterator[list[Any]]:
        with open(path, encoding="utf-8") as lines:
            held = []
            for line in lines:
                held.append(json.loads(line)["id"])
                if len(held) == ROWS:
                    yield held
                    held = []
            yield held


class Parquet(_Table):
    """Parquet with zstd, in row groups of about 32 MiB."""

    name: ClassVar[str] = "parquet"
    suffix: ClassVar[str] = ".parquet"

    def write(self, path: Path, layout: TextLayout, span: Span, batches: Iterable[pa.RecordBatch]) -> None:
        write_rows(path, self.suffix, layout, batches)

    def ids(self, path: Path) -> Iterator[list[Any]]:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            for batch in file.iter_batches(batch_size=ROWS, columns=["id"], use_threads=False):
                yield plain_ids(batch.column(0))


class Arrow(_Table):
    """Arrow IPC files with zstd, as the shards of `fluxentropy bin` are."""

    name: ClassVar[str] = "arrow"
    suffix: ClassVar[str] = ".arrow"

    def write(self, path: Path, layout: TextLayout, span: Span, batches: Iterable[pa.RecordBatch]) -> None:
        writer = ShardWriter(path, layout.schema)
        for batch in batches:
            writer.write(batch)
        writer.writer.close()

    def ids(self, path: Path) -> Iterator[list[Any]]:
        with pa.OSFile(str(path)) as source:
            place = pa.ipc.open_file(source).schema.get_field_index("id")
            file = pa.ipc.open_file(source, options=pa.ipc.IpcReadOptions(included_fields=[place]))
            for number in range(file.num_record_batches):
                yield plain_ids(file.get_batch(number).column("id"))


def write_rows(path: Path, suffix: str, layout: TextLayout, batches: Iterable[pa.RecordBatch]) -> None:
    """Write the batches to a file of Parquet or JSON Lines."""
    with open_writer(path, suffix, layout.schema, row_bytes=layout.row_bytes, memory=MEMORY) as writer:
        for batch in batches:
            writer.write(pa.Table.from_batches([batch]))
