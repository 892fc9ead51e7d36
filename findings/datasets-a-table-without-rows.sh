#!/usr/bin/env bash
# `datasets.load_dataset` refuses an Arrow file that has columns and no row, with an error about something else:
# 'Instruction "train" corresponds to no data!'.
#
# The file says its columns, so one would have expected a data set of these columns and no row, as
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

print("pyarrow", pa.__version__, "datasets", datasets.__version__)
datasets.disable_progress_bars()
table = pa.table({"id": pa.array([], pa.string()), "score": pa.array([], pa.float64())})
with pa.ipc.new_file("empty.arrow", table.schema) as writer:
    writer.write_table(table)
with pa.ipc.new_file("full.arrow", table.schema) as writer:
    writer.write_table(pa.table({"id": ["a"], "score": [1.0]}))


def rows(*files, **options):
    return len(list(datasets.load_dataset("arrow", data_files=list(files), split="train", cache_dir="cache", **options)))


print("streamed:", rows("empty.arrow", streaming=True), "rows")
print("beside a file with a row:", rows("empty.arrow", "full.arrow"), "row")
made = datasets.Dataset(table)
print("datasets.Dataset of the same table:", made.column_names, made.num_rows, "rows")
try:
    print("alone:", rows("empty.arrow"), "rows")
except ValueError as error:
    print(f"alone: {type(error).__name__}: {error}")
    sys.exit(0 if "corresponds to no data" in str(error) else 1)
sys.exit(1)
PY
env/bin/python try.py
