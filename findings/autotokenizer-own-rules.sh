#!/bin/sh
# AutoTokenizer puts its own rules in the place of those in tokenizer.json, depending on the type of the model beside it.
#
# tokenizer.json says all about a fast tokenizer: vocabulary, merges, and how a text is normalised and cut. A folder saved
# with PreTrainedTokenizerFast opens as it was with AutoTokenizer, unless a config.json of model_type qwen2 (or phi3,
# nemotron and about forty more) lies beside it: then the class registered for this type reads vocabulary and merges
# alone, and normalises and cuts texts by its own rules. No warning, other ids. The class that tokenizer_config.json
# names is not asked. One would expect the file's own rules, as with every other model.
#
# It bit us where a model converted from GGUF keeps a tokenizer with the rule that its file names: with architecture qwen2
# and another rule than Qwen's, a text had other tokens after saving than before.
#
# Exit status: 0 while it is so, 1 when it has changed.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q transformers==5.23.0 tokenizers==0.23.3
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import importlib.metadata
import sys

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerFast

print(*(f"{name} {importlib.metadata.version(name)}" for name in ("transformers", "tokenizers")))
alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
vocabulary = {token: index for index, token in enumerate([*alphabet, "12"])}
backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[("1", "2")]))
backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # GPT-2's rule: digits together
backend.decoder = decoders.ByteLevel()
saved = PreTrainedTokenizerFast(tokenizer_object=backend)
text = "12 e\u0301"  # a letter and a combining accent
print("saved:                             ", saved.tokenize(text))
opened = {}
for kind in ("gpt2", "llama", "qwen2"):
    saved.save_pretrained(kind)
    AutoConfig.for_model(kind).save_pretrained(kind)
    opened[kind] = AutoTokenizer.from_pretrained(kind)
    print(f"opened, model_type {kind:6}{type(opened[kind]).__name__:20}", opened[kind].tokenize(text))
right = saved.tokenize(text)
same = all(opened[kind].tokenize(text) == right for kind in ("gpt2", "llama"))
sys.exit(0 if same and opened["qwen2"].tokenize(text) != right else 1)
PYTHON
