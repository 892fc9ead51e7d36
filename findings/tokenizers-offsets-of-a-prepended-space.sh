#!/usr/bin/env bash
# tokenizers: the token of a space that the normaliser puts in front of a text claims the text's first character.
#
# What happens: a tokenizer of the Llama 2 kind puts "▁" before each text (normalizers.Prepend). Where this "▁" stays a
# token of its own, its offsets are (0, 1): those of the text's first character, which the next token has as well. In a
# byte-level vocabulary every token of a character that is cut has the offsets of the whole character.
# What one would have expected: offsets (0, 0) for what the text does not have, and offsets that do not overlap, so that
# the bytes of the text after the first token are those of text[offsets[0][1]:].
# Where it bit us: bits per byte divided by just these bytes. "Привет" lost its first letter, and "😀" all of itself.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "tokenizers==0.23.3"
"$folder/venv/bin/python" - <<'PYTHON'
import platform
import sys

import tokenizers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

print("Python", platform.python_version(), "tokenizers", tokenizers.__version__)
letters = {letter: number for number, letter in enumerate(["<unk>", "▁", *"Привет"])}
prepended = Tokenizer(models.BPE(vocab=letters, merges=[], unk_token="<unk>"))
prepended.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
alphabet = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
by_byte = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
by_byte.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)

stands = []
for tokenizer, text, own in ((prepended, "Привет", 0), (by_byte, "😀", 1)):
    found = tokenizer.encode(text)
    rest = len(text[found.offsets[0][1] :].encode())
    right = len(text.encode()) - own  # `own`: the bytes of the text that the first token holds
    print(f"{text}: tokens {found.tokens}, offsets {found.offsets}")
    print(f"  bytes after the first token: {rest} by offsets, {right} in truth")
    stands.append(rest != right and found.offsets[0] == found.offsets[1] == (0, 1))
sys.exit(0 if all(stands) else 1)
PYTHON
