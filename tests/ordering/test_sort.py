"""sorting"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import os
import random
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fluxentropy.errors import RunError, UsageError
from fluxentropy.ordering.options import SortConfig
from fluxentropy.ordering.sort import SortResult, cut_units, sort, sort_scores
from tests.runs.test_mergesort import IDS, VALUES, as_written, oracle
from tests.runs.test_tables import rich_table, write_run

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("text", pa.string()),
        ("source_row", pa.int64()),
        ("source_file", pa.string()),
        ("entropy_mean", pa.float64()),
        ("n_tokens", pa.int32()),
        ("status", pa.string()),
    ]
)

TIES = ["id", "source_file", "source_row"]


def random_run(folder: Path, *, rows: int = 400, parts: int = 3, seed: int = 0) -> tuple[Path, list[dict[str, Any]]]:
    """A run directory of rows with many ties, and these rows."""
    rng = random.Random(seed)
    found = [
        {
            "id": rng.choice(IDS),
            "text": f"text {number}",
            "source_row": rng.choice([number, None]),
            "source_file": rng.choice(["a.jsonl", "b.jsonl"]),
            "entropy_mean": rng.choice([*VALUES, rng.gauss(3, 1)]),
            "n_tokens": rng.choice([None, 1, 2, 512]),
            "status": rng.choice(["ok", "empty", None]),
        }
        for number in range(rows)
    ]
    tables = [pa.Table.from_pylist(found[start::parts], SCHEMA) for start in range(parts)]
    return write_run(folder, tables), [row for table in tables for row in table.to_pylist()]


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("by", ["entropy_mean", "n_tokens", "status", "id", "source_row"])
def test_order_of_a_run(by: str, descending: bool, tmp_path: Path) -> None:
    run, rows = random_run(tmp_path / "run")
    out = tmp_path / "sorted.parquet"
    summary = sort_scores(str(run), out, by=by, descending=descending)
    ties = [name for name in TIES if name != by]
    assert as_written(pq.read_table(out).to_pylist()) == as_written(oracle(rows, by, ties, descending))
    assert pq.read_schema(out) == SCHEMA
    assert summary.rows == summary.rows_read == 400
    assert summary.nulls == sum(row[by] is None for row in rows) > 0
    assert summary.nan == sum(row[by] != row[by] for row in rows)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["run", "sorted.parquet"]


@pytest.mark.parametrize(
    ("by", "workers"),
    [
        ("entropy_mean - n_tokens/2", 1),
        ("surprisal", 1),
        ("learnt - 2*entropy_mean_joined", 1),
        ("learnt - 2*entropy_mean_joined", 3),  # shares of files, from the middle of them
    ],
)
def test_order_by_an_expression_and_by_another_run(by: str, workers: int, tmp_path: Path) -> None:
    rng = random.Random(1)
    rows = [
        {
            "id": f"id-{number}",
            "entropy_mean": rng.choice([None, 2.0, 2.5, rng.gauss(3, 1)]),
            "n_tokens": rng.randrange(9),
        }
        | {"learnt": rng.gauss(0, 1)}
        for number in range(300)
    ]
    (tmp_path / "in").mkdir()
    for part in range(2):
        table = pa.Table.from_pylist(rows[part::2])
        pq.write_table(table, tmp_path / "in" / f"part-{part}.parquet", row_group_size=20)
    other = {row["id"]: rng.gauss(0, 1) for row in rows[:280]}
    more = {"id": list(other), "surprisal": list(other.values()), "entropy_mean": list(other.values())}
    pq.write_table(pa.table(more), tmp_path / "other.parquet")
    scores = None if "n_tokens" in by else str(tmp_path / "other.parquet")
    out = tmp_path / "sorted.parquet"
    summary = sort_scores(str(tmp_path / "in"), out, by=by, scores=scores, workers=workers)

    def value(row: dict[str, Any]) -> float | None:
        there = other.get(row["id"])
        if "n_tokens" in by:
            return None if row["entropy_mean"] is None else row["entropy_mean"] - row["n_tokens"] / 2
        return there if by == "surprisal" or there is None else row["learnt"] - 2 * there

    name = {
        "e": "entropy_mean_minus_n_tokens_over_2",
        "s": "surprisal",
        "l": "learnt_minus_2_times_entropy_mean_joined",
    }
    expected = [row | {name[by[0]]: value(row)} for row in [*rows[::2], *rows[1::2]]]
    assert pq.read_table(out).to_pylist() == oracle(expected, name[by[0]], ["id"], descending=False)
    assert summary.nulls == sum(value(row) is None for row in rows) > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "other.parquet", "sorted.parquet"]


def test_the_other_runs_column_of_the_same_name(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": ["a", "b"], "x": [1, 2]}), tmp_path / "one.parquet")
    pq.write_table(pa.table({"id": ["b", "a"], "x": [1, 2]}), tmp_path / "two.parquet")
    sort_scores(str(tmp_path / "one.parquet"), tmp_path / "out.jsonl", by="x", scores=str(tmp_path / "two.parquet"))
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert found == [{"id": "b", "x": 2, "x_joined": 1.0}, {"id": "a", "x": 1, "x_joined": 2.0}]


def test_same_input_same_bytes(tmp_path: Path) -> None:
    run, rows = random_run(tmp_path / "run")
    pq.write_table(pa.Table.from_pylist(rows[::-1], SCHEMA), tmp_path / "other.parquet")
    for suffix in (".parquet", ".jsonl", ".jsonl.gz", ".jsonl.zst"):
        outs = [tmp_path / f"{name}{suffix}" for name in "abc"]
        sort_scores(str(run), outs[0])
        sort_scores(str(run), outs[1], memory=2**24)
        assert outs[0].read_bytes() == outs[1].read_bytes()
        sort_scores(str(run), outs[1])  # over the file that is there
        assert outs[0].read_bytes() == outs[1].read_bytes()
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().split("\n")[:-1]]
    expected = [
        {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in row.items()}
        for row in oracle(rows, "entropy_mean", TIES, descending=False)
    ]
    assert as_written(lines) == as_written(expected)


def test_columns_of_every_type_stay_as_they_are(tmp_path: Path) -> None:
    table, _ = rich_table()
    table = pa.concat_tables([table.append_column("n", pa.array([n, n + 10])) for n in range(3)])
    pq.write_table(table, tmp_path / "x.parquet")
    sort_scores(str(tmp_path / "x.parquet"), tmp_path / "y.parquet", by="n", descending=True)
    found = pq.read_table(tmp_path / "y.parquet")
    expected = table.take(pa.array([5, 3, 1, 4, 2, 0]))
    assert found.schema == pq.read_schema(tmp_path / "x.parquet")
    assert as_written(found.to_pylist()) == as_written(expected.to_pylist())


def test_limit(tmp_path: Path) -> None:
    run, rows = random_run(tmp_path / "run")
    summary = sort_scores(str(run), tmp_path / "top.parquet", descending=True, limit=10)
    expected = oracle(rows, "entropy_mean", TIES, descending=True)[:10]
    assert as_written(pq.read_table(tmp_path / "top.parquet").to_pylist()) == as_written(expected)
    assert (summary.rows, summary.rows_read, summary.nulls, summary.nan) == (10, 400, 0, 0)


@pytest.mark.parametrize("workers", [1, 2])
def test_no_rows(workers: int, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [SCHEMA.empty_table()])
    assert sort_scores(str(run), tmp_path / "out.parquet", workers=workers).rows == 0
    assert pq.read_table(tmp_path / "out.parquet").equals(SCHEMA.empty_table())


# --- what a user sees -------------------------------------------------------------------------------------------------


def small_run(folder: Path) -> Path:
    texts = ["plain", "two\nlines", "\x1b[31mred\u202e", "long " * 100, "e", "nan", "null"]
    scores = [1.0, 2.0, 3.0, 4.0, 5.123456789, math.nan, None]
    return write_run(folder, [pa.table({"id": list("abcdefg"), "text": texts, "entropy_mean": scores})])


@pytest.mark.parametrize("descending", [False, True])
def test_the_result(descending: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = small_run(tmp_path / "run"), tmp_path / "out.jsonl"
    result = sort(SortConfig(run=str(run), out=out, descending=descending))
    assert result.lines() == [
        f"7 rows by entropy_mean, {'descending' if descending else 'ascending'}",
        "last: 1 with NaN, then 1 without a value",
        "lowest entropy_mean:",
        "  1  plain",
        "  2  two\\nlines",
        "  3  \\x1b[31mred\\u202e",
        "highest entropy_mean:",
        "  5.12346  e",
        "  4  " + ("long " * 100)[:69] + "…",
        "  3  \\x1b[31mred\\u202e",
        str(out),
    ]
    assert result.seconds >= 0
    assert {name: value for name, value in result.to_dict().items() if name != "seconds"} == {
        "rows": 7,
        "rows_read": 7,
        "nulls": 1,
        "nan": 1,
        "by": "entropy_mean",
        "descending": descending,
        "out": str(out),
    }
    assert isinstance(result, SortResult)
    assert (result.rows, result.out, result.highest[0]) == (7, out, (5.123456789, "e"))
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "7 rows read" in printed.err
    assert "7 rows written" in printed.err


def test_the_result_of_a_limit(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run")
    result = sort(SortConfig(run=str(run), out=tmp_path / "out.jsonl", limit=1))
    assert result.lines()[0] == "1 of 7 rows by entropy_mean, ascending"
    assert [line for line in result.lines() if line.startswith("  ")] == ["  1  plain", "  1  plain"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"by": "entropy_meen"},
            r"--by entropy_meen: no such column in .*did you mean entropy_mean\?.* id, text, entr",
        ),
        ({"by": "zzzzzzzz"}, r"no such column in .*: use one of id, text, entropy_mean$"),
        ({"by": "entropy_mean - idd"}, r"--by entropy_mean - idd: no such column: idd in .*did you mean id\?"),
        ({"by": "(entropy_mean"}, r"\) is missing at its end"),
        ({"out": "x.csv"}, r"x\.csv: use a name that ends in \.parquet, \.jsonl"),
        ({"limit": 0}, "--limit 0: use 1 or more"),
        ({"memory": 10**6}, "--memory .* use 16 MiB or more"),
        ({"out": "run/scores/x.parquet"}, "lies among the scores"),
        ({"out": "folder.parquet"}, "is a folder"),
        ({"out": "run/scores/part-00000.parquet"}, "is part of the input"),
    ],
)
def test_usage_errors(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    run = small_run(tmp_path / "run")
    (tmp_path / "folder.parquet").mkdir()
    with pytest.raises(UsageError, match=message):
        sort_scores(str(run), tmp_path / options.pop("out", "out.parquet"), **options)
    assert not list(tmp_path.glob("out*"))
    assert not list(tmp_path.glob(".*"))


def test_output_inside_the_input(tmp_path: Path) -> None:
    pq.write_table(pa.table({"entropy_mean": [1.0]}), tmp_path / "x.parquet")
    with pytest.raises(UsageError, match="is part of the input"):
        sort_scores(str(tmp_path / "x.parquet"), tmp_path / "x.parquet")
    with pytest.raises(UsageError, match="would be part of the input next time"):
        sort_scores(str(tmp_path), tmp_path / "deep" / "y.parquet")
    sort_scores(str(tmp_path), tmp_path / "y.jsonl")
    assert (tmp_path / "y.jsonl").read_text() == '{"entropy_mean": 1.0}\n'


@pytest.mark.parametrize("kind", [pa.list_(pa.int8()), pa.struct({"a": pa.int8()})])
def test_column_without_an_order(kind: pa.DataType, tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": pa.nulls(2, kind)}), tmp_path / "x.parquet")
    with pytest.raises(UsageError, match="have no order"):
        sort_scores(str(tmp_path / "x.parquet"), tmp_path / "y.parquet", by="x")


def test_target_that_cannot_be_written(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run")
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"cannot write .*file/out\.parquet"):
        sort_scores(str(run), tmp_path / "file" / "out.parquet")


# --- large corpora ----------------------------------------------------------------------------------------------------


def write_random_text(folder: Path, *, parts: int, rows: int, width: int) -> None:
    """Parquet files with rows of `width` random letters, which do not compress to nothing."""
    rng = np.random.default_rng(0)
    offsets = np.arange(0, (rows + 1) * width, width, dtype=np.int32)
    folder.mkdir()
    for part in range(parts):
        letters = rng.integers(97, 123, rows * width, dtype=np.uint8)
        text = pa.StringArray.from_buffers(rows, pa.py_buffer(offsets), pa.py_buffer(letters))
        score = rng.integers(0, 1000, rows).astype(np.float32)
        table = pa.table({"id": [f"{part}-{row}" for row in range(rows)], "text": text, "entropy_mean": score})
        pq.write_table(table, folder / f"{part}.parquet", compression="none")


@pytest.mark.parametrize(("limit", "suffix"), [(None, ".jsonl"), (700, ".parquet")])
def test_workers_write_the_bytes_of_one_process(limit: int | None, suffix: str, tmp_path: Path) -> None:
    write_random_text(tmp_path / "in", parts=3, rows=1500, width=2000)  # more than a worker's memory
    outs = [tmp_path / f"{name}{suffix}" for name in "ab"]
    found = [
        sort_scores(str(tmp_path / "in"), out, memory=2**24, descending=True, limit=limit, workers=workers)
        for out, workers in zip(outs, (1, 2), strict=True)
    ]
    assert outs[0].read_bytes() == outs[1].read_bytes()
    assert dataclasses.replace(found[0], out=outs[1], seconds=found[1].seconds) == found[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"a{suffix}", f"b{suffix}", "in"]


def test_one_file_is_shared_by_its_row_groups(tmp_path: Path) -> None:
    run, rows = random_run(tmp_path / "run", rows=500)
    source = tmp_path / "in.parquet"
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), source, row_group_size=60)
    units = cut_units([source], 3)
    assert [unit.groups for unit in units] == [range(3), range(3, 6), range(6, 9)]
    assert str(units[1]) == f"{source}, row groups 3 to 5"
    assert [str(unit) for unit in cut_units([source, source], 2)] == [str(source)] * 2
    assert [unit.groups for unit in cut_units([run / "scores" / "part-00000.parquet"], 4)] == [None]  # a single group
    outs = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    for out, workers in zip(outs, (1, 3), strict=True):
        sort_scores(str(source), out, by="status", workers=workers)  # with many ties
    assert outs[0].read_bytes() == outs[1].read_bytes()


@pytest.mark.parametrize(("files", "groups", "least"), [(1, 1, 5), (1, 7, 3), (2, 7, 5), (3, 2, 2), (2, 3, 50)])
def test_units_hold_each_row_once(files: int, groups: int, least: int, tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.parquet" for name in range(files)]
    for path in paths:
        pq.write_table(pa.table({"x": list(range(10 * groups))}), path, row_group_size=10)
    units = cut_units(paths, least)
    assert [unit.number for unit in units] == list(range(len(units)))
    found = [(unit.path, group) for unit in units for group in unit.groups or range(groups)]
    assert found == [(path, group) for path in paths for group in range(groups)]
    assert len(units) >= min(least, files * groups)


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
def test_ray_writes_the_bytes_of_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    monkeypatch.chdir(tmp_path)
    random_run(tmp_path / "run")
    try:
        for out, engine in (("a.jsonl", "local"), ("b.jsonl", "ray")):
            sort(SortConfig(run="run", out=Path(out), engine=engine))
    finally:
        sys.modules["ray"].shutdown()
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()


MEASURE = """
import sys
from pathlib import Path
from fluxentropy.ordering.sort import sort_scores

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1000

small, large, out, memory = sys.argv[1:]
sort_scores(small, Path(out), memory=int(memory))
before = peak()
sort_scores(large, Path(out), memory=int(memory))
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs the peak memory of a process from /proc")
def test_memory_is_bounded(tmp_path: Path) -> None:
    write_random_text(tmp_path / "small", parts=1, rows=100, width=2000)
    write_random_text(tmp_path / "large", parts=4, rows=25_000, width=2000)  # 200 MB
    out = tmp_path / "out.parquet"
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "small"), str(tmp_path / "large"), str(out), str(2**25)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    grown = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert float(grown.stdout) < 130  # MB, of 200 MB of rows sorted with 32 MiB
    keys = pq.read_table(out, columns=["entropy_mean", "id"]).to_pylist()
    assert len(keys) == 100_000
    assert keys == sorted(keys, key=lambda row: (row["entropy_mean"], row["id"]))
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["large", "out.parquet", "small"]


@pytest.mark.parametrize(("suffix", "memory"), [(".parquet", 2**24), (".jsonl.zst", 2**28)])  # on disk, in memory
def test_full_disk_leaves_nothing_behind(suffix: str, memory: int, tmp_path: Path) -> None:
    write_random_text(tmp_path / "in", parts=3, rows=1000, width=3000)
    out = tmp_path / f"out{suffix}"
    out.write_text("the file before")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, limits[1]))
    try:
        with pytest.raises(RunError, match=r"cannot write .*/out\."):
            sort_scores(str(tmp_path / "in"), out, memory=memory)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert out.read_text() == "the file before"
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["in", out.name]


def test_damaged_input_leaves_nothing_behind(tmp_path: Path) -> None:
    write_random_text(tmp_path / "in", parts=3, rows=3000, width=3000)
    damaged = tmp_path / "in" / "2.parquet"
    content = bytearray(damaged.read_bytes())
    content[5000:6000] = bytes(1000)  # in the pages of the ids
    damaged.write_bytes(content)
    with pytest.raises(RunError, match=r"2\.parquet cannot be read"):
        sort_scores(str(tmp_path / "in"), tmp_path / "out.parquet", memory=2**24)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
