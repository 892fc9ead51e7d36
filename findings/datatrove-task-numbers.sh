#!/bin/bash
# datatrove takes a task for done by its number alone, also when the number of tasks has changed.
#
# Each task of a run reads every n-th file, n being the number of tasks. A finished task leaves an empty file with its
# number in the logging folder, and the next run skips that number, although task 0 of 2 reads other files than task 0
# of 4. One would expect another number of tasks to be refused, or to begin anew, since what a task holds follows from
# it; the folder's executor.json even records it. Instead a run of 4 tasks of which two were done, gone on with as 2
# tasks, ends at once and leaves half of the rows; a run of 2 tasks gone on with as 4 leaves rows twice. No error either
# time. It bit a scoring pipeline that was resumed with another --tasks: 10, or 30, of 20 rows, and "nothing is missing".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q "datatrove==0.10.1" "orjson==3.13.0"
cat > "$folder/try.py" <<'PYTHON'
import gzip
import json
import sys
from importlib.metadata import version
from pathlib import Path

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter



top = Path(sys.argv[1])
(top / "in").mkdir()
for file in range(4):
    rows = [{"text": f"text {row}", "id": f"{file}/{row}"} for row in range(5)]
    (top / "in" / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def run(name, tasks):
    pipeline = [JsonlReader(str(top / "in")), JsonlWriter(str(top / name / "out"))]
    LocalPipelineExecutor(pipeline, tasks=tasks, workers=1, logging_dir=str(top / name / "logs")).run()


def ids(name):
    files = sorted((top / name / "out").glob("*.jsonl.gz"))
    return [json.loads(line)["id"] for file in files for line in gzip.decompress(file.read_bytes()).splitlines()]


if __name__ == "__main__":
    run("fewer", 4)
    for task in (2, 3):  # as if the run had been stopped before these
        (top / "fewer" / "logs" / "completions" / f"{task:05d}").unlink()
        (top / "fewer" / "out" / f"{task:05d}.jsonl.gz").unlink()
    run("fewer", 2)
    run("more", 2)
    run("more", 4)
    fewer, more = ids("fewer"), ids("more")
    print("datatrove", version("datatrove"), "on Python", sys.version.split()[0])
    print(f"4 tasks, two of them done, gone on with as 2 tasks: {len(fewer)} rows of 20, {len(set(fewer))} ids")
    print(f"2 tasks, both done, gone on with as 4 tasks: {len(more)} rows of 20, {len(set(more))} ids")
    sys.exit(0 if (len(fewer), len(more), len(set(more))) == (10, 30, 20) else 1)
PYTHON
"$folder/env/bin/python" "$folder/try.py" "$folder" 2> "$folder/log" # what the tasks log
