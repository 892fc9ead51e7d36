"""Run directories: files that appear whole or not at all, tables of any size, and who does the work.

files.py      atomic writes, JSON, fingerprints of files, versions
directory.py  the run directory: begun, resumed or refused; its parts and its manifest
find.py       folders -> the runs in them, by what each one holds
tables.py     tables in Parquet and JSON Lines files, read in small batches; `metrics.csv`
mergesort.py  tables larger than the memory, sorted on disk
engine.py     units of work -> this process, several, or a Ray cluster; how a run is cut into parts
progress.py   how much, how fast, how much longer, on stderr
check.py      what is wrong with a run directory, by path
"""

from fluxentropy.doors import door

__getattr__, __dir__ = door(
    __name__,
    {
        "Run": "find",
        "RunDirectory": "directory",
        "RunRecord": "directory",
        "atomic_folder": "files",
        "atomic_path": "files",
        "find_runs": "find",
        "make_engine": "engine",
        "read_json": "files",
        "sorted_blocks": "mergesort",
        "write_json": "files",
    },
)
