"""The pipelines run from text to verified bins, twice."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fakes import SENTENCES, save_model
from scoredruns import write_run

from fluxentropy.cli import main as fluxentropy
from fluxentropy.engine import Engine, Local
from fluxentropy.tablefiles import TableFiles, table_files

PIPELINES = Path(__file__).resolve().parent.parent / "pipelines"
TEXTS = [f"{sentence} {row}" for row in range(8) for sentence in SENTENCES]

Program = Callable[..., str]


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Program:
    """Runs a program of pipelines/ in `tmp_path`, where a folder `model` is; returns what it prints."""
    save_model(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(PIPELINES)

    def run(name: str, *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(PIPELINES / name), run_name="__main__")
        output = capsys.readouterr()
        assert end.value.code == 0, output.err
        return output.out

    return run


def write_texts(folder: Path) -> None:
    rows = [{"text": text, "dump": "CC-MAIN-2024-10"} for text in TEXTS]
    (folder / "web.jsonl").write_text("\n".join(map(json.dumps, rows)))


def test_fineweb_goes_from_text_to_verified_bins_and_resumes(program: Program, tmp_path: Path) -> None:
    write_texts(tmp_path)
    arguments = ("web.jsonl", "--model", "model", "--max-tokens", 64, "--bins", 4, "--out", "out")
    for _ in range(2):
        output = program("fineweb.py", *arguments)
        assert "40 rows by entropy_mean in 4 bins" in output
        assert output.count("nothing is missing") == 2


def test_ray_score_asks_for_actors_with_a_share_of_a_gpu_and_resumes(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def make_engine(*options: object) -> Engine:
        asked.append(options)
        return Local()

    for module in ("scoring", "binning", "verify"):
        monkeypatch.setattr(f"fluxentropy.{module}.make_engine", make_engine)
    write_texts(tmp_path)
    arguments = ("web.jsonl", "--model", "model", "--max-tokens", 64, "--bins", 4, "--workers", 6, "--out", "out")
    for _ in range(2):
        output = program("ray_score.py", *arguments, "--gpus-per-worker", 0.5)
        assert "40 rows by entropy_mean in 4 bins" in output and output.count("nothing is missing") == 2
    assert asked == [("ray", 6, "auto", 0.5), *[("ray", 6, "auto")] * 3] * 2


def test_a_mistake_is_a_message_and_not_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(PIPELINES)
    for name in ("fineweb.py", "ray_score.py", "datatrove_scores.py"):
        source = str(tmp_path) if name == "datatrove_scores.py" else "web.jsonl"  # an empty folder
        monkeypatch.setattr(sys, "argv", [name, source, "--model", "m", "--workers", "0", "--out", str(tmp_path / "o")])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(PIPELINES / name), run_name="__main__")
        assert end.value.code in (1, 2)
        assert capsys.readouterr().err.startswith("error: ")


def test_datatrove_goes_from_parquet_to_verified_bins_and_resumes(program: Program, tmp_path: Path) -> None:
    (tmp_path / "web").mkdir()
    for file in range(2):  # the first text of the first file has no surprisal, from which no type can be guessed
        texts = TEXTS[:20] if file else ["a", *TEXTS[:19]]
        ids = [f"{file}/{row}" for row in range(len(texts))]
        table = pa.table({"text": texts, "id": ids, "dump": ["CC"] * len(texts)})
        pq.write_table(table, tmp_path / "web" / f"{file}.parquet")
    arguments = ("web", "--model", "model", "--max-tokens", 64, "--bins", 4, "--tasks", 2, "--out", "out")
    for _ in range(2):
        output = program("datatrove_scores.py", *arguments)
        assert "40 rows by entropy_mean in 4 bins" in output and "nothing is missing" in output
    scored = TableFiles.open(table_files("out/scores"))
    assert {"dump", "entropy_mean", "status"} <= set(scored.schema.names) and scored.rows == 40


def test_bin_reads_several_runs_by_a_glob_of_their_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """How a corpus is binned that was scored as several runs."""
    scores = [(7 * row) % 40 / 8 for row in range(40)]
    write_run(tmp_path / "one", scores)
    for run in range(2):
        mine = slice(20 * run, 20 * run + 20)
        write_run(tmp_path / "runs" / str(run), scores[mine], ids=[f"id-{row}" for row in range(40)[mine]])
    found = []
    for source in ("one", "runs/*/scores/part-*.parquet"):
        out = str(tmp_path / f"bins-{len(found)}")
        assert fluxentropy(["bin", str(tmp_path / source), "--bins", "4", "--out", out]) == 0
        assert fluxentropy(["verify", out]) == 0
        found.append(json.loads((Path(out) / "bins.json").read_text()))
    assert found[0]["counts"] == [10] * 4
    assert all(found[0][name] == found[1][name] for name in ("edges", "counts", "fingerprint"))


# --- Slurm ------------------------------------------------------------------------------------------------------------

SBATCH = """#!/bin/bash
# Stands in for Slurm: runs the jobs of an array, or one job, at once.
for last; do :; done
jobs=$(sed -n 's/.*--array=0-\\([0-9]*\\).*/\\1/p' <<< "$*")
if [ -n "$jobs" ]; then
  for number in $(seq 0 "$jobs"); do
    SLURM_ARRAY_TASK_ID=$number SLURM_ARRAY_TASK_COUNT=$((jobs + 1)) SLURM_CPUS_PER_TASK=1 bash "$last" || exit
  done
else
  SLURM_CPUS_PER_TASK=1 bash "$last" || exit
fi
echo "$*" >> sbatch.log
echo "4711;cluster"
"""
FLUXENTROPY = """#!/bin/bash
printf '%s\\t' "$@" >> commands; echo >> commands
"""


@pytest.mark.parametrize("script", ["submit.sh", "score.sbatch", "bin.sbatch"])
def test_the_slurm_scripts_are_bash(script: str) -> None:
    subprocess.run(["bash", "-n", str(PIPELINES / "slurm" / script)], check=True)


def test_an_array_of_slurm_jobs_and_one_more_go_from_text_to_verified_bins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Slurm and the command are played by scripts that note how they are called; then the commands are run."""
    save_model(tmp_path / "model")
    write_texts(tmp_path)
    monkeypatch.chdir(tmp_path)
    options = ["web.jsonl", "--model", "model", "--max-tokens", "64", "--part-tokens", "60", "--out", "unused"]
    assert fluxentropy(["score", *options, "--print-config"]) == 0
    (tmp_path / "score.yaml").write_text(capsys.readouterr().out)
    (tmp_path / "path").mkdir()
    for name, text in {"sbatch": SBATCH, "fluxentropy": FLUXENTROPY}.items():
        (tmp_path / "path" / name).write_text(text)
        (tmp_path / "path" / name).chmod(0o755)
    path = f"{tmp_path / 'path'}{os.pathsep}{os.environ['PATH']}"
    command = [str(PIPELINES / "slurm" / "submit.sh"), "score.yaml", "out", "3", "4"]
    subprocess.run(command, env=os.environ | {"PATH": path}, check=True, capture_output=True)

    array, last = (tmp_path / "sbatch.log").read_text().splitlines()
    assert "--array=0-2" in array and "--dependency=afterany:4711 " in last
    commands = [line.split("\t")[:-1] for line in (tmp_path / "commands").read_text().splitlines()]
    score = ["score", "--config", "score.yaml", "--out", "out/scores"]
    assert commands[:4] == [*([*score, "--rank", f"{rank}/3"] for rank in range(3)), score]
    made = []
    for line in [commands[2], commands[0], *commands[3:]]:  # job 1 was lost
        assert fluxentropy(line) == 0
        made.append(len(list((tmp_path / "out/scores/scores").glob("part-*.parquet"))))
    assert 0 < made[0] < made[1] < made[2] == made[-1]
    output = capsys.readouterr().out
    assert "40 rows by entropy_mean in 4 bins" in output and output.count("nothing is missing") == 2
