"""MDS, the shards of mosaicml-streaming, not compressed, with their index.json.

    shard    samples (uint32) | where each begins, and the last ends (uint32 each) | the layout, as JSON | samples
    sample   bytes of each column of variable size (uint32 each) | the columns, sorted by name

`id`, `bin` and the text are `str` or `int`; a column of floats is `float64` or `float32`, with NaN for null. All others
are `json`, which can hold a null.
"""

from __future__ import annotations

import itertools
import json
import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fluxentropy.errors import RunError, UsageError
from fluxentropy.runs.tables import json_line, json_type
from fluxentropy.schedules.formats.format import Span, TextLayout

SIZES = {"int": 8, "float64": 8, "float32": 4}  # of the encodings with a size of their own
MOST = 2**32  # bytes that the places in a shard can tell apart
ROWS = 4096  # whose ids are read back together


class Mds:
    """A sample a text."""

    name: ClassVar[str] = "mds"
    suffix: ClassVar[str] = ".mds"
    least: ClassVar[int] = 1

    def check(self, layout: TextLayout) -> None:
        """Any column can be written, as JSON at the worst."""

    def write(self, path: Path, layout: TextLayout, span: Span, batches: Iterable[pa.RecordBatch]) -> None:
        encodings = encodings_of(layout)
        head = json.dumps(_layout(encodings), sort_keys=True).encode()
        start = 4 + 4 * (span.rows + 1) + len(head)
        ends = [start]
        with open(path, "wb") as file:
            file.seek(start)
            for batch in batches:
                samples = _samples(batch, encodings)
                file.write(b"".join(samples))
                for sample in samples:
                    ends.append(ends[-1] + len(sample))
            if ends[-1] >= MOST:
                raise UsageError(f"{path.name}: a shard of {ends[-1]:,} bytes: use a smaller --shard-size, below 4 GiB")
            file.seek(0)
            file.write(struct.pack("<I", span.rows) + np.array(ends, "<u4").tobytes() + head)

    def index(self, layout: TextLayout, parts: Sequence[tuple[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
        about = _layout(encodings_of(layout))
        shards = [
            {
                **about,
                "raw_data": {"basename": name, "bytes": facts["bytes"], "hashes": {}},
                "samples": facts["rows"],
                "zip_data": None,
            }
            for name, facts in parts
        ]
        return {"index.json": {"shards": shards, "version": 2}}

    def ids(self, path: Path) -> Iterator[list[Any]]:
        with open(path, "rb") as file:
            (rows,) = struct.unpack("<I", file.read(4))
            ends = np.fromfile(file, "<u4", rows + 1).tolist()
            about = json.loads(file.read(ends[0] - file.tell()))
            encodings = dict(zip(about["column_names"], about["column_encodings"], strict=True))
            held = []
            for start, end in itertools.pairwise(ends):
                held.append(_id_of(file.read(end - start), encodings))
                if len(held) == ROWS:
                    yield held
                    held = []
            yield held


def encodings_of(layout: TextLayout) -> dict[str, str]:
    """How each column is written, in the order of their names."""
    found = {}
    for name in sorted(layout.schema.names):
        kind = layout.schema.field(name).type
        never_null = name in ("id", "bin", layout.text_field)
        if pa.types.is_floating(kind):
            found[name] = "float64" if pa.types.is_float64(kind) else "float32"
        elif never_null and (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            found[name] = "str"
        elif never_null and pa.types.is_integer(kind) and not pa.types.is_uint64(kind):
            found[name] = "int"
        else:
            found[name] = "json"
    return found


def texts_of(column: pa.Array) -> list[bytes]:
    """The texts as UTF-8; one that is null is empty."""
    return column.cast(pa.large_binary()).fill_null(b"").to_pylist()


def _layout(encodings: dict[str, str]) -> dict[str, Any]:
    return {
        "column_encodings": list(encodings.values()),
        "column_names": list(encodings),
        "column_sizes": [SIZES.get(encoding) for encoding in encodings.values()],
        "compression": None,
        "format": "mds",
        "hashes": [],
        "size_limit": 2**26,
        "version": 2,
    }


def _samples(batch: pa.RecordBatch, encodings: dict[str, str]) -> list[bytes]:
    """The samples of the rows of `batch`."""
    columns = [_encoded(batch.column(name), name, encoding) for name, encoding in encodings.items()]
    variable = [
        np.fromiter(map(len, column), "<u4", len(column))
        for column, encoding in zip(columns, encodings.values(), strict=True)
        if encoding not in SIZES
    ]
    heads = np.stack(variable, axis=1).tobytes() if variable else b""
    width = 4 * len(variable)
    starts = range(0, width * batch.num_rows, width) if width else [0] * batch.num_rows
    return [b"".join((heads[at : at + width], *row)) for at, *row in zip(starts, *columns, strict=True)]


def _encoded(column: pa.Array, name: str, encoding: str) -> list[bytes]:
    if name == "id" and column.null_count:
        raise RunError("a text has no id (null), which MDS cannot hold in a column of ids: give each text one")
    if encoding == "str":
        return texts_of(column)
    if encoding == "json":
        values = column.cast(json_type(column.type)).to_pylist()
        return [json_line({"": value})[5:-2].encode() for value in values]
    if encoding == "int":
        numbers = column.cast(pa.int64()).to_numpy().astype("<i8")
    else:
        kind = pa.float64() if encoding == "float64" else pa.float32()
        numbers = (
            pc.fill_null(column.cast(kind), float("nan")).to_numpy(zero_copy_only=False).astype(f"<f{SIZES[encoding]}")
        )
    data, size = numbers.tobytes(), SIZES[encoding]
    return [data[at : at + size] for at in range(0, len(data), size)]


def _id_of(sample: bytes, encodings: dict[str, str]) -> Any:
    """The column `id` of a sample."""
    variable = [name for name, encoding in encodings.items() if encoding not in SIZES]
    sizes = dict(zip(variable, struct.unpack_from(f"<{len(variable)}I", sample), strict=True))
    at = 4 * len(variable)
    for name, encoding in encodings.items():
        size = SIZES[encoding] if encoding in SIZES else sizes[name]
        if name == "id":
            return _decoded(sample[at : at + size], encoding)
        at += size
    raise ValueError("a sample has no column id")


def _decoded(data: bytes, encoding: str) -> Any:
    if encoding == "str":
        return data.decode()
    if encoding == "json":
        return json.loads(data)
    return np.frombuffer(data, {"int": "<i8", "float64": "<f8", "float32": "<f4"}[encoding])[0].item()
