"""Tokenizers without their models, compared with what `transformers` gives for the same texts."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes import SENTENCES, make_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from modelcopies import write_gguf
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, ByT5Tokenizer, CTRLTokenizer, PreTrainedTokenizerFast

from fluxentropy.errors import ModelError
from fluxentropy.models import gguf as conversion
from fluxentropy.models.tokenizers import (
    CHARS_PER_TOKEN,
    Encoder,
    TokenBytes,
    byte_tokenizer,
    encode,
    find_tokenizer,
    fingerprint_files,
    open_backend,
)

TEXTS = [*SENTENCES, "", " ", "\n\n", "the end</s> and on", "<s>", " ".join(SENTENCES) * 50]


def save_tokenizer(folder: Path, *, eos: str | None = "</s>", **options: bool) -> Path:
    tokenizer = make_tokenizer(**options)
    if eos:
        tokenizer.eos_token = eos
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", ["plain", "bos and eos", "no special tokens in texts", "bytes"])
def test_ids_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    folder = save_tokenizer(tmp_path / "model", bos=name == "bos and eos", eos="</s>")
    if name == "no special tokens in texts":
        config = folder / "tokenizer_config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"split_special_tokens": True}))
    found = find_tokenizer("bytes" if name == "bytes" else str(folder))
    found.write(tmp_path / "saved")
    original = byte_tokenizer() if name == "bytes" else AutoTokenizer.from_pretrained(folder)
    expected = [original(text, add_special_tokens=False).input_ids for text in TEXTS]
    ended = [[*ids, original.eos_token_id] if ids else [] for ids in expected]
    ids, sizes = encode(open_backend(tmp_path / "saved"), TEXTS, found.eos)
    assert ids.tolist() == [token for text in ended for token in text]
    assert sizes.tolist() == [len(text) for text in ended]
    assert found.vocabulary == max(original.get_vocab().values()) + 1 == len(original)
    saved = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert [saved(text, add_special_tokens=False).input_ids for text in TEXTS] == expected


def test_the_fingerprint_is_of_the_tokenizer_and_not_of_its_place(tmp_path: Path) -> None:
    first = find_tokenizer(str(save_tokenizer(tmp_path / "a")))
    first.write(tmp_path / "b")
    again = find_tokenizer(str(tmp_path / "b"))
    again.write(tmp_path / "c")
    assert (first.name, again.name) == ("a", "b")
    assert (
        first.fingerprint == again.fingerprint == fingerprint_files(tmp_path / "b") == fingerprint_files(tmp_path / "c")
    )
    others = [find_tokenizer("bytes"), find_tokenizer(str(save_tokenizer(tmp_path / "d", eos="<s>")))]
    assert len({first.fingerprint, *(other.fingerprint for other in others)}) == 3


def test_a_gguf_file_gives_its_tokenizer_and_is_not_converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLUXENTROPY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(conversion, "convert_gguf", lambda *_: pytest.fail("converted"))
    file = write_gguf(tmp_path / "tiny.gguf")
    found = find_tokenizer(str(file))
    found.write(tmp_path / "saved")
    ids, _ = encode(open_backend(tmp_path / "saved"), SENTENCES, found.eos)
    expected = make_tokenizer()
    assert ids.tolist() == [token for text in SENTENCES for token in [*expected(text).input_ids, found.eos]]


BYTES = byte_tokenizer()


@given(st.text().filter(lambda text: "<|endoftext|>" not in text))
def test_a_token_of_bytes_is_a_byte(text: str) -> None:
    ids = BYTES(text).input_ids
    assert ids == list(text.encode())
    assert BYTES.decode(ids) == text


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="'nothing-like-it' cannot be loaded"):
        find_tokenizer("nothing-like-it")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="cannot be loaded"):
        find_tokenizer(str(tmp_path / "empty"))
    with pytest.raises(ModelError, match="has no end-of-text token"):
        find_tokenizer(str(save_tokenizer(tmp_path / "endless", eos=None)))
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(ModelError, match=r"broken\.gguf cannot be read"):
        find_tokenizer(str(tmp_path / "broken.gguf"))


# --- Tokenisation: truncation, special tokens and predicted bytes against the tokenizer's own output ---


TEXTS_ENCODING = [*SENTENCES, " ".join(SENTENCES) * 4, "naïve café 中文 🙂", "x", " ", "\n\n", "a\x00b"]


@pytest.mark.parametrize("max_tokens", [None, 1, 7, 1000])
def test_ids_are_the_first_tokens_of_the_whole_text(max_tokens: int | None) -> None:
    tokenizer = make_tokenizer()
    for text, encoded in zip(TEXTS_ENCODING, Encoder(tokenizer, max_tokens).encode(TEXTS_ENCODING), strict=True):
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


# --- Bytes of predicted tokens, for tokenizers of each kind, against the bytes of the text and enumeratio ---


TEXTS_TOKENBYTES = (
    *SENTENCES,
    "😀",
    "😀 is a face",
    "Привет, мир",
    "中文的文本在这里",
    "日本語のテキスト、です。",
    "한국어 텍스트",
    "e\u0301te\u0301 and ﬁne ½ Å",
    " leads with a space",
    "  two of them",
    "\n\n1. a list\n\t2. of two\n",
    "a\u00a0hard space",
    "▁ is a sign",
    "x",
)

FALLBACK = [f"<0x{byte:02X}>" for byte in range(256)]


def byte_alphabet() -> dict[str, int]:
    """The character of each byte in byte-level vocabularies, by their definition."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in kept]
    return {chr(byte): byte for byte in kept} | {chr(256 + n): byte for n, byte in enumerate(others)}


def wrap(backend: Tokenizer, *, bos: bool, special: tuple[str, ...] = ("<s>",)) -> Any:
    backend.add_special_tokens(list(special))
    if bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>")


def byte_level(*, bos: bool, normalizer: Any = None, prefix: bool = False) -> Any:
    backend = make_tokenizer().backend_tokenizer
    backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    return wrap(backend, bos=bos)


def sentencepiece(
    *, bos: bool, pre: Any = None, normalizer: Any = None, sign: str = "▁", unigram: bool = False, fallback: bool = True
) -> Any:
    """A vocabulary trained with `sign` for spaces; other bytes are spelt, or unknown without `fallback`."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(replacement=sign)
    trained.train_from_iterator(
        [f"{text} ▁" for text in SENTENCES[:4]] * 20, trainers.BpeTrainer(vocab_size=200, show_progress=False)
    )
    state = json.loads(trained.to_str())["model"]
    if unigram:
        tokens = [("<unk>", 0.0), *((token, -1.0 - n / 100) for n, token in enumerate(state["vocab"]))]
        extra = [(token, -20.0) for token in FALLBACK] if fallback else []
        backend = Tokenizer(models.Unigram([*tokens, *extra], unk_id=0, byte_fallback=fallback))
    else:
        vocabulary = {token: n for n, token in enumerate(["<unk>", *(FALLBACK if fallback else []), *state["vocab"]])}
        merges = [tuple(pair) for pair in state["merges"]]
        backend = Tokenizer(
            models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=fallback, fuse_unk=True)
        )
    backend.normalizer = normalizer
    backend.pre_tokenizer = pre
    backend.decoder = decoders.Sequence([decoders.Replace(sign, " "), decoders.ByteFallback(), decoders.Fuse()])
    return wrap(backend, bos=bos)


def llama(*, bos: bool, **more: Any) -> Any:
    steps = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    return sentencepiece(bos=bos, normalizer=normalizers.Sequence(steps), **more)


def metaspace(scheme: str, **more: Any) -> Callable[..., Any]:
    sign = more.get("sign", "▁")
    return lambda *, bos: sentencepiece(
        bos=bos, pre=pre_tokenizers.Metaspace(replacement=sign, prepend_scheme=scheme), **more
    )


NFC, NFKC = normalizers.NFC(), normalizers.NFKC()

LOSSLESS: dict[str, tuple[Callable[..., Any], Callable[[str], str]]] = {  # the tokenizer; the text that it reads
    "byte level": (byte_level, str),
    "byte level, space in front": (lambda *, bos: byte_level(bos=bos, prefix=True), str),
    "byte level, NFC": (lambda *, bos: byte_level(bos=bos, normalizer=NFC), lambda x: unicodedata.normalize("NFC", x)),
    "byte level, NFKC": (
        lambda *, bos: byte_level(bos=bos, normalizer=NFKC),
        lambda x: unicodedata.normalize("NFKC", x),
    ),
    "byte level, lower case": (
        lambda *, bos: byte_level(bos=bos, normalizer=normalizers.Lowercase(), prefix=True),
        str.lower,
    ),
    "BPE, prepended by a normaliser": (llama, str),
    "BPE, Metaspace always": (metaspace("always"), str),
    "BPE, Metaspace first": (metaspace("first"), str),
    "BPE, Metaspace never": (metaspace("never"), str),
    "BPE, another sign": (metaspace("always", sign="_"), str),
    "Unigram": (metaspace("always", unigram=True), str),
    "Unigram, NFKC": (
        metaspace("always", unigram=True, normalizer=NFKC),
        lambda x: unicodedata.normalize("NFKC", x),
    ),
}

ALONE = ("byte level", "byte level, NFC", "byte level, NFKC", "BPE, Metaspace never")  # nothing is put in front


@pytest.mark.parametrize("kind", LOSSLESS)
def test_after_a_bos_they_are_the_bytes_of_the_text(kind: str) -> None:
    make, read = LOSSLESS[kind]
    texts = [text for text in TEXTS_TOKENBYTES if kind.startswith("byte") or not text.startswith("▁")]
    for text, encoded in zip(texts, Encoder(make(bos=True), None).encode(texts), strict=True):
        read_text = read(text) if "byte" in kind else read(text).replace("▁", " ")
        assert (text, encoded.n_predicted_bytes) == (text, len(read_text.encode()))
        assert encoded.n_bytes == len(text.encode())


@pytest.mark.parametrize("kind", LOSSLESS)
@pytest.mark.parametrize("bos", [False, True])
def test_wherever_a_text_is_cut_each_token_adds_its_own_bytes(bos: bool, kind: str) -> None:
    """Own bytes by enumeration: of each token as its vocabulary spells it."""
    tokenizer = LOSSLESS[kind][0](bos=bos)
    alphabet, sign = byte_alphabet(), "_" if "another" in kind else "▁"

    def own(token: str) -> int:
        if kind.startswith("byte"):
            return len(bytes(alphabet[character] for character in token))
        return 1 if token in FALLBACK else len(token.replace(sign, " ").encode())

    whole = Encoder(tokenizer, None)
    for text in TEXTS_TOKENBYTES[:12]:
        (full,) = whole.encode([text])
        tokens = tokenizer.convert_ids_to_tokens(full.ids.tolist())
        for kept in range(1, len(tokens) + 1, 3):
            (cut,) = Encoder(tokenizer, kept).encode([text])
            in_front = 0  # a space that the text does not have, in the first token after the BOS
            if bos and kept > 1 and kind not in ALONE:
                in_front = 1 if "normaliser" in kind or not text.startswith(" ") else 0
            assert (text, kept, cut.n_predicted_bytes) == (text, kept, sum(map(own, tokens[1:kept])) - in_front)


def test_what_a_tokenizer_drops_is_no_tokens() -> None:
    """Pieces of words, whole words, and marks of a word's end: spaces are no token's, unknown words hold nothing."""
    words = ["[UNK]", "the", "cat", "sat", "##s", "##é", "##", "<s>"]
    pieces = Tokenizer(models.WordPiece({word: n for n, word in enumerate(words)}, unk_token="[UNK]"))
    pieces.normalizer = normalizers.BertNormalizer(strip_accents=False)
    pieces.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    pieces.decoder = decoders.WordPiece()
    levels = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="[UNK]"))
    levels.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    ends = Tokenizer(models.BPE(vocab={"a</w>": 0, "a": 1, "b</w>": 2}, merges=[], end_of_word_suffix="</w>"))
    ends.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    for backend, text, wanted in (
        (pieces, "The  cats\nsat", 3 + 4 + 3),
        (pieces, "THE caté zebra", 3 + 5 + 0),
        (pieces, "zebra", 0),
        (levels, "the zebra sat", 3 + 0 + 3),
        (ends, "aa ab", 4),
    ):
        (encoded,) = Encoder(wrap(backend, bos=True), None).encode([text])
        assert (text, encoded.n_predicted_bytes) == (text, wanted)


@pytest.mark.parametrize("unigram", [False, True])
def test_unknown_characters_without_fallback_hold_nothing(unigram: bool) -> None:
    tokenizer = metaspace("always", unigram=unigram, fallback=False)(bos=True)
    (known, unknown) = Encoder(tokenizer, None).encode(["the fox", "the 😀fox"])
    assert (known.n_predicted_bytes, unknown.n_predicted_bytes) == (7, 7)


@pytest.mark.parametrize("kind", ["byte level", "byte level, space in front", "BPE, prepended by a normaliser",
                                  "BPE, Metaspace always", "BPE, Metaspace first"])  # fmt: skip
def test_added_tokens_are_their_text(kind: str) -> None:
    """Also special ones that the text has; and a text that goes on after one begins afresh for some tokenizers."""
    tokenizer = LOSSLESS[kind][0](bos=True)
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False), AddedToken("<é>", normalized=False)])
    texts = ["the<tool>fox", "the <é> fox<s>jumps", "<tool>the", "<tool>", "<s> the", "fox<tool>😀"]
    for text, encoded in zip(texts, Encoder(tokenizer, None).encode(texts), strict=True):
        assert (text, encoded.n_predicted_bytes) == (text, len(text.encode()))


def test_tokenizers_in_python(tmp_path: Path) -> None:
    byt5 = ByT5Tokenizer()
    (encoded,) = Encoder(byt5, None).encode(["é 😀"])
    assert (len(encoded.ids), encoded.n_prefix, encoded.n_predicted_bytes) == (7, 0, 6)
    assert Encoder(byt5, 3).encode(["é 😀"])[0].n_predicted_bytes == 2
    (tmp_path / "vocab.json").write_text(json.dumps({"<unk>": 0, "h@@": 1, "i": 2, "hi": 3, "@@": 4, "é": 5}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    ctrl = CTRLTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    sizes = TokenBytes(ctrl).sizes
    assert sizes.tolist() == [0, 1, 1, 2, 2, 2]
