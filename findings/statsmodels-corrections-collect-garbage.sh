#!/bin/bash
# Each correction of p-values for many tests by statsmodels runs a full garbage collection of the whole process.
#
# `multipletests` sorts a few numbers and multiplies them. One would expect microseconds whatever else the process
# holds; but it calls gc.collect(), whose time grows with all objects that are alive. It bit a study of simulations that
# corrects some hundred families of p-values beside torch and a table in memory: nearly all of its time went there.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q "statsmodels==0.15.0" "numpy==2.4.6" "scipy==1.17.1" "pandas==3.1.1"
"$folder/env/bin/python" - <<'PYTHON'
import gc
import sys
import time

import statsmodels
from statsmodels.stats.multitest import multipletests

full = []
gc.callbacks.append(lambda phase, info: full.append(info["generation"]) if phase == "start" else None)


def measured(calls=20):
    multipletests([0.01, 0.02, 0.04], method="holm")  # whatever is loaded at the first call
    full.clear()
    before = time.perf_counter()
    for _ in range(calls):
        multipletests([0.01, 0.02, 0.04], method="holm")
    return 1000 * (time.perf_counter() - before) / calls, full.count(2) / calls


print("statsmodels", statsmodels.__version__, "on Python", sys.version.split()[0])
alone, collections = measured()
print(f"three p-values: {collections:g} full collections a call, {alone:.2f} ms a call")
held = [[number] for number in range(2_000_000)]
beside, again = measured()
print(f"beside {len(held):,} lists: {again:g} full collections a call, {beside:.1f} ms a call")
sys.exit(0 if collections >= 1 and again >= 1 and beside > 3 * alone else 1)
PYTHON
