"""Validation sums, bytes of tokens, and the file of metrics, against brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from fakes import SENTENCES, make_tokenizer
from tokenruns import write_bins

from fluxentropy.blockset import BlockSet
from fluxentropy.gpt import GPT
from fluxentropy.gptconfig import GPTConfig
from fluxentropy.tokenbytes import token_bytes
from fluxentropy.validation import HeldOut, validate


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
