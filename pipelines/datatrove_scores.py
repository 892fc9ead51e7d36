"""A folder of Parquet files through a datatrove pipeline that scores them, then into verified bins.

python pipelines/datatrove_scores.py web/ --model smollm2-135m-instruct --out scored --tasks 64 --workers 2
python pipelines/datatrove_scores.py hf://datasets/HuggingFaceFW/fineweb/sample/10BT --model … --out scored --tasks 256

Put filters and other blocks of datatrove before or after `EntropyScorer`; on a Slurm cluster, take its
SlurmPipelineExecutor. Tasks that are done are not done again. Needs `pip install 'fluxentropy[datatrove]'`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from datatrove.executor import LocalPipelineExecutor
from datatrove.io import get_datafolder
from datatrove.pipeline.readers import ParquetReader
from datatrove.pipeline.writers import ParquetWriter
from steps import program, run_steps

from fluxentropy.binning import bin_corpus
from fluxentropy.config import BinConfig, VerifyConfig
from fluxentropy.datatrove_block import EntropyScorer
from fluxentropy.errors import SourceError
from fluxentropy.outcome import Outcome
from fluxentropy.scores import SCORE_FIELDS
from fluxentropy.verify import verify


def scored_schema(source: str) -> pa.Schema:
    """The columns of the first file of `source`, and the scores': a writer would guess types from one document."""
    folder = get_datafolder(source)
    names = folder.list_files(glob_pattern="*.parquet")
    if not names:
        raise SourceError(f"{source}: no Parquet file there")
    with folder.open(names[0]) as file:
        return pa.schema([*pq.read_schema(file).remove_metadata(), *SCORE_FIELDS])


def score(options: argparse.Namespace) -> Outcome:
    scorer = EntropyScorer(options.model, max_tokens=options.max_tokens)
    schema, out = scored_schema(options.source), options.out / "scores"
    pipeline = [
        ParquetReader(options.source, glob_pattern="*.parquet", limit=options.limit),
        scorer,
        ParquetWriter(str(out), expand_metadata=True, schema=schema, compression="zstd"),
    ]
    logs = str(options.out / "logs")
    LocalPipelineExecutor(pipeline, tasks=options.tasks, workers=options.workers, logging_dir=logs).run()
    return Outcome(lines=[f"scores in {out}, statistics in {logs}"])


def main() -> int:
    parser = argparse.ArgumentParser(description="Score a folder of Parquet files with datatrove; bin and verify.")
    parser.add_argument("source", help="folder of Parquet files, or hf://datasets/OWNER/NAME/FOLDER")
    parser.add_argument("--model", required=True, help="zoo name, Hub id, folder or .gguf file")
    parser.add_argument("--max-tokens", type=int, default=512, help="longest piece of a text that the model sees")
    parser.add_argument("--limit", type=int, default=-1, help="documents of each task")
    parser.add_argument("--bins", type=int, default=8, help="bins of equal counts")
    parser.add_argument("--tasks", type=int, default=1, help="tasks that share the files")
    parser.add_argument("--workers", type=int, default=1, help="tasks that run at once")
    parser.add_argument("--out", type=Path, required=True, help="folder for the scores, the bins and datatrove's logs")
    options = parser.parse_args()
    bins = options.out / "bins"
    return run_steps(
        (
            lambda: score(options),
            lambda: bin_corpus(BinConfig(run=str(options.out / "scores"), bins=options.bins, out=bins)),
            lambda: verify(VerifyConfig(dir=bins, workers=options.workers)),
        )
    )


if __name__ == "__main__":
    sys.exit(program(main))
