#!/bin/bash
# Reading a model's config.json with transformers loads torch's compiler, its distributed tensors and sympy.
#
# A configuration is a few numbers from a JSON file, and `import transformers` is lazy, so one would expect
# `AutoConfig.from_pretrained` to cost next to nothing beside torch itself. But the class of a configuration imports its
# validators, these the activations, these the kernels from the Hub, and these the loading of weights: some nine
# hundred modules. A command that needs the configuration alone starts with two thirds more modules than torch has.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q "torch==2.13.0" "numpy==2.4.6"
"$folder/env/bin/pip" install -q "transformers==5.23.0"
mkdir "$folder/model"
cat > "$folder/model/config.json" <<'JSON'
{"model_type": "llama", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 16}
JSON
"$folder/env/bin/python" - "$folder/model" <<'PYTHON'
import sys
import time

import torch
import transformers
from transformers import AutoConfig

print("transformers", transformers.__version__, "torch", torch.__version__)
heavy = ("torch._dynamo", "torch.distributed.tensor", "sympy")
before, there = len(sys.modules), [name for name in heavy if name in sys.modules]
started = time.process_time()
config = AutoConfig.from_pretrained(sys.argv[1])
seconds, more = time.process_time() - started, len(sys.modules) - before
found = [name for name in heavy if name in sys.modules and name not in there]
print(f"a {config.model_type} configuration: {more:,} more modules beside {before:,}, {seconds:.1f} s of CPU")
print("loaded for it:", ", ".join(found))
sys.exit(0 if more > 800 and set(found) == set(heavy) else 1)
PYTHON
