from __future__ import annotations

import datetime
import decimal
import random
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from fluxentropy.rowhash import BASE, BLOCK, NULL, hash_column, mix, sum_of_rows

WORD = 2**64


def mixed(x: int) -> int:
    """splitmix64 with Python's integers."""
    z = (x + int(BASE)) % WORD
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % WORD
    return z ^ (z >> 31)


def hashed(value: Any) -> int:
    """The hash of one value, byte by byte."""
    if value is None:
        return int(NULL)
    data = value if isinstance(value, bytes) else str(value).encode()
    total = sum((byte + 1) * pow(int(BASE), place + 1, WORD) for place, byte in enumerate(data))
    return mixed((total + len(data) * int(NULL)) % WORD)


TEXTS = ["", "a", "b", "ab", "ba", None, "aa", "naïve café 中文 🙂", "x" * 1000, "\x00", "\x00\x00", None, "a"]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary(), pa.large_binary(), pa.string_view()])
def test_texts_against_python(kind: pa.DataType) -> None:
    array = pa.array(TEXTS, pa.string()).cast(kind)
    assert hash_column(array).tolist() == [hashed(text) for text in TEXTS]


def test_texts_longer_than_a_block_and_many_in_one() -> None:
    sizes = [0, BLOCK - 1, 1, 0, BLOCK, 0, BLOCK + 1, 0, 3, *[BLOCK // 8] * 9]
    texts = ["xyz"[n % 3] * size for n, size in enumerate(sizes)]
    whole = hash_column(pa.array(texts))
    assert whole.tolist() == [int(hash_column(pa.array([text]))[0]) for text in texts]
    assert [whole[n] for n in (1, 2, 4, 6, 8)] == [hashed(texts[n]) for n in (1, 2, 4, 6, 8)]


@pytest.mark.parametrize(
    "array",
    [
        pa.array([3, None, -7, 2**62]),
        pa.array([True, False, None]),
        pa.array(["a", None, "b", "a"]).dictionary_encode(),
        pa.array([b"ab", None, b"\xff\xfe"], pa.binary(2)),
        pa.array([["a", "b"], [], None]),
        pa.array([{"a": 1}, None]),
    ],
    ids=str,
)
def test_other_types_as_their_text(array: pa.Array) -> None:
    assert hash_column(array).tolist() == [hashed(value) for value in _texts(array)]


def _texts(array: pa.Array) -> list[Any]:
    if pa.types.is_boolean(array.type):
        return array.cast(pa.string()).to_pylist()
    return array.to_pylist()


@pytest.mark.parametrize(
    "values", [[datetime.datetime(2024, 2, 29, tzinfo=datetime.UTC), None], [decimal.Decimal("1.50")], [1.5, None]]
)
def test_types_without_an_oracle_still_tell_values_apart(values: list[Any]) -> None:
    found = hash_column(pa.array([*values, *values]))
    assert found[: len(values)].tolist() == found[len(values) :].tolist()
    assert len({*found.tolist()}) == len(values)


def test_slices_and_chunks_do_not_matter() -> None:
    whole = pa.array(TEXTS * 3)
    expected = hash_column(whole).tolist()
    for start in range(len(whole)):
        assert hash_column(whole.slice(start, 5)).tolist() == expected[start : start + 5]
    assert hash_column(pa.chunked_array([whole.slice(0, 4), whole.slice(4, 0), whole.slice(4)])).tolist() == expected


@pytest.mark.parametrize("kind", [pa.string(), pa.int64(), pa.large_binary(), pa.dictionary(pa.int32(), pa.string())])
def test_no_rows_and_nothing_but_nulls(kind: pa.DataType) -> None:
    assert hash_column(pa.array([], kind)).tolist() == []
    assert hash_column(pa.chunked_array([], kind)).tolist() == []
    assert hash_column(pa.nulls(2, kind)).tolist() == [int(NULL)] * 2


def rows(number: int) -> pa.Table:
    return pa.table(
        {
            "id": [f"id-{n}" for n in range(number)],
            "source_row": pa.array([n if n % 3 else None for n in range(number)], pa.int64()),
            "score": np.arange(number, dtype=float),
        }
    )


def test_the_sum_does_not_depend_on_order_or_parts() -> None:
    table = rows(100)
    order = random.Random(0).sample(range(100), 100)
    parts = [table.take(order[start : start + 7]) for start in range(0, 100, 7)]
    assert sum(map(sum_of_rows, parts)) % WORD == sum_of_rows(table)
    batches = [sum_of_rows(batch) for batch in table.to_batches(max_chunksize=9)]
    assert sum(batches) % WORD == sum_of_rows(table)


def test_the_sum_tells_what_was_lost_doubled_or_swapped() -> None:
    table = rows(100)
    whole = sum_of_rows(table)
    assert sum_of_rows(table.slice(1)) != whole
    assert sum_of_rows(pa.concat_tables([table.slice(0, 1), table.slice(0, 1), table.slice(2)])) != whole
    swapped = pa.array([*table["id"].to_pylist()[:98], "id-99", "id-98"])
    assert sum_of_rows(table.set_column(0, "id", swapped)) != whole  # the same ids, on other rows
    assert sum_of_rows(table.set_column(2, "score", pa.array(np.zeros(100)))) == whole  # no part of what names a row


def test_columns_are_not_confused() -> None:
    one = pa.table({"id": ["a"], "source_file": ["b"]})
    other = pa.table({"id": ["b"], "source_file": ["a"]})
    assert sum_of_rows(one) != sum_of_rows(other)
    assert sum_of_rows(pa.table({"score": [1.0]})) == 0


def test_mix_against_python() -> None:
    values = [0, 1, 2**63, WORD - 1, 123456789]
    assert mix(np.array(values, np.uint64)).tolist() == [mixed(value) for value in values]
