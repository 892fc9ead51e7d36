"""shards"""

from __future__ import annotations

import hashlib
import json
import random
import uuid
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.ipc as ipc
import pytest
import xxhash

from fluxentropy.errors import RunError, SourceError
from fluxentropy.ordering import shards
from fluxentropy.ordering.shards import (
    ShardWriter,
    bin_folder,
    read_manifest,
    readable_schema,
    readable_table,
    sum_of_rows,
    write_bin,
)
from fluxentropy.runs.mergesort import Part


def some_rows(number: int) -> pa.Table:
    rng = random.Random(number)
    return pa.table(
        {
            "id": pa.array([f"id-{n}" for n in range(number)]),
            "text": pa.array(["x" * rng.randrange(200) if rng.random() < 0.9 else None for _ in range(number)]),
            "n_tokens": pa.array([rng.choice([None, 1, 5]) for _ in range(number)], pa.int64()),
            "tags": pa.array([["t"] * rng.randrange(4) for _ in range(number)], pa.list_(pa.string())),
        }
    )


def in_order(*tables: pa.Table) -> Iterator[Part]:
    return ((table, pa.array(range(len(table)), pa.uint64())) for table in tables)


def read(folder: Path) -> pa.Table:
    return pa.concat_tables(ipc.open_file(path).read_all() for path in sorted(folder.glob("part-*.arrow")))


def test_rows_in_their_order_and_what_the_manifest_says(tmp_path: Path) -> None:
    table = some_rows(5000)
    facts = write_bin(in_order(table), table.schema, tmp_path / "bin=00", shard_bytes=2**18)
    found = read(tmp_path / "bin=00")
    assert found.equals(table)
    assert facts == read_manifest(tmp_path / "bin=00")
    assert facts["rows"] == 5000
    assert facts["tokens"] == sum(value or 0 for value in table["n_tokens"].to_pylist())
    assert facts["hash"] == sum_of_rows(table)
    files = sorted(path.name for path in (tmp_path / "bin=00").iterdir())
    assert files == [".manifest.json", *(file["name"] for file in facts["files"])]
    for file in facts["files"]:
        path = tmp_path / "bin=00" / file["name"]
        assert file["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert file["bytes"] == path.stat().st_size
        assert file["rows"] == ipc.open_file(path).read_all().num_rows


def test_files_do_not_depend_on_how_the_rows_arrive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "BATCH_BYTES", 20_000)  # both limits of a batch are met
    table = some_rows(3000)
    no_nulls = table.slice(0, 1)
    tables = {
        "whole": [table],
        "rows": [
            pa.table(
                {
                    name: pa.array(table[name].slice(n, 1).to_pylist(), table.schema.field(name).type)
                    for name in table.schema.names
                }
            )
            for n in range(len(table))
        ],
        "pieces": [table.slice(start, 700).combine_chunks() for start in range(0, 3000, 700)],
        "empty ones": [no_nulls.slice(0, 0), table.slice(0, 999), table.slice(0, 0), table.slice(999)],
    }
    for name, parts in tables.items():
        write_bin(in_order(*parts), table.schema, tmp_path / name, shard_bytes=60_000)
    mixed = np.random.default_rng(0).permutation(3000)
    back = pa.array(np.argsort(mixed).astype(np.uint64))
    write_bin([(table.take(mixed), back)], table.schema, tmp_path / "mixed", shard_bytes=60_000)
    some = [(table.take(mixed), back.slice(start, 700)) for start in range(0, 3000, 700)]
    write_bin(some, table.schema, tmp_path / "mixed pieces", shard_bytes=60_000)
    manifests = {path.read_bytes() for path in tmp_path.glob("*/.manifest.json")}  # with each file's SHA-256
    assert len(list(tmp_path.iterdir())) == len(tables) + 2
    assert len(manifests) == 1


def test_size_of_shards_and_batches(tmp_path: Path) -> None:
    table = pa.table({"text": ["y" * 1000] * 10_000})
    write_bin(in_order(table), table.schema, tmp_path / "b", shard_bytes=2_000_000)
    rows = [ipc.open_file(path).read_all().num_rows for path in sorted((tmp_path / "b").glob("*.arrow"))]
    assert rows == [2048] * 4 + [1808]  # the second batch of 1,024 rows reaches 2 MB
    reader = ipc.open_file(tmp_path / "b" / "part-00000.arrow")
    assert [reader.get_batch(n).num_rows for n in range(reader.num_record_batches)] == [1024, 1024]


def test_batches_of_large_texts_have_few_rows(tmp_path: Path) -> None:
    texts = ["z" * (9 * 2**20 if n % 3 == 0 else 10) for n in range(12)]
    table = pa.table({"text": texts})
    write_bin(in_order(table), table.schema, tmp_path / "b", shard_bytes=2**40)
    reader = ipc.open_file(tmp_path / "b" / "part-00000.arrow")
    batches = [reader.get_batch(n) for n in range(reader.num_record_batches)]
    assert [batch.num_rows for batch in batches] == [4, 6, 2]  # a batch ends with the row that reaches 16 MiB
    assert reader.read_all().equals(table)


def test_a_bin_without_rows_has_a_file_with_its_columns(tmp_path: Path) -> None:
    schema = some_rows(1).schema
    facts = write_bin([], schema, tmp_path / "b", shard_bytes=1)
    assert (facts["rows"], facts["tokens"], facts["hash"], len(facts["files"])) == (0, 0, 0, 1)
    assert read(tmp_path / "b").equals(schema.empty_table())


def test_all_files_or_none(tmp_path: Path) -> None:
    table = some_rows(2000)

    def broken() -> object:
        yield from in_order(table)
        raise RunError("the source broke off")

    with pytest.raises(RunError, match="broke off"):
        write_bin(broken(), table.schema, tmp_path / "b", shard_bytes=1)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
    assert read_manifest(tmp_path / "b") is None


def test_a_cut_file_fails_loudly(tmp_path: Path) -> None:
    table = some_rows(2000)
    write_bin(in_order(table), table.schema, tmp_path / "b", shard_bytes=2**30)
    path = tmp_path / "b" / "part-00000.arrow"
    data = path.read_bytes()
    for size in (len(data) // 2, len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(pa.ArrowInvalid):
            ipc.open_file(path)


def test_folders() -> None:
    names = [str(bin_folder(3, bins, "data")) for bins in (4, 99, 100, 101, 1001)]
    assert names == ["data/bin=03"] * 3 + ["data/bin=003", "data/bin=0003"]
    assert bin_folder(3, 4, "") == Path("bin=03")
    assert bin_folder(-1, 4, "data") == bin_folder(-1, 4, "") == Path("unscored")


def test_manifest_is_json(tmp_path: Path) -> None:
    write_bin([], some_rows(0).schema, tmp_path / "b", shard_bytes=1)
    assert set(json.loads((tmp_path / "b" / ".manifest.json").read_text())) == {
        *("rows", "tokens", "hash", "files", "format")
    }


# --- hashes of rows ---------------------------------------------------------------------------------------------------

TEXTS = ["", "a", "abc", "ba", None, "naïve café 中文 🙂", "x" * 1000, "\x00", None, "a"]


def test_hashes_are_those_that_xxhash_publishes() -> None:
    known = {"": 0x2D06800538D394C2, "a": 0xE6C632B61E964E1F, "abc": 0x78AF5F94892F3950}
    for text, value in known.items():
        assert sum_of_rows(pa.table({"id": [text]})) == value
    assert sum_of_rows(pa.table({"id": [*known]})) == sum(known.values()) % 2**64


def test_a_column_is_hashed_after_those_before_it() -> None:
    table = pa.table({"source_row": [7, None, 12], "score": [0.5] * 3, "id": ["a", None, "naïve"]})
    total = 0
    for name, row in (("a", "7"), (None, None), ("naïve", "12")):
        seed = 0
        for value in (name, row):
            seed = xxhash.xxh3_64((value or "").encode(), ~seed % 2**64 if value is None else seed).intdigest()
        total += seed
    assert sum_of_rows(table) == total % 2**64
    assert sum_of_rows(table.set_column(1, "score", [[0.0] * 3])) == total % 2**64  # no part of what names a row
    assert sum_of_rows(table.select(["score"])) == 0


@pytest.mark.parametrize(
    ("array", "texts"),
    [
        *[(pa.array(TEXTS).cast(kind), TEXTS) for kind in (pa.large_string(), pa.large_binary(), pa.string_view())],
        (pa.array(TEXTS).dictionary_encode(), TEXTS),
        (pa.array([3, None, -7, 2**62]), ["3", None, "-7", "4611686018427387904"]),
        (pa.array([True, None]), ["true", None]),
        (pa.array([b"ab", None], pa.binary(2)), ["ab", None]),
        (pa.array([["a", "b"], [], None]), ["['a', 'b']", "[]", None]),
        (pa.array([{"a": 1}, None]), ["{'a': 1}", None]),
        (pa.array([Decimal("1.50"), None]), ["1.50", None]),
        (pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"0" * 16], pa.binary(16))), ["0" * 16]),
        (pa.nulls(2), [None, None]),
        (pa.array([], pa.string()), []),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
)
def test_every_type_is_hashed_as_its_text(array: pa.Array, texts: list[str | None]) -> None:
    expected = sum_of_rows(pa.table({"id": pa.array(texts, pa.string())}))
    chunks = pa.chunked_array([array[:1], array[1:1], array[1:]])
    for column in (array, chunks, pa.concat_arrays([array, array])[len(array) :]):
        assert sum_of_rows(pa.table({"id": column})) == expected
    assert sum(sum_of_rows(batch) for batch in pa.table({"id": array}).to_batches()) % 2**64 == expected


def test_the_sum_tells_what_was_lost_doubled_or_swapped_but_not_the_order() -> None:
    table = pa.table({"id": [f"id-{n}" for n in range(100)], "source_row": [n % 3 or None for n in range(100)]})
    whole = sum_of_rows(table)
    mixed = table.take(random.Random(0).sample(range(100), 100))
    assert sum(sum_of_rows(mixed.slice(start, 7)) for start in range(0, 100, 7)) % 2**64 == whole
    assert sum_of_rows(table.slice(1)) != whole
    assert sum_of_rows(pa.concat_tables([table.slice(0, 1), table.slice(0, 1), table.slice(2)])) != whole
    swapped = pa.array([*table["id"].to_pylist()[:98], "id-99", "id-98"])
    assert sum_of_rows(table.set_column(0, "id", swapped)) != whole  # the same ids, on other rows
    one, other = (pa.table({"id": [a], "source_file": [b]}) for a, b in (("a", "b"), ("b", "a")))
    assert sum_of_rows(one) != sum_of_rows(other)
    one, other = (pa.table({"id": pa.array([a]), "source_file": [b]}) for a, b in (("a", None), (None, "a")))
    assert sum_of_rows(one) != sum_of_rows(other)


# --- types that `datasets` reads --------------------------------------------------------------------------------------

KINDS: dict[str, pa.Array] = {
    "decimal32": pa.array([Decimal("1.25"), None, Decimal("-7.50")], pa.decimal32(5, 2)),
    "decimal64": pa.array([Decimal("1.25"), None, Decimal("-7.50")], pa.decimal64(12, 2)),
    "view": pa.array([[1, 2], None, []], pa.list_view(pa.int8())),
    "large_view": pa.array([[1, 2], None, [3]], pa.large_list_view(pa.decimal32(4, 0))),
    "map": pa.array([[("k", 1)], None, [("a", None), ("b", 2)]], pa.map_(pa.string(), pa.int8())),
    "maps": pa.array(
        [[("k", [("j", [1])])], None, []], pa.map_(pa.string(), pa.map_(pa.string(), pa.list_view(pa.int8())))
    ),
    "uuid": pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"0" * 16, None, b"1" * 16], pa.binary(16))),
    "bool8": pa.ExtensionArray.from_storage(pa.bool8(), pa.array([1, None, 0], pa.int8())),
    "opaque": pa.ExtensionArray.from_storage(pa.opaque(pa.string(), "x", "y"), pa.array(["a", None, "b"])),
    "json": pa.ExtensionArray.from_storage(pa.json_(), pa.array(["[1]", None, "2"])),
    "tensor": pa.ExtensionArray.from_storage(
        pa.fixed_shape_tensor(pa.int8(), [2]), pa.array([[1, 2], None, [3, 4]], pa.list_(pa.int8(), 2))
    ),
    "words": pa.array([["a"], None, ["b", "a"]], pa.list_(pa.dictionary(pa.int8(), pa.string()))),
    "category": pa.array(["a", None, "b"]).dictionary_encode(),
    "ends": pa.RunEndEncodedArray.from_arrays(pa.array([2, 3], pa.int32()), pa.array(["a", None])),
    "null": pa.nulls(3),
    "half": pa.array([1.5, None, 2.5], pa.float16()),
    "text_view": pa.array(["a", None, "b"], pa.string_view()),
}

KINDS |= {
    f"in_{name}": pa.StructArray.from_arrays([KINDS[name]], ["x"]) for name in ("map", "uuid", "view", "category")
}

KINDS |= {
    f"of_{name}": pa.ListArray.from_arrays(pa.array([0, 2, None, 3], pa.int32()), KINDS[name])
    for name in ("map", "uuid", "decimal32", "ends")
}

KINDS["pair"] = pa.FixedSizeListArray.from_arrays(
    pa.concat_arrays([KINDS["uuid"], KINDS["uuid"]]), 2, mask=pa.array([False, True, False])
)


def plain(value: Any) -> Any:
    """A value as it is in the shards: a map is a list of objects, a UUID its bytes."""
    if isinstance(value, uuid.UUID):
        return value.bytes
    if isinstance(value, list):
        if value and isinstance(value[0], tuple):
            return [{"key": plain(key), "value": plain(item)} for key, item in value]
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value


def test_every_type_is_written_so_that_datasets_reads_its_values(tmp_path: Path) -> None:
    table = pa.table(KINDS)
    schema, notes = readable_schema(table.schema)
    changed = {note.split("'")[1] for note in notes}
    assert changed == {*KINDS} - {"json", "category", "null", "half", "text_view"}
    assert {name for name in KINDS if schema.field(name).type.equals(table.schema.field(name).type)} == {
        "json", "null", "half", "text_view",
    }  # fmt: skip
    for start in range(3):
        cut = readable_table(table.slice(start), schema)
        cut.validate(full=True)
        for name in KINDS:
            assert cut[name].to_pylist() == plain(table.slice(start)[name].to_pylist()), name
    writer = ShardWriter(tmp_path / "a.arrow", schema)
    writer.write(readable_table(table, schema).combine_chunks().to_batches()[0])
    writer.close()
    loaded = datasets.load_dataset(
        "arrow", data_files=str(tmp_path / "a.arrow"), split="train", cache_dir=str(tmp_path / "cache")
    )
    for name in KINDS:
        if name != "json":  # which `datasets` decodes
            assert loaded.with_format("arrow")[:][name].to_pylist() == plain(table[name].to_pylist()), name


@pytest.mark.parametrize(
    "kind", [pa.month_day_nano_interval(), pa.list_(pa.dense_union([pa.field("a", pa.int8())]))], ids=str
)
def test_types_that_no_shard_can_hold_are_named(kind: pa.DataType) -> None:
    with pytest.raises(
        SourceError, match=r"column 'odd': .* is a type that the shards cannot hold: convert the column"
    ):
        readable_schema(pa.schema({"odd": kind}))
