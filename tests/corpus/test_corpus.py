"""Columns, ids, order, batches and limits of a corpus. What the formats do by themselves is in the other files."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpusfiles import WRITERS, write_arrow, write_bytes, write_csv, write_jsonl, write_parquet
from hypothesis import given, settings
from hypothesis import strategies as st

from fluxentropy.corpus import corpus as corpus_module
from fluxentropy.corpus.corpus import Corpus, open_corpus, row_bytes
from fluxentropy.corpus.scan import scan_file
from fluxentropy.errors import SourceError, UsageError
from fluxentropy.runs.files import fingerprint_file

ROWS: list[dict[str, Any]] = [{"text": f"text {i}", "n": i, "x": i / 4} for i in range(10)]


def read(source: Path | str | Sequence[Path | str], **options: Any) -> pa.Table:
    return table(opened(source, **options))


def opened(source: Path | str | Sequence[Path | str], **options: Any) -> Corpus:
    sources = [source] if isinstance(source, Path | str) else source
    return open_corpus([str(item) for item in sources], **options)


def table(corpus: Corpus, start: int = 0, **options: Any) -> pa.Table:
    return pa.Table.from_batches(corpus.batches(start, **options), corpus.schema)


# --- all formats give the same ----------------------------------------------------------------------------------------

unicode_text = st.text(st.characters(codec="utf-8"), max_size=20)

random_rows = st.lists(
    st.fixed_dictionaries(
        {
            "text": unicode_text,
            "n": st.integers(-(2**53), 2**53),
            "x": st.floats(allow_nan=False).map(lambda x: x + 0.5),
            "word": st.text(st.characters(codec="utf-8"), min_size=1, max_size=5).map(lambda word: "w" + word),
        }
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=12, deadline=None)  # each through all formats
@given(rows=random_rows, batch_rows=st.integers(1, 5))
def test_every_format_gives_the_same_batches(rows: list[dict[str, Any]], batch_rows: int) -> None:
    expected = [
        {"text": row["text"], "input_status": None, "n": row["n"], "x": row["x"], "word": row["word"]} for row in rows
    ]
    with tempfile.TemporaryDirectory() as folder:
        for name, write in WRITERS.items():
            corpus = opened(write(Path(folder, name), rows))
            batches = list(corpus.batches(batch_rows=batch_rows))
            assert [len(batch) for batch in batches[:-1]] == [batch_rows] * (len(batches) - 1)
            got = pa.Table.from_batches(batches).to_pylist()
            assert [row.pop("id") for row in got] == [f"{name}:{i}" for i in range(len(rows))]
            assert [row.pop("source_file") for row in got] == [name] * len(rows)
            assert [row.pop("source_row") for row in got] == list(range(len(rows)))
            assert got == expected, name
            types = {field.name: field.type for field in list(corpus.schema)[5:]}
            assert types == {"n": pa.int64(), "x": pa.float64(), "word": pa.string()}, name
            whole = table(corpus)
            for start in range(len(rows) + 2):
                assert table(corpus, start).equals(whole.slice(start)), (name, start)


def test_start_over_several_files_is_the_tail(tmp_path: Path) -> None:
    for index, (name, write) in enumerate(WRITERS.items()):
        (tmp_path / f"{index:02}").mkdir()
        write(tmp_path / f"{index:02}" / name, ROWS)
    lines = [json.dumps(row) if row["n"] % 3 else "broken" for row in ROWS]
    write_bytes(tmp_path / "bad.jsonl", "\n".join(lines).encode())
    corpus = opened(tmp_path, on_error="skip")
    whole = table(corpus)
    assert len(whole) == corpus.n_rows == 10 * len(WRITERS) + 6
    assert whole["source_row"].to_pylist()[-6:] == [1, 2, 4, 5, 7, 8]
    for start in range(len(whole) + 2):
        assert table(corpus, start).equals(whole.slice(start))


def test_columns_come_first_and_keep_their_order(tmp_path: Path) -> None:
    table = read(write_parquet(tmp_path / "a.parquet", [{"n": 1, "body": "b", "z": None}]), text_field="body")
    assert table.schema.names == ["id", "source_file", "source_row", "body", "input_status", "n", "z"]
    assert table.schema.types[:5] == [pa.string(), pa.string(), pa.int64(), pa.string(), pa.string()]


def test_other_types_are_unchanged(tmp_path: Path) -> None:
    columns = {
        "text": pa.array(["a", "b"]),
        "small": pa.array([1, None], pa.int8()),
        "when": pa.array([0, 1], pa.timestamp("us", tz="UTC")),
        "name": pa.array(["x", "y"]).dictionary_encode(),
        "money": pa.array([1, 2], pa.decimal128(9, 2)),
        "raw": pa.array([b"\xff", b""]),
        "wide": pa.array(["p", "q"], pa.large_string()),
        "view": pa.array(["p", "q"], pa.string_view()),
        "deep": pa.array([{"a": [1]}, {"a": None}], pa.struct({"a": pa.large_list(pa.int16())})),
        "pairs": pa.array([[("k", 1)], []], pa.map_(pa.string(), pa.int32())),
        "fixed": pa.array([[1.0, 2.0], None], pa.list_(pa.float32(), 2)),
    }
    source = pa.table(columns)
    got = read(write_arrow(tmp_path / "a.arrow", source))
    assert got.select(source.schema.names).combine_chunks().equals(source)


# --- ids --------------------------------------------------------------------------------------------------------------


def test_id_column_serves_where_every_file_has_it(tmp_path: Path) -> None:
    first = write_jsonl(tmp_path / "a.jsonl", [{"id": 7, "text": "a"}, {"text": "b"}, {"id": None, "text": "c"}])
    second = write_jsonl(tmp_path / "b.jsonl", [{"id": "x", "text": "d"}])
    got = read([first, second])
    assert got["id"].to_pylist() == ["7", "a.jsonl:1", "a.jsonl:2", "x"]
    assert "source_id" not in got.schema.names
    third = write_jsonl(tmp_path / "c.jsonl", [{"text": "e"}])
    got = read([first, third])
    assert got["id"].to_pylist() == ["a.jsonl:0", "a.jsonl:1", "a.jsonl:2", "c.jsonl:0"]
    assert got["source_id"].to_pylist() == [7, None, None, None]


def test_ids_of_several_kinds_become_strings(tmp_path: Path) -> None:
    values: list[Any] = [1, "2", None, 2**64, "é"]
    path = write_jsonl(tmp_path / "a.jsonl", [{"id": value, "text": "a"} for value in values])
    assert read(path)["id"].to_pylist() == ["1", "2", "a.jsonl:2", "18446744073709551616", "é"]
    by_name = read(write_jsonl(tmp_path / "b.jsonl", [{"url": value, "text": "a"} for value in values]), id_field="url")
    assert by_name["id"].to_pylist() == ["1", "2", "b.jsonl:2", "18446744073709551616", "é"]
    assert by_name["url"].to_pylist() == ["1", "2", None, "18446744073709551616", "é"]
    numbers = write_jsonl(tmp_path / "c.jsonl", [{"url": 7, "text": "a"}, {"url": 2**64 - 1, "text": "b"}])
    assert read(numbers, id_field="url")["id"].to_pylist() == ["7", str(2**64 - 1)]
    assert read(numbers, id_field="url").schema.field("url").type == pa.uint64()


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        ([None, 1.5], r"double, 1\.5 in row 1"),
        ([None, float("nan")], r"double, nan in row 1"),
        ([b"a", b"\xff"], r"binary, b'a' in row 0"),
        ([None, True], r"bool, True in row 1"),
    ],
)
def test_ids_that_name_nothing_exactly_are_refused(tmp_path: Path, ids: list[Any], said: str) -> None:
    source = pa.table({"text": ["a", "b"], "id": ids})
    for path in (write_parquet(tmp_path / "a.parquet", source), write_arrow(tmp_path / "a.arrow", source)):
        with pytest.raises(SourceError, match=f"{path.name}: the id field 'id' holds {said}: make .* --drop id"):
            opened(path)
        assert read(path, drop=["id"])["id"].to_pylist() == [f"{path.name}:0", f"{path.name}:1"]
    nothing = pa.table({"text": ["a"], "id": pa.nulls(1, pa.float64())})
    assert read(write_parquet(tmp_path / "b.parquet", nothing))["id"].to_pylist() == ["b.parquet:0"]


@pytest.mark.parametrize("value", ["1.0", "NaN", "[1]", '{"a": 1}', "true"])
def test_json_ids_that_name_nothing_exactly_are_refused(tmp_path: Path, value: str) -> None:
    path = write_bytes(tmp_path / "a.jsonl", f'{{"id": 1, "text": "a"}}\n\n{{"id": {value}, "text": "b"}}\n'.encode())
    with pytest.raises(SourceError, match=r"a\.jsonl: the id field 'id' holds an? \w+, .*, in line 3: make the ids"):
        opened(path)
    with pytest.raises(SourceError, match="name another with --id-field"):
        opened(write_jsonl(tmp_path / "b.jsonl", [{"n": 1.5, "text": "a"}]), id_field="n")


# --- columns that are wanted ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WRITERS)
def test_columns_and_drop_work_for_all_formats(tmp_path: Path, name: str) -> None:
    path = WRITERS[name](tmp_path / name, [{"id": f"i{i}", **row} for i, row in enumerate(ROWS)])
    whole = read(path)
    for options in ({"columns": ["x"]}, {"drop": ["n"]}):
        got = read(path, **options)
        assert got.equals(whole.drop_columns(["n"]))
        assert table(opened(path, **options), 7).equals(got.slice(7))
    assert read(path, columns=[]).schema.names == ["id", "source_file", "source_row", "text", "input_status"]
    with pytest.raises(UsageError, match="--columns y: no source has such a field"):
        opened(path, columns=["x", "y"])
    with pytest.raises(UsageError, match=r"--drop m: no source has such a field.*"):
        opened(path, drop=["m"])
    with pytest.raises(UsageError, match="--drop text: it is needed"):
        opened(path, drop=["text"])
    with pytest.raises(UsageError, match="--columns and --drop: give one"):
        opened(path, columns=["x"], drop=["n"])


def test_a_dropped_column_may_be_of_any_kind(tmp_path: Path) -> None:
    odd = pa.table({"text": ["a"], "odd": pa.array([{}], pa.struct([]))})
    assert read(write_arrow(tmp_path / "a.arrow", odd), drop=["odd"])["text"].to_pylist() == ["a"]
    twice = pa.Table.from_arrays([pa.array(["a"]), pa.array([1]), pa.array([2])], ["text", "n", "n"])
    assert read(write_arrow(tmp_path / "b.arrow", twice), columns=[])["text"].to_pylist() == ["a"]
    one, two = (write_parquet(tmp_path / f"{i}.parquet", [{"Text": "a", "n": n}]) for i, n in enumerate([1, "x"]))
    assert read([one, two], drop=["n"])["Text"].to_pylist() == ["a", "a"]
    assert opened(write_bytes(tmp_path / "c.jsonl", b""), drop=["n"]).n_rows == 0


def test_id_field_stays_under_its_own_name(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", [{"id": 5, "url": "007", "text": "a"}, {"id": 6, "url": "", "text": "b"}])
    got = read(path, id_field="url")
    assert got["id"].to_pylist() == ["007", "a.csv:1"]
    assert got["url"].to_pylist() == ["007", None]
    assert got["source_id"].to_pylist() == [5, 6]
    assert read(path, id_field="text", text_field="text")["id"].to_pylist() == ["a", "b"]


def test_missing_fields_are_errors_with_the_nearest_name(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", [{"text": "a", "uuid": "u"}])
    with pytest.raises(SourceError, match=r"a\.parquet: no field 'uid' .*'text', 'uuid'; did you mean 'uuid'\?"):
        opened(path, id_field="uid")
    with pytest.raises(SourceError, match=r"a\.parquet: no field 'Text' .* did you mean 'text'\?"):
        opened(path, text_field="Text")
    lines = write_jsonl(tmp_path / "b.jsonl", [{"body": "a"}])
    with pytest.raises(SourceError, match=r"b\.jsonl: no field 'text' in any row, the fields are 'body'"):
        opened([path, lines])


def test_ids_do_not_depend_on_where_the_corpus_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for root in ("one", "two/deeper"):
        write_jsonl(tmp_path / root / "sub" / "a.jsonl", ROWS)
    one, two = read(tmp_path / "one"), read(f"{tmp_path}/two/deeper/**/*.jsonl")
    assert one["id"].to_pylist() == two["id"].to_pylist() == [f"sub/a.jsonl:{i}" for i in range(10)]
    monkeypatch.chdir(tmp_path / "one")
    assert read("sub").column("id")[0].as_py() == "a.jsonl:0"
    assert read(".")["id"].equals(one["id"])


# --- names that are taken ---------------------------------------------------------------------------------------------


def test_taken_names_get_a_prefix_and_nothing_is_lost(tmp_path: Path) -> None:
    row = {
        "text": "a",
        "source_file": "theirs",
        "source_row": 9,
        "input_status": "ok",
        "entropy_mean": 1.5,
        "source_entropy_mean": 2.5,
        "source_source_row": "kept",
    }
    got = read(write_parquet(tmp_path / "a.parquet", [row]), reserved=["entropy_mean"]).to_pylist()[0]
    assert got == {
        "id": "a.parquet:0",
        "source_file": "a.parquet",
        "source_row": 0,
        "text": "a",
        "input_status": None,
        "source_source_file": "theirs",
        "source_source_source_row": 9,
        "source_input_status": "ok",
        "source_source_entropy_mean": 1.5,
        "source_entropy_mean": 2.5,
        "source_source_row": "kept",
    }


@pytest.mark.parametrize("name", ["id", "source_row", "entropy_mean"])
def test_text_field_cannot_have_a_taken_name(name: str) -> None:
    with pytest.raises(UsageError, match=name):
        open_corpus(["a.jsonl"], text_field=name, reserved={"entropy_mean"})


# --- several files ----------------------------------------------------------------------------------------------------


def test_types_of_several_files_are_merged(tmp_path: Path) -> None:
    first = write_parquet(tmp_path / "a.parquet", pa.table({"text": ["a"], "n": [1], "m": pa.array([1], pa.int8())}))
    second = write_jsonl(tmp_path / "b.jsonl", [{"text": "b", "n": 1.5, "extra": {"k": 1}}])
    third = write_arrow(tmp_path / "c.arrow", pa.table({"text": pa.array(["c"], pa.large_string()), "m": [2**40]}))
    got = read([first, second, third])
    assert got.schema.field("n").type == pa.float64()
    assert got.schema.field("m").type == pa.int64()
    assert got.select(["text", "n", "m", "extra"]).to_pylist() == [
        {"text": "a", "n": 1.0, "m": 1, "extra": None},
        {"text": "b", "n": 1.5, "m": None, "extra": {"k": 1}},
        {"text": "c", "n": None, "m": 2**40, "extra": None},
    ]


def test_types_that_do_not_fit_name_both_files(tmp_path: Path) -> None:
    paths = [
        write_parquet(tmp_path / "a.parquet", [{"text": "a", "n": 1}]),
        write_jsonl(tmp_path / "b.jsonl", [{"text": "b"}]),
        write_parquet(tmp_path / "c.parquet", [{"text": "a", "n": "one"}]),
    ]
    with pytest.raises(SourceError, match=r"a\.parquet and .*c\.parquet: column 'n' is int64 .* and string"):
        opened(paths)


def test_integers_that_meet_floats_in_another_file_are_never_rounded(tmp_path: Path) -> None:
    big = write_jsonl(tmp_path / "a.jsonl", [{"text": "a", "n": 2**53 + 1}])
    fraction = write_jsonl(tmp_path / "b.jsonl", [{"text": "b", "n": 0.5}])
    table = write_parquet(tmp_path / "c.parquet", [{"text": "c", "n": 1.5}])
    whole = write_parquet(tmp_path / "d.parquet", [{"text": "d", "n": 2**53 + 1}])
    assert read([big, fraction])["n"].to_pylist() == ["9007199254740993", "0.5"]
    assert read([big, table])["n"].to_pylist() == ["9007199254740993", "1.5"]
    assert read([big, whole])["n"].to_pylist() == [2**53 + 1] * 2
    for other in (fraction, table):
        with pytest.raises(
            SourceError, match=r"d\.parquet: cannot be read: column 'n' is int64.*9007199254740993.*--drop n"
        ):
            read([other, whole])


def test_columns_that_meet_a_text_file_become_json_text(tmp_path: Path) -> None:
    lines = write_jsonl(tmp_path / "a.jsonl", [{"text": "a", "m": {"k": 1}, "h": 2**64 - 1}])
    when = pa.array([0], pa.timestamp("s"))
    table = write_parquet(tmp_path / "b.parquet", pa.table({"text": ["b"], "m": when, "h": [-1]}))
    corpus = opened([lines, table])
    assert corpus.json_text == ("m", "h")
    assert read([lines, table])["m"].to_pylist() == ['{"k": 1}', '"1970-01-01 00:00:00.000"']
    assert read([lines, table])["h"].to_pylist() == [str(2**64 - 1), "-1"]


def test_values_beyond_the_merged_type_name_the_file(tmp_path: Path) -> None:
    first = write_parquet(tmp_path / "a.parquet", pa.table({"text": ["a"], "n": [-1]}))
    second = write_parquet(tmp_path / "b.parquet", pa.table({"text": ["b"], "n": pa.array([2**64 - 1], pa.uint64())}))
    with pytest.raises(SourceError, match=r"b\.parquet: cannot be read: .*18446744073709551615"):
        read([first, second])


def test_files_without_rows_ask_for_no_field(tmp_path: Path) -> None:
    empty = [write_bytes(tmp_path / name, b"") for name in ("a.jsonl", "a.csv", "b.jsonl.gz", "c.json.zst")]
    empty.append(write_bytes(tmp_path / "head.csv", b"x,y\n"))
    empty.append(write_parquet(tmp_path / "none.parquet", pa.table({"x": pa.array([], pa.int8())})))
    corpus = opened(empty)
    assert corpus.n_rows == 0
    assert list(corpus.batches()) == []
    assert corpus.schema.names == ["id", "source_file", "source_row", "text", "input_status", "x"]
    full = write_jsonl(tmp_path / "full.jsonl", [{"id": "i", "text": "a"}])
    assert read([*empty, full])["id"].to_pylist() == ["i"]


# --- batches ----------------------------------------------------------------------------------------------------------


def test_batches_are_bounded_by_bytes_and_restart_where_one_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus_module, "BATCH_BYTES", 200)
    rows = [{"text": "x" * (i * 37 % 90), "tags": ["t"] * (i % 4)} for i in range(40)]
    rows[20]["text"] = "long" * 100
    corpora = [opened(WRITERS[name](tmp_path / name, rows)) for name in ("a.jsonl", "a.arrow", "z.arrow")]
    sizes = [[len(batch) for batch in corpus.batches(batch_rows=6)] for corpus in corpora]
    assert sizes[0] == sizes[1] == sizes[2]
    assert sum(sizes[0]) == 40
    assert max(sizes[0]) <= 6
    for batch in corpora[0].batches(batch_rows=6):
        texts = sum(map(len, batch.column("text").to_pylist()))
        assert texts <= 200 or len(batch) == 1
    start = 0
    for index, size in enumerate(sizes[0]):
        assert [len(batch) for batch in corpora[0].batches(start, batch_rows=6)] == sizes[0][index:]
        start += size


def test_row_bytes_counts_strings_at_any_depth() -> None:
    values: list[Any] = [{"a": ["xy", "z"], "b": b"123"}, None, {"a": [], "b": None}]
    deep = pa.array(values, pa.struct({"a": pa.list_(pa.string()), "b": pa.binary()}))
    assert row_bytes(deep).tolist() == [6, 0, 0]
    assert row_bytes(deep.slice(2)).tolist() == [0]
    assert row_bytes(pa.array(["é", None], pa.string_view())).tolist() == [2, 0]
    assert row_bytes(pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int64()))).tolist() == [9, 0]


def test_limit_takes_the_first_rows_and_reads_no_further(tmp_path: Path) -> None:
    for index, name in enumerate(("a.jsonl", "a.parquet", "a.arrow", "a.csv")):
        (tmp_path / str(index)).mkdir()
        WRITERS[name](tmp_path / str(index) / name, ROWS)
    write_bytes(tmp_path / "4.parquet", b"damaged")
    everything = read([tmp_path / str(index) for index in range(4)])
    for limit in (0, 3, 10, 17, 25, 39):
        corpus = opened([tmp_path / str(index) for index in range(4)], limit=limit)
        assert corpus.n_rows == limit
        assert table(corpus)["text"].to_pylist() == everything["text"].to_pylist()[:limit]
        assert len(table(corpus, 2)) == max(limit - 2, 0)
    assert len(read(tmp_path, limit=40)) == 40
    with pytest.raises(SourceError, match=r"4\.parquet"):
        opened(tmp_path, limit=41)


def test_bad_rows_beyond_the_limit_do_not_matter(tmp_path: Path) -> None:
    path = write_bytes(tmp_path / "a.jsonl", b'{"text": "a"}\nbad\n{"text": "b"}\nworse\n')
    corpus = opened(path, limit=2, on_error="skip")
    assert (corpus.n_rows, len(corpus.rejected), [row.line for row in corpus.rejected]) == (2, 1, [2])
    assert opened(path, limit=1).n_rows == 1


def test_a_file_that_shrinks_after_opening_is_an_error(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    corpus = opened(path)
    write_jsonl(path, ROWS[:4])
    with pytest.raises(SourceError, match=r"a\.jsonl: 6 rows fewer than when it was opened"):
        table(corpus)


def test_source_files_tell_name_rows_and_fingerprint(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "sub" / "a.jsonl", ROWS)
    (file,) = opened(tmp_path, limit=4).files
    assert (file.name, file.path, file.format, file.n_rows) == ("sub/a.jsonl", path, "jsonl", 4)
    assert file.fingerprint == fingerprint_file(path)


# --- scans ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are scanned."""
    seen: list[str] = []

    def counted(file: Any, **options: Any) -> Any:
        seen.append(file.name)
        return scan_file(file, **options)

    monkeypatch.setattr(corpus_module, "scan_file", counted)
    return seen


def test_scans_spare_the_pass_while_the_file_is_the_same(tmp_path: Path, passes: list[str]) -> None:
    path = write_bytes(
        tmp_path / "a.jsonl", b'{"text": "a", "n": 1, "deep": {"a": [1]}}\nbad\n{"text": "b", "n": 0.5}\n'
    )
    other = write_csv(tmp_path / "b.csv", ROWS)
    first = opened([path, other], on_error="skip")
    scans = json.loads(json.dumps(first.scans))
    again = opened([path, other], on_error="skip", scans=scans)
    assert passes == ["a.jsonl", "b.csv"]
    assert table(again).equals(table(first))
    assert (again.scans, len(again.rejected)) == (first.scans, 1)
    with pytest.raises(SourceError, match=r"a\.jsonl:2"):
        opened([path, other], scans=scans)
    opened([path, other], on_error="skip", scans=scans, limit=5)
    opened(other, on_error="skip", scans=scans, id_field="n")
    write_csv(other, ROWS[:3])
    assert opened(other, on_error="skip", scans=scans).n_rows == 3
    assert passes[2:] == ["a.jsonl", "a.jsonl", "b.csv", "b.csv", "b.csv"]


def test_scans_that_were_kept_as_sorted_json_keep_the_order_of_columns(tmp_path: Path) -> None:
    """Else the parts of a run that was killed would have other columns than those before."""
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a", "z": 1, "b": {"y": 1, "a": 2}, "c": 1}\n')
    first = opened(path)
    again = opened(path, scans=json.loads(json.dumps(first.scans, sort_keys=True)))
    assert again.schema.equals(first.schema)
    assert again.schema.names[-3:] == ["z", "b", "c"]


@pytest.mark.parametrize("damaged", [None, 3, {}, {"schema": "!"}, {"schema": ""}, {"n_rows": 1}])
def test_damaged_scans_are_made_again(tmp_path: Path, damaged: Any) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    scan = opened(path).scans["a.jsonl"]
    if isinstance(damaged, dict) and damaged:
        damaged = {"request": scan["request"], "n_rejected": 0, "limit": None, **damaged}
    assert len(read(path, scans={"a.jsonl": damaged})) == 10


# --- size and speed ---------------------------------------------------------------------------------------------------

MEMORY_SCRIPT = """
import re, sys
from pathlib import Path
from fluxentropy.corpus.corpus import open_corpus
def peak():  # of this process; getrusage would count the one that started it
    return int(re.search("VmHWM:\\\\s+([0-9]+)", Path("/proc/self/status").read_text())[1]) // 1024
next(open_corpus([sys.argv[1]], limit=1).batches())
before = peak()
for path in sys.argv[2:]:
    print(sum(len(batch) for batch in open_corpus([path]).batches(batch_rows=32)), peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc to ask for the memory used")
@pytest.mark.slow
def test_memory_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    line = json.dumps({"text": "a line of text " * 1000, "n": 1, "more": "word " * 1000}).encode() + b"\n"
    with open(tmp_path / "big.jsonl", "wb") as file:
        for _ in range(100):
            file.write(line * 100)
    with gzip.open(tmp_path / "big.jsonl.gz", "wb", compresslevel=1) as file:
        for _ in range(100):
            file.write(line * 50)
    rows = [json.loads(line)] * 5000
    whole = pa.Table.from_pylist(rows)
    pq.write_table(whole, tmp_path / "big.parquet", row_group_size=5000, use_dictionary=False, compression="none")
    write_arrow(tmp_path / "big.arrow", whole)
    write_arrow(tmp_path / "big.feather", whole, stream=True, compression="lz4")
    assert (tmp_path / "big.jsonl").stat().st_size > 190 * 2**20
    small = write_jsonl(tmp_path / "small.jsonl", ROWS)
    files = [str(tmp_path / f"big.{name}") for name in ("jsonl", "jsonl.gz", "parquet", "arrow", "feather")]
    done = subprocess.run(
        [sys.executable, "-c", MEMORY_SCRIPT, str(small), *files], capture_output=True, text=True, check=True
    )
    counts, megabytes = zip(*(map(int, line.split()) for line in done.stdout.splitlines()), strict=True)
    assert counts == (10_000, 5_000, 5_000, 5_000, 5_000)
    assert max(megabytes) < 150, "the files are of 200 and 100 MB"


def test_one_line_of_50_mb_is_fine(tmp_path: Path) -> None:
    text = "0123456789" * 5_000_000
    got = read(write_jsonl(tmp_path / "a.jsonl", [{"text": "a"}, {"text": text}, {"text": "b"}]))
    assert got["text"].to_pylist() == ["a", text, "b"]


# --- real data --------------------------------------------------------------------------------------------------------


@pytest.fixture
def shared() -> Path:
    folder = Path(os.environ.get("FLUXENTROPY_SHARED", "../shared")) / "data"
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}")
    return folder


@pytest.mark.shared_data
def test_webmix_keeps_every_row_and_type(shared: Path) -> None:
    corpus = opened(f"{shared}/webmix/*.parquet")
    assert corpus.n_rows == 9662 + 400
    assert [file.n_rows for file in corpus.files] == [2416, 2416, 2415, 2415, 400]
    whole = table(corpus)
    assert len(set(whole["id"].to_pylist())) == corpus.n_rows
    assert whole.schema.field("language_score").type == pa.float64()
    assert table(corpus, 9000).equals(whole.slice(9000))


@pytest.mark.shared_data
def test_hellaswag_and_the_published_table(shared: Path) -> None:
    items = read(shared / "hellaswag" / "hellaswag_val.jsonl.gz", text_field="ctx")
    assert (len(items), items.schema.field("endings").type) == (10_042, pa.list_(pa.string()))
    assert items["input_status"].null_count == 10_042
    prompts = read(shared / "zoo" / "published_entropies.csv", text_field="Text")
    assert len(prompts) == 150
    kinds = {field.name.rpartition("_")[2]: field.type for field in list(prompts.schema)[5:]}
    assert kinds == {"Rank": pa.int64(), "Value": pa.float64()}
