"""A folder of Parquet files through a datatrove pipeline that scores them, then into verified bins.

python pipelines/datatrove_scores.py web/ --model smollm2-135m-instruct --out scored --tasks 64 --workers 2
python pipelines/datatrove_scores.py hf://datasets/HuggingFaceFW/fineweb/sample/10BT --model … --out scored --tasks 256

Every row is kept, with its status: also empty and null texts. Tasks that are done are not done again, and
another number of tasks, changed files or another model are refused. At the end the scores are compared with the source,
row by row, and the bins with the scores. On a Slurm cluster, take datatrove's SlurmPipelineExecutor, and make the last
three steps when its tasks are done. Needs `pip install 'fluxentropy[datatrove]'`.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from datatrove.executor import LocalPipelineExecutor
from steps import program, run_steps

from fluxentropy.config.results import Result
from fluxentropy.errors import SourceError
from fluxentropy.ordering.bin import bin_corpus
from fluxentropy.ordering.options import BinConfig
from fluxentropy.scoring.datatrove import EntropyScorer, TableReader, TableWriter, compare, run_tasks
from fluxentropy.scoring.scores import SCORE_FIELDS, SCORE_NAMES
from fluxentropy.verification import VerifyConfig
from fluxentropy.verification.verify import verify


def open_tables(options: argparse.Namespace) -> tuple[TableReader, TableWriter]:
    """The source, and the files of the scores: all of the source's columns, and the scores'."""
    limit = None if options.limit == -1 else options.limit
    reader = TableReader(options.source, limit=limit)
    schema = reader.schema()
    if taken := sorted({*SCORE_NAMES} & {*schema.names}):
        raise SourceError(f"{options.source} has a column {taken[0]!r} already: rename or remove it")
    return reader, TableWriter(options.out / "scores", pa.schema([*schema, *SCORE_FIELDS]))


@dataclass(frozen=True, kw_only=True)
class Done(Result):
    """A step that is done, in words."""

    said: str

    def lines(self) -> list[str]:
        return [self.said]


def score(options: argparse.Namespace) -> Done:
    reader, writer = open_tables(options)
    pipeline = [reader, EntropyScorer(options.model, max_tokens=options.max_tokens), writer]
    logs = str((options.out / "logs").absolute())
    run_tasks(LocalPipelineExecutor(pipeline, tasks=options.tasks, workers=options.workers, logging_dir=logs))
    return Done(said=f"scores in {writer.out}, statistics in {logs}")


def check(options: argparse.Namespace) -> Done:
    rows = compare(*open_tables(options), options.tasks)
    return Done(said=f"{rows:,} rows of {options.source}, each of them once, in {options.out / 'scores'}")


def main() -> int:
    parser = argparse.ArgumentParser(description="Score a folder of Parquet files with datatrove; bin and verify.")
    parser.add_argument("source", help="folder of Parquet files, or hf://datasets/OWNER/NAME/FOLDER")
    parser.add_argument("--model", required=True, help="zoo name, Hub id, folder or .gguf file")
    parser.add_argument("--max-tokens", type=int, default=512, help="longest piece of a text that the model sees")
    parser.add_argument("--limit", type=int, default=-1, help="rows of each task; -1: all")
    parser.add_argument("--bins", type=int, default=8, help="bins of equal counts")
    parser.add_argument("--tasks", type=int, default=1, help="tasks that share the files")
    parser.add_argument("--workers", type=int, default=1, help="tasks that run at once")
    parser.add_argument("--out", type=Path, required=True, help="folder for the scores, the bins and datatrove's logs")
    options = parser.parse_args()
    bins = options.out / "bins"
    return run_steps(
        (
            lambda: score(options),
            lambda: check(options),
            lambda: bin_corpus(BinConfig(run=str(options.out / "scores"), bins=options.bins, out=bins)),
            lambda: verify(VerifyConfig(dir=bins, workers=options.workers)),
        )
    )


if __name__ == "__main__":
    sys.exit(program(main))
