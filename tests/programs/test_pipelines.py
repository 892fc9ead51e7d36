"""The pipelines run from text to verified bins, twice."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fakes import SENTENCES, save_model
from scoredruns import write_run

from fluxentropy.cli.app import main as fluxentropy
from fluxentropy.runs.engine import Engine, Local

PIPELINES = Path(__file__).resolve().parents[2] / "pipelines"


TEXTS = [f"{sentence} {row}" for row in range(8) for sentence in SENTENCES]


Program = Callable[..., str]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("saved") / "model")


@pytest.fixture
def here(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In `tmp_path`, where a folder `model` is."""
    shutil.copytree(saved, tmp_path / "model")
    monkeypatch.chdir(tmp_path)


def write_texts(folder: Path) -> None:
    rows = [{"text": text, "dump": "CC-MAIN-2024-10"} for text in TEXTS]
    (folder / "web.jsonl").write_text("\n".join(map(json.dumps, rows)))


@pytest.mark.usefixtures("here")
def test_fineweb_goes_from_text_to_verified_bins_and_resumes(pipeline: Program, tmp_path: Path) -> None:
    write_texts(tmp_path)
    arguments = ("web.jsonl", "--model", "model", "--max-tokens", 64, "--bins", 4, "--out", "out")
    for _ in range(2):
        output = pipeline("fineweb.py", *arguments)
        assert "40 rows by entropy_mean in 4 bins" in output
        assert output.count("nothing is missing") == 2


@pytest.mark.usefixtures("here")
def test_ray_score_asks_for_actors_with_a_share_of_a_gpu_and_resumes(
    pipeline: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def make_engine(*options: object) -> Engine:
        asked.append(options)
        return Local()

    for module in ("scoring.score", "ordering.bin", "verification.verify"):
        monkeypatch.setattr(importlib.import_module(f"fluxentropy.{module}"), "make_engine", make_engine)
    write_texts(tmp_path)
    arguments = ("web.jsonl", "--model", "model", "--max-tokens", 64, "--bins", 4, "--workers", 6, "--out", "out")
    for _ in range(2):
        output = pipeline("ray_score.py", *arguments, "--gpus-per-worker", 0.5)
        assert "40 rows by entropy_mean in 4 bins" in output and output.count("nothing is missing") == 2
    assert asked == [("ray", 6, "auto", 0.5), *[("ray", 6, "auto")] * 3] * 2


def test_a_mistake_is_a_message_and_not_a_traceback(tmp_path: Path, program: Callable[..., Any]) -> None:
    for name in ("fineweb.py", "ray_score.py", "datatrove_scores.py"):
        source = str(tmp_path) if name == "datatrove_scores.py" else "web.jsonl"  # an empty folder
        code, _, err = program(f"pipelines/{name}", source, "--model", "m", "--workers", "0", "--out", tmp_path / "o")
        assert code in (1, 2) and err.startswith("error: ")


# --- datatrove --------------------------------------------------------------------------------------------------------

ODD = [None, "", "   ", "a"]  # null, empty, no tokens or few, no surprisal


def write_web(files: int = 4, rows: int = 5) -> list[str]:
    """Parquet files in `web`, each with odd texts; all ids."""
    Path("web").mkdir(exist_ok=True)
    ids = []
    for file in range(files):
        texts = [ODD[file % 4], *TEXTS[rows * file : rows * (file + 1) - 1]]
        ids += [f"{file}/{row}" for row in range(rows)]
        table = pa.table({"text": texts, "id": ids[-rows:], "dump": ["CC"] * rows})
        pq.write_table(table, Path("web") / f"{file}.parquet")
    return ids


def scored_ids(out: str = "out") -> list[str]:
    """By brute force, of the scores and of the bins."""
    scores = pq.read_table(f"{out}/scores")["id"].to_pylist()
    shards = [*Path(out, "bins").glob("data/bin=*/*.arrow"), *Path(out, "bins").glob("unscored/*.arrow")]
    bins = [name for path in shards for name in pa.ipc.open_file(path).read_all()["id"].to_pylist()]
    assert sorted(scores) == sorted(bins)
    return sorted(scores)


def trove(tasks: int, *more: object, out: str = "out", model: str = "model") -> tuple[object, ...]:
    return ("web", "--model", model, "--max-tokens", 64, "--bins", 2, "--tasks", tasks, "--out", out, *more)


@pytest.fixture
def refused(program: Callable[..., Any]) -> Program:
    """Runs the program of datatrove, which must end with an error; returns what it prints to stderr."""

    def run(*arguments: object) -> str:
        code, out, err = program("pipelines/datatrove_scores.py", *arguments)
        assert code == 1, (out, err)
        return err

    return run


@pytest.mark.usefixtures("here")
def test_datatrove_keeps_every_row_with_its_status(pipeline: Program) -> None:
    ids = write_web()
    for _ in range(2):
        output = pipeline("datatrove_scores.py", *trove(3))
        assert "20 rows of web, each of them once" in output and "nothing is missing" in output
        assert scored_ids() == sorted(ids)
    table = pq.read_table("out/scores")
    assert table.schema.names[:3] == ["text", "id", "dump"] and table["dump"].to_pylist() == ["CC"] * 20
    found = {row["id"]: row for row in table.to_pylist()}
    assert [found[f"{file}/0"]["text"] for file in range(4)] == ODD
    assert [found[f"{file}/0"]["status"] for file in (0, 1)] == ["null_text", "empty"]
    assert {row["status"] for name, row in found.items() if name not in ("0/0", "1/0", "2/0")} == {"ok"}


@pytest.mark.usefixtures("here")
def test_another_number_of_tasks_is_refused(pipeline: Program, refused: Program) -> None:
    """Of 4 tasks two are left, and then 2 are asked for; all pairs are in test_datatrove_tables.py."""
    ids = write_web()
    pipeline("datatrove_scores.py", *trove(4))
    shutil.rmtree("out/bins")
    for task in (2, 3):
        Path(f"out/logs/completions/{task:05d}").unlink()
        Path(f"out/scores/{task:05d}.parquet").unlink()
    assert "tasks is 4 there and 2 here" in refused(*trove(2))
    assert not Path("out/bins").exists()
    pipeline("datatrove_scores.py", *trove(4))
    assert scored_ids() == sorted(ids)


@pytest.mark.usefixtures("here")
def test_what_has_changed_between_runs_is_refused(pipeline: Program, refused: Program) -> None:
    write_web()
    pipeline("datatrove_scores.py", *trove(2))
    assert "limit is None there and 1 here" in refused(*trove(2, "--limit", 1))
    save_model(Path("other"), vocab_size=420)
    assert "model is 'model' there and 'other' here" in refused(*trove(2, model="other"))
    config = json.loads(Path("model/config.json").read_text())
    Path("model/config.json").write_text(json.dumps(config | {"note": 1}))
    assert "fingerprint is" in refused(*trove(2))
    Path("model/config.json").write_text(json.dumps(config))
    table = pq.read_table("web/1.parquet")
    pq.write_table(table.slice(1), "web/1.parquet")
    assert "files.1.parquet is" in refused(*trove(2))
    pq.write_table(table, "web/1.parquet")
    pq.write_table(table, "web/9.parquet")
    assert "files.9.parquet is None there" in refused(*trove(2))


@pytest.mark.usefixtures("here")
def test_what_datatrove_takes_for_done_is_looked_at(pipeline: Program, refused: Program) -> None:
    """Lost files are made again; logs of another run, files of another run and damaged ones are named."""
    ids = write_web()
    pipeline("datatrove_scores.py", *trove(2))
    Path("out/scores/00001.parquet").unlink()
    shutil.rmtree("out/bins")
    pipeline("datatrove_scores.py", *trove(2))
    assert scored_ids() == sorted(ids)

    shutil.copy("out/scores/00001.parquet", "out/scores/00007.parquet")
    assert "out/scores/00007.parquet is not of a run of 2 tasks: move it away" in refused(*trove(2))
    Path("out/scores/00007.parquet").unlink()

    scores = pq.read_table("out/scores/00000.parquet")
    pq.write_table(scores.slice(0, 8), "out/scores/00000.parquet")
    assert "out/scores/00000.parquet lacks the row '2/3' of web/2.parquet" in refused(*trove(2))
    pq.write_table(pa.concat_tables([scores, scores.slice(9)]), "out/scores/00000.parquet")
    assert "out/scores/00000.parquet has a row '2/4' that web does not have there" in refused(*trove(2))
    pq.write_table(pa.concat_tables([scores.slice(0, 9), scores.slice(0, 1)]), "out/scores/00000.parquet")
    assert "has the row '0/0' where web/2.parquet has '2/4'" in refused(*trove(2))
    Path("out/scores/00000.parquet").write_bytes(b"PAR1")
    assert "out/scores/00000.parquet cannot be read" in refused(*trove(2))

    shutil.copytree("out/logs", "later/logs")
    Path("later/logs/fluxentropy.json").unlink()  # as the executor itself leaves them
    assert "holds 2 finished tasks of 2, and not what they were given" in refused(*trove(2, out="later"))


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
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Slurm and the command are played by scripts that note how they are called; then the commands are run."""
    shutil.copytree(saved, tmp_path / "model")
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
