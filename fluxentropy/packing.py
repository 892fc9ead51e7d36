"""Tokens packed into blocks of one length: pure, no files.

    documents   5 6 0 | 7 0 | 8 9 0       L = 3, 0 ends a document
    block 0     5 6 0 7        starts 0 3      documents 0 1      predictions 5→6, 6→0, 0→7
    block 1     7 0 8 9        starts 0 2      documents 1 2      predictions 7→0, 0→8, 8→9
    left over   5, which nothing predicts, and the last 0

Neighbouring blocks share one token, so that every token of the stream but the first is predicted exactly once.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

BATCH_BLOCKS = 256  # of a record batch


def block_schema(vocabulary: int, length: int) -> pa.Schema:
    """The columns of blocks that predict `length` tokens: ids in uint16 where all of the vocabulary fits, else uint32.

    `starts`: where each segment, a piece of one document, begins in the block. `documents`: the row of that document.
    """
    token = pa.uint16() if vocabulary <= 2**16 else pa.uint32()
    return pa.schema(
        {
            "input_ids": pa.list_(token, length + 1),
            "starts": pa.list_(pa.int32()),
            "documents": pa.list_(pa.int64()),
            "bin": pa.int32(),
        }
    )


class Packer:
    """Documents in, record batches of blocks out.

    >>> packer = Packer(block_schema(10, 3), bin=4)
    >>> packer.add(np.array([5, 6, 0, 7, 0, 8, 9, 0]), np.array([3, 2, 3]))
    >>> (batch,) = packer.batches(last=True)
    >>> batch.to_pylist()[1], packer.left_over
    ({'input_ids': [7, 0, 8, 9], 'starts': [0, 2], 'documents': [1, 2], 'bin': 4}, 2)
    """

    def __init__(self, schema: pa.Schema, *, bin: int) -> None:
        kind = schema.field("input_ids").type
        self.schema, self.bin = schema, bin
        self.length = kind.list_size - 1
        self.dtype = kind.value_type.to_pandas_dtype()
        self.rows = 0  # documents so far, those without tokens included
        self.blocks = self.tokens = 0  # written, and put in
        self._ids: list[np.ndarray] = []  # the tokens of the blocks to come
        self._starts: list[np.ndarray] = []  # where documents begin, counted from the stream's first token
        self._documents: list[np.ndarray] = []

    @property
    def left_over(self) -> int:
        """Tokens that no block predicts: the first of the stream, and those that fill no block."""
        return self.tokens - self.blocks * self.length

    def add(self, ids: np.ndarray, sizes: np.ndarray) -> None:
        """Documents with `sizes` (n,) tokens each, whose `ids` (sum of sizes,) follow each other."""
        there = np.flatnonzero(sizes)
        self._ids.append(ids.astype(self.dtype))
        self._starts.append(self.tokens + (np.cumsum(sizes) - sizes)[there])
        self._documents.append(self.rows + there)
        self.rows += len(sizes)
        self.tokens += len(ids)

    def batches(self, *, last: bool = False) -> Iterator[pa.RecordBatch]:
        """The full batches of BATCH_BLOCKS blocks; with `last`, also a smaller one of all other full blocks."""
        full = max(self.tokens - 1, 0) // self.length - self.blocks
        if full < BATCH_BLOCKS and not (last and full):
            return
        ids, starts, documents = map(np.concatenate, (self._ids, self._starts, self._documents))
        origin = self.blocks * self.length  # the place in the stream of the first token in `ids`
        while full >= (1 if last else BATCH_BLOCKS):
            count = min(full, BATCH_BLOCKS)
            first = self.blocks * self.length
            yield self._batch(ids[first - origin :], starts, documents, first, count)
            self.blocks += count
            full -= count
        end = self.blocks * self.length
        kept = slice(max(int(np.searchsorted(starts, end, "right")) - 1, 0), None)  # from the document that runs on
        self._ids, self._starts, self._documents = [ids[end - origin :]], [starts[kept]], [documents[kept]]

    def _batch(
        self, ids: np.ndarray, starts: np.ndarray, documents: np.ndarray, first: int, count: int
    ) -> pa.RecordBatch:
        """`count` blocks from the stream's token `first` on, which is ids[0]."""
        begins = first + np.arange(count) * self.length
        low = np.searchsorted(starts, begins, "right") - 1  # (count,) the first segment's document
        sizes = np.searchsorted(starts, begins + self.length, "right") - low
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        places = np.repeat(low - offsets[:-1], sizes) + np.arange(offsets[-1])
        within = np.maximum(starts[places] - np.repeat(begins, sizes), 0)
        windows = np.lib.stride_tricks.sliding_window_view(ids, self.length + 1)[: count * self.length : self.length]
        kind, ends = self.schema.field("input_ids").type, pa.array(offsets, pa.int32())
        columns = [
            pa.FixedSizeListArray.from_arrays(pa.array(windows.ravel(), kind.value_type), type=kind),
            pa.ListArray.from_arrays(ends, pa.array(within, pa.int32())),
            pa.ListArray.from_arrays(ends, pa.array(documents[places], pa.int64())),
            pa.array(np.full(count, self.bin, np.int32)),
        ]
        return pa.RecordBatch.from_arrays(columns, schema=self.schema)
