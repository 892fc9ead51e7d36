"""Texts -> token ids, with what the scores need to know about them: bytes, truncation, predicted bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fluxentropy.tokenbytes import TokenBytes, token_end

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerBase

CHARS_PER_TOKEN = 32  # a text's first max_tokens * this many characters are tokenised first; more only where needed
SAFE_CHARS = 256  # tokens that end this close to such a cut may differ from those of the whole text


@dataclass(frozen=True, kw_only=True, eq=False)
class Encoded:
    """One text as tokens.

    `ids` int64 (T,) start with the `n_prefix` special tokens that the tokenizer adds by itself (a BOS). A text that
    tokenises to nothing has T = 0, also where a BOS would have been added. `n_bytes` counts the whole text in UTF-8,
    `n_predicted_bytes` the own bytes of its tokens 1..T-1 (see `tokenbytes`): what `surprisal_sum` is the code length
    of.
    """

    ids: np.ndarray
    n_prefix: int = 0
    n_bytes: int = 0
    n_predicted_bytes: int = 0
    truncated: bool = False


class Encoder:
    """Tokenises texts, keeping the first `max_tokens` tokens of each, or all of them with None.

    Special tokens that the tokenizer appends by itself (an EOS) are dropped: scores are about the text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_tokens: int | None) -> None:
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self.bytes = TokenBytes(tokenizer)
        self.fast = bool(getattr(tokenizer, "is_fast", False))
        probe = self._tokenize(["a"])[0]
        self.n_prefix = probe.n_prefix

    def encode(self, texts: Sequence[str]) -> list[Encoded]:
        """Token ids of each text. Texts must be valid Unicode (no lone surrogates)."""
        if self.max_tokens is None:
            return self._tokenize(texts)
        limit = self.max_tokens * CHARS_PER_TOKEN
        result = self._tokenize([text[:limit] for text in texts], [len(text) > limit for text in texts])
        for index, text in enumerate(texts):
            if len(text) > limit:
                result[index] = self._widen(text, result[index], limit)
        return result

    def _widen(self, text: str, encoded: Encoded, limit: int) -> Encoded:
        """Tokenise more and more of a text with very long tokens, until the first `max_tokens` of them are certain."""
        assert self.max_tokens is not None
        while len(encoded.ids) < self.max_tokens and limit < len(text):
            limit *= 8
            encoded = self._tokenize([text[:limit]], [limit < len(text)])[0]
        n_bytes = len(text.encode())
        return Encoded(
            ids=encoded.ids,
            n_prefix=encoded.n_prefix,
            n_bytes=n_bytes,
            n_predicted_bytes=encoded.n_predicted_bytes,
            truncated=encoded.truncated,
        )

    def _tokenize(self, texts: Sequence[str], cut: Sequence[bool] | None = None) -> list[Encoded]:
        """Encode `texts`; where `cut`, the text goes on beyond what is given, and tokens near its end are dropped."""
        if not texts:
            return []
        batch: Any = self.tokenizer(
            list(texts),
            add_special_tokens=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            return_special_tokens_mask=not self.fast,
            verbose=False,
        )
        result = []
        for index, text in enumerate(texts):
            ids = batch["input_ids"][index]
            encoding = batch.encodings[index] if self.fast else None
            special = encoding.special_tokens_mask if encoding is not None else batch["special_tokens_mask"][index]
            result.append(self._encoded(text, ids, special, encoding, cut is not None and cut[index]))
        return result

    def _encoded(self, text: str, ids: list[int], special: list[int], encoding: Encoding | None, cut: bool) -> Encoded:
        n_bytes = len(text.encode())
        start, stop = 0, len(ids)
        while start < stop and special[start]:
            start += 1
        while stop > start and special[stop - 1]:
            stop -= 1
        if cut and encoding is not None:
            while stop > start and token_end(encoding, stop - 1) > len(text) - SAFE_CHARS:
                stop -= 1
        if stop == start:
            return Encoded(ids=np.zeros(0, dtype=np.int64), n_bytes=n_bytes)
        truncated = cut or (self.max_tokens is not None and stop > self.max_tokens)
        if self.max_tokens is not None:
            stop = min(stop, self.max_tokens)
        kept = np.array(ids[:stop], dtype=np.int64)
        return Encoded(
            ids=kept,
            n_prefix=start,
            n_bytes=n_bytes,
            n_predicted_bytes=self.bytes.predicted(kept, start, text, encoding),
            truncated=truncated,
        )
