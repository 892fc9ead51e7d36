"""Tokenizers without their models, compared with what `transformers` gives for the same texts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fakes import SENTENCES, make_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from modelcopies import write_gguf
from transformers import AutoTokenizer

from fluxentropy import conversion
from fluxentropy.errors import ModelError
from fluxentropy.tokenizing import byte_tokenizer, encode, find_tokenizer, fingerprint_files, open_backend

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
