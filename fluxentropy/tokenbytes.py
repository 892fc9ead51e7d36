"""How many bytes of text each token of a vocabulary stands for: what bits per byte divide by."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


def token_bytes(tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> np.ndarray:
    """UTF-8 bytes of each token's text. -> int64 (vocabulary,); 0 for special tokens and for ids without a token.

    In a byte-level vocabulary each character of a token is a byte; elsewhere a token is its text, with U+2581 for a
    space and `<0x0A>` for a single byte. Over a text's tokens they add up to its bytes, but for what the tokenizer
    adds, such as a space in front, or normalises.
    """
    found = np.zeros(vocabulary, np.int64)
    special = set(tokenizer.all_special_ids)
    added = {number: str(token) for number, token in getattr(tokenizer, "added_tokens_decoder", {}).items()}
    by_byte = _is_byte_level(tokenizer)
    for token, number in tokenizer.get_vocab().items():
        if number >= vocabulary or number in special:
            continue
        if number in added:
            found[number] = len(added[number].encode())
        elif by_byte:
            found[number] = len(token)
        elif BYTE.fullmatch(token):
            found[number] = 1
        else:
            found[number] = len(token.replace("\u2581", " ").encode())
    return found


def _is_byte_level(tokenizer: PreTrainedTokenizerBase) -> bool:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return False
    return '"ByteLevel"' in json.dumps(json.loads(backend.to_str()).get("decoder"))
