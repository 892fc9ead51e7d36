#!/usr/bin/env bash
# transformers reads GGUF files without the scaling of their rotary positions, and says nothing.
#
# A llama file may scale its positions by metadata (`llama.rope.scaling.type` and `.factor`) or, as every Llama 3.1, 3.2 and
# 3.3 does, by a tensor of divisors, `rope_freqs.weight`, and old files leave out `llama.attention.head_count_kv` where there
# is one key head for each query head. One would expect `from_pretrained(gguf_file=...)` to honour them or to name what it
# cannot place: its loading report has `unexpected_keys`. It drops all three, the report is empty, and without the third the
# rows of queries and keys stay in llama.cpp's order. The model that comes out is another one, with plausible numbers. We
# scored texts with such models.
#
# Exit status: 0 while the behaviour stands, 1 when it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet torch==2.13.0 transformers==5.23.0 gguf==0.19.0 accelerate==1.15.0
cat > try.py <<'PY'
import importlib.metadata

import gguf
import numpy as np
import torch
import transformers
from transformers import GgufConfig, LlamaConfig, LlamaForCausalLM

transformers.logging.set_verbosity_error()
print(", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "transformers", "gguf")))
HEADS, WIDTH, LAYERS = 4, 64, 2
DIVISORS = np.array([1, 1, 1, 2, 4, 8, 8, 8], np.float32)
SIZES = {"context_length": 512, "embedding_length": WIDTH, "block_count": LAYERS, "feed_forward_length": 96,
         "attention.head_count": HEADS, "attention.head_count_kv": HEADS, "rope.dimension_count": WIDTH // HEADS,
         "vocab_size": 100}


def model(**rope):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=100, hidden_size=WIDTH, intermediate_size=96, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        max_position_embeddings=512, initializer_range=0.3, rope_parameters={"rope_theta": 10000.0, **rope})).eval()


def write(source, keys, tensors):
    """The model as llama.cpp's converter writes it: the two halves of each head of queries and keys interleaved."""
    writer = gguf.GGUFWriter("tiny.gguf", "llama")
    for key, value in keys.items():
        {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}[type(value)](f"llama.{key}", value)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, LAYERS)
    for name, tensor in source.state_dict().items():
        data = tensor.numpy()
        if "q_proj" in name or "k_proj" in name:
            data = data.reshape(HEADS, 2, -1, WIDTH).swapaxes(1, 2).reshape(WIDTH, WIDTH)
        writer.add_tensor(names.get_name(name, (".weight",)), np.ascontiguousarray(data))
    for name, data in tensors.items():
        writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def lost(what, source, keys=SIZES, tensors={}):
    """Whether the file gives another model, and the loading report has nothing to say."""
    write(source, keys, tensors)
    read, report = LlamaForCausalLM.from_pretrained(
        ".", gguf_file="tiny.gguf", dtype=torch.float32, quantization_config=GgufConfig(dequantize=True),
        output_loading_info=True)
    ids = torch.arange(60)[None]
    with torch.no_grad():
        true = source(ids).logits
        off = (read(ids).logits - true).abs().max().item()
    print(f"{what}: logits (sd {true.std():.2f}) off by {off:.2g}, missing {len(report['missing_keys'])}, "
          f"unexpected {len(report['unexpected_keys'])}")
    return off > 0.1 and not report["missing_keys"] and not report["unexpected_keys"]


plain = model(rope_type="default")
assert not lost("nothing special", plain)
linear = model(rope_type="linear", factor=4.0)
divided = model(rope_type="longrope", short_factor=DIVISORS.tolist(), long_factor=DIVISORS.tolist(), factor=1.0,
                attention_factor=1.0, original_max_position_embeddings=512)
seen = [
    lost("rope.scaling.type = linear", linear, SIZES | {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}),
    lost("rope_freqs.weight", divided, tensors={"rope_freqs.weight": DIVISORS}),
    lost("no head_count_kv", plain, {k: v for k, v in SIZES.items() if k != "attention.head_count_kv"}),
]
raise SystemExit(0 if all(seen) else 1)
PY
venv/bin/python -W ignore try.py
