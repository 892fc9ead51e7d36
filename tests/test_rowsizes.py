"""Sizes of rows do not depend on how the rows are cut, and add up to the bytes of Arrow's own buffers."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from fluxentropy.rowsizes import fixed_width, row_sizes


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
