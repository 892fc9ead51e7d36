"""Hashes of rows that add up: the sum over the rows of a corpus does not depend on their order or on their files.

A corpus and its bins hold the same rows when the counts and the sums of hashes are the same; no list of ids is kept.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that its powers never vanish modulo 2^64
NULL = np.uint64(0xD6E8FEB86659FD93)
NAMES = ("id", "source_file", "source_row")  # what tells a row from all others, as far as these columns are there


def sum_of_rows(table: pa.Table | pa.RecordBatch) -> int:
    """The sum modulo 2^64 of the hashes of all rows, over the columns `NAMES` that there are.

    >>> whole = pa.table({"id": ["a", "b", "c"]})
    >>> (sum_of_rows(whole.slice(0, 1)) + sum_of_rows(whole.slice(1))) % 2**64 == sum_of_rows(whole.take([2, 0, 1]))
    True
    """
    names = [name for name in NAMES if name in table.schema.names]
    total = np.zeros(table.num_rows, np.uint64)
    for name in names:  # mixing in between makes the columns' order matter
        total = mix(total + hash_column(table.column(name)))
    return int(total.sum(dtype=np.uint64)) if names else 0


def hash_column(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """One hash a row, uint64 (n,). Numbers are hashed as their decimal text."""
    array = _as_bytes(column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column)
    if not len(array):
        return np.zeros(0, np.uint64)
    _, offset_buffer, data_buffer = array.buffers()
    offsets = np.frombuffer(offset_buffer, np.int64)[array.offset : array.offset + len(array) + 1]
    first, last = int(offsets[0]), int(offsets[-1])
    data = np.frombuffer(data_buffer, np.uint8)[first:last] if last > first else np.zeros(0, np.uint8)
    starts, ends = offsets[:-1] - first, offsets[1:] - first
    lengths = ends - starts
    within = np.arange(len(data)) - np.repeat(starts, lengths)  # each byte's place in its own text
    with np.errstate(over="ignore"):
        powers = np.cumprod(np.full(int(lengths.max(initial=0)) + 1, BASE))
        running = np.concatenate([np.zeros(1, np.uint64), np.cumsum((data + np.uint64(1)) * powers[within])])
        found = mix(running[ends] - running[starts] + lengths.astype(np.uint64) * NULL)
    if array.null_count:
        found[np.asarray(array.is_null())] = NULL
    return found


def _as_bytes(array: pa.Array) -> pa.Array:
    kind = array.type
    if isinstance(kind, pa.BaseExtensionType):
        return _as_bytes(array.storage)
    if pa.types.is_dictionary(kind):
        return _as_bytes(array.dictionary_decode())
    if pa.types.is_nested(kind):
        array = pa.array([None if value is None else str(value) for value in array.to_pylist()], pa.string())
    elif not (pa.types.is_large_string(kind) or _is_binary(kind)):
        array = array.cast(pa.string())
    return array.cast(pa.large_binary())


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind)


def mix(x: np.ndarray) -> np.ndarray:
    """A permutation of the 64-bit integers in which every bit depends on every other (splitmix64, Steele et al. 2014).

    >>> mix(np.array([0, 1], np.uint64))
    array([16294208416658607535, 10451216379200822465], dtype=uint64)
    """
    with np.errstate(over="ignore"):
        z = x + BASE
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))
