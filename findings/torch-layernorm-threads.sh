#!/bin/bash
# On a CPU the gradients of LayerNorm's weight and bias have other bits with another number of threads.
#
# torch sums them over the rows in one buffer a thread, and adds the buffers up at the end, so that the order of the
# additions follows from the number of threads. One would expect torch.use_deterministic_algorithms(True), the same
# input and one machine to give the same bits, the more so as the output of the layer, the gradient of its input and all
# of a matrix product of the same size do. It bit a training that is promised to go on bit for bit after a kill: gone on
# with on a machine with another number of cores, it ends with other weights, and so does any model with LayerNorm.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q "torch==2.13.0" "numpy==2.4.6"
"$folder/env/bin/python" - <<'PYTHON'
import sys

import torch

torch.use_deterministic_algorithms(True)


def layer(make, threads):
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    x, of = torch.randn(512, 64, requires_grad=True), torch.randn(512, 64)
    module = make()
    y = module(x)
    (y * of).sum().backward()
    return {"output": y.detach(), "input": x.grad, "weight": module.weight.grad, "bias": module.bias.grad}


def same(make, threads):
    one, more = layer(make, 1), layer(make, threads)
    return {name: torch.equal(one[name], more[name]) for name in one}


print("torch", torch.__version__, "on Python", sys.version.split()[0])
norm = {threads: same(lambda: torch.nn.LayerNorm(64), threads) for threads in (2, 3, 4)}
for threads, found in norm.items():
    print(f"LayerNorm, 1 thread and {threads}: the same bits of {found}")
for threads in (2, 3, 4):
    print(f"Linear, 1 thread and {threads}: the same bits of {same(lambda: torch.nn.Linear(64, 64), threads)}")
stands = all(
    found == {"output": True, "input": True, "weight": False, "bias": False} for found in norm.values()
)
sys.exit(0 if stands else 1)
PYTHON
