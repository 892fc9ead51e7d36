"""Packed tokens, compared with blocks that are cut one by one out of the whole stream."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fluxentropy import packing
from fluxentropy.packing import Packer, block_schema


def cut(stream: list[int], documents: list[int], length: int, number: int) -> list[dict[str, Any]]:
    """Blocks by definition: tokens i L to i L + L of the stream, each with its document."""
    blocks = []
    for first in range(0, len(stream) - length, length):
        places = range(first, first + length + 1)
        starts = [0] + [place - first for place in places[1:] if documents[place] != documents[place - 1]]
        blocks.append(
            {
                "input_ids": [stream[place] for place in places],
                "starts": starts,
                "documents": [documents[first + start] for start in starts],
                "bin": number,
            }
        )
    return blocks


@pytest.mark.parametrize("seed", range(8))
def test_blocks_of_any_stream_added_in_any_pieces(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "BATCH_BLOCKS", 3)
    rng = np.random.default_rng(seed)
    for length in range(1, 12):
        packer, batches = Packer(block_schema(70_000, length), bin=seed), []
        stream: list[int] = []
        documents: list[int] = []
        rows = 0
        for _ in range(rng.integers(1, 9)):
            sizes = rng.integers(0, 3 * length, rng.integers(0, 6)) * rng.integers(0, 2)
            ids = rng.integers(0, 70_000, sizes.sum())
            packer.add(ids, sizes)
            stream += ids.tolist()
            documents += np.repeat(np.arange(rows, rows + len(sizes)), sizes).tolist()
            rows += len(sizes)
            batches += packer.batches()
            assert all(batch.num_rows == 3 for batch in batches)
        batches += packer.batches(last=True)
        found = [block for batch in batches for block in batch.to_pylist()]
        assert found == cut(stream, documents, length, seed)
        assert (packer.rows, packer.blocks, packer.tokens) == (rows, len(found), len(stream))
        assert packer.left_over + len(found) * length == len(stream)


@pytest.mark.parametrize(("vocabulary", "dtype"), [(257, "uint16"), (65_536, "uint16"), (65_537, "uint32")])
def test_the_largest_id_fits(vocabulary: int, dtype: str) -> None:
    schema = block_schema(vocabulary, 2)
    packer = Packer(schema, bin=0)
    packer.add(np.array([1, vocabulary - 1, 0], np.uint32), np.array([3]))
    (batch,) = packer.batches(last=True)
    assert str(schema.field("input_ids").type.value_type) == dtype
    assert batch.column("input_ids").to_pylist() == [[1, vocabulary - 1, 0]]
