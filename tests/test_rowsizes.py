"""Sizes of rows do not depend on how the rows are cut, and add up to the bytes of Arrow's own buffers."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from test_tablefiles import rich_table

from fluxentropy.rowsizes import row_sizes

NESTED = pa.list_(pa.struct([("role", pa.string()), ("content", pa.large_string())]))
CHATS = [
    [{"role": "user", "content": "hi"}, {"role": "bot", "content": "é"}],
    None,
    [],
    [{"role": "x", "content": None}],
]


def test_sizes_by_hand() -> None:
    table = pa.table(
        {
            "chat": pa.array(CHATS, NESTED),
            "flags": [True, None, False, True],
            "scores": pa.array([[1.0, 2.0], None, [3.0, 4.0], [5.0, 6.0]], pa.list_(pa.float32(), 2)),
            "facts": pa.array([[("k", 1)], None, [("a", 1), ("bb", 2)], []], pa.map_(pa.string(), pa.int64())),
            "none": pa.nulls(4),
        }
    )
    chats = [4 + (4 + 4 + 4 + 2) + (4 + 3 + 4 + 2), 4, 4, 4 + (4 + 1 + 4)]
    facts = [4 + 13, 4, 4 + 13 + 14, 4]
    scores = [4 + 8, 4, 4 + 8, 4 + 8]
    assert row_sizes(table).tolist() == [sum(row) + 1 for row in zip(chats, scores, facts, strict=True)]


def test_sizes_of_texts_and_numbers_are_those_of_the_buffers() -> None:
    texts = pa.array(["a" * n for n in range(50)])
    table = pa.table({"text": texts, "n": np.arange(50), "x": np.arange(50, dtype=np.float32)})
    assert row_sizes(table).sum() == table.nbytes


@pytest.mark.parametrize(
    "table", [pa.table({"chat": pa.array(CHATS * 3, NESTED)}), rich_table()[0]], ids=["chat", "rich"]
)
def test_cuts_do_not_matter(table: pa.Table) -> None:
    whole = row_sizes(table).tolist()
    assert [row_sizes(table.slice(row, 1)).item() for row in range(len(table))] == whole
    cut = pa.concat_tables([table.slice(0, 1), table.slice(1)])
    assert row_sizes(cut).tolist() == whole
    assert row_sizes(table.slice(0, 0)).tolist() == []
