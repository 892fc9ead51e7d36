"""WebDataset: tar archives in which a text is two members side by side, `POSITION.json` and `POSITION.txt`.

A reader joins neighbours of one key, and takes the name up to its first dot for the key: so the key is the position, in
digits, and the id, which may hold anything, stands in the JSON with all other columns. The owner and the times of the
members say nothing, so that the bytes are the same whenever they are made.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from fluxentropy.errors import UsageError
from fluxentropy.runs.tables import json_line, json_type
from fluxentropy.schedules.formats.format import Span, TextLayout
from fluxentropy.schedules.formats.mds import texts_of

DIGITS = 12  # of a position


class WebDataset:
    """Two members a text, sorted by name as the library's own writer does."""

    name: ClassVar[str] = "webdataset"
    suffix: ClassVar[str] = ".tar"
    least: ClassVar[int] = 8  # a reader needs as many archives as it has workers

    def check(self, layout: TextLayout) -> None:
        if layout.text_field is None:
            raise UsageError(
                f"--format webdataset: no column text, which one is it? Give --text-field, of "
                f"{', '.join(layout.schema.names)}"
            )

    def write(self, path: Path, layout: TextLayout, span: Span, batches: Iterable[pa.RecordBatch]) -> None:
        assert layout.text_field is not None
        others = [field.name for field in layout.schema if field.name != layout.text_field]
        schema = pa.schema(
            [layout.schema.field(name).with_type(json_type(layout.schema.field(name).type)) for name in others]
        )
        position = span.first
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
            for batch in batches:
                rows = pa.Table.from_batches([batch]).select(schema.names).cast(schema).to_pylist()
                for row, text in zip(rows, texts_of(batch.column(layout.text_field)), strict=True):
                    _add(archive, f"{position:0{DIGITS}d}.json", json_line(row).encode())
                    _add(archive, f"{position:0{DIGITS}d}.txt", text)
                    position += 1

    def index(self, layout: TextLayout, parts: Sequence[tuple[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
        return {}

    def ids(self, path: Path) -> Iterator[list[Any]]:
        with tarfile.open(path, "r|") as archive:
            for member in archive:
                if member.name.endswith(".json"):
                    file = archive.extractfile(member)
                    assert file is not None
                    yield [json.load(file)["id"]]


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(data), 0o444
    archive.addfile(member, io.BytesIO(data))
