#!/usr/bin/env bash
# Arrow's readers of JSON Lines and CSV turn integers into other integers, without a word.
#
# A column of 64-bit hashes in which one is 2^63 or more (half of all hashes are) becomes float64: two hashes that differ
# become equal. A column of integers in which one row has a fraction becomes float64 too: 2^53 + 1 becomes 2^53. One would
# have expected uint64, which Arrow has, and for the second an error, as Arrow's own cast from int64 to float64 gives one
# for the same value ("not in range"). `datasets` reads JSON Lines by the same inference and gives the same numbers.
#
# It bit us where ids and hashes stood beside the texts of a corpus: our reader merged the types of a field by Arrow's
# rule, and changed large integers as soon as another row, maybe in another file, had a fraction.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install --quiet --disable-pip-version-check pyarrow==26.0.1 datasets==5.2.0
cat > try.py <<'PY'
import json
import sys

import datasets
import pyarrow as pa
import pyarrow.csv
import pyarrow.json

print("pyarrow", pa.__version__, "datasets", datasets.__version__)
datasets.disable_progress_bars()
COLUMNS = {"hash": [2**64 - 1, 2**64 - 2, 7], "count": [2**53 + 1, 2**53, 1.5]}
stands = True
for name, values in COLUMNS.items():
    with open(f"{name}.jsonl", "w") as file:
        file.writelines(json.dumps({name: value}) + "\n" for value in values)
    with open(f"{name}.csv", "w") as file:
        file.writelines(f"{value}\n" for value in [name, *values])
    found = {
        "pyarrow.json": pa.json.read_json(f"{name}.jsonl")[name].to_pylist(),
        "pyarrow.csv": pa.csv.read_csv(f"{name}.csv")[name].to_pylist(),
        "datasets": datasets.load_dataset("json", data_files=f"{name}.jsonl", split="train", cache_dir="cache")[:][name],
    }
    print("in the file  ", values)
    for reader, got in found.items():
        print(f"{reader:13}", got)
        stands = stands and got[0] != values[0] and got[0] == got[1]
try:
    pa.array([2**53 + 1]).cast(pa.float64())
    stands = False
except pa.ArrowInvalid as error:
    print("a cast says  ", error)
sys.exit(0 if stands else 1)
PY
env/bin/python try.py
