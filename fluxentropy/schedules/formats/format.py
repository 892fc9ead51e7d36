"""What a format of an order is told, and what it has to do: write a part, what lies beside the parts, and read back.

A part holds the units of positions `first` to `first + rows - 1`. Its bytes follow from them alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import pyarrow as pa


@dataclass(frozen=True, kw_only=True)
class Span:
    """The positions of a part."""

    first: int
    rows: int


@dataclass(frozen=True, kw_only=True)
class TextLayout:
    """What is known of the texts: their columns, `id` and `bin` among them, which one is the text, and bytes a row."""

    schema: pa.Schema
    text_field: str | None
    row_bytes: float


@dataclass(frozen=True, kw_only=True)
class TokenLayout:
    """What is known of the blocks: tokens that each predicts, the vocabulary's size, and the token that ends a text."""

    length: int
    vocabulary: int
    end: int


class TextFormat(Protocol):
    """A format whose unit is a text."""

    name: ClassVar[str]
    suffix: ClassVar[str]
    least: ClassVar[int]
    """Parts that there shall be at least, where there are as many batches."""

    def check(self, layout: TextLayout) -> None:
        """Errors: UsageError where the format cannot hold such texts."""

    def write(self, path: Path, layout: TextLayout, span: Span, batches: Iterable[pa.RecordBatch]) -> None:
        """Write a part; `batches` have the columns of the layout, and end at the same rows whenever they are made."""

    def index(self, layout: TextLayout, parts: Sequence[tuple[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
        """JSON files beside the parts: name -> content. `parts` are their names, and their `rows` and `bytes`."""

    def ids(self, path: Path) -> Iterator[list[Any]]:
        """The ids in a part, in order, in lists of bounded size, as JSON has them."""


class TokenFormat(Protocol):
    """A format whose unit is a block of tokens."""

    name: ClassVar[str]
    suffix: ClassVar[str]
    joined: ClassVar[bool]
    """Whether the parts are put together to one data set, in the end, by `join`."""

    def check(self, layout: TokenLayout) -> None:
        """Errors: UsageError where the format cannot hold such tokens."""

    def dtype(self, layout: TokenLayout) -> np.dtype[Any]:
        """Of the tokens in the file."""

    def write(self, path: Path, layout: TokenLayout, span: Span, blocks: Iterable[np.ndarray]) -> None:
        """Write a part; `blocks` are arrays (n, length) of the dtype, their rows one after another."""

    def join(self, parts: Sequence[Path], layout: TokenLayout, blocks: int, data: Path, index: Path) -> None:
        """Write the one data set of `parts`, of so many blocks: tokens to `data`, what tells them apart to `index`."""

    def blocks(self, path: Path, layout: TokenLayout, rows: int) -> Iterator[np.ndarray]:
        """The `rows` blocks in a part, or in the one data set, in order, in arrays (n, length) of bounded size.

        Errors: ValueError says what a reader of this format would stumble on.
        """


CHUNK = 2**22  # bytes that are read back at a time


def read_blocks(path: Path, dtype: np.dtype[Any], length: int, rows: int, offset: int) -> Iterator[np.ndarray]:
    """`rows` blocks of `length` tokens from byte `offset` of a file on, in arrays (n, length). Errors: ValueError."""
    step = max(CHUNK // (length * dtype.itemsize), 1)
    with open(path, "rb") as file:
        file.seek(offset)
        for first in range(0, rows, step):
            count = min(step, rows - first)
            found = np.fromfile(file, dtype, count * length)
            if len(found) != count * length:
                raise ValueError(f"it ends within block {first + len(found) // length}, of {rows}")
            yield found.reshape(count, length)
