"""The .bin files of modded-nanogpt and llm.c: a header of 256 int32 (magic 20240520, version 1, tokens), then uint16.

    header | block 0: L tokens | block 1: L tokens | … | the end-of-text token, twice

A block goes in without its last token, which begins the block after it in its bin: so the bins' tokens are there once
an epoch, and a trainer that takes L tokens a sequence takes a block. Its targets are the tokens one further on: all of
the block's own but the last, which is the first of the block that follows. Two more tokens close a file, because these
loaders go on to the next one before they would have read the last sequences of a file that ends with them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from fluxentropy.errors import UsageError
from fluxentropy.schedules.formats.format import Span, TokenLayout, read_blocks

MAGIC, VERSION, HEADER = 20240520, 1, 256
EXTRA = 2  # tokens behind the blocks
MOST = 2**31 - 1  # tokens of a file, which its header counts in an int32


class NanoGpt:
    """A stream of blocks."""

    name: ClassVar[str] = "nanogpt-bin"
    suffix: ClassVar[str] = ".bin"
    joined: ClassVar[bool] = False

    def check(self, layout: TokenLayout) -> None:
        if layout.vocabulary > 2**16:
            raise UsageError(
                f"--format nanogpt-bin: its tokens have 16 bits, the vocabulary has {layout.vocabulary:,} of them; "
                f"use --format megatron, or a tokenizer of at most 65,536"
            )

    def dtype(self, layout: TokenLayout) -> np.dtype[Any]:
        return np.dtype("<u2")

    def write(self, path: Path, layout: TokenLayout, span: Span, blocks: Iterable[np.ndarray]) -> None:
        tokens = span.rows * layout.length + EXTRA
        if tokens > MOST:
            raise UsageError(f"a file of {tokens:,} tokens: at most {MOST:,} are possible; use a smaller --shard-size")
        header = np.zeros(HEADER, "<i4")
        header[:3] = MAGIC, VERSION, tokens
        with open(path, "wb") as file:
            file.write(header.tobytes())
            for some in blocks:
                file.write(some.data)
            file.write(np.array([layout.end] * EXTRA, "<u2").tobytes())

    def join(self, parts: Sequence[Path], layout: TokenLayout, blocks: int, data: Path, index: Path) -> None:
        raise AssertionError("the files are the data set")

    def blocks(self, path: Path, layout: TokenLayout, rows: int) -> Iterator[np.ndarray]:
        header = np.fromfile(path, "<i4", HEADER)
        said = header[:3].tolist()
        if said != (wanted := [MAGIC, VERSION, rows * layout.length + EXTRA]):
            raise ValueError(f"its header says {said} where {wanted} belongs")
        size = HEADER * 4 + 2 * wanted[2]
        if path.stat().st_size != size:
            raise ValueError(f"it has {path.stat().st_size:,} bytes, {size:,} by its header")
        yield from read_blocks(path, self.dtype(layout), layout.length, rows, HEADER * 4)
