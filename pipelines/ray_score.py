"""A corpus to verified bins on a Ray cluster, with several models to a GPU; run it on any machine of the cluster.

python pipelines/ray_score.py web/ --model smollm2-135m-instruct --gpus-per-worker 0.5 --out scored
python pipelines/ray_score.py web/ --model smollm2-135m-instruct --workers 64 --out scored      # on CPUs

Each actor loads the model once. `--out` lies in a folder that all machines share, under one path, and so does a model
that is a file. Started again with the same options, the program goes on where it was stopped. Small models leave a GPU
idle between batches: two or three of them share it, as long as the memory lasts.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from steps import program, score_bin_verify

from fluxentropy.ordering.options import BinConfig
from fluxentropy.scoring.options import ScoreConfig


def main() -> int:
    """Read the options and run the steps; the exit code of the first that fails, or 0."""
    parser = argparse.ArgumentParser(description="Score, bin and verify a corpus on a Ray cluster.")
    parser.add_argument("sources", nargs="+", help="files, folders, globs or Hub data sets")
    parser.add_argument("--model", required=True, help="zoo name, Hub id, folder or .gguf file")
    parser.add_argument("--max-tokens", type=int, default=512, help="longest piece of a text that the model sees")
    parser.add_argument("--bins", type=int, default=8, help="bins of equal counts")
    parser.add_argument("--address", default="auto", help="of the cluster; auto: the one this machine belongs to")
    parser.add_argument("--workers", type=int, default=1, help="actors; 1: as many as the cluster can hold")
    parser.add_argument("--gpus-per-worker", type=float, help="GPUs of each actor that scores, or a share of one")
    parser.add_argument("--out", type=Path, required=True, help="folder for the scores and the bins")
    options = parser.parse_args()
    scores, work = options.out / "scores", {"engine": "ray", "address": options.address, "workers": options.workers}
    scoring = ScoreConfig(
        sources=tuple(options.sources),
        model=options.model,
        max_tokens=options.max_tokens,
        gpus_per_worker=options.gpus_per_worker,
        out=scores,
        **work,
    )
    binning = BinConfig(run=str(scores), bins=options.bins, out=options.out / "bins", **work)
    return score_bin_verify(scoring, binning)


if __name__ == "__main__":
    sys.exit(program(main))
