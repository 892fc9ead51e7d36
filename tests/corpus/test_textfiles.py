"""JSON Lines, CSV and plain text: what is a row, what is a bad one, what is mended, and which types come out."""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import zstandard
from corpusfiles import write_bytes, write_csv, write_jsonl
from hypothesis import given, settings
from hypothesis import strategies as st

from fluxentropy.corpus import scan as scan_module
from fluxentropy.corpus.corpus import Corpus, open_corpus
from fluxentropy.corpus.scan import Scan, chunks, csv_field, json_field
from fluxentropy.corpus.textfiles import Rejected
from fluxentropy.errors import SourceError


def opened(path: Path, content: bytes | None = None, **options: Any) -> Corpus:
    if content is not None:
        write_bytes(path, content)
    return open_corpus([str(path)], **options)


def rows(corpus: Corpus, *names: str) -> list[dict[str, Any]]:
    table = pa.Table.from_batches(corpus.batches(), corpus.schema)
    return table.select(list(names or corpus.schema.names)).to_pylist()


def column(corpus: Corpus, name: str) -> list[Any]:
    return [row[name] for row in rows(corpus, name)]


# --- JSON Lines: bad rows ---------------------------------------------------------------------------------------------

BAD_LINES = {
    b'{"text": "a"': "not valid JSON (Expecting ',' delimiter at column 13)",
    b"plain words": "not valid JSON (Expecting value at column 1)",
    b'{"text": "a"} {}': "not valid JSON (Extra data at column 15)",
    b'{"text": "tab\there"}': "not valid JSON (Invalid control character at column 14)",
    b"3": "not a JSON object but an integer",
    b"null": "not a JSON object but null",
    b'[{"text": "a"}]': "not a JSON object but an array; the file is a JSON array: write one object a line",
    b'{"text": 5}': "the text field 'text' is not a string but an integer",
    b'{"text": ["a"]}': "the text field 'text' is not a string but an array",
    b'{"text": false}': "the text field 'text' is not a string but a boolean",
    b'{"text": "a", "n": -' + b"9" * 5000 + b"}": f"the integer -{'9' * 23}… has 5,001 digits: write it as a string",
    b'{"text": "a", "n": ' + b"[" * 240 + b"]" * 240 + b"}": "nested deeper than 200 levels",
    b"[" * 100_000: "nested deeper than 200 levels",
}


@pytest.mark.parametrize("line", BAD_LINES, ids=range(len(BAD_LINES)))
def test_bad_lines_fail_at_once_or_are_skipped(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "a.jsonl"
    content = b'{"text": "one"}\n\n' + line + b'\n{"text": "two"}\n'
    with pytest.raises(SourceError) as caught:
        opened(path, content)
    assert str(caught.value) == f"{path}:3: {BAD_LINES[line]}"
    corpus = opened(path, on_error="skip")
    assert rows(corpus, "id", "source_row", "text") == [
        {"id": "a.jsonl:0", "source_row": 0, "text": "one"},
        {"id": "a.jsonl:3", "source_row": 3, "text": "two"},
    ]
    excerpt = line.decode()[:200]
    expected = Rejected(source_file="a.jsonl", line=3, source_row=2, reason=BAD_LINES[line], excerpt=excerpt)
    assert (len(corpus.rejected), list(corpus.rejected), list(corpus.rejected)) == (1, [expected], [expected])
    assert corpus.n_rows == 2


def test_many_bad_lines_over_many_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_module, "CHUNK_ROWS", 4)
    lines = ["bad" if i % 3 == 1 or i in range(20, 40) else json.dumps({"text": str(i)}) for i in range(60)]
    corpus = opened(tmp_path / "a.jsonl.zst", "\n".join(lines).encode(), on_error="skip")
    good = [i for i, line in enumerate(lines) if line != "bad"]
    assert column(corpus, "source_row") == good
    assert [row.source_row for row in corpus.rejected] == [i for i in range(60) if i not in good]
    for start in range(len(good) + 1):
        tail = pa.Table.from_batches(corpus.batches(start), corpus.schema)
        assert tail["source_row"].to_pylist() == good[start:]
    none = opened(tmp_path / "b.jsonl", b"bad\nworse\n", on_error="skip")
    assert (none.n_rows, len(none.rejected), rows(none)) == (0, 2, [])


def test_chunks_are_bounded_by_rows_and_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_module, "CHUNK_BYTES", 100)
    monkeypatch.setattr(scan_module, "CHUNK_ROWS", 5)
    sizes = [10] * 7 + [60, 60, 1000, 1, 1]
    groups = [[record[3] for record in chunk] for _, chunk in chunks((i, {}, None, n) for i, n in enumerate(sizes))]
    assert groups == [[10] * 5, [10, 10, 60, 60], [1000], [1, 1]]


# --- JSON Lines: what is a row ----------------------------------------------------------------------------------------


def test_blank_lines_are_counted_but_give_no_row(tmp_path: Path) -> None:
    corpus = opened(tmp_path / "a.jsonl", b'\n{"text": "a"}\r\n  \t\n\n{"text": "b"}')
    assert rows(corpus, "source_row", "text") == [{"source_row": 1, "text": "a"}, {"source_row": 4, "text": "b"}]
    assert corpus.n_rows == 2


def test_null_and_absent_texts_are_rows(tmp_path: Path) -> None:
    corpus = opened(tmp_path / "a.jsonl", b'{"n": 1}\n{"text": null}\n{"text": ""}\n{"text": "a"}\n')
    assert column(corpus, "text") == [None, None, "", "a"]
    assert column(corpus, "input_status") == ["null_text", "null_text", None, None]


def test_nul_unusual_line_ends_and_order_marks(tmp_path: Path) -> None:
    texts = ["a\0b", "\u2028\x85\x0b\x0c", "\ufeff", " "]
    lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
    corpus = opened(tmp_path / "a.jsonl", b"\xef\xbb\xbf" + lines.encode())
    assert column(corpus, "text") == texts
    assert column(corpus, "input_status") == [None] * 4


def test_bytes_that_are_not_utf8_are_mended(tmp_path: Path) -> None:
    corpus = opened(
        tmp_path / "a.jsonl", b'{"text": "caf\xe9 \xff"}\n{"text": "a", "m": ["\xf0\x9f"]}\n{"text": "\xc3\xa9"}\n'
    )
    assert column(corpus, "text") == ["caf\ufffd \ufffd", "a", "é"]
    assert column(corpus, "m") == [None, ["\ufffd"], None]
    assert column(corpus, "input_status") == ["invalid_utf8", "invalid_utf8", None]


def test_lone_surrogates_are_mended_and_pairs_are_kept(tmp_path: Path) -> None:
    lines = [
        r'{"text": "x\ud800y\uDFFF"}',
        r'{"text": "\ud83d\ude42"}',
        r'{"text": "a", "\udc00k": {"deep": ["\ud800"]}}',
        r'{"text": "\\ud800"}',
        r'{"text": "\uD800"}',
        r'{"text": null, "m": "\ud800"}',
    ]
    corpus = opened(tmp_path / "a.jsonl", "\n".join(lines).encode())
    assert column(corpus, "text") == ["x\ufffdy\ufffd", "🙂", "a", r"\ud800", "\ufffd", None]
    assert column(corpus, "\ufffdk")[2] == {"deep": ["\ufffd"]}
    assert column(corpus, "input_status") == [
        "lone_surrogates",
        None,
        "lone_surrogates",
        None,
        "lone_surrogates",
        "null_text",
    ]


# --- JSON Lines: types ------------------------------------------------------------------------------------------------


def test_types_are_merged_over_the_whole_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_module, "CHUNK_ROWS", 2)
    values: list[dict[str, Any]] = [
        {"n": 1, "deep": {"a": 1}, "l": []},
        {"n": None, "deep": None, "l": [None]},
        {"late": True, "deep": {"b": ["x"]}, "l": [1]},
        {"n": 2**60, "deep": {}, "big": 2**63 - 1},
        {"n": 0.5, "deep": {"a": 2.5}, "l": [0.5, 2**60]},
        {"never": None},
    ]
    corpus = opened(write_jsonl(tmp_path / "a.jsonl", [{"text": "t", **value} for value in values]))
    types = {field.name: field.type for field in list(corpus.schema)[5:]}
    assert types == {
        "n": pa.float64(),
        "deep": pa.struct({"a": pa.float64(), "b": pa.list_(pa.string())}),
        "l": pa.list_(pa.float64()),
        "late": pa.bool_(),
        "big": pa.int64(),
        "never": pa.null(),
    }
    got = rows(corpus)
    assert [row["n"] for row in got] == [1.0, None, None, float(2**60), 0.5, None]
    assert [row["l"] for row in got] == [[], [None], [1.0], None, [0.5, float(2**60)], None]
    assert [row["deep"] for row in got][2:5] == [{"a": None, "b": ["x"]}, {"a": None, "b": None}, {"a": 2.5, "b": None}]
    assert got[3]["big"] == 2**63 - 1


def test_nan_and_infinity_are_numbers(tmp_path: Path) -> None:
    got = column(opened(tmp_path / "a.jsonl", b'{"text": "a", "x": NaN}\n{"text": "b", "x": -Infinity}\n'), "x")
    assert math.isnan(got[0])
    assert got[1] == -math.inf


def test_empty_objects_become_null(tmp_path: Path) -> None:
    corpus = opened(
        write_jsonl(tmp_path / "a.jsonl", [{"text": "a", "m": {}}, {"text": "b", "m": {"x": [{}], "y": 1}}])
    )
    assert corpus.schema.field("m").type == pa.struct({"x": pa.list_(pa.null()), "y": pa.int64()})
    assert column(corpus, "m") == [{"x": None, "y": None}, {"x": [None], "y": 1}]
    assert column(opened(write_jsonl(tmp_path / "b.jsonl", [{"text": "a", "m": {}}])), "m") == [None]


@pytest.mark.parametrize("chunk", [1, 3, 1024])
def test_values_without_a_common_type_become_json_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(scan_module, "CHUNK_ROWS", chunk)
    fields: dict[str, list[Any]] = {
        "mixed": ["x", 1, None, True],
        "deep": [{"a": 1}, {"a": "x"}, None, {}],
        "items": [[1, "x"], [], None, [None]],
        "kinds": [[1], {"a": 1}, None, "é🙂"],
        "rounded": [2**53 + 1, 1.5, None, -0.0],
        "inside": [{"n": [2**53 + 1]}, {"n": [0.5]}, None, {"n": []}],
        "huge": [2**64, -1, None, 10**400],
        "below": [2**63, -1, None, 0],
        "infinite": [10**400, 0.5, None, 1],
        "levels": [json.loads("[" * 40 + "]" * 40), [], None, []],
        "keys": [{str(i): i for i in range(200)}, {str(-i): i for i in range(200)}, None, {}],
    }
    written = [{"text": "a", **{name: values[row] for name, values in fields.items()}} for row in range(4)]
    corpus = opened(write_jsonl(tmp_path / "a.jsonl", written))
    assert corpus.json_text == tuple(fields)
    for name, values in fields.items():
        got = column(corpus, name)
        assert corpus.schema.field(name).type == pa.string()
        assert [value and json.loads(value) for value in got] == values, name
    assert column(corpus, "rounded") == ["9007199254740993", "1.5", None, "-0.0"]
    assert column(corpus, "mixed") == ['"x"', "1", None, "true"]


def test_unsigned_integers_and_exact_floats_stay_numbers(tmp_path: Path) -> None:
    written: list[dict[str, Any]] = [
        {"text": "a", "hash": 2**64 - 1, "deep": {"h": [2**63]}, "even": 2**60},
        {"text": "b", "hash": 0, "deep": {"h": [1]}, "even": 0.5},
    ]
    corpus = opened(write_jsonl(tmp_path / "a.jsonl", written))
    types = {field.name: field.type for field in list(corpus.schema)[5:]}
    assert types == {"hash": pa.uint64(), "deep": pa.struct({"h": pa.list_(pa.uint64())}), "even": pa.float64()}
    assert rows(corpus, "text", "hash", "deep", "even") == written
    assert corpus.json_text == ()


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**65), 2**65)
    | st.sampled_from([2**53, 2**53 + 1, 2**63, 2**64 - 1, 2**64])
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec="utf-8"), max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None)
@given(st.lists(json_values, min_size=1, max_size=6), st.integers(0, 6), st.integers(1, 3))
def test_every_value_comes_out_whatever_the_chunks_and_files(values: list[Any], cut: int, chunk: int) -> None:
    written = [{"text": "a", "v": value} for value in values]
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        whole = opened(write_jsonl(Path(folder, "a.jsonl"), written))
        patch.setattr(scan_module, "CHUNK_ROWS", chunk)
        got = column(whole, "v")
        two = [
            write_jsonl(Path(folder, name), part)
            for name, part in (("b.jsonl", written[:cut]), ("c.jsonl", written[cut:]))
        ]
        parts = open_corpus([str(path) for path in two])
        assert column(parts, "v") == got
        assert parts.schema.equals(whole.schema)
    if whole.json_text:
        got = [None if value is None else json.loads(value) for value in got]
        assert repr(got) == repr(values)
    else:
        assert _equal(got, values)


def _equal(got: Any, value: Any) -> bool:
    """Same value; objects may have gained null fields or be null, integers be equal floats, booleans stay apart."""
    if isinstance(value, dict):
        return (got is None and not value) or (
            set(value) <= set(got) and all(_equal(item, value.get(key)) for key, item in got.items())
        )
    if isinstance(value, list):
        return len(got) == len(value) and all(map(_equal, got, value))
    return bool(got == value) and isinstance(got, bool) == isinstance(value, bool)


# --- CSV --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        (["1", "-20", None], pa.int64()),
        (["999999999999999999", "0"], pa.int64()),
        (["9999999999999999999", "0"], pa.string()),
        (["1", "2.5", "-.5", "3.", "1e-3", "2E+7"], pa.float64()),
        (["nan", "inf", "-inf", "NaN"], pa.float64()),
        (["007"], pa.string()),
        (["+1"], pa.string()),
        (["1_000"], pa.string()),
        ([" 1"], pa.string()),
        (["1\n"], pa.string()),
        (["0x10"], pa.string()),
        (["1", "x"], pa.string()),
        (["True"], pa.string()),
        (["2024-01-01"], pa.string()),
        ([None, None], pa.null()),
    ],
)
def test_csv_types(cells: list[str | None], kind: pa.DataType) -> None:
    assert csv_field(cells).arrow == kind
    if kind in (pa.int64(), pa.float64()):
        expected = [None if cell is None else float(cell) for cell in cells]
        got = pa.array(cells, pa.string()).cast(kind).to_pylist()
        assert str([None if value is None else float(value) for value in got]) == str(expected)


def test_csv_columns_over_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_module, "CHUNK_ROWS", 1)
    content = b"id,text,n,x,s,e\n01,5,1,1,1,\n2,,,2.5,007,\n,7,3,,,\n"
    corpus = opened(tmp_path / "a.csv", content)
    assert rows(corpus, "id", "text", "n", "x", "s", "e", "input_status") == [
        {"id": "01", "text": "5", "n": 1, "x": 1.0, "s": "1", "e": None, "input_status": None},
        {"id": "2", "text": "", "n": None, "x": 2.5, "s": "007", "e": None, "input_status": None},
        {"id": "a.csv:2", "text": "7", "n": 3, "x": None, "s": None, "e": None, "input_status": None},
    ]


def test_csv_columns_that_floats_would_round_stay_strings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_module, "CHUNK_ROWS", 1)
    corpus = opened(
        tmp_path / "a.csv", b"text,n,m,code\na,9007199254740993,9007199254740992,1\nb,1.50,1.5,2.50\nc,,,x\n"
    )
    assert column(corpus, "n") == ["9007199254740993", "1.50", None]
    assert column(corpus, "m") == [2.0**53, 1.5, None]
    assert column(corpus, "code") == ["1", "2.50", "x"]


def test_csv_columns_of_two_files_keep_their_cells(tmp_path: Path) -> None:
    one = write_bytes(tmp_path / "a.csv", b"text,code,n\na,1.50,9007199254740993\n")
    two = write_bytes(tmp_path / "b.csv", b"text,code,n\nb,007,0.5\n")
    corpus = open_corpus([str(one), str(two)])
    assert rows(corpus, "code", "n") == [{"code": "1.50", "n": "9007199254740993"}, {"code": "007", "n": "0.5"}]
    assert corpus.json_text == ()
    three = write_jsonl(tmp_path / "c.jsonl", [{"text": "c", "code": [7], "n": 1}])
    corpus = open_corpus([str(one), str(two), str(three)])
    assert column(corpus, "code") == ["1.5", '"007"', "[7]"]
    assert corpus.json_text == ("code", "n")


def test_csv_cells_are_kept_as_they_are(tmp_path: Path) -> None:
    texts = ["two\nlines\r\nand\rmore", 'say "hi"', "a,b;c\td", "nul\0", " spaces ", "\u2028", "x" * 200_000]
    for name in ("a.csv", "a.tsv"):
        assert column(opened(write_csv(tmp_path / name, [{"text": text} for text in texts])), "text") == texts
    old_mac = opened(tmp_path / "mac.csv", b"\xef\xbb\xbftext,n\ra,1\rb,2\r")
    assert rows(old_mac, "source_row", "text", "n") == [
        {"source_row": 0, "text": "a", "n": 1},
        {"source_row": 1, "text": "b", "n": 2},
    ]


def test_bad_csv_rows_fail_at_once_or_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    content = b'text,n\n"one\nmore",1\n\nshort\nlong,2,3\n"quoted"x,4\ngood,5\n"open,6\n'
    with pytest.raises(SourceError) as caught:
        opened(path, content)
    assert str(caught.value) == f"{path}:5: 1 cells where the header has 2"
    corpus = opened(path, on_error="skip")
    assert rows(corpus, "source_row", "text", "n") == [
        {"source_row": 0, "text": "one\nmore", "n": 1},
        {"source_row": 4, "text": "good", "n": 5},
    ]
    assert [(row.line, row.source_row, row.excerpt) for row in corpus.rejected] == [
        (5, 1, "short"),
        (6, 2, "long,2,3"),
        (7, 3, '"quoted"x,4'),
        (9, 5, '"open,6'),
    ]
    reasons = [row.reason for row in corpus.rejected]
    assert reasons[2] == "not valid CSV (',' expected after '\"')"
    assert reasons[3] == "not valid CSV (unexpected end of data)"


def test_csv_bytes_that_are_not_utf8_are_mended(tmp_path: Path) -> None:
    corpus = opened(tmp_path / "a.csv", b'text,m\ncaf\xe9,1\nb,2\nc,"x\n\xff"\n', on_error="fail")
    assert rows(corpus, "text", "m", "input_status") == [
        {"text": "caf\ufffd", "m": "1", "input_status": "invalid_utf8"},
        {"text": "b", "m": "2", "input_status": None},
        {"text": "c", "m": "x\n\ufffd", "input_status": "invalid_utf8"},
    ]


def test_csv_headers_must_name_each_column_once(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"a\.csv:1: the header names the column 'n' twice"):
        opened(tmp_path / "a.csv", b"text,n,n\na,1,2\n")


def test_a_cell_without_end_stops_at_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fluxentropy.corpus.textfiles.CELL_LIMIT", 50)
    before = csv.field_size_limit(50)
    try:
        corpus = opened(tmp_path / "a.csv", b'text\n"open\n' + b"line\n" * 30, on_error="skip")
        assert next(iter(corpus.rejected)).reason == "not valid CSV (field larger than field limit (50))"
        assert column(corpus, "text") == ["line"] * (30 - 10)
    finally:
        csv.field_size_limit(before)


# --- plain text -------------------------------------------------------------------------------------------------------


def test_a_text_file_is_one_text(tmp_path: Path) -> None:
    write_bytes(tmp_path / "d" / "a.txt", b"\xef\xbb\xbfone\r\ntwo\n")
    write_bytes(tmp_path / "d" / "b.txt.gz", b"caf\xe9\0")
    write_bytes(tmp_path / "d" / "c" / "d.txt.zst", b"")
    corpus = opened(tmp_path / "d", text_field="body")
    assert rows(corpus, "id", "source_row", "body", "input_status") == [
        {"id": "a.txt:0", "source_row": 0, "body": "one\r\ntwo\n", "input_status": None},
        {"id": "b.txt.gz:0", "source_row": 0, "body": "caf\ufffd\0", "input_status": "invalid_utf8"},
        {"id": "c/d.txt.zst:0", "source_row": 0, "body": "", "input_status": None},
    ]


def test_a_huge_text_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fluxentropy.corpus.textfiles.TEXT_LIMIT", 10)
    assert column(opened(tmp_path / "a.txt", b"0123456789"), "text") == ["0123456789"]
    with pytest.raises(SourceError, match=r"b\.txt: longer than"):
        opened(tmp_path / "b.txt", b"0123456789x")


# --- files that are damaged or cannot be read -------------------------------------------------------------------------

LINES = b"".join(json.dumps({"text": f"{i * 7919 % 10007:05}" * 5}).encode() + b"\n" for i in range(60_000))


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.csv.gz", "a.csv.zst", "a.txt.gz"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "other"])
def test_damaged_compression_is_an_error_that_names_the_file(tmp_path: Path, name: str, damage: str) -> None:
    lines = LINES.replace(b",", b";") if ".csv" in name else LINES
    compress = gzip.compress if name.endswith(".gz") else zstandard.ZstdCompressor(write_checksum=True).compress
    packed = compress(lines)
    middle = len(packed) * 19 // 20
    flipped = packed[:middle] + bytes(255 - byte for byte in packed[middle : middle + 50]) + packed[middle + 50 :]
    content = {"cut": packed[:-9], "flipped": flipped, "other": lines}[damage]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(SourceError, match=rf"{name}: cannot be read( after row \d+)?: ") as caught:
        opened(path, text_field="text" if ".csv" not in name else '{"text": "00000"}', on_error="skip")
    if damage == "cut" and ".txt" not in name:
        assert "after row" in str(caught.value)


def test_a_zstd_window_beyond_the_usual_one_is_refused_with_what_to_do(tmp_path: Path) -> None:
    for bits in (27, 28):
        parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=bits, enable_ldm=True)
        packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
        (tmp_path / f"{bits}.jsonl.zst").write_bytes(packer.compress(b'{"text": "a"}\n') + packer.flush())
    assert column(opened(tmp_path / "27.jsonl.zst"), "text") == ["a"]
    with pytest.raises(SourceError, match=r"28\.jsonl\.zst: cannot be read: its zstd window is larger than 128 MiB"):
        opened(tmp_path / "28.jsonl.zst")


def test_damage_after_opening_is_an_error_of_batches(tmp_path: Path) -> None:
    path = write_bytes(tmp_path / "a.jsonl.gz", LINES)
    corpus = opened(path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(SourceError, match=r"a\.jsonl\.gz: cannot be read after row \d+: Truncated"):
        list(corpus.batches())
    plain = opened(tmp_path / "b.jsonl", b'{"text": "a", "n": 1}\n')
    plain_path = tmp_path / "b.jsonl"
    plain_path.write_bytes(b'{"text": "a", "n": "x"}\n')
    with pytest.raises(SourceError, match=r"b\.jsonl: cannot be read: "):
        list(plain.batches())
    plain_path.unlink()
    with pytest.raises(SourceError, match=r"b\.jsonl: cannot be read: No such file"):
        list(plain.batches())


def test_several_compressed_members_are_one_file(tmp_path: Path) -> None:
    one, two = b'{"text": "a"}\n', b'{"text": "b"}\n'
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(one) + gzip.compress(two))
    (tmp_path / "b.jsonl.zst").write_bytes(zstandard.compress(one) + zstandard.compress(two))
    assert column(opened(tmp_path), "text") == ["a", "b"] * 2


def test_a_file_without_permission_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_bytes(tmp_path / "a.jsonl", b"{}")
    original = open

    def refuse(name: Any, *args: Any, **kwargs: Any) -> Any:
        if str(name).endswith("a.jsonl"):
            raise PermissionError(13, "Permission denied", str(name))
        return original(name, *args, **kwargs)

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(SourceError, match=r"a\.jsonl: cannot be read: Permission denied"):
        opened(path)


# --- the scan as JSON -------------------------------------------------------------------------------------------------


def test_a_scan_survives_json() -> None:
    fields = {"text": ["a"], "deep": [{"a": [1, 2**64]}], "none": [None], "mixed": [1.5, True, 2**53 + 1]}
    types = {name: json_field(values) for name, values in fields.items()}
    scan = Scan(n_rows=3, n_rejected=1, types=types, limit=None)
    assert Scan.from_json(json.load(io.StringIO(json.dumps(scan.to_json())))) == scan
