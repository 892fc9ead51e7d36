"""tablefiles"""

from __future__ import annotations

import base64
import datetime
import decimal
import gzip
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from fluxentropy.errors import RunError, SourceError, UsageError
from fluxentropy.runs.tables import (
    MetricsFile,
    TableFiles,
    fixed_width,
    json_line,
    last_row,
    open_writer,
    output_suffix,
    read_metrics,
    row_sizes,
    table_files,
)

STAMP = datetime.datetime(2024, 2, 29, 12, 30, 0, 125_000, tzinfo=datetime.UTC)


def write_run(run: Path, parts: list[pa.Table], *, complete: bool | None = True) -> Path:
    """A run directory, as `fluxentropy score` leaves it."""
    (run / "scores").mkdir(parents=True)
    for number, table in enumerate(parts):
        part = run / "scores" / f"part-{number:05d}.parquet"
        pq.write_table(table, part)
        manifest = {"rows": len(table), "sha256": hashlib.sha256(part.read_bytes()).hexdigest()}
        part.with_name(f".part-{number:05d}.json").write_text(json.dumps(manifest))
    if complete is not None:
        (run / "manifest.json").write_text(json.dumps({"complete": complete}))
    return run


# --- which files ------------------------------------------------------------------------------------------------------


def test_files_of_a_run_are_its_finished_parts(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [pa.table({"x": [1]}), pa.table({"x": [2]})])
    pq.write_table(pa.table({"x": [3]}), run / "scores" / "part-00002.parquet")  # no manifest: not finished
    parts = [run / "scores" / "part-00000.parquet", run / "scores" / "part-00001.parquet"]
    assert table_files(str(run)) == parts
    assert table_files(str(run / "scores")) == parts


@pytest.mark.parametrize("complete", [False, None])
def test_unfinished_run_is_refused(complete: bool | None, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [pa.table({"x": [1]})], complete=complete)
    with pytest.raises(RunError, match=r"run is not finished: .* resumes"):
        table_files(str(run))


def test_damaged_and_missing_parts_are_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [pa.table({"x": [1]})])
    part = run / "scores" / "part-00000.parquet"
    content = bytearray(part.read_bytes())
    content[10] ^= 1
    part.write_bytes(content)
    with pytest.raises(RunError, match=r"part-00000\.parquet is damaged"):
        table_files(str(run))
    part.unlink()
    with pytest.raises(RunError, match=r"part-00000\.parquet is missing"):
        table_files(str(run))
    part.with_name(".part-00000.json").unlink()
    with pytest.raises(RunError, match="holds no finished part"):
        table_files(str(run))


def test_folder_of_runs_names_them(tmp_path: Path) -> None:
    write_run(tmp_path / "zoo" / "small", [pa.table({"x": [1]})])
    write_run(tmp_path / "zoo" / "large", [pa.table({"x": [1]})])
    for _ in range(2):  # without a manifest of its own, and with one
        with pytest.raises(RunError, match="it holds the runs large, small"):
            table_files(str(tmp_path / "zoo"))
        (tmp_path / "zoo" / "manifest.json").write_text('{"complete": true}')


def test_run_that_lost_a_part_with_its_manifest(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [pa.table({"x": [1]}), pa.table({"x": [2]})])
    (run / "manifest.json").write_text('{"complete": true, "parts": 2}')
    assert len(table_files(str(run))) == 2
    for lost in run.glob("scores/*part-00001*"):
        lost.unlink()
    with pytest.raises(RunError, match="holds 1 of 2 parts"):
        table_files(str(run))


def test_files_folders_and_globs(tmp_path: Path) -> None:
    names = ["b.parquet", "a.parquet", "deep/c.parquet", ".hidden.parquet", ".spill/d.parquet", "e.txt"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    visible = [tmp_path / "a.parquet", tmp_path / "b.parquet", tmp_path / "deep" / "c.parquet"]
    assert table_files(str(tmp_path)) == visible
    assert table_files(f"{tmp_path}/*") == visible[:2]
    assert table_files(f"{tmp_path}/**/*.parquet") == visible
    assert table_files(f"{tmp_path}/b.parquet") == [tmp_path / "b.parquet"]
    for nothing in ("missing", "missing.parquet", "*.arrow"):
        with pytest.raises(SourceError, match="no Parquet file"):
            table_files(f"{tmp_path}/{nothing}")


# --- reading ----------------------------------------------------------------------------------------------------------


def read(files: list[Path]) -> pa.Table:
    table = TableFiles.open(files)
    return pa.Table.from_batches(table.batches(table.schema, 2**20), table.schema)


def test_files_are_read_as_one_table(tmp_path: Path) -> None:
    first = pa.table({"x": pa.array([None, None]), "y": ["a", "b"]})
    second = pa.table({"y": ["c"], "x": [1.5]})  # another order of columns, and a type where the first is all null
    pq.write_table(first, tmp_path / "1.parquet")
    pq.write_table(second, tmp_path / "2.parquet")
    table = TableFiles.open([tmp_path / "1.parquet", tmp_path / "2.parquet"])
    assert table.rows == 3
    assert read(list(table.files)).to_pydict() == {"x": [None, None, 1.5], "y": ["a", "b", "c"]}


def test_files_that_do_not_fit_together(tmp_path: Path) -> None:
    for name, table in {"1": {"x": [1]}, "2": {"z": [1]}, "3": {"x": ["a"]}}.items():
        pq.write_table(pa.table(table), tmp_path / f"{name}.parquet")
    with pytest.raises(SourceError, match=r"2\.parquet and .*1\.parquet have different columns \(x, z\)"):
        read([tmp_path / "1.parquet", tmp_path / "2.parquet"])
    with pytest.raises(SourceError, match=r"3\.parquet and .*1\.parquet do not fit together"):
        read([tmp_path / "1.parquet", tmp_path / "3.parquet"])


@pytest.mark.parametrize("damage", ["footer", "page", "empty"])
def test_damaged_file_is_named(damage: str, tmp_path: Path) -> None:
    file = tmp_path / "x.parquet"
    pq.write_table(pa.table({"x": [str(n) for n in range(1000)]}), file, compression="zstd", use_dictionary=False)
    content = bytearray(file.read_bytes())
    content[100:200] = bytes(100)
    file.write_bytes({"footer": bytes(content[:-20]), "page": bytes(content), "empty": b""}[damage])
    with pytest.raises(RunError, match=r"x\.parquet cannot be read"):
        read([file])


# --- writing ----------------------------------------------------------------------------------------------------------


def test_suffix() -> None:
    assert [output_suffix(Path(f"a{suffix}")) for suffix in (".parquet", ".jsonl", ".jsonl.gz", ".jsonl.zst")] == [
        ".parquet",
        ".jsonl",
        ".jsonl.gz",
        ".jsonl.zst",
    ]
    with pytest.raises(
        UsageError, match=r"a\.csv: use a name that ends in \.parquet, \.jsonl, \.jsonl\.gz, \.jsonl\.z"
    ):
        output_suffix(Path("a.csv"))


def write(path: Path, table: pa.Table, chunk: int, *, row_bytes: float = 100, memory: int = 10**9) -> bytes:
    with open_writer(path, output_suffix(path), table.schema, row_bytes=row_bytes, memory=memory) as writer:
        for start in range(0, len(table), chunk):
            writer.write(table.slice(start, chunk))
    return path.read_bytes()


def test_parquet_does_not_depend_on_how_the_rows_arrive(tmp_path: Path) -> None:
    values = pa.array([None if n % 7 == 0 else str(n % 50) for n in range(5000)])
    table = pa.table({"x": values, "kind": values.dictionary_encode(), "list": [[n, None] for n in range(5000)]})
    table = table.replace_schema_metadata({"owner": "test"})
    written = {write(tmp_path / "x.parquet", table, chunk, row_bytes=2**25 / 1500) for chunk in (7, 999, 1500, 5000)}
    assert len(written) == 1
    with pq.ParquetFile(tmp_path / "x.parquet") as file:
        groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
        assert [group.num_rows for group in groups] == [1500, 1500, 1500, 500]
        assert groups[0].column(0).compression == "ZSTD"
        assert file.schema_arrow == table.schema
        assert file.schema_arrow.metadata == {b"owner": b"test"}
        assert file.read().to_pydict() == table.to_pydict()


def test_parquet_groups_are_smaller_where_memory_is_short(tmp_path: Path) -> None:
    write(tmp_path / "x.parquet", pa.table({"x": ["y" * 1000] * 1000}), 10, memory=8 * 100_000)
    with pq.ParquetFile(tmp_path / "x.parquet") as file:
        assert file.metadata.num_rows == 1000
        assert max(file.metadata.row_group(n).num_rows for n in range(file.metadata.num_row_groups)) <= 110


def rich_table() -> tuple[pa.Table, list[dict[str, Any]]]:
    """A table with a column of every kind, and what its rows are in JSON."""
    text = 'tab\t "quote" \\ \n \x00 \u2028 \x85 é 日本 \U0001f600'
    columns: dict[str, tuple[pa.DataType, Any, Any]] = {
        "text": (pa.string(), text, text),
        "nan": (pa.float64(), math.nan, None),
        "inf": (pa.float32(), -math.inf, None),
        "half": (pa.float16(), 0.5, 0.5),
        "big": (pa.int64(), 2**63 - 1, 2**63 - 1),
        "exact": (pa.float64(), 0.1 + 0.2, 0.1 + 0.2),
        "yes": (pa.bool_(), True, True),
        "kind": (pa.dictionary(pa.int8(), pa.string()), "a", "a"),
        "bytes": (pa.binary(), b"\xff\x00", base64.b64encode(b"\xff\x00").decode()),
        "day": (pa.date32(), STAMP.date(), "2024-02-29"),
        "when": (pa.timestamp("ms"), STAMP.replace(tzinfo=None), "2024-02-29 12:30:00.125"),
        "zoned": (pa.timestamp("ns", "UTC"), STAMP, "2024-02-29 12:30:00.125000000Z"),
        "price": (pa.decimal128(6, 2), decimal.Decimal("1.50"), "1.50"),
        "list": (pa.list_(pa.float64()), [1.5, math.nan, None], [1.5, None, None]),
        "pair": (pa.list_(pa.float32(), 2), [1.0, 2.0], [1.0, 2.0]),
        "map": (pa.map_(pa.string(), pa.date32()), [("k", STAMP.date())], [["k", "2024-02-29"]]),
        "struct": (
            pa.struct({"at": pa.list_(pa.timestamp("s")), "x": pa.float64()}),
            {"at": [STAMP.replace(microsecond=0, tzinfo=None)], "x": math.inf},
            {"at": ["2024-02-29 12:30:00"], "x": None},
        ),
    }
    table = pa.table({name: pa.array([value, None], kind) for name, (kind, value, _) in columns.items()})
    return table, [{name: value for name, (_, _, value) in columns.items()}, dict.fromkeys(columns)]


def test_json_lines_of_every_type(tmp_path: Path) -> None:
    table, expected = rich_table()
    plain = write(tmp_path / "x.jsonl", table, 1)
    lines = plain.decode("utf-8").split("\n")
    assert lines.pop() == ""
    assert [json.loads(line, parse_constant=pytest.fail) for line in lines] == expected
    assert gzip.decompress(write(tmp_path / "x.jsonl.gz", table, 2)) == plain
    assert zstandard.ZstdDecompressor().decompressobj().decompress(write(tmp_path / "x.jsonl.zst", table, 2)) == plain


def test_json_of_text_that_is_not_utf8_is_an_error(tmp_path: Path) -> None:
    broken = pa.StringArray.from_buffers(1, pa.py_buffer(b"\x00\x00\x00\x00\x02\x00\x00\x00"), pa.py_buffer(b"a\xff"))
    with pytest.raises(RunError, match=r"not UTF-8 .*: write \.parquet"):
        write(tmp_path / "x.jsonl", pa.table({"text": broken}), 1)


def test_json_line_keeps_finite_numbers_exactly() -> None:
    assert json.loads(json_line({"x": [5e-324, 0.1, math.nan]})) == {"x": [5e-324, 0.1, None]}


# --- Sizes of rows do not depend on how the rows are cut, and add up to the bytes of Arrow's own buffers ---


def test_row_sizes_against_python() -> None:
    texts = ["", "abc", None, "é", "x" * 100]
    lists = [["abc", ""], [], None, ["é", None], ["x"] * 5]
    structs = [{"a": text, "b": 1} for text in texts]
    sizes = [len((text or "").encode()) for text in texts]
    inside = [sum(8 + len((item or "").encode()) for item in items or []) for items in lists]
    for array, expected in [
        (pa.array(texts), sizes),
        (pa.array(texts, pa.large_string()), sizes),
        (pa.array(lists), inside),
        (pa.array(lists, pa.large_list(pa.string())), inside),
        (pa.array(structs), sizes),
        (pa.array([1, 2, 3, 4, None]), [0] * 5),
    ]:
        assert row_sizes(array).tolist() == expected
        assert row_sizes(array.slice(1, 3)).tolist() == expected[1:4]
        assert row_sizes(pa.chunked_array([array, array.slice(4)])).tolist() == [*expected, expected[4]]
        assert row_sizes(array.slice(0, 0)).tolist() == []
    assert row_sizes(pa.chunked_array([], pa.string())).dtype == np.int64


def test_together_they_are_the_bytes_of_the_buffers() -> None:
    table = pa.table(
        {
            "text": ["a" * n for n in range(50)],
            "n": np.arange(50),
            "x": np.arange(50, dtype=np.float32),
            "pair": pa.array(np.arange(100).reshape(50, 2).tolist(), pa.list_(pa.int16(), 2)),
            "both": pa.array([{"a": n, "b": n} for n in range(50)], pa.struct({"a": pa.int8(), "b": pa.int64()})),
        }
    )
    fixed = sum(fixed_width(field.type) for field in table.schema) * len(table)
    assert fixed + sum(row_sizes(column).sum() for column in table.columns) == table.nbytes


# --- metrics.csv: what is written comes back, as pandas reads it too, and damage is named by its line ---


def test_metrics_are_cut_back_to_a_step(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.csv", ("step", "tokens", "loss"))
    file.start(-1)
    for step in range(5):
        file.append({"step": step, "tokens": 10 * step, "loss": 0.1 * step if step else math.nan})
    with open(file.path, "a") as raw:
        raw.write("5,50,0.")  # a line that was cut off
    file.start(3)
    file.append({"step": 4, "tokens": 40})
    assert file.path.read_text() == "step,tokens,loss\n0,0,\n1,10,0.1\n2,20,0.2\n3,30,0.30000000000000004\n4,40,\n"
    assert last_row(file.path) == {"step": 4, "tokens": 40}


def test_columns_grow_on_the_right_and_stay_when_a_run_resumes(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    file = MetricsFile(path, ("step", "loss"))
    file.start(-1)
    file.append({"step": 0, "loss": 1.5})
    file.append({"step": 1, "loss": 0.1, "probe, mean": 2.0})
    file.append({"step": 2, "loss": 1e-300})
    again = MetricsFile(path, ("step", "loss", "lr"))  # of a later version, with one column more
    again.start(1)
    again.append({"step": 2, "lr": 0.5})
    assert path.read_text() == 'step,loss,"probe, mean",lr\n0,1.5,,\n1,0.1,2.0,\n2,,,0.5\n'
    found, frame = read_metrics(path), pd.read_csv(path)
    assert list(found) == list(frame.columns)
    for name, column in found.items():
        np.testing.assert_array_equal(column, frame[name].to_numpy(np.float64))


def test_words_are_read_where_they_are_asked_for(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("step,note\n1,\n2,word\n")
    assert read_metrics(tmp_path / "m.csv", words=True)["note"].tolist() == ["", "word"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "m.csv: No such file"),
        (b"step,loss\n1,\xff\n", "m.csv: .*can't decode"),
        (b"", "no row, or no column 'step'"),
        (b"step,loss\n", "no row, or no column 'step': the run has not trained a step yet"),
        (b"tokens\n1\n", "no row, or no column 'step'"),
        (b"step,loss\n1,0.5\n2\n", "m.csv, line 3: 1 cells where the header has 2"),
        (b"step,loss\n1,\n2,high\n", "m.csv, line 3, column loss: .*'high'"),
    ],
)
def test_damage_is_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "m.csv").write_bytes(content)
    with pytest.raises(RunError, match=message):
        read_metrics(tmp_path / "m.csv")
