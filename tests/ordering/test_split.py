"""split"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq
import pytest

from fluxentropy.errors import UsageError
from fluxentropy.ordering import split
from fluxentropy.ordering import split as pieces
from fluxentropy.ordering.edges import BinEdges, Binning
from fluxentropy.ordering.quantiles import ColumnSummary, Histogram, ScoreColumn, Selection
from fluxentropy.ordering.shards import read_manifest, sum_of_rows
from fluxentropy.ordering.split import (
    PLACE,
    PLACE_FIELD,
    Gather,
    Scan,
    ScoredFile,
    Split,
    bin_ranges,
    fingerprints,
    finished,
    mix,
    range_of,
    writing,
)
from tests.ordering.test_quantiles import same

BINNING = Binning(axes=(BinEdges.fixed("x", [0.0, 1.0]),))


def scored_files(folder: Path, table: pa.Table, sizes: list[int]) -> list[ScoredFile]:
    """`table` in files of these many rows."""
    found, start = [], 0
    for number, rows in enumerate(sizes):
        path = folder / f"part-{number:05d}.parquet"
        pq.write_table(table.slice(start, rows), path, row_group_size=40)
        found.append(ScoredFile(number=number, path=path, start=start, rows=rows, row_bytes=8))
        start += rows
    assert start == len(table)
    return found


def some_rows(number: int) -> pa.Table:
    rng = np.random.default_rng(0)
    x = pa.array(rng.normal(0, 1, number), mask=rng.random(number) < 0.1)
    return pa.table({"id": [f"id-{n}" for n in range(number)], "x": x, "w": rng.integers(0, 9, number)})


def make_split(out: Path, table: pa.Table, only: frozenset[int] | None = None) -> Split:
    schema = table.schema.append(pa.field("bin", pa.int32()))
    return Split(out=out, binning=BINNING, schema=schema, renamed=(), joined=(), seed=None, ranges=1, only=only)


def bins_of(table: pa.Table) -> list[int]:
    return [-1 if x is None else (x > 0) + (x > 1) for x in table["x"].to_pylist()]


def test_scan_of_small_steps_is_that_of_the_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = some_rows(300)
    whole = ColumnSummary.of(ScoreColumn.read(table["x"], table["w"], name="x", weight_name="w"))
    monkeypatch.setattr(split, "SCAN_ROWS", 7)
    files = scored_files(tmp_path, table, [100, 0, 200])
    scan = Scan(by=("x",), weight="w")
    summaries = [scan(file)[0] for file in files]
    assert all(isinstance(part, ColumnSummary) for part in summaries)
    found = summaries[0] + summaries[1] + summaries[2]  # type: ignore[operator]
    assert (found.sums, found.nulls, found.nans) == (whole.sums, whole.nulls, whole.nans)
    assert same(found.histogram, whole.histogram)
    selection = Selection.start(whole.histogram, [0.5], [0.25])
    asked = Scan(by=("x", "w"), weight="w", selections=(selection, None))
    cells = [asked(file) for file in files]
    assert [second for _, second in cells] == [None] * 3
    histogram = sum((first for first, _ in cells), Histogram.empty(weighted=True))  # type: ignore[misc]
    assert (histogram.count, histogram.weight) == selection.sought


def test_scan_names_the_file_and_the_rows(tmp_path: Path) -> None:
    (file,) = scored_files(tmp_path, pa.table({"x": [1.0, float("inf")]}), [2])
    with pytest.raises(UsageError, match=r"part-00000\.parquet, rows 0 to 2: column x: 1 of 2 values are infinite"):
        Scan(by=("x",), weight=None)(file)


def test_split_puts_every_row_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(split, "BATCH_ROWS", 50)
    table = some_rows(300)
    files = scored_files(tmp_path, table, [170, 0, 130])
    facts = [make_split(tmp_path / "out", table)(file) for file in files]
    assert sum(fact["rows"] for fact in facts) == 300
    assert sum(fact["hash"] for fact in facts) % 2**64 == sum_of_rows(table)
    assert facts[1]["bins"] == {}
    found = {}
    for file, fact in zip(files, facts, strict=True):
        reader = ipc.open_file(tmp_path / "out" / ".pieces" / f"part-{file.number:05d}.arrow")
        for number, (batches,) in fact["batches"].items():
            tables = [pa.Table.from_batches([reader.get_batch(place)]) for place in batches]
            assert sum(map(len, tables)) == fact["bins"][number]
            for row in pa.concat_tables(tables).to_pylist():
                assert row["bin"] == (None if number == "-1" else int(number))
                found[row["__place"]] = (row["id"], row["x"], int(number))
    assert [found[row] for row in range(300)] == list(
        zip(table["id"].to_pylist(), table["x"].to_pylist(), bins_of(table), strict=True)
    )


def test_split_and_gather_are_done_once(tmp_path: Path) -> None:
    table = some_rows(100)
    out = tmp_path / "out"
    (file,) = scored_files(tmp_path, table, [100])
    job = make_split(out, table)
    gather = Gather(
        out=out, top="data", bins=3, schema=job.schema, order="source", by="x", shard_bytes=2**20, memory=2**24
    )
    for _ in range(2):
        first = (job(file), [gather(number) for number in (0, 1, 2, -1)])
        times = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    again = (job(file), [gather(number) for number in (0, 1, 2, -1)])
    assert again == first
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == times
    bins = bins_of(table)
    assert [record["rows"] for record in again[1]] == [bins.count(number) for number in (0, 1, 2, -1)]
    assert read_manifest(out / "data" / "bin=01") == again[1][1]


@pytest.mark.parametrize("order", ["shuffle", "score", "source"])
def test_the_order_of_a_bin_whatever_ranges_and_memory(
    order: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(split, "BATCH_ROWS", 50)
    table = some_rows(300)
    places = mix(np.arange(300, dtype=np.uint64) ^ mix(np.array([7], np.uint64))).tolist()
    keys = {"shuffle": places, "score": table["x"].to_pylist(), "source": range(300)}[order]
    rows = [row for row, number in enumerate(bins_of(table)) if number == 1]
    expected = [f"id-{row}" for row in sorted(rows, key=lambda row: keys[row])]
    seed = 7 if order == "shuffle" else None
    for name, sizes, ranges, memory in (("a", [300], 1, 2**24), ("b", [170, 0, 130], 5, 2**24), ("c", [300], 3, 900)):
        out = tmp_path / name
        out.mkdir()
        job = dataclasses.replace(make_split(out, table), seed=seed, ranges=ranges if seed else 1)
        for file in scored_files(out, table, sizes):
            job(file)
        gather = Gather(
            out=out, top="data", bins=3, schema=job.schema, order=order, by="x", shard_bytes=2**20, memory=memory
        )
        assert gather(1)["rows"] == len(rows)
        assert ipc.open_file(out / "data" / "bin=01" / "part-00000.arrow").read_all()["id"].to_pylist() == expected
    assert len({(tmp_path / name / "data" / "bin=01" / ".manifest.json").read_bytes() for name in "abc"}) == 1


def test_only_some_bins(tmp_path: Path) -> None:
    table = some_rows(100)
    (file,) = scored_files(tmp_path, table, [100])
    facts = make_split(tmp_path / "out", table, frozenset({1}))(file)
    assert facts["bins"] == {"1": bins_of(table).count(1)}
    assert facts["rows"] == 100


def test_as_many_ranges_as_the_size_asks_for() -> None:
    assert [split.ranges(size, 8) for size in (0, 8 * split.RANGE_BYTES, 8 * split.RANGE_BYTES + 1)] == [1, 1, 2]
    most = split.ranges(10**15, 8)
    assert most * 8 * split.LEAST_BATCH == split.BATCH_BYTES
    assert split.ranges(10**15, 10**6) == 1


def test_fingerprints_name_files_below_their_folder(tmp_path: Path) -> None:
    for name in ("a/x.parquet", "b/x.parquet"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(name)
    paths = [tmp_path / "a/x.parquet", tmp_path / "b/x.parquet"]
    found = fingerprints(str(tmp_path), paths)
    assert list(found) == ["a/x.parquet", "b/x.parquet"] and len({*found.values()}) == 2
    (tmp_path / "a/.x.json").write_text('{"sha256": "what a manifest says"}')
    assert fingerprints(str(tmp_path), paths) == found  # these files belong to no run
    assert fingerprints(str(paths[0]), paths[:1]) == {"x.parquet": found["a/x.parquet"]}


def test_places_of_a_shuffle_are_splitmix64() -> None:
    def by_python(x: int) -> int:
        z = (x + 0x9E3779B97F4A7C15) % 2**64
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        return z ^ (z >> 31)

    values = [0, 1, 2**63, 2**64 - 1, 123456789]
    assert mix(np.array(values, np.uint64)).tolist() == [by_python(value) for value in values]


SCHEMA = pa.schema([("id", pa.int64()), ("bin", pa.int32())])
ROWS = 500


def batch(seed: int) -> pa.RecordBatch:
    rng = np.random.default_rng(seed)
    bins = rng.integers(-1, 3, ROWS)
    columns = [
        pa.array(rng.integers(0, 10**9, ROWS)),
        pa.array(bins, pa.int32(), mask=bins == -1),
        pa.array(rng.integers(0, 2**64, ROWS, np.uint64)),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA.append(PLACE_FIELD))


def write(folder: Path, number: int, batches: list[pa.RecordBatch], ranges: int, only: Any = None) -> dict[str, Any]:
    facts: dict[str, Any] = {"rows": sum(map(len, batches))}
    with writing(folder, number, SCHEMA, ranges, facts) as piece:
        for one in batches:
            piece.write(one, only)
    return facts


def test_ranges_against_python() -> None:
    places = [0, 1, 2**63, 2**64 - 1, *(2**64 * n // 7 for n in range(7)), *(2**64 * n // 7 - 1 for n in range(1, 7))]
    for ranges in (1, 2, 7, 1000):
        found = range_of(np.array(places, np.uint64), ranges)
        assert found.tolist() == [(place >> 32) * ranges >> 32 for place in places]
        assert found.min() == 0 and found.max() == ranges - 1


@pytest.mark.parametrize("ranges", [1, 4])
def test_every_row_is_in_its_bin_and_range(ranges: int, tmp_path: Path) -> None:
    batches = [batch(seed) for seed in range(3)]
    first = write(tmp_path, 0, batches[:2], ranges)
    second = write(tmp_path, 100_000, batches[2:], ranges)
    rows = pa.Table.from_batches(batches).to_pylist()
    for number in (-1, 0, 1, 2):
        found = [[row for part in parts for row in part.to_pylist()] for parts in bin_ranges(tmp_path, number)]
        wanted = [row for row in rows if row["bin"] == (None if number == -1 else number)]
        assert found == [[row for row in wanted if row[PLACE] * ranges >> 64 == part] for part in range(ranges)]
        assert first["bins"][str(number)] + second["bins"][str(number)] == len(wanted)
    assert list(bin_ranges(tmp_path, 3)) == []


def test_only_some_bins_or_none_of_them(tmp_path: Path) -> None:
    facts = write(tmp_path, 0, [batch(0)], 2, frozenset({1, 9}))
    assert list(facts["bins"]) == list(facts["batches"]) == ["1"]
    assert write(tmp_path, 0, [batch(0)], 2, frozenset({9}))["bins"] == {}


def test_a_piece_counts_until_the_machine_starts_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "_boot", lambda: "first")
    assert finished(tmp_path, 0, 2) is None
    facts = write(tmp_path, 0, [batch(0)], 2)
    assert finished(tmp_path, 0, 2) == facts
    assert finished(tmp_path, 0, 3) is None
    monkeypatch.setattr(pieces, "_boot", lambda: "second")
    assert finished(tmp_path, 0, 2) is None
    (tmp_path / ".part-00000.json").write_text(json.dumps({"rows": ROWS, "bins": {}, "batches": {}}))
    assert finished(tmp_path, 0, 2) is None  # of an earlier version


@pytest.mark.parametrize("boot", ["", "known"])
def test_pieces_are_forced_to_the_disk_where_starts_are_not_told_apart(
    boot: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forced: list[str] = []
    fsync = os.fsync

    def spy(handle: int) -> None:
        forced.append(Path(f"/proc/self/fd/{handle}").readlink().name)
        fsync(handle)

    monkeypatch.setattr(os, "fsync", spy)
    monkeypatch.setattr(pieces, "_boot", lambda: boot)
    write(tmp_path, 0, [batch(0)], 1)
    assert (".aside-part-00000.arrow" in forced) == (boot == "")
    assert ".aside-.part-00000.json" in forced
