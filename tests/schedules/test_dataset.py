"""Blocks of tokens as they lie in the files: every id, segment and document, from any process, and damage by name."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from tokenblocks import block_ids, block_starts, write_blocks

from fluxentropy.errors import RunError, SourceError
from fluxentropy.schedules.dataset import BlockSet

COUNTS = (700, 0, 257, 1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_blocks(tmp_path, COUNTS, per_file=300)


@pytest.mark.parametrize("kind", [pa.uint16(), pa.uint32()])
def test_every_block(tmp_path: Path, kind: pa.DataType) -> None:
    blocks = BlockSet.open(write_blocks(tmp_path, COUNTS, per_file=300, kind=kind))
    assert (blocks.bins, blocks.length, blocks.vocabulary, len(blocks)) == (4, 8, 50_257, 958)
    assert blocks.first.tolist() == [0, 700, 700, 957, 958]
    number = 0
    for k, count in enumerate(COUNTS):
        for index in range(count):
            block = blocks.read(k, index)
            assert block.ids.dtype == kind.to_pandas_dtype() and not block.ids.flags.owndata
            np.testing.assert_array_equal(block.ids, block_ids(k, index, 8))
            assert block.starts.tolist() == block_starts(index, 8)
            assert block.documents.tolist() == [10 * index + i for i in range(len(block.starts))]
            if index % 50 == 0 or index == count - 1:
                assert [value[0] for value in blocks.places(np.array([number]))] == [k, index]
            number += 1


def test_gather(folder: Path) -> None:
    blocks = BlockSet.open(folder)
    numbers = np.random.default_rng(0).integers(0, len(blocks), 100)
    found = blocks.gather(numbers)
    assert found.shape == (100, 9) and found.dtype == np.int64
    bins, places = blocks.places(numbers)
    np.testing.assert_array_equal(found, [block_ids(k, i, 8) for k, i in zip(bins, places, strict=True)])


def test_pickled_without_its_files(folder: Path) -> None:
    blocks = BlockSet.open(folder)
    fresh = len(pickle.dumps(blocks))
    blocks.gather(np.arange(len(blocks)))
    assert len(pickle.dumps(blocks)) == fresh
    copy = pickle.loads(pickle.dumps(blocks))
    np.testing.assert_array_equal(copy.gather(np.arange(900, 958)), blocks.gather(np.arange(900, 958)))


@pytest.mark.parametrize(("k", "index"), [(0, 700), (1, 0), (4, 0), (0, -1), (-1, 0)])
def test_no_such_block(folder: Path, k: int, index: int) -> None:
    with pytest.raises(IndexError, match=f"block {index} of bin {k}"):
        BlockSet.open(folder).read(k, index)


def test_bins_without_blocks(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"blocks\.json: no such file: make the blocks with .* --tokenize"):
        BlockSet.open(tmp_path)


def test_a_cut_file(folder: Path) -> None:
    path = folder / "_blocks/data/bin=00/part-00001.arrow"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(RunError, match=r"bin=00/part-00001\.arrow cannot be read .*make the blocks again"):
        BlockSet.open(folder)


def test_a_lost_file(folder: Path) -> None:
    (folder / "_blocks/data/bin=00/part-00001.arrow").unlink()
    with pytest.raises(RunError, match=r"bin=00 holds 400 blocks where .*blocks\.json says 700"):
        BlockSet.open(folder)


def test_an_index_of_something_else(folder: Path) -> None:
    index = folder / "_blocks/blocks.json"
    facts = json.loads(index.read_text())
    del facts["vocabulary"]
    index.write_text(json.dumps(facts))
    with pytest.raises(RunError, match=r"blocks\.json says nothing of vocabulary"):
        BlockSet.open(folder)
    index.write_text("{")
    with pytest.raises(RunError, match=r"blocks\.json cannot be read"):
        BlockSet.open(folder)


def test_the_grid_of_two_scores(tmp_path: Path) -> None:
    grid = {"by": ["entropy_mean", "varentropy_mean"], "edges": [[1], [2]], "counts": [9] * 4, "tokens": [9] * 4}
    assert BlockSet.open(write_blocks(tmp_path, COUNTS, bins_json=grid)).grid == (2, 2)
