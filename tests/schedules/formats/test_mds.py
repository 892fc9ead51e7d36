"""MDS by the format's definition and by mosaicml-streaming where it is installed."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import fluxentropy as fe

TABLE = {
    "id": [10 * row for row in range(30)],
    "text": [f"text {row} é" * (row % 4) for row in range(30)],
    "score": [float(row) for row in range(30)],
    "half": pa.array([row / 4 if row % 3 else None for row in range(30)], pa.float32()),
    "count": pa.array([row if row % 5 else None for row in range(30)], pa.int32()),
    "tags": [["a", "b"][: row % 3] for row in range(30)],
    "good": [row % 2 == 0 for row in range(30)],
}
CODES = {"int": "<q", "float64": "<d", "float32": "<f"}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """An order of rows of many types, in several shards."""
    pq.write_table(pa.table(TABLE), tmp_path / "any.parquet")
    bins = fe.bin(str(tmp_path / "any.parquet"), by=("score",), bins=2, out=tmp_path / "bins").out
    return fe.order(bins, format="mds", batch_size=4, shard_size="700B", out=tmp_path / "out").out


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """All samples, read byte by byte."""
    found = []
    for shard in json.loads((folder / "index.json").read_text())["shards"]:
        data = (folder / shard["raw_data"]["basename"]).read_bytes()
        assert len(data) == shard["raw_data"]["bytes"]
        (count,) = struct.unpack_from("<I", data)
        ends = struct.unpack_from(f"<{count + 1}I", data, 4)
        assert count == shard["samples"] and ends[-1] == len(data)
        head = json.loads(data[4 * (count + 2) : ends[0]])
        assert {key: shard[key] for key in head} == head and head["column_names"] == sorted(head["column_names"])
        for at in ends[:-1]:
            variable = [size for size in head["column_sizes"] if size is None]
            sizes = list(struct.unpack_from(f"<{len(variable)}I", data, at))
            at += 4 * len(variable)
            row = {}
            for name, encoding, fixed in zip(
                head["column_names"], head["column_encodings"], head["column_sizes"], strict=True
            ):
                size = fixed or sizes.pop(0)
                value = data[at : at + size]
                row[name] = (
                    struct.unpack(CODES[encoding], value)[0]
                    if fixed
                    else value.decode()
                    if encoding == "str"
                    else json.loads(value)
                )
                at += size
            found.append(row)
    return found


def check(rows: list[dict[str, Any]], out: Path) -> None:
    wanted = pq.read_table(out / "order.parquet")["id"].to_pylist()
    assert [row["id"] for row in rows] == wanted and sorted(wanted) == TABLE["id"]
    table = pa.table(TABLE).to_pylist()
    for row in rows:
        half = row.pop("half")
        expected = dict(table[row["id"] // 10])
        assert (half == expected["half"]) or (np.isnan(half) and expected["half"] is None)
        assert {key: value for key, value in row.items() if key != "bin"} == {
            k: v for k, v in expected.items() if k != "half"
        }


def test_all_columns_come_back(out: Path) -> None:
    """A null is a null again, or NaN where the column is of floats."""
    assert len(list((out / "data").glob("*.mds"))) > 2
    check(rows_of(out / "data"), out)


def test_streaming_reads_it(out: Path) -> None:
    streaming = pytest.importorskip("streaming")
    check(list(streaming.StreamingDataset(local=str(out / "data"), shuffle=False, batch_size=4)), out)
