"""How fast `bin` is, against pyarrow that reads and rewrites the same files without any binning, and in what memory.

    python benchmarks/binning.py [--rows 100000] [--chars 2500] [--files 4] [--bins 8] [--workers 1] [--rounds 3]
    python benchmarks/binning.py --memory 100000,1000000 --chars 300

The corpus is generated: random words, ids, a normal score. In each round, in this process, pyarrow reads and rewrites
every file (Parquet, zstd), and `bin` runs into a fresh folder; medians of the rounds are printed, of the seconds on the
clock and of those of all cores, which say more where others use the machine too. `ceiling` is pyarrow when it writes
what `bin` writes: Arrow IPC with zstd. With --memory, `bin` runs in a process of its own for each number of rows, and
its peak memory is printed.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fluxentropy.cli.app import main as fluxentropy

PIECE = 10_000  # rows that are generated at once


def write_corpus(folder: Path, rows: int, chars: int, files: int) -> int:
    """`rows` rows with texts of `chars` characters in the mean, in `files` Parquet files; returns their bytes."""
    rng = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlucmfwypvbgkjqxz"))
    shares = 1 / np.arange(1, 27)
    words = ["".join(rng.choice(letters, n, p=shares / shares.sum())) for n in rng.integers(1, 11, 20_000)]
    frequency = 1 / np.arange(1, len(words) + 1)
    frequency /= frequency.sum()
    mean = float(np.dot([len(word) + 1 for word in words], frequency))
    folder.mkdir()
    for number in range(files):
        start, stop = rows * number // files, rows * (number + 1) // files
        writer = None
        for first in range(start, stop, PIECE):
            n = min(PIECE, stop - first)
            lengths = rng.geometric(mean / chars, n)
            picked = rng.choice(len(words), int(lengths.sum()), p=frequency)
            ends = np.cumsum(lengths)
            texts = [" ".join([words[i] for i in picked[a:b]]) for a, b in zip(ends - lengths, ends, strict=True)]
            table = pa.table(
                {
                    "id": [f"<urn:uuid:{first + row:032x}>" for row in range(n)],
                    "text": texts,
                    "source_file": ["web.parquet"] * n,
                    "source_row": np.arange(first, first + n),
                    "n_tokens": lengths,
                    "entropy_mean": rng.normal(3, 1, n),
                    "varentropy_mean": rng.normal(9, 2, n),
                }
            )
            writer = writer or pq.ParquetWriter(folder / f"part-{number:05d}.parquet", table.schema, compression="zstd")
            writer.write_table(table)
        if writer:
            writer.close()
    return sum(path.stat().st_size for path in folder.iterdir())


def rewrite_parquet(source: Path, target: Path) -> None:
    target.mkdir()
    for path in sorted(source.glob("*.parquet")):
        pq.write_table(pq.read_table(path), target / path.name, compression="zstd")


def rewrite_arrow(source: Path, target: Path) -> None:
    target.mkdir()
    options = pa.ipc.IpcWriteOptions(compression=pa.Codec("zstd", compression_level=1))
    for path in sorted(source.glob("*.parquet")):
        table = pq.read_table(path)
        with pa.ipc.new_file(str(target / f"{path.stem}.arrow"), table.schema, options=options) as writer:
            writer.write_table(table, max_chunksize=1024)


def peak_memory() -> int:
    """The most memory, in bytes, that this process has held, by Linux's own mark."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def bin_command(source: Path, target: Path, bins: int, workers: int) -> list[str]:
    return ["bin", str(source), "--bins", str(bins), "--workers", str(workers), "--out", str(target), "--json"]


def timed(work: Callable[[Path, Path], object], source: Path, target: Path) -> tuple[float, float]:
    """Seconds on the clock, and seconds of all cores, also of worker processes that have ended."""
    started, before = time.perf_counter(), os.times()
    with contextlib.redirect_stdout(io.StringIO()):
        work(source, target)
    seconds, after = time.perf_counter() - started, os.times()
    shutil.rmtree(target)
    return seconds, sum(after[:4]) - sum(before[:4])


def speed(folder: Path, args: argparse.Namespace) -> None:
    source = folder / "corpus"
    stored = write_corpus(source, args.rows, args.chars, args.files)
    data = sum(pq.read_table(path).nbytes for path in source.iterdir())
    print(f"{args.rows:,} rows in {args.files} files, {data / 1e6:.0f} MB of data, {stored / 1e6:.0f} MB stored")
    contenders: dict[str, Callable[[Path, Path], object]] = {
        "read and rewrite Parquet": rewrite_parquet,
        "ceiling: Parquet to Arrow": rewrite_arrow,
        "bin": lambda source, target: fluxentropy(bin_command(source, target, args.bins, args.workers)),
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for _ in range(args.rounds):
        for name, work in contenders.items():
            times[name].append(timed(work, source, folder / "target"))
    medians = {
        name: [statistics.median(column) for column in zip(*found, strict=True)] for name, found in times.items()
    }
    base = medians["read and rewrite Parquet"]
    for name, (clock, cores) in medians.items():
        rate = data / 1e6 / clock
        print(
            f"{name:<26}{clock:7.2f} s  {rate:7.0f} MB/s  {base[0] / clock:5.2f} x  "
            f"{cores:7.2f} s of cores  {base[1] / cores:5.2f} x"
        )


def memory(folder: Path, args: argparse.Namespace) -> None:
    for rows in map(int, args.memory.split(",")):
        source = folder / f"corpus-{rows}"
        write_corpus(source, rows, args.chars, args.files)
        data = sum(
            pq.read_metadata(path).row_group(n).total_byte_size
            for path in source.iterdir()
            for n in range(pq.read_metadata(path).num_row_groups)
        )
        command = [sys.executable, __file__, "--peak", *bin_command(source, folder / "target", args.bins, 1)]
        found = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
        print(f"{rows:>12,} rows  {data / 1e6:8.0f} MB of data  peak memory {json.loads(found.stdout) / 1e6:6.0f} MB")
        shutil.rmtree(folder / "target")
        shutil.rmtree(source)


def main() -> None:
    if sys.argv[1:2] == ["--peak"]:  # the process whose memory is measured
        sys.stdout = sys.stderr
        if code := fluxentropy(sys.argv[2:]):
            sys.exit(code)
        sys.__stdout__.write(f"{peak_memory()}\n")  # type: ignore[union-attr]
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("rows", 100_000), ("chars", 2500), ("files", 4), ("bins", 8), ("workers", 1), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--memory", metavar="ROWS,ROWS")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        (memory if args.memory else speed)(Path(folder), args)


if __name__ == "__main__":
    main()
