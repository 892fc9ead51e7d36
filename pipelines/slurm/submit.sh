#!/bin/bash
# Scores a corpus with an array of Slurm jobs, then completes, bins and verifies it in one more job.
#
#   fluxentropy score web/ --model smollm2-135m-instruct --out unused --print-config > score.yaml
#   pipelines/slurm/submit.sh score.yaml scored 16 8          # score.yaml, --out, jobs of the array, bins
#
# Submitted again, it makes what is missing and nothing else. Options of sbatch for all jobs: SBATCH_PARTITION and the
# like in the environment. The second job starts when all of the array has ended, well or not (afterany): it scores
# what is missing, so a job that failed costs time and nothing else. Use afterok to look at failures first.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
export CONFIG=${1:?usage: submit.sh CONFIG OUT [JOBS] [BINS]}
export OUT=${2:?usage: submit.sh CONFIG OUT [JOBS] [BINS]}
export RANKS=${3:-16} BINS=${4:-8}

mkdir -p "$OUT"
array=$(sbatch --parsable --array="0-$((RANKS - 1))" --output="$OUT/score-%a.log" "$here/score.sbatch")
sbatch --dependency="afterany:${array%%;*}" --output="$OUT/bin.log" "$here/bin.sbatch"
