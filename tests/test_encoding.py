"""Tokenisation: truncation, special tokens and predicted bytes against the tokenizer's own output."""

from __future__ import annotations

import pytest
from fakes import SENTENCES, make_tokenizer

from fluxentropy.encoding import CHARS_PER_TOKEN, Encoder

TEXTS = [*SENTENCES, " ".join(SENTENCES) * 4, "naïve café 中文 🙂", "x", " ", "\n\n", "a\x00b"]


@pytest.mark.parametrize("max_tokens", [None, 1, 7, 1000])
def test_ids_are_the_first_tokens_of_the_whole_text(max_tokens: int | None) -> None:
    tokenizer = make_tokenizer()
    for text, encoded in zip(TEXTS, Encoder(tokenizer, max_tokens).encode(TEXTS), strict=True):
        whole = tokenizer(text).input_ids
        assert encoded.ids.tolist() == whole[:max_tokens]
        assert encoded.truncated == (max_tokens is not None and len(whole) > max_tokens)
        assert encoded.n_bytes == len(text.encode())


def test_predicted_bytes_are_those_after_the_first_token() -> None:
    tokenizer = make_tokenizer()
    for text in SENTENCES:
        for max_tokens in (None, 1, 5):
            (encoded,) = Encoder(tokenizer, max_tokens).encode([text])
            predicted = tokenizer.decode(encoded.ids[1:].tolist())
            assert encoded.n_predicted_bytes == len(predicted.encode())


def test_a_bos_of_the_tokenizer_is_kept_and_predicts_the_whole_text() -> None:
    encoder = Encoder(make_tokenizer(bos=True), 6)
    text = SENTENCES[0]
    (encoded,) = encoder.encode([text])
    assert (encoder.n_prefix, encoded.n_prefix, encoded.ids[0], len(encoded.ids)) == (1, 1, 0, 6)
    assert encoded.n_predicted_bytes == len(make_tokenizer().decode(encoded.ids[1:].tolist()).encode())
    assert len(encoder.encode([""])[0].ids) == 0  # a BOS alone is no text


def test_an_eos_that_the_tokenizer_appends_is_dropped() -> None:
    (encoded,) = Encoder(make_tokenizer(eos=True), None).encode([SENTENCES[0]])
    assert encoded.ids.tolist() == make_tokenizer()(SENTENCES[0]).input_ids


def test_a_long_text_is_cut_before_tokenising_and_gives_the_same_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = make_tokenizer()
    text = " ".join(SENTENCES) * 400
    max_tokens = 20
    assert len(text) > 20 * max_tokens * CHARS_PER_TOKEN
    encoder = Encoder(tokenizer, max_tokens)
    seen = []
    original = encoder._tokenize
    monkeypatch.setattr(
        encoder, "_tokenize", lambda texts, cut=None: (seen.extend(map(len, texts)), original(texts, cut))[1]
    )
    (encoded,) = encoder.encode([text])
    assert encoded.ids.tolist() == tokenizer(text).input_ids[:max_tokens]
    assert encoded.truncated
    assert encoded.n_bytes == len(text.encode())
    assert max(seen) < len(text) / 10


def test_a_long_text_of_few_long_tokens_is_tokenised_further() -> None:
    text = "<s>" + " " * 3000 + "end of it"  # runs of spaces merge into few tokens only for some tokenizers
    tokenizer = make_tokenizer()
    (encoded,) = Encoder(tokenizer, 40).encode([text])
    assert encoded.ids.tolist() == tokenizer(text).input_ids[:40]


def test_no_texts_are_no_tokens() -> None:
    assert Encoder(make_tokenizer(), 5).encode([]) == []


def test_without_offsets_predicted_bytes_come_from_decoding() -> None:
    encoder = Encoder(make_tokenizer(), 5)
    encoder.fast = False
    (slow,) = encoder.encode([SENTENCES[0]])
    encoder.fast = True
    (fast,) = encoder.encode([SENTENCES[0]])
    assert slow.n_predicted_bytes == fast.n_predicted_bytes
