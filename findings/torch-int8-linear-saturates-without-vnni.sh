#!/bin/bash
# torch's packed 8-bit linear layer gives wrong sums on processors without VNNI, and says nothing.
#
# The layer multiplies unsigned bytes by signed bytes and is said to add in 32 bits. One would expect the same integers
# everywhere, only slower on older processors. But with AVX2 (every AMD before Zen 4, Intel before Ice Lake) oneDNN adds
# two products at a time in 16 bits, which saturate: with full bytes on both sides results are off by up to a half. The
# same call is exact with VNNI. ONEDNN_MAX_CPU_ISA shows both on a new processor; with 7 bits on one side nothing is lost.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q "torch==2.13.0" "numpy==2.4.6"
cat > "$folder/sums.py" <<'PYTHON'
import sys

import torch


def layer(x, weight):
    """Σ x w of rows of unsigned bytes, as the layer gives it."""
    packed = torch.ops.onednn.qlinear_prepack(weight, list(x.shape))
    one, zero = torch.ones(len(weight)), torch.zeros(len(weight), dtype=torch.int64)
    return torch.ops.onednn.qlinear_pointwise(
        x, 1.0, 0, packed, one, zero, None, 1.0, 0, torch.float32, "none", [], ""
    )


print("torch", torch.__version__, "on", torch.backends.cpu.get_cpu_capability(), "with", sys.argv[1])
x = torch.full((16, 64), 255, dtype=torch.uint8)
full = torch.full((32, 64), 127, dtype=torch.int8)
less = torch.full((32, 64), 63, dtype=torch.int8)
off = {}
for bits, weight in (("8-bit", full), ("7-bit", less)):
    got, true = float(layer(x, weight)[0, 0]), 255 * int(weight[0, 0]) * 64
    off[bits] = 1 - got / true
    print(f"{bits} weights: {got:,.0f}, true {true:,}, off by {100 * off[bits]:.0f} %")
sys.exit(0 if off["8-bit"] > 0.1 and off["7-bit"] == 0 else 1)
PYTHON
ONEDNN_MAX_CPU_ISA=AVX2 "$folder/env/bin/python" "$folder/sums.py" "ONEDNN_MAX_CPU_ISA=AVX2"
