"""Losses by source, token by token, against brute force and against the sums of the whole validation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tokenruns import LENGTH, write_bins

from fluxentropy import sourceloss
from fluxentropy.blockset import BlockSet
from fluxentropy.errors import UsageError
from fluxentropy.gpt import GPT
from fluxentropy.gptconfig import GPTConfig
from fluxentropy.seen import _lineage
from fluxentropy.shards import bin_folder
from fluxentropy.sourceloss import bpb_by_source, read_sources, token_sources
from fluxentropy.validation import HeldOut, validate


@pytest.fixture(scope="module")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> BlockSet:
    return BlockSet.open(write_bins(tmp_path_factory.mktemp("corpus")))


def test_sources_are_those_of_the_rows(blocks: BlockSet) -> None:
    found = read_sources(blocks, "source")
    assert found.names == ("a", "b", "c")
    for number in range(blocks.bins):
        rows = _lineage(blocks.path / bin_folder(number, blocks.bins, "data"))["source_row"].to_pylist()
        assert [found.names[place] for place in found.rows[number]] == ["abc"[row % 3] for row in rows]


def test_the_smallest_of_many_sources_are_one(blocks: BlockSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sourceloss, "MOST", 4)
    found = read_sources(blocks, "id")
    assert len(found.names) == 5 and found.names[-1] == "other"
    counts = np.bincount(np.concatenate(found.rows))
    assert counts.tolist() == [1, 1, 1, 1, 56]


def test_a_column_that_is_not_there_is_named(blocks: BlockSet) -> None:
    with pytest.raises(UsageError, match=r"--sources sorce: no such column in .*: did you mean source\?"):
        read_sources(blocks, "sorce")


def test_a_target_counts_for_its_own_document() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        starts = np.concatenate([[0], np.sort(rng.choice(np.arange(1, 17), rng.integers(0, 5), replace=False))])
        documents, rows = rng.integers(0, 9, len(starts)), rng.integers(0, 4, 9)
        oracle = []
        for target in range(1, 17):
            segment = max(place for place, start in enumerate(starts) if start <= target)
            oracle.append(rows[documents[segment]])
        assert token_sources(starts, documents, rows, 16).tolist() == oracle


@pytest.mark.parametrize("masks", [False, True])
def test_losses_by_source_are_parts_of_the_whole(masks: bool, blocks: BlockSet) -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=400, block_size=LENGTH, n_layer=1, n_embd=16, n_head=2))
    torch.nn.init.normal_(model.head.weight, std=0.3)
    held_out = HeldOut(blocks=blocks, first=blocks.counts - 6)
    sizes = torch.arange(400) % 4  # some stand for no text
    options: dict[str, bool] = {"document_masks": masks}
    found = bpb_by_source(model, held_out, read_sources(blocks, "source"), sizes, batch=5, **options)
    whole = validate(model, held_out, sizes, batch=7, **options)
    assert sum(size for _, size in found.values()) == whole.bytes.sum()
    bits = sum(bpb * size for bpb, size in found.values())
    assert bits == pytest.approx(whole.text_loss.sum() / math.log(2), rel=1e-6)
    assert len({round(bpb, 3) for bpb, _ in found.values()}) == 3
