"""Losses by the source of documents: each token counts for the document that it stands in.

A block knows where its documents begin, and which rows of the bin's shards they are; the rows say the source.

    starts 0 3, documents 7 8        0 1 2 3 4 5      tokens of the block
    sources of rows 7 and 8: a b     a a a b b b
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from torch import Tensor, nn

from fluxentropy.blockset import BlockSet
from fluxentropy.errors import UsageError
from fluxentropy.shards import bin_folder, bins_top
from fluxentropy.tablefiles import reading
from fluxentropy.validation import HeldOut, token_losses
from fluxentropy.yamlfile import did_you_mean

MOST = 20  # sources that are told apart; the smaller ones are OTHER
OTHER, UNKNOWN = "other", "unknown"


@dataclass(frozen=True, kw_only=True)
class Sources:
    """The source of every row of the bins."""

    names: tuple[str, ...]
    rows: tuple[np.ndarray, ...]  # of each bin: (rows,) places in `names`


def read_sources(blocks: BlockSet, column: str) -> Sources:
    """The column of the bins' shards that holds sources; of a path, such as `WEBMIX/news`, the last part counts.

    Errors: UsageError names a column that the shards do not have.
    """
    texts = [_column(blocks, number, column) for number in range(blocks.bins)]
    counts = Counter(name for part in texts for name in part)
    kept = sorted(name for name, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:MOST])
    names = (*kept, *([OTHER] if len(counts) > len(kept) else []))
    places = {name: place for place, name in enumerate(kept)}
    rows = tuple(np.array([places.get(name, len(kept)) for name in part], np.int64) for part in texts)
    return Sources(names=names, rows=rows)


def _column(blocks: BlockSet, number: int, column: str) -> list[str]:
    """The sources of a bin's rows, in their order."""
    found: list[str] = []
    folder = blocks.path / bin_folder(number, blocks.bins, bins_top(blocks.path))
    for path in sorted(folder.glob("part-*.arrow")):
        with reading(path), pa.memory_map(str(path)) as file:
            table = pa.ipc.open_file(file).read_all()
            if column not in table.column_names:
                raise UsageError(
                    f"--sources {column}: no such column in {path}{did_you_mean(column, table.column_names)}"
                )
            found += [UNKNOWN if value is None else source_name(str(value)) for value in table[column].to_pylist()]
    return found


def source_name(value: str) -> str:
    """The last part of a path, or the whole of what is none.

    >>> source_name("WEBMIX/news"), source_name("news")
    ('news', 'news')
    """
    return value.rstrip("/").rpartition("/")[2] or value


def token_sources(starts: np.ndarray, documents: np.ndarray, rows: np.ndarray, length: int) -> np.ndarray:
    """The source of each target of a block: `starts` and `documents` (S,), `rows` of its bin. -> (length,)

    >>> token_sources(np.array([0, 3]), np.array([1, 0]), np.array([8, 9]), 5)
    array([9, 9, 8, 8, 8])
    """
    segment = np.searchsorted(starts, np.arange(1, length + 1), side="right") - 1
    return np.asarray(rows[documents[segment]])


def bpb_by_source(
    model: nn.Module,
    held_out: HeldOut,
    sources: Sources,
    sizes: Tensor,
    *,
    batch: int,
    document_masks: bool = False,
) -> dict[str, tuple[float, int]]:
    """Bits per byte of each source over the held-out blocks, and its bytes; sources without any are left out.

    `sizes` (V,): bytes of each token. The bytes add up to those of `validate`, and so do the losses.
    """
    loss, size = np.zeros(len(sources.names)), np.zeros(len(sources.names))
    blocks, numbers = held_out.blocks, held_out.numbers()
    for part, losses, sizes_ in token_losses(model, blocks, numbers, sizes, batch=batch, document_masks=document_masks):
        text = losses.masked_fill(sizes_ == 0, 0.0).cpu().numpy()
        for row, (number, block) in enumerate(zip(blocks.places(part)[0].tolist(), blocks.blocks(part), strict=True)):
            at = token_sources(block.starts, block.documents, sources.rows[number], blocks.length)
            np.add.at(loss, at, text[row])
            np.add.at(size, at, sizes_[row].cpu().numpy())
    pairs = zip(sources.names, loss.tolist(), size.tolist(), strict=True)
    return {name: (sum_ / math.log(2) / bytes_, int(bytes_)) for name, sum_, bytes_ in pairs if bytes_}
