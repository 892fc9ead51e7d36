from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from fluxentropy import pieces
from fluxentropy.pieces import PLACE, PLACE_FIELD, bin_ranges, finished, range_of, writing

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
