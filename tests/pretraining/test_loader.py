"""The loader: the same global order for any ranks and workers, from any step, with the length of the whole training."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tokenblocks import block_starts, write_blocks

from fluxentropy.errors import UsageError
from fluxentropy.pretraining.loader import BlockBatches, LengthWarmUp, block_loader, cut_blocks
from fluxentropy.schedules.dataset import BlockSet
from fluxentropy.schedules.options import BudgetOptions, ScheduleConfig
from fluxentropy.schedules.sampler import Sampler, open_sampler

LENGTH = 8


@pytest.fixture(scope="module")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> BlockSet:
    return BlockSet.open(write_blocks(tmp_path_factory.mktemp("bins"), (30, 20, 46), length=LENGTH, per_file=25))


def sampler(blocks: BlockSet, name: str = "periodic", **options: Any) -> Sampler:
    return open_sampler(BudgetOptions(schedule=ScheduleConfig(name=name), batch_size=8, seed=1, **options), blocks)


def seen(batches: BlockBatches, **options: Any) -> list[list[int]]:
    return [item["ids"].tolist() for item in block_loader(batches, **options)]


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("start", [0, 5])
def test_ranks_and_parts_have_one_global_order(blocks: BlockSet, world: int, parts: int, start: int) -> None:
    expected = [sampler(blocks).batch(step).tolist() for step in range(start, 12)]
    ranks = [
        seen(BlockBatches(blocks, sampler(blocks), rank=rank, world=world, parts=parts), start_step=start)
        for rank in range(world)
    ]
    assert {len(items) for items in ranks} == {(12 - start) * parts}
    for step in range(12 - start):
        slices = [ranks[rank][step * parts + part] for part in range(parts) for rank in range(world)]
        assert [block for piece in slices for block in piece] == expected[step]


@pytest.mark.parametrize(("rank", "world"), [(0, 1), (1, 2), (3, 4)])
@pytest.mark.parametrize("start", [0, 7])
def test_workers_change_nothing(blocks: BlockSet, rank: int, world: int, start: int) -> None:
    batches = BlockBatches(blocks, sampler(blocks), rank=rank, world=world)
    alone, together = (list(block_loader(batches, start_step=start, workers=workers)) for workers in (0, 2))
    assert len(alone) == len(together) == 12 - start
    for one, other in zip(alone, together, strict=True):
        assert one.keys() == other.keys() and one["step"] == other["step"]
        assert all(torch.equal(one[name], other[name]) for name in ("input_ids", "ids"))
    assert [item["step"] for item in alone] == list(range(start, 12))


def test_resumed_with_other_ranks_workers_and_parts(blocks: BlockSet) -> None:
    whole = [block for ids in seen(BlockBatches(blocks, sampler(blocks))) for block in ids]
    first = seen(BlockBatches(blocks, sampler(blocks), parts=2), start_step=0)[:8]  # 4 steps
    ranks = [
        seen(BlockBatches(blocks, sampler(blocks), rank=r, world=2), start_step=4, workers=2 * r) for r in range(2)
    ]
    second = [block for pair in zip(*ranks, strict=True) for ids in pair for block in ids]
    assert [block for ids in first for block in ids] + second == whole


def test_items_are_the_blocks(blocks: BlockSet) -> None:
    batches = BlockBatches(blocks, sampler(blocks), starts=True)
    item = batches[3]
    assert item["input_ids"].shape == (8, LENGTH + 1) and item["input_ids"].dtype == torch.int64
    np.testing.assert_array_equal(item["input_ids"].numpy(), blocks.gather(item["ids"].numpy()))
    _, places = blocks.places(item["ids"].numpy())
    for row, index in zip(item["starts"].tolist(), places.tolist(), strict=True):
        starts = block_starts(index, LENGTH)
        assert row == [max(start for start in starts if start <= place) for place in range(LENGTH + 1)]


def test_the_length_is_that_of_the_whole_training(blocks: BlockSet) -> None:
    batches = BlockBatches(blocks, sampler(blocks, tokens=10 * 8 * LENGTH), parts=2)
    assert len(batches) == 20
    for start in (0, 3, 10):
        loader = block_loader(batches, start_step=start)
        assert len(loader) == 20 and len(list(loader)) == 20 - 2 * start


def test_what_cannot_be_shared(blocks: BlockSet) -> None:
    with pytest.raises(UsageError, match="a batch of 8 blocks cannot be shared by 4 ranks x 4"):
        BlockBatches(blocks, sampler(blocks), world=4, parts=4)
    with pytest.raises(UsageError, match="a batch of 2 blocks cannot be shared by 4 ranks x 1"):
        BlockBatches(blocks, sampler(blocks, tokens=26 * LENGTH), world=4)
    with pytest.raises(UsageError, match="--workers 2 with an adaptive schedule"):
        block_loader(BlockBatches(blocks, sampler(blocks, "adaptive")), workers=2)


# --- Sequence-length warm-up: lengths over the tokens, and pieces that lose no prediction ---


def test_lengths() -> None:
    warm_up = LengthWarmUp(length=1024, start=64, tokens=960)
    found = [warm_up.at(tokens) for tokens in range(1000)]
    linear = [64 + tokens for tokens in range(960)]
    assert found[:960] == [max(64 * 2**i for i in range(5) if 64 * 2**i <= length) for length in linear]
    assert found[959:] == [512, *[1024] * 40]
    assert LengthWarmUp(length=8, start=2, tokens=0).at(0) == 8


@pytest.mark.parametrize("start", [0, 3, 16])
def test_starts_that_do_not_fit(start: int) -> None:
    with pytest.raises(ValueError, match="divided by a power of two"):
        LengthWarmUp(length=8, start=start, tokens=10)


@pytest.mark.parametrize("length", [1, 2, 4, 8])
def test_pieces_hold_every_prediction_once(length: int) -> None:
    ids = np.arange(27).reshape(3, 9)
    found = cut_blocks(ids, length)
    pairs = sorted(zip(found[:, :-1].ravel().tolist(), found[:, 1:].ravel().tolist(), strict=True))
    assert pairs == sorted(zip(ids[:, :-1].ravel().tolist(), ids[:, 1:].ravel().tolist(), strict=True))
    np.testing.assert_array_equal(cut_blocks(torch.from_numpy(ids), length), found)
    with pytest.raises(ValueError, match="pieces of 3"):
        cut_blocks(ids, 3)
