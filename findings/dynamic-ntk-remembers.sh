#!/usr/bin/env bash
# Dynamic NTK in transformers: a text's logits depend on what the model read before.
#
# With `rope_type: dynamic` the rotary table is computed from the length of the input, for inputs beyond
# `max_position_embeddings`. One would expect a forward pass without a cache to be a function of its input. But the table
# of the longest input so far is kept: a text beyond `max_position_embeddings` that comes after a longer one is read with
# the longer one's table, and only an input shorter than `max_position_embeddings` brings the first table back (one of
# exactly that length does not). The same text then has other logits before and after a longer one, in the same process,
# without an error or a warning, and a corpus has other scores in another order. We met it where we asked whether a
# score depends on its neighbours: batches of one row each still disagreed.
#
# Exit status: 0 while the behaviour stands, 1 when it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet torch==2.13.0 transformers==5.23.0
cat > try.py <<'PY'
import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

print(f"torch {torch.__version__}, transformers {transformers.__version__}")
LIMIT = 64
torch.manual_seed(0)
model = LlamaForCausalLM(LlamaConfig(
    vocab_size=200, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=LIMIT, initializer_range=0.2,
    rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0})).eval()


def logits(ids):
    with torch.no_grad():
        return model(input_ids=ids[None], use_cache=False).logits[0]


text, longer, limit, short = (torch.randint(3, 200, (n,)) for n in (100, 250, LIMIT, LIMIT - 1))
first = logits(text)
logits(short)  # brings the first table back
first_limit = logits(limit)
print(f"logits of a text of 100 tokens: standard deviation {first.std():.3f}")
changes = {}
for name, before in (("itself", [text]), ("a text of 250", [longer]), ("250, then 63", [longer, short])):
    for ids in before:
        logits(ids)
    changes[name] = (logits(text) - first).abs().max().item()
    print(f"largest change after {name}: {changes[name]:.2g}")
logits(longer)
at_limit = (logits(limit) - first_limit).abs().max().item()
print(f"a text of exactly {LIMIT} tokens, after one of 250: {at_limit:.2g}")
stands = changes["itself"] < 1e-4 and changes["a text of 250"] > 0.1 and changes["250, then 63"] < 1e-4 and at_limit > 0.1
raise SystemExit(0 if stands else 1)
PY
venv/bin/python -W ignore try.py
