"""Validation sums, bytes of tokens, and the file of metrics, against brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from fakes import SENTENCES, make_tokenizer
from tokenruns import LENGTH, write_bins

from fluxentropy.errors import UsageError
from fluxentropy.models.tokenizers import token_bytes
from fluxentropy.ordering.bins import Bins
from fluxentropy.pretraining import validation as sourceloss
from fluxentropy.pretraining.gpt import GPT, GPTConfig
from fluxentropy.pretraining.pretrain import _lineage
from fluxentropy.pretraining.validation import HeldOut, bpb_by_source, read_sources, token_sources, validate
from fluxentropy.schedules.dataset import BlockSet


def test_bytes_of_a_byte_level_vocabulary_add_up_to_the_text() -> None:
    tokenizer = make_tokenizer()
    tokenizer.eos_token = "</s>"
    sizes = token_bytes(tokenizer, 405)
    for text in (*SENTENCES, "naïve café 中文 🙂 \n\t"):
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert sizes[ids].sum() == len(text.encode())
    assert sizes[tokenizer.eos_token_id] == 0
    assert sizes[401:].tolist() == [0] * 4


def test_bytes_of_a_sentencepiece_vocabulary() -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<0xC3>": 0, "<0xA9>": 1, "\u2581": 2, "\u2581a": 3, "b": 4, "é": 5, "</s>": 6}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    assert token_bytes(tokenizer, 7).tolist() == [1, 1, 1, 2, 1, 2, 0]


@pytest.fixture(scope="module")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> BlockSet:
    return BlockSet.open(write_bins(tmp_path_factory.mktemp("corpus")))


@pytest.mark.parametrize("masks", [False, True])
def test_sums_of_each_bin(masks: bool, blocks: BlockSet) -> None:
    """Against a loop over single targets in float64; each block alone."""
    torch.manual_seed(0)
    config = GPTConfig(vocab_size=400, block_size=16, n_layer=1, n_head=2, n_embd=16, zero_init=False)
    model = GPT(config)
    tokenizer = make_tokenizer()
    tokenizer.eos_token = "</s>"
    sizes = torch.from_numpy(token_bytes(tokenizer, 400))
    held = HeldOut(blocks=blocks, first=blocks.counts - np.array([3, 5, 1]))
    assert len(held) == 9
    found = validate(model, held, sizes, batch=4, document_masks=masks)
    expected = np.zeros((4, 3))
    for number in range(3):
        for index in range(int(held.first[number]), int(blocks.counts[number])):
            block = blocks.read(number, index)
            ids = torch.from_numpy(block.ids.astype(np.int64))[None]
            starts = torch.from_numpy(np.maximum.accumulate(np.isin(np.arange(17), block.starts) * np.arange(17)))[None]
            with torch.no_grad():
                logits = model(ids[:, :-1], starts=starts[:, :-1] if masks else None).double()
            for place in range(16):
                target = int(ids[0, place + 1])
                loss = -float(torch.log_softmax(logits[0, place], 0)[target])
                expected[:2, number] += loss, 1
                if sizes[target]:
                    expected[2:, number] += loss, int(sizes[target])
    np.testing.assert_allclose(found.stacked(), expected, rtol=1e-6)
    shares = [validate(model, held, sizes, batch=2, rank=rank, world=2, document_masks=masks) for rank in range(2)]
    np.testing.assert_allclose((shares[0] + shares[1]).stacked(), expected, rtol=1e-6)
    metrics = found.metrics()
    assert metrics["val_bpb"] == pytest.approx(expected[2].sum() / math.log(2) / expected[3].sum())
    assert metrics["val_loss_bin_02"] == pytest.approx(expected[0, 2] / expected[1, 2])
    assert found.by_bin([[0, 1], [2]])[0] == pytest.approx(expected[0, :2].sum() / expected[1, :2].sum())


# --- Losses by source, token by token, against brute force and against the sums of the whole validation ---


@pytest.fixture(scope="module")
def blocks_sourceloss(tmp_path_factory: pytest.TempPathFactory) -> BlockSet:
    return BlockSet.open(write_bins(tmp_path_factory.mktemp("corpus")))


def test_sources_are_those_of_the_rows(blocks_sourceloss: BlockSet) -> None:
    found = read_sources(blocks_sourceloss, "source")
    assert found.names == ("a", "b", "c")
    for number in range(blocks_sourceloss.bins):
        rows = _lineage(Bins.load(blocks_sourceloss.path)[number])["source_row"].to_pylist()
        assert [found.names[place] for place in found.rows[number]] == ["abc"[row % 3] for row in rows]


def test_the_smallest_of_many_sources_are_one(blocks_sourceloss: BlockSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sourceloss, "MOST", 4)
    found = read_sources(blocks_sourceloss, "id")
    assert len(found.names) == 5 and found.names[-1] == "other"
    counts = np.bincount(np.concatenate(found.rows))
    assert counts.tolist() == [1, 1, 1, 1, 56]


def test_a_column_that_is_not_there_is_named(blocks_sourceloss: BlockSet) -> None:
    with pytest.raises(UsageError, match=r"--sources sorce: no such column in .*: did you mean source\?"):
        read_sources(blocks_sourceloss, "sorce")


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
def test_losses_by_source_are_parts_of_the_whole(masks: bool, blocks_sourceloss: BlockSet) -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=400, block_size=LENGTH, n_layer=1, n_embd=16, n_head=2))
    torch.nn.init.normal_(model.head.weight, std=0.3)
    held_out = HeldOut(blocks=blocks_sourceloss, first=blocks_sourceloss.counts - 6)
    sizes = torch.arange(400) % 4  # some stand for no text
    options: dict[str, bool] = {"document_masks": masks}
    found = bpb_by_source(model, held_out, read_sources(blocks_sourceloss, "source"), sizes, batch=5, **options)
    whole = validate(model, held_out, sizes, batch=7, **options)
    assert sum(size for _, size in found.values()) == whole.bytes.sum()
    bits = sum(bpb * size for bpb, size in found.values())
    assert bits == pytest.approx(whole.text_loss.sum() / math.log(2), rel=1e-6)
    assert len({round(bpb, 3) for bpb, _ in found.values()}) == 3
