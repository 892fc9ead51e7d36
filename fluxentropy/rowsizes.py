"""How many bytes rows take, by their values alone: the same however the rows are cut into arrays."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def fixed_width(kind: pa.DataType) -> int:
    """Bytes that each value takes beside those of `row_sizes`; of texts and lists, those of an offset.

    >>> fixed_width(pa.float64()), fixed_width(pa.string()), fixed_width(pa.list_(pa.float32(), 3))
    (8, 4, 12)
    """
    if pa.types.is_fixed_size_list(kind):
        return int(kind.list_size * fixed_width(kind.value_type))
    if pa.types.is_struct(kind):
        return sum(fixed_width(field.type) for field in kind)
    try:
        return int(kind.bit_width + 7) // 8
    except ValueError:
        return 4


def row_sizes(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Bytes (n,) of each row's texts and lists. They follow from the rows alone, however these are laid out in memory.

    >>> row_sizes(pa.array(["abc", None, ""])), row_sizes(pa.array([["abc"], [], None]))
    (array([3, 0, 0]), array([11,  0,  0]))
    """
    if isinstance(column, pa.ChunkedArray):
        return np.concatenate([np.zeros(0, np.int64), *map(row_sizes, column.chunks)])
    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):
        return row_sizes(column.storage)
    if _is_text(kind):
        return np.asarray(pc.binary_length(column).fill_null(0).cast(pa.int64()))
    if pa.types.is_struct(kind):
        return sum(map(row_sizes, column.flatten()), np.zeros(len(column), np.int64))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        offsets = np.asarray(column.offsets).astype(np.int64)
        items = row_sizes(column.values.slice(offsets[0], offsets[-1] - offsets[0])) + 8
        running = np.concatenate([[0], np.cumsum(items)])[offsets - offsets[0]]
        return np.diff(running)
    return np.zeros(len(column), np.int64)


def _is_text(kind: pa.DataType) -> bool:
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    return any(test(kind) for test in tests)
