#!/usr/bin/env bash
# `datasets.load_dataset("arrow", …)` refuses a whole Arrow file because of the type of one column that nobody asked for.
#
# Maps, list views, decimals of 32 and 64 bits, run-end encoding, intervals, unions, and Arrow's own extension types other
# than JSON (UUID, 8-bit booleans, tensors) have "no datasets dtype equivalent", also inside lists and structs. The file is
# valid: Arrow, which `datasets` stores its own data in, reads it. One would have expected the other columns to be there,
# or the storage type of the column. Nothing is said when such a file is written; Parquet files keep most of these types
# too, so a column of a warehouse's table (maps are common there) reaches the shards through any number of steps.
#
# It bit us where we promise that every shard opens with `load_dataset("arrow", data_files=…)`: shards with a map did not.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install --quiet --disable-pip-version-check pyarrow==26.0.1 datasets==5.2.0
cat > try.py <<'PY'
import sys
from decimal import Decimal

import datasets
import pyarrow as pa

print("pyarrow", pa.__version__, "datasets", datasets.__version__)
datasets.disable_progress_bars()
COLUMNS = {
    "map": pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64())),
    "list view": pa.array([[1]], pa.list_view(pa.int64())),
    "decimal32": pa.array([Decimal("1.25")], pa.decimal32(5, 2)),
    "decimal64": pa.array([Decimal("1.25")], pa.decimal64(12, 2)),
    "uuid": pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"0" * 16], pa.binary(16))),
    "bool8": pa.ExtensionArray.from_storage(pa.bool8(), pa.array([1], pa.int8())),
    "run ends": pa.RunEndEncodedArray.from_arrays(pa.array([1], pa.int32()), pa.array(["a"])),
    "interval": pa.array([(1, 2, 3)], pa.month_day_nano_interval()),
}
stands = True
for number, (name, column) in enumerate(COLUMNS.items()):
    table, path = pa.table({"text": ["a text"], "other": column}), f"{number}.arrow"
    with pa.ipc.new_file(path, table.schema) as file:
        file.write_table(table)
    assert pa.ipc.open_file(path).read_all().equals(table)
    try:
        datasets.load_dataset("arrow", data_files=path, split="train", cache_dir="cache")
        said = "read"
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
    print(f"{name:10} {said}")
    stands = stands and "does not have a datasets dtype equivalent" in said
sys.exit(0 if stands else 1)
PY
env/bin/python try.py
