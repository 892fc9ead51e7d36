"""The .bin files as modded-nanogpt's loader reads them: its checks, and its way from file to file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tokenblocks import write_blocks

import fluxentropy as fe
from fluxentropy.errors import UsageError
from fluxentropy.schedules.dataset import BlockSet
from fluxentropy.schedules.formats.format import TokenLayout
from fluxentropy.schedules.formats.nanogpt import NanoGpt
from fluxentropy.schedules.sampler import Sampler


def load(path: Path) -> np.ndarray:
    """A file's tokens, after the checks of `_load_data_shard`."""
    header = np.fromfile(path, np.int32, 256)
    assert header[0] == 20240520 and header[1] == 1
    tokens = np.fromfile(path, np.uint16, offset=1024)
    assert len(tokens) == header[2]
    return tokens


def batches(paths: list[Path], size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Inputs and targets of `size` tokens, as `distributed_data_generator` takes them with align_to_bos=False."""
    for path in paths:
        tokens, at = load(path), 0
        while at + size + 1 < len(tokens):
            some = tokens[at : at + size + 1]
            yield some[:-1], some[1:]
            at += size


def test_a_trainer_sees_every_batch(tmp_path: Path) -> None:
    bins = write_blocks(tmp_path / "bins", [30, 50], length=8)
    out = fe.order(
        bins, format="nanogpt-bin", schedule={"name": "increasing"}, batch_size=4, shard_size="200B", out=tmp_path / "o"
    ).out
    sampler = Sampler(bins, "increasing", batch_size=4)
    files = sorted((out / "data").glob("part-*.bin"))
    found = list(batches(files, 4 * 8))
    assert len(files) > 3 and len(found) == sampler.steps
    blocks = BlockSet.open(bins)
    for step, (inputs, targets) in enumerate(found):
        wanted = blocks.gather(sampler.batch(step))
        np.testing.assert_array_equal(inputs.reshape(4, 8), wanted[:, :-1])
        np.testing.assert_array_equal(targets.reshape(4, 8)[:, :-1], wanted[:, 1:-1])


def test_a_large_vocabulary_is_refused(tmp_path: Path) -> None:
    NanoGpt().check(TokenLayout(length=8, vocabulary=65_536, end=0))
    with pytest.raises(UsageError, match="16 bits, the vocabulary has 65,537 .* use --format megatron"):
        NanoGpt().check(TokenLayout(length=8, vocabulary=65_537, end=0))
