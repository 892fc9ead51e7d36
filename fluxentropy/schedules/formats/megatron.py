"""Megatron's indexed data set: order.bin, tokens one after another, and order.idx, where each document begins.

    order.idx   MMIDIDX 0 0 | version 1 (uint64) | dtype (uint8: 8 uint16, 4 int32) | sequences, documents + 1 (uint64)
                lengths (int32) | places in bytes (int64) | first sequence of each document, and their number (int64)

A document is a block without its last token, which begins the block after it in its bin. So a sample of Megatron's, L
tokens and one more as the last target, is a block, as long as the samples follow the documents.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np

from fluxentropy.errors import UsageError
from fluxentropy.schedules.formats.format import Span, TokenLayout, read_blocks

MAGIC = b"MMIDIDX\x00\x00"
CODES = {np.dtype("<u2"): 8, np.dtype("<i4"): 4}
SMALL = 65_500  # vocabularies below have uint16: Megatron's own rule, in `DType.optimal_dtype`
CHUNK = 2**16  # documents whose numbers are written together


class Megatron:
    """A document a block."""

    name: ClassVar[str] = "megatron"
    suffix: ClassVar[str] = ".tokens"
    joined: ClassVar[bool] = True

    def check(self, layout: TokenLayout) -> None:
        if layout.vocabulary > 2**31:
            raise UsageError(f"--format megatron: its tokens have 31 bits, the vocabulary has {layout.vocabulary:,}")

    def dtype(self, layout: TokenLayout) -> np.dtype[Any]:
        return np.dtype("<u2" if layout.vocabulary < SMALL else "<i4")

    def write(self, path: Path, layout: TokenLayout, span: Span, blocks: Iterable[np.ndarray]) -> None:
        with open(path, "wb") as file:
            for some in blocks:
                file.write(some.data)

    def join(self, parts: Sequence[Path], layout: TokenLayout, blocks: int, data: Path, index: Path) -> None:
        with open(data, "wb", buffering=0) as target:
            for part in parts:
                with open(part, "rb", buffering=0) as source:
                    _append(source, target)
        size = layout.length * self.dtype(layout).itemsize
        with open(index, "wb") as file:
            file.write(_head(self.dtype(layout), blocks))
            _numbers(file, blocks, "<i4", start=layout.length, step=0)
            _numbers(file, blocks, "<i8", start=0, step=size)
            _numbers(file, blocks + 1, "<i8", start=0, step=1)

    def blocks(self, path: Path, layout: TokenLayout, rows: int) -> Iterator[np.ndarray]:
        index, size = path.with_suffix(".idx"), layout.length * self.dtype(layout).itemsize
        with open(index, "rb") as file:
            head = file.read(len(MAGIC) + 25)
        if head != _head(self.dtype(layout), rows) or index.stat().st_size != len(head) + 12 * rows + 8 * (rows + 1):
            raise ValueError(f"{index.name} is not the index of {rows:,} documents")
        if path.stat().st_size != rows * size:
            raise ValueError(f"it has {path.stat().st_size:,} bytes, {rows * size:,} by its index")
        yield from read_blocks(path, self.dtype(layout), layout.length, rows, 0)


def _append(source: FileIO, target: FileIO) -> None:
    """Copy all of `source`, in the kernel where it can, which spares the way through this process."""
    left = os.fstat(source.fileno()).st_size
    while left:
        left -= os.sendfile(target.fileno(), source.fileno(), None, left)


def _head(dtype: np.dtype[Any], documents: int) -> bytes:
    return MAGIC + struct.pack("<QBQQ", 1, CODES[dtype], documents, documents + 1)


def _numbers(file: BinaryIO, count: int, kind: str, *, start: int, step: int) -> None:
    """Write `count` numbers from `start` on, each `step` above the one before."""
    for first in range(0, count, CHUNK):
        some = np.arange(first, min(first + CHUNK, count), dtype=np.int64)
        file.write((start + step * some).astype(kind).tobytes())
