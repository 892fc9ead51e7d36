"""The external sort against Python's own, with runs so small that all of it spills."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from fluxentropy.runs import mergesort

Row = dict[str, Any]
NAN = math.nan
VALUES = [0.0, -0.0, 1.0, 1.0, 1.5, -3.25, 1e300, -1e300, 5e-324, math.inf, -math.inf, NAN, NAN, None, None]
IDS = ["", "a", "A", "aa", "é", "e\u0301", "日本", "\U0001f600", "\uffff", "z\x00", "z", "\n", None]
SCHEMA = pa.schema([("x", pa.float64()), ("id", pa.string()), ("row", pa.int64()), ("text", pa.string())])


def oracle(rows: Sequence[Row], by: str, ties: Sequence[str], descending: bool) -> list[Row]:
    """Python's stable sort: ties ascending first, then the values; NaN after them, and None last."""

    def tie(row: Row) -> tuple[tuple[bool, Any], ...]:
        return tuple((row[name] is None, 0 if row[name] is None else row[name]) for name in ties)

    ordered = sorted(rows, key=tie)
    nulls = [row for row in ordered if row[by] is None]
    nans = [row for row in ordered if row[by] != row[by]]
    numbers = [row for row in ordered if row[by] is not None and row[by] == row[by]]
    return [*sorted(numbers, key=lambda row: row[by], reverse=descending), *nans, *nulls]


def random_rows(seed: int, n: int) -> list[Row]:
    rng = random.Random(seed)
    return [
        {"x": rng.choice([*VALUES, rng.gauss(0, 1)]), "id": rng.choice(IDS), "row": n, "text": "x" * rng.randrange(200)}
        for n in range(n)
    ]


def run(rows: list[Row], keys: mergesort.Keys, spill: Path, **options: Any) -> list[Row]:
    batches = pa.Table.from_pylist(rows, SCHEMA).to_batches(max_chunksize=7)
    blocks = list(mergesort.sorted_blocks(batches, SCHEMA, keys, spill=spill, **options))
    return [row for block in blocks for row in block.to_pylist()]


def as_written(rows: Sequence[Row]) -> list[str]:
    return [repr(row) for row in rows]  # unlike ==, tells -0.0 from 0.0 and takes NaN for equal to itself


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize(("memory", "fan_in"), [(10**9, 128), (40_000, 128), (8_000, 2), (32, 3)])
def test_order_of_random_rows(
    descending: bool, memory: int, fan_in: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mergesort, "FAN_IN", fan_in)
    monkeypatch.setattr(mergesort, "BLOCK", 300)
    direction = "descending" if descending else "ascending"
    rows = random_rows(memory, 300)
    found = run(rows, [("x", direction), ("id", "ascending")], tmp_path, memory=memory)
    # (x, id) has many repeats: rows that are equal in both keep the order of the input
    assert as_written(found) == as_written(oracle(rows, "x", ["id"], descending))
    assert any(tmp_path.iterdir()) == (memory < 10**9)


@pytest.mark.parametrize("order", ["sorted", "reversed", "equal"])
def test_order_of_special_inputs(order: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mergesort, "BLOCK", 300)
    rows = random_rows(1, 500)
    rows = oracle(rows, "x", ["id"], order == "reversed") if order != "equal" else [row | {"x": 1.0} for row in rows]
    found = run(rows, [("x", "ascending"), ("id", "ascending")], tmp_path, memory=10_000)
    assert as_written(found) == as_written(oracle(rows, "x", ["id"], descending=False))


@pytest.mark.parametrize("limit", [1, 17, 599, 600, 1000])
@pytest.mark.parametrize("memory", [8_000, 10**9])
def test_limit_keeps_the_first(limit: int, memory: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mergesort, "BLOCK", 300)
    monkeypatch.setattr(mergesort, "FAN_IN", 4)
    rows = random_rows(2, 600)
    found = run(rows, [("x", "descending"), ("row", "ascending")], tmp_path, memory=memory, limit=limit)
    assert as_written(found) == as_written(oracle(rows, "x", ["row"], descending=True)[:limit])


def test_blocks_are_small_even_where_long_rows_meet(tmp_path: Path) -> None:
    rows = [{"x": float(n > 900), "id": str(n), "row": n, "text": "y" * (5_000 if n > 900 else 5)} for n in range(1000)]
    batches = pa.Table.from_pylist(rows, SCHEMA).to_batches(max_chunksize=10)
    keys = [("x", "ascending"), ("row", "ascending")]
    blocks = list(mergesort.sorted_blocks(batches, SCHEMA, keys, memory=400_000, spill=tmp_path))
    assert max(block.nbytes for block in blocks) <= 2 * 400_000 // 32
    assert sum(map(len, blocks)) == 1000


def test_a_quarter_of_the_memory_is_sorted_without_the_disk_though_runs_are_smaller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mergesort, "SMALL", 0)
    rows = random_rows(5, 90)
    table = pa.Table.from_pylist(rows, SCHEMA)
    batches = table.to_batches(max_chunksize=9)
    size, keys = sum(batch.nbytes for batch in batches), [("x", "ascending"), ("id", "ascending")]
    for memory, runs in ((4 * size, 0), (2 * size, 4)):
        blocks = list(mergesort.sorted_blocks(batches, SCHEMA, keys, memory=memory, spill=tmp_path))
        found = [row for block in blocks for row in block.to_pylist()]
        assert as_written(found) == as_written(oracle(rows, "x", ["id"], descending=False))
        assert len(list(tmp_path.iterdir())) == runs


def test_what_is_not_read_is_not_sorted_and_its_error_is_raised(tmp_path: Path) -> None:
    def broken() -> Iterator[pa.RecordBatch]:
        yield from pa.Table.from_pylist(random_rows(4, 20), SCHEMA).to_batches(max_chunksize=5)
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        list(mergesort.sorted_blocks(broken(), SCHEMA, [("x", "ascending")], memory=8, spill=tmp_path))


def test_no_rows(tmp_path: Path) -> None:
    assert run([], [("x", "ascending")], tmp_path, memory=1000) == []


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([3, 1, None, 2**63 - 1, -(2**63)], pa.int64()),
        ([2**64 - 1, 0, None, 2**63], pa.uint64()),
        ([2.5, NAN, None, -1.0], pa.float16()),
        (["b", "é", None, "B", ""], pa.dictionary(pa.int8(), pa.string())),
        (["b", "é", None, "B", ""], pa.large_string()),
        ([b"b", b"\xff", None, b""], pa.binary()),
        ([True, None, False], pa.bool_()),
    ],
)
def test_types_with_an_order(values: list[Any], kind: pa.DataType) -> None:
    table = pa.table({"x": pa.array(values, kind)})
    rows = [{"x": value, "row": row} for row, value in enumerate(values)]
    for direction in ("ascending", "descending"):
        expected = [row["row"] for row in oracle(rows, "x", ["row"], direction == "descending")]
        assert mergesort.sort_order(table, [("x", direction)]).to_pylist() == expected
