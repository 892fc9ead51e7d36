"""order.bin and order.idx, by the format's definition and by megatron-core where it is installed."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from tokenblocks import write_blocks

import fluxentropy as fe
from fluxentropy.errors import RunError
from fluxentropy.schedules.dataset import BlockSet
from fluxentropy.schedules.sampler import Sampler


def ordered(tmp_path: Path, vocabulary: int) -> tuple[Path, np.ndarray]:
    """A folder with an order, and the blocks that belong there."""
    bins = write_blocks(tmp_path / "bins", [20, 0, 30], length=8, kind=pa.uint32())
    record = bins / "_blocks" / "blocks.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"vocabulary": vocabulary}))
    out = fe.order(
        bins, format="megatron", schedule={"name": "random"}, seed=2, shard_size="300B", out=tmp_path / "o"
    ).out
    return out / "data", BlockSet.open(bins).gather(np.array(list(Sampler(bins, "random", seed=2))))[:, :-1]


@pytest.mark.parametrize(("vocabulary", "code", "kind"), [(65_499, 8, "<u2"), (65_500, 4, "<i4"), (256_000, 4, "<i4")])
def test_the_index_tells_the_documents_apart(vocabulary: int, code: int, kind: str, tmp_path: Path) -> None:
    """A document a block; uint16 below 65,500, as Megatron's reader expects it."""
    data, wanted = ordered(tmp_path, vocabulary)
    index = (data / "order.idx").read_bytes()
    assert index[:9] == b"MMIDIDX\x00\x00"
    assert struct.unpack_from("<QBQQ", index, 9) == (1, code, 50, 51)
    lengths = np.frombuffer(index, "<i4", 50, 34)
    places = np.frombuffer(index, "<i8", 50, 34 + 200)
    documents = np.frombuffer(index, "<i8", 51, 34 + 600)
    assert len(index) == 34 + 600 + 8 * 51
    np.testing.assert_array_equal(documents, np.arange(51))
    tokens = (data / "order.bin").read_bytes()
    for place, length, block in zip(places, lengths, wanted, strict=True):
        np.testing.assert_array_equal(np.frombuffer(tokens, kind, length, place), block)


def test_megatron_reads_it(tmp_path: Path) -> None:
    indexed = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    data, wanted = ordered(tmp_path, 65_499)
    found = indexed.IndexedDataset(str(data / "order"))
    np.testing.assert_array_equal(np.stack([found[n] for n in range(len(found))]), wanted)


def test_an_id_beyond_the_vocabulary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="a block holds the id .*, and the vocabulary has 100: make the blocks again"):
        ordered(tmp_path, 100)
    assert not list((tmp_path / "o").glob("data/*"))
