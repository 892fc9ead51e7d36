"""Folders of token blocks as `fluxentropy bin --tokenize` lays them out, with ids that tell which block they are of."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

ROWS = 256


def block_ids(number: int, index: int, length: int) -> np.ndarray:
    """The ids (length+1,) of a block: they differ from block to block."""
    return (np.arange(length + 1) + 7 * index + 1000 * number) % 50_000


def block_starts(index: int, length: int) -> list[int]:
    """Where segments start: one, two or three of them."""
    return [0, *(length // 3, length // 2)[: index % 3]]


def write_blocks(
    folder: Path,
    counts: Sequence[int],
    *,
    length: int = 8,
    per_file: int = 600,
    kind: Any = None,
    bins_json: dict[str, Any] | None = None,
) -> Path:
    """Write `counts[k]` blocks of bin k, in files of `per_file`, and return the folder."""
    digits = max(2, len(str(len(counts) - 1)))
    for number, count in enumerate(counts):
        path = folder / "_blocks" / "data" / f"bin={number:0{digits}d}"
        path.mkdir(parents=True)
        for file, first in enumerate(range(0, max(count, 1), per_file)):
            rows = range(first, min(first + per_file, count))
            _write_file(path / f"part-{file:05d}.arrow", number, rows, length, kind or pa.uint16())
    facts = {
        "length": length,
        "vocabulary": 50_257,
        "dtype": str(kind or pa.uint16()),
        "eos_token_id": 0,
        "tokenizer": {"name": "fake", "fingerprint": "t"},
        "blocks": list(counts),
        "tokens": [count * length for count in counts],
        "documents": [count + 1 for count in counts],
        "left_over": [0 for _ in counts],
        "format": 2,
        "bins_fingerprint": "b",
        "fingerprint": f"blocks of {list(counts)}",
    }
    edges = list(range(1, len(counts)))
    record = {"by": "entropy_mean", "edges": edges, "counts": list(counts), "tokens": facts["tokens"]}
    (folder / "_blocks" / "blocks.json").write_text(json.dumps(facts))
    (folder / "bins.json").write_text(json.dumps(bins_json or record))
    return folder


def _write_file(path: Path, number: int, rows: range, length: int, kind: Any) -> None:
    fields = [
        ("input_ids", pa.list_(kind, length + 1)),
        ("starts", pa.list_(pa.int32())),
        ("documents", pa.list_(pa.int64())),
        ("bin", pa.int32()),
    ]
    schema = pa.schema(fields)
    with pa.ipc.new_file(str(path), schema) as writer:
        for first in range(0, len(rows), ROWS):
            part = rows[first : first + ROWS]
            ids = np.concatenate([block_ids(number, index, length) for index in part])
            starts = [block_starts(index, length) for index in part]
            columns = [
                pa.FixedSizeListArray.from_arrays(pa.array(ids, kind), length + 1),
                pa.array(starts, pa.list_(pa.int32())),
                pa.array([[10 * index + i for i in range(len(s))] for index, s in zip(part, starts, strict=True)]),
                pa.array([number] * len(part), pa.int32()),
            ]
            writer.write_batch(pa.record_batch(columns, schema=schema))
