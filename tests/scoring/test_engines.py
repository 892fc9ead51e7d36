"""One process, two, Ray on this machine, and ranks without a coordinator give the same bytes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fakes import save_model

from fluxentropy.cli.app import main
from fluxentropy.errors import UsageError
from fluxentropy.scoring.parts import worker_device
from tests.verification.test_faults import killed, server, snapshot  # noqa: F401  # `server` starts by itself

SHARED = Path(os.environ.get("FLUXENTROPY_SHARED", "../shared"))
PIPELINE = Path(__file__).parents[2] / "pipelines" / "fineweb.py"
ROWS = 20  # of each file of the mixture
SCORE = ["--max-tokens", "64", "--part-tokens", "200"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


def environment() -> dict[str, str]:
    """For a program in a process of its own."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def without_config(folder: Path) -> dict[str, bytes]:
    """Every file, but for those that say how the work was shared."""
    leave = ("config.resolved.yaml", ".records.json", ".starting")
    return {name: data for name, data in snapshot(folder).items() if not name.endswith(leave)}


@pytest.mark.shared_data
@pytest.mark.skipif(not SHARED.is_dir(), reason="no shared data")
def test_webmix_from_text_to_verified_bins_here_and_on_ray(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pipeline: Callable[..., str]
) -> None:
    """Several processes: below, and in the tests of binning."""
    sources = sorted(SHARED.glob("data/webmix/train-*.parquet"))
    (tmp_path / "webmix").mkdir()
    for path in sources:
        pq.write_table(pq.read_table(path).slice(0, ROWS), tmp_path / "webmix" / path.name)
    argv = [tmp_path / "webmix", "--model", model, "--max-tokens", 64, "--bins", 4, "--out", "out"]
    for name in ("here", "ray"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "ray")
    program = [sys.executable, PIPELINE, *argv, "--engine", "ray"]  # Ray ends with that process
    done = subprocess.run([*map(str, program)], env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    monkeypatch.chdir(tmp_path / "here")
    for said in (done.stdout, pipeline("fineweb.py", *argv)):
        assert said.count("nothing is missing, nothing is damaged") == 2
    assert without_config(tmp_path / "here" / "out") == without_config(tmp_path / "ray" / "out")
    bins = tmp_path / "here" / "out" / "bins"
    shards = [*bins.glob("data/bin=*/*.arrow"), *bins.glob("unscored/*.arrow")]
    assert sum(pa.ipc.open_file(path).read_all().num_rows for path in shards) == ROWS * len(sources)


def write_texts(path: Path) -> Path:
    path.write_text("".join(f'{{"id": "t{n}", "text": "{"entropy measures " * (n % 7 + 1)}{n}"}}\n' for n in range(90)))
    return path


def score(source: Path, model: Path, out: Path, *more: str) -> int:
    return main(["score", str(source), "--model", str(model), "--out", str(out), *SCORE, *more])


def test_ranks_share_a_run_and_the_same_command_completes_it(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_texts(tmp_path / "texts.jsonl")
    assert score(source, model, tmp_path / "whole") == 0
    expected = without_config(tmp_path / "whole")
    parts = sum(name.endswith(".parquet") for name in expected)
    assert parts > 4
    out = tmp_path / "shared"
    for rank in range(3):
        assert score(source, model, out, "--rank", f"{rank}/3") == 0
        made = sorted(int(path.stem[-5:]) for path in (out / "scores").glob("part-*.parquet"))
        assert made == [number for number in range(parts) if number % 3 <= rank]
        assert b'"complete": false' in (out / "manifest.json").read_bytes()
    removed = out / "scores" / "part-00001.parquet"
    removed.unlink()
    capsys.readouterr()
    assert score(source, model, out) == 0  # fills the gap, and completes
    assert "resuming: " in capsys.readouterr().err
    assert without_config(out) == expected
    assert (out / "config.resolved.yaml").read_text() == (
        tmp_path / "whole" / "config.resolved.yaml"
    ).read_text().replace(str(tmp_path / "whole"), str(out))


def test_ranks_at_the_same_time(model: Path, tmp_path: Path) -> None:
    source = write_texts(tmp_path / "texts.jsonl")
    assert score(source, model, tmp_path / "whole") == 0
    out = tmp_path / "shared"
    argv = ["score", source, "--model", model, "--out", out, *SCORE, "--rank", "1/2"]
    command = [sys.executable, "-m", "fluxentropy", *map(str, argv)]
    with subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True) as other:
        while other.poll() is None and not list(out.glob("scores/part-*.parquet")):
            time.sleep(0.002)
        assert score(source, model, out, "--rank", "0/2") == 0
        _, errors = other.communicate(timeout=250)
    assert other.returncode == 0, errors
    assert score(source, model, out) == 0
    assert without_config(out) == without_config(tmp_path / "whole")


def test_workers_that_are_killed_while_they_score(model: Path, tmp_path: Path) -> None:
    source = write_texts(tmp_path / "texts.jsonl")
    out = tmp_path / "two"
    argv = ["score", source, "--model", model, "--out", out, *SCORE, "--workers", 2]
    assert score(source, model, tmp_path / "one") == 0
    for step in ("5:before", "8:after"):  # counted in each process: the workers are killed, or who started them
        killed(argv, step)
        before = len(list((out / "scores").glob(".part-*.json")))
        assert before < len(list((tmp_path / "one" / "scores").glob("part-*.parquet")))
    assert main([str(part) for part in argv]) == 0
    assert without_config(out) == without_config(tmp_path / "one")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rank", "3/3"], "--rank 3/3: use R/N with R from 0 to N - 1"),
        (["--rank", "one"], "--rank one: use R/N"),
        (["--rank", "0/2", "--overwrite"], "--rank 0/2 with --overwrite"),
        (["--gpus-per-worker", "0.5"], "--gpus-per-worker 0.5: use a number above 0, with --engine ray"),
        (["--address", "auto"], "--address auto is that of a Ray cluster: add --engine ray"),
    ],
)
def test_options_that_do_not_go_together(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert score(tmp_path / "texts.jsonl", tmp_path / "model", tmp_path / "out", *options) == UsageError.exit_code
    assert message in capsys.readouterr().err


def test_a_worker_has_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert worker_device("auto") == "auto"  # not in a worker
    monkeypatch.setenv("FLUXENTROPY_WORKER", "3")
    assert [worker_device(name) for name in ("auto", "cuda", "cuda:0", "cpu")] == ["cuda:1", "cuda:1", "cuda:0", "cpu"]
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert worker_device("auto") == "auto"
