#!/usr/bin/env bash
# `datasets.load_dataset` refuses a table that has columns and no row, whatever its format, with an error about something
# else: 'Instruction "train" corresponds to no data!'.
#
# Arrow and Parquet files say their columns, so one would have expected a data set of these columns and no row, as
# `datasets.Dataset` makes it of the same table, and as streaming gives of the same file. Beside a file with rows the empty
# one does no harm: only alone it is refused.
#
# It bit us where each bin of a corpus is opened as a data set of its own: between fixed edges a bin may be empty.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install --quiet --disable-pip-version-check pyarrow==26.0.1 datasets==5.2.0
cat > try.py <<'PY'
import sys

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

print("pyarrow", pa.__version__, "datasets", datasets.__version__)
datasets.disable_progress_bars()
table = pa.table({"id": pa.array([], pa.string()), "score": pa.array([], pa.float64())})
with pa.ipc.new_file("empty.arrow", table.schema) as writer:
    writer.write_table(table)
pq.write_table(table, "empty.parquet")
with pa.ipc.new_file("full.arrow", table.schema) as writer:
    writer.write_table(pa.table({"id": ["a"], "score": [1.0]}))


def rows(kind, files, **options):
    return len(list(datasets.load_dataset(kind, data_files=files, split="train", cache_dir="cache", **options)))


stands = True
for kind in ("arrow", "parquet"):
    print(f"{kind}, streamed: {rows(kind, f'empty.{kind}', streaming=True)} rows")
    try:
        print(f"{kind}: {rows(kind, f'empty.{kind}')} rows")
        stands = False
    except ValueError as error:
        print(f"{kind}: {type(error).__name__}: {error}")
        stands = stands and "corresponds to no data" in str(error)
print("beside a file with a row:", rows("arrow", ["empty.arrow", "full.arrow"]), "row")
made = datasets.Dataset(table)
print("datasets.Dataset of the same table:", made.column_names, made.num_rows, "rows")
sys.exit(0 if stands else 1)
PY
env/bin/python try.py
