"""Hashes of rows that add up: the sum over the rows of a corpus does not depend on their order or on their files.

A corpus and its bins hold the same rows when the counts and the sums of hashes are the same; no list of ids is kept.
"""

from __future__ import annotations

import functools

import numpy as np
import pyarrow as pa

BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that its powers never vanish modulo 2^64
NULL = np.uint64(0xD6E8FEB86659FD93)
_INVERSE = np.uint64(pow(int(BASE), -1, 2**64))
BLOCK = 2**16  # bytes that are hashed at a time: what is computed of them stays in the processor's cache
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
    data = np.frombuffer(data_buffer, np.uint8) if offsets[-1] > offsets[0] else np.zeros(0, np.uint8)
    found = np.empty(len(array), np.uint64)
    start = 0
    while start < len(array):
        fitting = int(np.searchsorted(offsets, offsets[start] + BLOCK, side="right")) - 1
        stop = max(start + 1, fitting)
        found[start:stop] = _hash_texts(
            data[offsets[start] : offsets[stop]], offsets[start : stop + 1] - offsets[start]
        )
        start = stop
    if array.null_count:
        found[np.asarray(array.is_null())] = NULL
    return found


def _hash_texts(data: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """The hashes (n,) of texts that lie behind each other in `data`, text i from offsets[i] to offsets[i + 1].

    Each is mix(sum_j (byte_j + 1) BASE^(j + 1) + length * NULL). All texts are summed at once with the powers of a
    byte's place in `data`; those of the places before a text are divided out again.
    """
    powers, inverses = _powers(BASE), _powers(_INVERSE)
    starts, ends = offsets[:-1], offsets[1:]
    if len(data) > BLOCK:  # a single text, from place 0 on
        powers = np.cumprod(np.full(len(data) + 1, BASE)) * _INVERSE
    running = np.zeros(len(data) + 1, np.uint64)
    np.cumsum((data + np.uint64(1)) * powers[1 : len(data) + 1], out=running[1:])
    sums = (running[ends] - running[starts]) * inverses[starts]
    return mix(sums + (ends - starts).astype(np.uint64) * NULL)


@functools.cache
def _powers(base: np.uint64) -> np.ndarray:
    """base^0, base^1, …, base^BLOCK modulo 2^64."""
    return np.cumprod(np.concatenate([[np.uint64(1)], np.full(BLOCK, base)]))


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
