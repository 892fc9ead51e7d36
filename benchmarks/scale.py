"""What large corpora cost: measured here, and computed from stated inputs. docs/scale.md explains the numbers.

    python benchmarks/scale.py                                  the table of docs/scale.md, from the inputs in this file
    python benchmarks/scale.py --gpus 512 --utilisation 0.4     the same with other inputs
    python benchmarks/scale.py --read web/                      CPU time to read and cut files, to tokenise
    python benchmarks/scale.py --run runs/web --bins 8,64,512   bytes of a row, CPU time of `bin` and `verify`

CPU time is that of this process, all threads, the best of three: other work on the machine does not count.
"""

from __future__ import annotations

import argparse
import math
import pickle
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fluxentropy.corpus.corpus import Corpus, open_corpus
from fluxentropy.ordering.bin import bin_corpus
from fluxentropy.ordering.options import BinConfig
from fluxentropy.ordering.quantiles import Histogram
from fluxentropy.runs.engine import PART_BYTES, PART_ROWS, cut_parts
from fluxentropy.runs.tables import table_files
from fluxentropy.scoring.dataset import make_scorer
from fluxentropy.scoring.score import CHARS_PER_TOKEN, CPU_PART_TOKENS, GPU_PART_TOKENS
from fluxentropy.scoring.scores import SCORE_NAMES
from fluxentropy.verification import VerifyConfig
from fluxentropy.verification.verify import verify

# --- on paper ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class CorpusSize:
    """A corpus in round numbers."""

    name: str
    tokens: float
    documents: float
    stored: float  # bytes of its Parquet files
    gpus: int  # that score it


TOKENS_PER_DOCUMENT = 10e9 / 14.9e6  # of the sample; taken to hold for the whole
BYTES_PER_TOKEN = 4.6  # UTF-8 of English web text, GPT-2's tokens; approximate
CORPORA = (
    CorpusSize(name="FineWeb sample-10BT", tokens=10e9, documents=14.9e6, stored=28.5e9, gpus=8),
    CorpusSize(name="FineWeb, 15T tokens", tokens=15e12, documents=15e12 / TOKENS_PER_DOCUMENT, stored=44e12, gpus=64),
)


def paper(corpus: CorpusSize, args: argparse.Namespace) -> dict[str, float]:
    """What it takes to score `corpus`; every token is scored once."""
    gpus = args.gpus or corpus.gpus
    products = 2 * args.parameters / (args.flops * args.utilisation)  # seconds a token, those of the head among them
    statistics = args.vocabulary / args.logits
    rate = 1 / (products + statistics)  # tokens/s of a GPU
    seconds = corpus.tokens / rate
    text = corpus.tokens * BYTES_PER_TOKEN
    parts = max(corpus.tokens / GPU_PART_TOKENS, corpus.documents / PART_ROWS, text / PART_BYTES)
    return {
        "tokens, 10^9": corpus.tokens / 1e9,
        "documents, 10^6": corpus.documents / 1e6,
        "Parquet files, GB": corpus.stored / 1e9,
        "text, GB": text / 1e9,
        "tokens/s of a GPU": rate,
        "GPU hours": seconds / 3600,
        "GPUs": gpus,
        "hours": seconds / 3600 / gpus,
        "cores that tokenise for a GPU": rate * BYTES_PER_TOKEN / args.tokeniser,
        "text for all GPUs, MB/s": rate * gpus * BYTES_PER_TOKEN / 1e6,
        "drivers that send so much": math.ceil(rate * gpus * BYTES_PER_TOKEN / args.driver),
        "CPU hours of the drivers": text / args.driver / 3600,
        "parts, that is files": parts,
        "score columns, GB": corpus.documents * args.row_bytes / 1e9,
        "histograms of all parts, a pass, GB": parts * args.histogram_bytes / 1e9,
        "lost by a kill, GPU seconds at most": GPU_PART_TOKENS / rate,
    }


def figure(value: float) -> str:
    """Three digits; an estimate has no more.

    >>> figure(3576279), figure(0.347)
    ('3,580,000', '0.347')
    """
    return f"{float(f'{value:.3g}'):,.10g}"


# --- measured ---------------------------------------------------------------------------------------------------------


def cpu_seconds(work: Callable[[], object], rounds: int = 3) -> float:
    seconds = []
    for _ in range(rounds):
        started = time.process_time()
        work()
        seconds.append(time.process_time() - started)
    return min(seconds)


def measure_reading(source: str, model: str) -> None:
    """MB of text that a process reads and cuts into parts, sends to workers, or tokenises, in a second of CPU time."""

    def opened() -> Corpus:
        return open_corpus([source], text_field="text", spool=Path("unused"), offline=True)

    def cut() -> Iterator[pa.Table]:
        limits = CPU_PART_TOKENS * CHARS_PER_TOKEN, 512 * CHARS_PER_TOKEN
        return cut_parts(corpus.batches(), "text", *limits)

    opening, corpus = cpu_seconds(opened), opened()
    cutting = cpu_seconds(lambda: sum(map(len, cut())))
    sending = cpu_seconds(lambda: sum(len(pickle.dumps(table)) for table in cut())) - cutting
    parts = [(len(table), pc.sum(pc.binary_length(table["text"])).as_py()) for table in cut()]
    rows, size = (sum(numbers) for numbers in zip(*parts, strict=True))
    print(f"{rows:,} rows, {size / 1e6:.1f} MB of text, {len(parts)} parts of {CPU_PART_TOKENS:,} tokens")
    print(f"open and fingerprint {opening:.3f} s, read and cut {cutting:.3f} s, pickle for a worker {sending:.3f} s")
    print(f"read and cut {size / cutting / 1e6:.0f} MB/s; with pickling {size / (cutting + sending) / 1e6:.0f} MB/s")
    scorer, texts = make_scorer(model, window="sliding"), next(cut())["text"].to_pylist()
    size = sum(len(text.encode()) for text in texts)
    print(f"tokenise whole texts ({model}): {size / cpu_seconds(lambda: scorer.encode(texts)) / 1e6:.1f} MB/s")


def measure_run(run: str, bins: list[int]) -> None:
    """Bytes of a row in a run's files, compressed, and CPU time of `bin` for each number of bins."""
    files = table_files(run)
    size: dict[str, int] = {"scores": 0, "text": 0, "other columns": 0}
    rows = 0
    for file in files:
        about = pq.read_metadata(file)
        rows += about.num_rows
        for group in map(about.row_group, range(about.num_row_groups)):
            for column in map(group.column, range(group.num_columns)):
                name = column.path_in_schema
                kind = "scores" if name in SCORE_NAMES else "text" if name == "text" else "other columns"
                size[kind] += column.total_compressed_size
    print(f"{rows:,} rows in {len(files)} files; bytes a row: ", end="")
    print(", ".join(f"{kind} {total / rows:.1f}" for kind, total in size.items()))
    for number in bins:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "bins"
            making = BinConfig(run=run, bins=number, out=out, overwrite=True)
            seconds = [cpu_seconds(partial(bin_corpus, making)), cpu_seconds(partial(verify, VerifyConfig(dir=out)))]
        print(f"--bins {number}: bin {seconds[0]:.2f} s, verify {seconds[1]:.2f} s")


def measure_histograms() -> None:
    for rows in (1_000, PART_ROWS, 1_000_000):
        found = Histogram.of(np.random.default_rng(0).normal(3, 1, rows))
        size = found.keys.nbytes + found.counts.nbytes
        print(f"histogram of {rows:,} scores: {len(found.keys):,} cells, {size:,} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--read", help="measure reading these files")
    parser.add_argument("--model", default="smollm2-135m-instruct", help="with --read: whose tokenizer")
    parser.add_argument("--run", help="measure the rows of this run, and `bin` on it")
    parser.add_argument("--bins", default="8,64,512", help="with --run: numbers of bins")
    parser.add_argument("--gpus", type=int, help="instead of those in this file")
    parser.add_argument("--flops", type=float, default=989e12, help="of a GPU, a second: H100 SXM, bf16, dense")
    parser.add_argument("--utilisation", type=float, default=0.25, help="share of them that is reached: a guess")
    parser.add_argument("--parameters", type=float, default=134.5e6, help="of the model: SmolLM2-135M")
    parser.add_argument("--vocabulary", type=float, default=49152, help="of the model: SmolLM2's")
    parser.add_argument("--logits", type=float, default=97e9, help="read by plain torch in a second: an H100, trl#7244")
    parser.add_argument(
        "--driver", type=float, default=125e6, help="bytes of text read, cut and sent in a second (--read)"
    )
    parser.add_argument("--tokeniser", type=float, default=2.5e6, help="bytes of text that a core tokenises (--read)")
    parser.add_argument("--row-bytes", type=float, default=93, help="score columns of a row, compressed (--run)")
    parser.add_argument("--histogram-bytes", type=float, default=147e3, help="of a part of 16,384 rows")
    args = parser.parse_args()
    if args.read or args.run:
        if args.read:
            measure_reading(args.read, args.model)
        if args.run:
            measure_run(args.run, [int(number) for number in args.bins.split(",")])
        measure_histograms()
        return
    tables = [paper(corpus, args) for corpus in CORPORA]
    print("| |", " | ".join(corpus.name for corpus in CORPORA), "|\n|---|---|---|")
    for label in tables[0]:
        print(f"| {label} |", " | ".join(figure(table[label]) for table in tables), "|")


if __name__ == "__main__":
    main()
