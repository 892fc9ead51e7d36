"""Bytes of predicted tokens, for tokenizers of each kind, against the bytes of the text and enumeration."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes import SENTENCES, make_tokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import ByT5Tokenizer, CTRLTokenizer, PreTrainedTokenizerFast

from fluxentropy.encoding import Encoder
from fluxentropy.tokenbytes import TokenBytes

TEXTS = (
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
    texts = [text for text in TEXTS if kind.startswith("byte") or not text.startswith("▁")]
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
    for text in TEXTS[:12]:
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
