"""How many bytes each row of a table takes: by its values alone, not by how the rows are cut into arrays."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

OFFSET = 4  # bytes; of each text or list


def row_sizes(table: pa.Table) -> np.ndarray:
    """Bytes of each row, without Arrow's bits for nulls. (n,) int64

    >>> row_sizes(pa.table({"a": [1, 2], "b": ["xy", None], "c": [[[1], [2, 3]], []]})).tolist()
    [50, 16]
    """
    sizes = np.zeros(len(table), np.int64)
    for column in table.columns:
        sizes += np.concatenate([_sizes(chunk) for chunk in column.chunks] or [sizes])
    return sizes


def _sizes(array: pa.Array) -> np.ndarray:
    kind = array.type
    zeros = np.zeros(len(array), np.int64)
    if isinstance(kind, pa.BaseExtensionType):
        return _sizes(array.storage)
    if pa.types.is_null(kind):
        return zeros
    if pa.types.is_struct(kind):
        return sum(map(_sizes, array.flatten()), start=zeros)
    if pa.types.is_map(kind):
        return _sizes(array.cast(pa.list_(pa.struct([kind.key_field, kind.item_field]))))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        rows = _whole(pc.list_value_length(array))
        ends = np.cumsum(rows)
        sums = np.concatenate([[0], np.cumsum(_sizes(array.flatten()))])
        return OFFSET + sums[ends] - sums[ends - rows]
    try:
        return zeros + (kind.bit_width + 7) // 8
    except ValueError:  # text and bytes, of no fixed width
        return OFFSET + _whole(pc.binary_length(array))


def _whole(numbers: pa.Array) -> np.ndarray:
    return numbers.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
