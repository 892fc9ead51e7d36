"""FineWeb, or any corpus, from text to verified bins: score, bin and verify in one program that resumes.

python pipelines/fineweb.py --model smollm2-135m-instruct --out fineweb --limit 10000
python pipelines/fineweb.py --model smollm2-135m-instruct --out fineweb --dump CC-MAIN-2024-10
python pipelines/fineweb.py data/*.parquet --model smollm2-135m-instruct --out fineweb --bins 16 --workers 8
python pipelines/fineweb.py data/*.parquet --model smollm2-135m-instruct --out fineweb --engine ray --address auto

Without sources FineWeb is streamed from the Hub: the sample of 10 billion tokens, or the dump that is named. Started
again with the same options, the program goes on where it was stopped; a finished run is only verified again.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from steps import program, score_bin_verify

from fluxentropy.ordering.options import BinConfig
from fluxentropy.scoring.options import ScoreConfig

HUB = "hf://datasets/HuggingFaceFW/fineweb"


def main() -> int:
    """Read the options and run the steps; the exit code of the first that fails, or 0."""
    parser = argparse.ArgumentParser(description="Score, bin and verify FineWeb or another corpus.")
    parser.add_argument("sources", nargs="*", help="files, folders, globs or Hub data sets")
    parser.add_argument("--dump", default="sample-10BT", help="FineWeb's configuration: CC-MAIN-2024-10, …")
    parser.add_argument("--model", required=True, help="zoo name, Hub id, folder or .gguf file")
    parser.add_argument("--limit", type=int, help="score only the first texts")
    parser.add_argument("--max-tokens", type=int, default=512, help="longest piece of a text that the model sees")
    parser.add_argument("--by", default="entropy_mean", help="score to bin by")
    parser.add_argument("--bins", type=int, default=8, help="bins of equal counts")
    parser.add_argument("--workers", type=int, default=1, help="processes, or Ray actors, that share the work")
    parser.add_argument("--engine", choices=("local", "ray"), default="local", help="where the work is done")
    parser.add_argument("--address", help="of the Ray cluster; default: this machine")
    parser.add_argument("--gpus-per-worker", type=float, help="GPUs of each Ray actor that scores, or a share of one")
    parser.add_argument("--out", type=Path, required=True, help="folder for the scores and the bins")
    options = parser.parse_args()
    sources = tuple(options.sources) or (f"{HUB}/{options.dump}:train",)
    scores, bins = options.out / "scores", options.out / "bins"
    work = {"workers": options.workers, "engine": options.engine, "address": options.address}
    scoring = ScoreConfig(
        sources=sources,
        model=options.model,
        limit=options.limit,
        max_tokens=options.max_tokens,
        gpus_per_worker=options.gpus_per_worker,
        out=scores,
        **work,
    )
    binning = BinConfig(run=str(scores), by=(options.by,), bins=options.bins, out=bins, **work)
    return score_bin_verify(scoring, binning)


if __name__ == "__main__":
    sys.exit(program(main))
