"""How fast `order` is, against a plain copy of the same shards into the same format, in what memory.

    python benchmarks/orders.py [--rows 100000] [--chars 2500] [--bins 8] [--rounds 3] [--formats jsonl,arrow,mds]
    python benchmarks/orders.py --memory 100000,1000000 --chars 300        (and 10000000, with 10 GB of disk)

The corpus is generated, as in binning.py, and binned. In each round, in this process, the shards are copied: read
record batch by record batch in their own order, and given to the writer that `order` uses, into files that appear whole
and are synced; blocks likewise, without a check of their ids. `hashed` adds the SHA-256 of each file, by which `verify`
knows it. Then `order` writes a random order into a fresh folder, with all that proves it. A round before the first is
not counted, so that nothing is loaded in those that are. Medians are printed, of the seconds of all cores, which say
more where others use the machine too, and of those on the clock. `whole` lets `order` have the memory to hold the
corpus, `disk` does not. With --memory, `order` runs in a process of its own for each number of rows: its peak memory.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from binning import peak_memory, timed, write_corpus

from fluxentropy.cli.app import main as fluxentropy
from fluxentropy.ordering.bins import Bins
from fluxentropy.runs.files import atomic_path, sha256_file
from fluxentropy.schedules.dataset import BlockSet
from fluxentropy.schedules.formats.catalogue import TEXT_FORMATS, TOKEN_FORMATS
from fluxentropy.schedules.formats.format import Span, TextLayout, TokenLayout
from fluxentropy.schedules.options import OrderConfig
from fluxentropy.schedules.order import order

SMALL, LARGE = "64MB", "64GB"  # memory that sends a corpus through the disk, and that holds it


def copy_texts(name: str, source: Path, target: Path) -> None:
    """Each shard as a file of the format, in the order of the shards."""
    target.mkdir()
    form, first = TEXT_FORMATS[name], 0
    for one in Bins.load(source):
        for path in one.files:
            with pa.OSFile(str(path)) as stream:
                file = pa.ipc.open_file(stream)
                layout = TextLayout(schema=file.schema, text_field="text", row_bytes=2500)
                batches = (file.get_batch(number) for number in range(file.num_record_batches))
                rows = json.loads((one.folder / ".manifest.json").read_text())["files"]
                count = next(record["rows"] for record in rows if record["name"] == path.name)
                with atomic_path(target / f"{first}{form.suffix}") as aside:
                    form.write(aside, layout, Span(first=first, rows=count), batches)
            first += count


def copy_blocks(name: str, source: Path, target: Path) -> None:
    """The blocks of each bin as a file of the format, in their order; of Megatron's, all as one, and its index."""
    target.mkdir()
    form, blocks = TOKEN_FORMATS[name], BlockSet.open(source)
    layout = TokenLayout(length=blocks.length, vocabulary=blocks.vocabulary, end=0)

    def arrays(paths: Iterable[Path]) -> Iterator[np.ndarray]:
        for path in paths:
            with pa.memory_map(str(path)) as stream:
                file = pa.ipc.open_file(stream)
                for place in range(file.num_record_batches):
                    ids = file.get_batch(place).column("input_ids").values
                    some = np.asarray(ids).reshape(-1, blocks.length + 1)[:, :-1]
                    yield np.ascontiguousarray(some, form.dtype(layout))

    if form.joined:
        whole = Span(first=0, rows=len(blocks))
        with atomic_path(target / "order.bin") as data, atomic_path(target / "order.idx") as index:
            form.join([], layout, len(blocks), data, index)
            form.write(data, layout, whole, arrays(path for paths in blocks.files for path in paths))
        return
    for number, (start, stop) in enumerate(zip(blocks.first[:-1], blocks.first[1:], strict=True)):
        span = Span(first=int(start), rows=int(stop - start))
        with atomic_path(target / f"{number}{form.suffix}") as aside:
            form.write(aside, layout, span, arrays(blocks.files[number]))


def hashed(copy: Callable[[str, Path, Path], None], name: str, source: Path, target: Path) -> None:
    """The copy, and the SHA-256 of its files."""
    copy(name, source, target)
    for path in target.iterdir():
        sha256_file(path)


def order_command(name: str, source: Path, target: Path, memory: str) -> list[str]:
    return ["order", str(source), "--format", name, "--memory", memory, "--out", str(target), "--json"]


def bin_corpus(folder: Path, rows: int, args: argparse.Namespace, *more: str) -> Path:
    corpus, bins = folder / f"corpus-{rows}", folder / f"bins-{rows}"
    write_corpus(corpus, rows, args.chars, 4)
    fluxentropy(["bin", str(corpus), "--bins", str(args.bins), "--out", str(bins), "--json", *more])
    shutil.rmtree(corpus)
    return bins


def speed(folder: Path, args: argparse.Namespace) -> None:
    bins = bin_corpus(folder, args.rows, args, "--tokenize", "bytes", "--block-length", "1024")
    print(f"{args.rows:,} rows in {args.bins} bins; seconds of all cores, seconds on the clock, times the copy's")
    for name in args.formats.split(","):
        copy = copy_texts if name in TEXT_FORMATS else copy_blocks
        contenders: dict[str, Callable[[Path, Path], object]] = {
            "copy": lambda source, target, name=name, copy=copy: copy(name, source, target),  # type: ignore[misc]
            "copy, hashed": lambda source, target, name=name, copy=copy: hashed(  # type: ignore[misc]
                copy, name, source, target
            ),
            "order, whole": lambda source, target, name=name: order(  # type: ignore[misc]
                OrderConfig(source, format=name, memory=LARGE, out=target)
            ),
            "order, disk": lambda source, target, name=name: order(  # type: ignore[misc]
                OrderConfig(source, format=name, memory=SMALL, out=target)
            ),
        }
        if name in TOKEN_FORMATS:  # blocks are mapped, whatever the memory
            del contenders["order, disk"]
        times: dict[str, list[tuple[float, float]]] = {one: [] for one in contenders}
        for counted in (False, *[True] * args.rounds):
            for one, work in contenders.items():
                found = timed(work, bins, folder / "target")
                times[one] += [found] * counted
        medians = {
            one: [statistics.median(column) for column in zip(*pairs, strict=True)] for one, pairs in times.items()
        }
        base = medians["copy"]
        for one, (clock, cores) in medians.items():
            print(
                f"{name:<12}{one:<13}{cores:7.2f} s of cores {base[1] / cores:5.2f} x  "
                f"{clock:7.2f} s {base[0] / clock:5.2f} x"
            )


def memory(folder: Path, args: argparse.Namespace) -> None:
    for rows in map(int, args.memory.split(",")):
        bins = bin_corpus(folder, rows, args)
        for name in args.formats.split(","):
            if name in TEXT_FORMATS:
                command = [sys.executable, __file__, "--peak", *order_command(name, bins, folder / "target", "256MB")]
                found = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
                print(f"{rows:>12,} rows  {name:<12} peak memory {json.loads(found.stdout) / 1e6:6.0f} MB")
                shutil.rmtree(folder / "target")
        shutil.rmtree(bins)


def main() -> None:
    if sys.argv[1:2] == ["--peak"]:
        import contextlib
        import io

        with contextlib.redirect_stdout(io.StringIO()):
            fluxentropy(sys.argv[2:])
        print(peak_memory())
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--chars", type=int, default=2500)
    parser.add_argument("--bins", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--formats", default=",".join([*TEXT_FORMATS, *TOKEN_FORMATS]))
    parser.add_argument("--memory", help="numbers of rows, to print the peak memory of `order` on each")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        (memory if args.memory else speed)(Path(folder), args)


if __name__ == "__main__":
    main()
