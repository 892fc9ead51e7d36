#!/usr/bin/env bash
# DuckDB's read_csv, told that there is a header, takes a later line for it and drops those before, without a word.
#
# Three small files with header = true. In the first, one row has a cell too many: the result has no row at all, and that
# row's cells are the names of the columns. In the second, the header is a cell shorter than the rows, as R's write.table
# writes row names: the real header is dropped, and the first row becomes the header. In the third, a row has an empty
# cell too many: it is cut off. One would have expected an error in all of them: `strict_mode` is on by default, header
# was not left to be detected, and with the columns given by name (auto_detect = false) the first is refused.
#
# It bit us when tables of scores were to be read by DuckDB instead of by Python's csv: models became rows and rows names.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install --quiet --disable-pip-version-check duckdb==2.0.0
cat > try.py <<'PY'
import sys

import duckdb

print("duckdb", duckdb.__version__)
FILES = {
    "one cell too many": ("text,a,b\nx,1,2\ny,3,4,5\n", (["y", "3", "4", "5"], [])),
    "a header one cell short": ('small,large\n"x",1.5,2.5\n"y",3.5,4.5\n', (["x", "1.5", "2.5"], [("y", 3.5, 4.5)])),
    "an empty cell too many": ("text,a,b\nx,1,2\ny,3,4,\n", (["text", "a", "b"], [("x", 1, 2), ("y", 3, 4)])),
}
stands = True
for name, (content, expected) in FILES.items():
    with open("a.csv", "w") as file:
        file.write(content)
    try:
        table = duckdb.sql("SELECT * FROM read_csv('a.csv', header = true)")
        found = (table.columns, table.fetchall())
    except duckdb.Error as error:
        found = f"refused: {str(error).splitlines()[0]}"
    print(f"{name}: {content!r}\n    {found}")
    stands = stands and found == expected
sys.exit(0 if stands else 1)
PY
env/bin/python try.py && echo "lines were lost without a word" || { echo "the behaviour has changed"; exit 1; }
