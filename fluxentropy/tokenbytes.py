"""How many bytes of text each token of a vocabulary stands for: what bits per byte divide by.

A token's own bytes are those of the text that it holds, in UTF-8:

    vocabulary                    token           own bytes
    byte-level                    "Ã" "Ġthe"      1, 4: each character is a byte
    with a sign for spaces        "▁the"          4: the sign is a space
    with single bytes             "<0xC3>"        1
    pieces of words               "##ing" "a</w>" 3, 1: what marks a piece is no text
    added tokens                  "<tool>"        6, where a text has them
    unknown words                 "[UNK]"         0: the text cannot be had back from it

So a character that is cut counts for each token with the bytes that the token has of it. The text of a token is that
after the tokenizer's normaliser: where this composes accents or lowers case, the bytes are those of the result, and
spaces that it drops are no token's. A space in front that the text does not have counts nowhere.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerBase

PREDICTED_BYTES = "own bytes of tokens"  # the rule, by which a run is told from those of another one
BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
SPACE = "\u2581"  # what SentencePiece writes for a space
BYTE_SPACE = "\u0120"  # what stands for a space in a byte-level vocabulary
ENDINGS = ("</w>", "@@")  # what vocabularies of tokenizers in Python mark the last or the other pieces of a word with


class TokenBytes:
    """The bytes of a tokenizer's tokens: `sizes` int64 (V,) of each id, V the largest id + 1."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.backend = getattr(tokenizer, "backend_tokenizer", None)
        self.added = {number: str(token) for number, token in getattr(tokenizer, "added_tokens_decoder", {}).items()}
        self._spaces: dict[str, int] = {}  # the first character of a text -> spaces that are put in front of it

    @cached_property
    def sizes(self) -> np.ndarray:
        found = np.zeros(max([*self.vocabulary.values(), *self.added], default=-1) + 1, np.int64)
        for token, number in self.vocabulary.items():
            found[number] = self._size(token)
        for number, token in self.added.items():
            found[number] = _length(self._plain(token))
        if self.unknown is not None and not self._has_all_bytes:
            found[self.unknown] = 0
        return found

    def predicted(self, ids: np.ndarray, n_prefix: int, text: str, encoding: Encoding | None = None) -> int:
        """Bytes of the tokens of `text` that are predicted: all but those of the prefix, or else all but the first.

        `ids` (T,) start with `n_prefix` special tokens; `encoding` says where in the text they stand.
        """
        own = self.sizes[ids]
        total = int(own[max(n_prefix, 1) :].sum())
        if not self._prepended("a"):
            return total
        starts = [n_prefix] if 0 < n_prefix < len(ids) else []  # the first tokens of texts, and of what goes on after
        if encoding is not None and self._everywhere:  # an added token
            after = np.flatnonzero(self._is_added[ids[:-1]]) + 1
            starts += after[after > n_prefix].tolist()
        for at in starts:
            if not self._is_added[ids[at]]:
                begin = 0 if at == n_prefix else token_end(encoding, at - 1)
                total -= min(int(own[at]), self._prepended(text[begin : begin + 1]))
        return total

    # --- what a token holds ---

    def _size(self, token: str) -> int:
        for mark in self._beginnings:
            if token.startswith(mark) and token != mark:
                token = token.removeprefix(mark)
        for mark in self._endings:
            if token.endswith(mark) and token != mark:
                token = token.removesuffix(mark)
        if self.by_byte:
            return len(token)
        return 1 if self._falls_back and BYTE.fullmatch(token) else _length(self._plain(token))

    def _plain(self, token: str) -> str:
        """The token with spaces for what stands for them, outside byte-level vocabularies."""
        if not self.by_byte:
            for mark in self._marks:
                token = token.replace(mark, " ")
        return token

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        return dict(self.tokenizer.get_vocab())

    @cached_property
    def by_byte(self) -> bool:
        """Whether each character of a token is a byte."""
        if self.backend is None:  # GPT-2 and ByT5 write the bytes C3 B8 as the characters of these numbers
            return self._pieces("\u00f8").endswith("\u00c3\u00b8")
        return any(part["type"] == "ByteLevel" for part in self._parts)

    @cached_property
    def unknown(self) -> int | None:
        """The id that stands for what the vocabulary lacks."""
        if self.backend is None:
            return self.tokenizer.unk_token_id
        token = getattr(self.backend.model, "unk_token", None)
        return self._model.get("unk_id") if token is None else self.backend.token_to_id(token)

    @cached_property
    def _has_all_bytes(self) -> bool:
        """Whether any text can be spelt, so that nothing is unknown."""
        if self.by_byte:
            return sum(len(token) == 1 for token in self.vocabulary) >= 256
        return self._falls_back and sum(bool(BYTE.fullmatch(token)) for token in self.vocabulary) >= 256

    @cached_property
    def _falls_back(self) -> bool:
        """Whether `<0x0A>` is a byte."""
        if self.backend is None or any(part["type"] == "ByteFallback" for part in self._parts):
            return True
        return bool(self._model.get("byte_fallback", getattr(self.backend.model, "byte_fallback", False)))

    @cached_property
    def _beginnings(self) -> tuple[str, ...]:
        return self._model_marks("continuing_subword_prefix")

    @cached_property
    def _endings(self) -> tuple[str, ...]:
        return ENDINGS if self.backend is None else self._model_marks("end_of_word_suffix")

    def _model_marks(self, name: str) -> tuple[str, ...]:
        mark = getattr(self.backend.model, name, None) if self.backend is not None else None
        return (mark,) if mark else ()

    @cached_property
    def _model(self) -> dict[str, Any]:
        """What a Unigram model does not tell otherwise."""
        if self.backend is None or type(self.backend.model).__name__ != "Unigram":
            return {}
        return {key: value for key, value in json.loads(self.backend.model.__getstate__()).items() if key != "vocab"}

    @cached_property
    def _parts(self) -> list[dict[str, Any]]:
        """The steps of the normaliser, the pre-tokenizer and the decoder, as the tokenizer's file names them."""
        steps = (self.backend.normalizer, self.backend.pre_tokenizer, self.backend.decoder) if self.backend else ()
        return [part for step in steps if step is not None for part in _walk(_state(step))]

    @cached_property
    def _marks(self) -> tuple[str, ...]:
        """What stands for a space in tokens."""
        if self.backend is None:
            return (BYTE_SPACE,) if self.by_byte else (SPACE,)
        found = [BYTE_SPACE] if self.by_byte else []
        for part in self._parts:
            if part["type"] == "Metaspace":
                found.append(part["replacement"])
            elif part["type"] == "Replace":
                pattern, content = part["pattern"].get("String"), part["content"]
                if " " in (pattern, content) and (mark := content if pattern == " " else pattern):
                    found.append(mark)
        return tuple(dict.fromkeys(found))

    # --- spaces that the text does not have ---

    def _prepended(self, first: str) -> int:
        """How many spaces are put in front of a text that begins with the character `first`.

        What stands before it at the beginning is compared with what stands before it inside of a text.
        """
        if first not in self._spaces:
            begin, inside, before = (self._pieces(text) for text in (f"{first}a", f"a{first}a", "a"))
            self._spaces[first] = max(self._leading(begin) - self._leading(inside[len(before) :]), 0)
        return self._spaces[first]

    def _leading(self, pieces: str) -> int:
        return len(pieces) - len(pieces.lstrip("".join(self._marks))) if self._marks else 0

    def _pieces(self, text: str) -> str:
        """A text as tokens spell it."""
        if self.backend is None:
            return "".join(map(str, self.tokenizer.tokenize(text)))
        if self.backend.normalizer is not None:
            text = self.backend.normalizer.normalize_str(text)
        if self.backend.pre_tokenizer is None:
            return text
        return "".join(piece for piece, _ in self.backend.pre_tokenizer.pre_tokenize_str(text))

    @cached_property
    def _everywhere(self) -> bool:
        """Whether a text that goes on after an added token begins afresh."""
        return not any(part.get("prepend_scheme") == "first" for part in self._parts)

    @cached_property
    def _is_added(self) -> np.ndarray:
        found = np.zeros(len(self.sizes), bool)
        found[list(self.added)] = True
        return found


def token_bytes(tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> np.ndarray:
    """Own bytes of each token, for trainings. -> int64 (vocabulary,)

    0 for special tokens, which stand between texts there, and for ids without a token. Over a text's tokens they add
    up to its bytes, but for a space that the tokenizer puts in front.
    """
    sizes = TokenBytes(tokenizer).sizes.copy()
    sizes[[number for number in tokenizer.all_special_ids if number < len(sizes)]] = 0
    found = np.zeros(vocabulary, np.int64)
    found[: len(sizes)] = sizes[:vocabulary]
    return found


def _length(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


def token_end(encoding: Encoding | None, token: int) -> int:
    """The character of the text at which a token ends."""
    chars = encoding.token_to_chars(token) if encoding is not None else None
    return chars[1] if chars else 0


def _state(step: Any) -> Any:
    """A step of a tokenizer as its file has it; nothing for one that is written in Python."""
    try:
        return json.loads(step.__getstate__())
    except Exception:  # the library raises a plain Exception for steps that it cannot write
        return None


def _walk(state: Any) -> Iterator[dict[str, Any]]:
    """All steps inside of `state`."""
    if isinstance(state, dict):
        if "type" in state:
            yield state
        state = list(state.values())
    if isinstance(state, list):
        for item in state:
            yield from _walk(item)
