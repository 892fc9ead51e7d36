#!/usr/bin/env bash
# LongRoPE in transformers: a text's logits depend on how long its neighbours in the batch are.
#
# A Phi-3 with LongRoPE has two rotary tables, a short and a long one, and takes the long one once an input passes
# `original_max_position_embeddings` (4,096 tokens in the published models). One would expect that to be decided for each
# text. It is decided by the longest row of the batch, for all rows, also for short texts with a correct attention mask:
# alone they get the short table, beside a long text the long one, without an error or a warning. Batched scores
# (perplexities, log-likelihoods) of a corpus then depend on how it was cut into batches. We scored Phi-3 models in batches
# of similar length, and the texts just below the limit were wrong where a longer one shared their batch.
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
from transformers import Phi3Config, Phi3ForCausalLM

print(f"torch {torch.__version__}, transformers {transformers.__version__}")
LIMIT = 64
rope = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": LIMIT,
        "short_factor": [1.0] * 8, "long_factor": [1.0, 1.2, 1.5, 3.0, 6.0, 12.0, 25.0, 50.0]}
torch.manual_seed(0)
model = Phi3ForCausalLM(Phi3Config(
    vocab_size=200, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=2048, original_max_position_embeddings=LIMIT, pad_token_id=0,
    bos_token_id=1, eos_token_id=2, rope_parameters=rope, initializer_range=0.2)).eval()


def logits_of_short(neighbour_length):
    """Logits of the same 40 tokens beside a row of that length; both rows are masked as they should be."""
    width = max(len(short), neighbour_length)
    ids, mask = torch.zeros(2, width, dtype=torch.long), torch.zeros(2, width, dtype=torch.long)
    ids[0, :len(short)], mask[0, :len(short)] = short, 1
    ids[1, :neighbour_length], mask[1, :neighbour_length] = 7, 1
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=mask).logits[0, :len(short)]


short = torch.randint(3, 200, (40,))
with torch.no_grad():
    alone = model(input_ids=short[None]).logits[0]
below, above = ((logits_of_short(n) - alone).abs().max().item() for n in (LIMIT, LIMIT + 1))
print(f"logits of 40 tokens: standard deviation {alone.std():.3f}")
print(f"largest change beside a row of {LIMIT} tokens: {below:.2g}; beside one of {LIMIT + 1}: {above:.2g}")
raise SystemExit(0 if below < 1e-4 and above > 0.1 else 1)
PY
venv/bin/python -W ignore try.py
