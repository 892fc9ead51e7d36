"""Parquet, Arrow and Hub datasets: which columns can be the text, what is not decoded, and damaged files."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq
import pytest
from corpusfiles import write_arrow, write_jsonl, write_parquet

from fluxentropy.corpus.corpus import Corpus, open_corpus
from fluxentropy.corpus.readers import ArrowReader
from fluxentropy.errors import SourceError

ROWS = [{"text": f"text {i}", "n": i} for i in range(10)]


def table(corpus: Corpus, start: int = 0) -> pa.Table:
    return pa.Table.from_batches(corpus.batches(start), corpus.schema)


def read(*paths: Path, **options: Any) -> pa.Table:
    return table(open_corpus([str(path) for path in paths], **options))


def invalid(values: Sequence[bytes | None], kind: pa.DataType) -> pa.Array:
    """Strings with arbitrary bytes, which Arrow makes no other way."""
    raw = pa.array(values, pa.large_binary() if pa.types.is_large_string(kind) else pa.binary())
    return pa.Array.from_buffers(kind, len(raw), raw.buffers())


# --- the text column --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())], ids=str
)
def test_text_comes_as_string_whatever_form_it_has(tmp_path: Path, kind: pa.DataType) -> None:
    source = pa.table({"text": pa.array(["a", None, "é\0", ""]).cast(kind), "n": [1, 2, 3, 4]})
    for path in (write_parquet(tmp_path / "a.parquet", source), write_arrow(tmp_path / "a.arrow", source)):
        got = read(path)
        assert got.schema.field("text").type == pa.string()
        assert got["text"].to_pylist() == ["a", None, "é\0", ""]
        assert got["input_status"].to_pylist() == [None, "null_text", None, None]


@pytest.mark.parametrize("values", [[1], [b"a"], [["a"]], [{"a": "b"}]])
def test_other_types_cannot_be_the_text(tmp_path: Path, values: list[Any]) -> None:
    source = pa.table({"text": values})
    with pytest.raises(SourceError, match=r"a\.parquet: the text field 'text' holds .*, not strings"):
        read(write_parquet(tmp_path / "a.parquet", source))


def test_a_text_column_of_nulls_is_a_column_of_null_texts(tmp_path: Path) -> None:
    got = read(write_parquet(tmp_path / "a.parquet", pa.table({"text": pa.nulls(2), "n": [1, 2]})))
    assert got["text"].to_pylist() == [None, None]
    assert got["input_status"].to_pylist() == ["null_text", "null_text"]


def test_ids_of_other_types(tmp_path: Path) -> None:
    ids = pa.array([1, None], pa.uint8())
    assert read(write_arrow(tmp_path / "a.arrow", pa.table({"text": ["a", "b"], "id": ids})))["id"].to_pylist() == [
        "1",
        "a.arrow:1",
    ]
    with pytest.raises(SourceError, match=r"b\.arrow: the id field 'id' holds struct"):
        read(write_arrow(tmp_path / "b.arrow", pa.table({"text": ["a"], "id": [{"a": 1}]})))


def test_two_columns_of_one_name_are_an_error(tmp_path: Path) -> None:
    source = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], ["text", "text"])
    with pytest.raises(SourceError, match=r"a\.arrow: two columns are named 'text'"):
        read(write_arrow(tmp_path / "a.arrow", source))


def test_types_that_parquet_cannot_hold_are_refused(tmp_path: Path) -> None:
    source = pa.table({"text": ["a"], "odd": pa.array([{}], pa.struct([]))})
    with pytest.raises(SourceError, match=r"a\.arrow: column 'odd' is struct<>, which no Parquet file can hold"):
        read(write_arrow(tmp_path / "a.arrow", source))


# --- bytes that are not UTF-8 -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()], ids=str)
def test_invalid_utf8_is_mended(tmp_path: Path, kind: pa.DataType) -> None:
    texts = [b"good", b"caf\xe9", None, b"\xed\xa0\x80"]
    others = [b"x", b"y", b"\xff", b"z"]
    source = pa.table({"text": invalid(texts, kind), "other": invalid(others, kind), "n": [1, 2, 3, 4]})
    for path in (write_parquet(tmp_path / "a.parquet", source), write_arrow(tmp_path / "a.arrow", source)):
        got = read(path)
        assert got["text"].to_pylist() == ["good", "caf\ufffd", None, "\ufffd\ufffd\ufffd"]
        assert got["other"].to_pylist() == ["x", "y", "\ufffd", "z"]
        assert got.schema.field("other").type == kind
        assert got["input_status"].to_pylist() == [None, "invalid_utf8", "null_text", "invalid_utf8"]


def test_invalid_utf8_in_a_dictionary_is_mended_in_the_text(tmp_path: Path) -> None:
    words = pa.DictionaryArray.from_arrays([1, 0, None, 1], invalid([b"\xff", b"good"], pa.string()))
    got = read(write_arrow(tmp_path / "a.arrow", pa.table({"text": words, "kind": words})))
    assert got["text"].to_pylist() == ["good", "\ufffd", None, "good"]
    assert got["input_status"].to_pylist() == [None, "invalid_utf8", "null_text", None]
    assert got.schema.field("kind").type == words.type


def test_invalid_utf8_inside_lists_is_left_alone(tmp_path: Path) -> None:
    inside = pa.ListArray.from_arrays([0, 1], invalid([b"\xff"], pa.string()))
    got = read(write_parquet(tmp_path / "a.parquet", pa.table({"text": ["a"], "tags": inside})))
    assert got["tags"].cast(pa.list_(pa.binary())).to_pylist() == [[b"\xff"]]
    assert got["input_status"].to_pylist() == [None]


# --- nothing is decoded that need not be ------------------------------------------------------------------------------


def test_row_groups_before_the_start_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = open_corpus([str(write_parquet(tmp_path / "a.parquet", ROWS, row_group_size=3))])
    groups: list[int] = []
    original = pq.ParquetFile.iter_batches

    def watched(file: Any, *, row_groups: list[int], **options: Any) -> Any:
        groups.extend(row_groups)
        return original(file, row_groups=row_groups, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", watched)
    assert table(corpus, 6)["n"].to_pylist() == [6, 7, 8, 9]
    assert groups == [2, 3]


def test_record_batches_before_the_start_are_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = open_corpus([str(write_arrow(tmp_path / "a.arrow", ROWS, compression="zstd"))])
    numbers: list[int] = []
    original: Callable[..., Iterator[tuple[int, pa.RecordBatch]]] = ArrowReader._batches

    def watched(*args: Any) -> Iterator[tuple[int, pa.RecordBatch]]:
        for number, batch in original(*args):
            numbers.append(number)
            yield number, batch

    monkeypatch.setattr(ArrowReader, "_batches", watched)
    assert table(corpus, 7)["n"].to_pylist() == [7, 8, 9]
    assert numbers == [2, 3]


def test_large_record_batches_are_read_in_pieces(tmp_path: Path) -> None:
    big = pa.table({"text": [str(i) for i in range(5000)]})
    with ipc.new_file(tmp_path / "a.arrow", big.schema) as writer:
        writer.write_table(big, max_chunksize=5000)
    corpus = open_corpus([str(tmp_path / "a.arrow")])
    pieces = list(corpus._readers[0].pieces(100))
    assert [len(piece.batch) for piece in pieces] == [1024, 1024, 1024, 1024, 804]
    assert pieces[1].rows[0].as_py() == 1124


# --- damaged files ----------------------------------------------------------------------------------------------------


def written(tmp_path: Path, name: str) -> Path:
    rng = random.Random(0)
    rows = [{"text": "".join(rng.choices("abcdef", k=60)), "n": i} for i in range(200)]
    if name == "a.parquet":
        return write_parquet(tmp_path / name, rows, row_group_size=50)
    return write_arrow(tmp_path / name, rows, stream="stream" in name, compression="zstd" if "zstd" in name else None)


ALL = ["a.parquet", "file.arrow", "file_zstd.feather", "stream.arrow", "stream_zstd.arrow"]


@pytest.mark.parametrize("name", ALL)
def test_a_file_cut_anywhere_is_an_error(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, name)
    content = path.read_bytes()
    for length in (0, 1, 8, 100, len(content) // 2, len(content) - 100, len(content) - 8, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(SourceError, match=name):
            read(path)


def test_a_stream_cut_between_two_batches_is_an_error(tmp_path: Path) -> None:
    path = written(tmp_path, "stream.arrow")
    content = path.read_bytes()
    starts = [i for i in range(0, len(content), 8) if content[i : i + 4] == b"\xff\xff\xff\xff"]
    path.write_bytes(content[: starts[-3]])
    with pytest.raises(SourceError, match=r"stream\.arrow: .* was cut off"):
        read(path)
    assert len(pa.ipc.open_stream(path.read_bytes()).read_all()) < 200, "Arrow itself does not notice"


@pytest.mark.parametrize("name", ALL)
def test_damage_inside_a_file_never_escapes_as_another_error(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, name)
    content = path.read_bytes()
    rng = random.Random(1)
    messages: list[str] = []
    for _ in range(40):
        at = rng.randrange(len(content) - 40)
        path.write_bytes(content[:at] + rng.randbytes(40) + content[at + 40 :])
        try:
            read(path)
        except SourceError as error:
            messages.append(str(error))
    assert messages
    assert all(name in message for message in messages)


def test_damage_after_opening_names_the_row(tmp_path: Path) -> None:
    path = written(tmp_path, "a.parquet")
    corpus = open_corpus([str(path)])
    group = pq.ParquetFile(path).metadata.row_group(2).column(0)
    content = path.read_bytes()
    at = group.dictionary_page_offset or group.data_page_offset
    path.write_bytes(content[:at] + b"\xff" * 30 + content[at + 30 :])
    with pytest.raises(SourceError, match=r"a\.parquet: cannot be read after row 100: "):
        table(corpus)


# --- the Hub ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """A Hub of one dataset of 300 rows, whose types are known only in the configuration `typed`."""
    calls: list[tuple[Any, ...]] = []

    def rows() -> Iterator[dict[str, Any]]:
        yield from ({"text": None if i == 7 else f"text {i}", "n": i} for i in range(300))

    def load(name: str, config: str | None = None, *, split: str, revision: str | None, streaming: bool) -> Any:
        calls.append((name, config, split, revision, streaming))
        if name != "owner/name":
            raise datasets.exceptions.DatasetNotFoundError(f"Dataset '{name}' doesn't exist on the Hub\nsecond line")
        features = datasets.Features({"text": datasets.Value("large_string"), "n": datasets.Value("int16")})
        return datasets.IterableDataset.from_generator(rows, features=features if config == "typed" else None)

    monkeypatch.setattr(datasets, "load_dataset", load)
    return calls


@pytest.mark.parametrize(
    ("source", "kind"), [("owner/name", pa.int64()), ("hf://datasets/owner/name/typed", pa.int16())]
)
def test_hub_datasets_are_streamed(hub: list[Any], source: str, kind: pa.DataType) -> None:
    corpus = open_corpus([source])
    assert (corpus.n_rows, corpus.schema.field("n").type) == (None, kind)
    whole = table(corpus)
    name = source.removeprefix("hf://datasets/")
    assert whole["n"].to_pylist() == list(range(300))
    assert whole["id"].to_pylist() == [f"{name}:{i}" for i in range(300)]
    assert whole["input_status"].to_pylist()[6:9] == [None, "null_text", None]
    for start in (1, 127, 128, 299, 300, 400):
        assert table(corpus, start).equals(whole.slice(start))
    (file,) = corpus.files
    assert (file.name, file.path, file.n_rows) == (name, None, None)
    assert file.fingerprint == open_corpus([source]).files[0].fingerprint


def test_hub_names_are_passed_on(hub: list[Any]) -> None:
    open_corpus(["owner/name@abc/typed:validation"])
    open_corpus(["owner/name"])
    assert hub == [("owner/name", "typed", "validation", "abc", True), ("owner/name", None, "train", None, True)]


def test_hub_datasets_among_files(hub: list[Any], tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    sources = [str(path), "owner/name", str(write_parquet(tmp_path / "b.parquet", ROWS))]
    whole = table(open_corpus(sources))
    assert len(whole) == 320
    for start in (0, 9, 10, 11, 150, 309, 310, 311, 319, 320):
        assert table(open_corpus(sources), start).equals(whole.slice(start))
    for limit in (5, 10, 200, 315, 1000):
        assert table(open_corpus(sources, limit=limit)).equals(whole.slice(0, limit))
        assert table(open_corpus(sources, limit=limit), 7).equals(whole.slice(0, limit).slice(7))


def test_hub_errors(hub: list[Any]) -> None:
    with pytest.raises(SourceError) as caught:
        open_corpus(["owner/other"])
    assert str(caught.value) == (
        "owner/other: no file or folder here, and as a Hub dataset it cannot be read: "
        "DatasetNotFoundError: Dataset 'owner/other' doesn't exist on the Hub"
    )
    calls = len(hub)
    with pytest.raises(SourceError, match="owner/name: no such file or folder, and --offline refuses"):
        open_corpus(["owner/name"], offline=True)
    assert len(hub) == calls
    with pytest.raises(SourceError, match="owner/name: no field 'body'"):
        open_corpus(["owner/name"], text_field="body")


def test_hub_rows_that_do_not_fit_the_first_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    def rows(odd: dict[str, Any]) -> Iterator[dict[str, Any]]:
        yield from ({"text": "a", "n": i} for i in range(1100))
        yield odd

    for odd, message in (
        ({"text": "a", "n": "x"}, "after row 1024: ArrowInvalid: Could not convert 'x'"),
        ({"text": "a", "more": 1}, "after row 1024: KeyError: 'fields that the first rows do not have: more'"),
    ):
        stream = datasets.IterableDataset.from_generator(rows, gen_kwargs={"odd": odd})
        monkeypatch.setattr(datasets, "load_dataset", lambda *args, stream=stream, **options: stream)
        with pytest.raises(SourceError, match=f"owner/name: the Hub dataset cannot be read {message}"):
            table(open_corpus(["owner/name"]))
