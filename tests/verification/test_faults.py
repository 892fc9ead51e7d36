"""Killed at any step of writing, `bin` and `score` go on and leave the bytes of a run that nothing disturbed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from fakes import SENTENCES, save_model
from scoredruns import write_run

from fluxentropy.cli.app import main
from fluxentropy.ordering.bin import bin_corpus
from fluxentropy.ordering.options import BinConfig
from fluxentropy.schedules.options import OrderConfig
from fluxentropy.schedules.order import order

CRASHING = Path(__file__).parents[1] / "crashing.py"
SCORES = [1.0, 2.0, None, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 2.5, 3.5]  # in three parts

MODULES = {  # what a command needs, imported once
    "bin": ("fluxentropy.ordering.bin",),
    "order": ("fluxentropy.schedules.order",),
    "score": ("fluxentropy.scoring.score", "torch", "transformers"),
    "sort": ("fluxentropy.ordering.sort",),
    "verify": ("fluxentropy.verification.verify", "fluxentropy.ordering.bin"),
}

Done = subprocess.CompletedProcess[str]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


@pytest.fixture(scope="module", autouse=True)
def server() -> Iterator[None]:
    """The process whose forks carry out `start`, and are killed."""
    process = subprocess.Popen(
        [sys.executable, str(CRASHING)], env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        start.process = process  # type: ignore[attr-defined]
        yield
        assert process.stdin is not None
        process.stdin.close()


def start(argv: Sequence[object], **given: str) -> Done:
    """The command in a fork of `server`, with more in its environment."""
    process, command = start.process, [str(part) for part in argv]  # type: ignore[attr-defined]
    with tempfile.NamedTemporaryFile("r") as log:
        asked = {"argv": command, "environment": given, "modules": MODULES[command[0]], "log": log.name}
        process.stdin.write(json.dumps(asked) + "\n")
        process.stdin.flush()
        code = int(process.stdout.readline())
        return subprocess.CompletedProcess(command, code, "", Path(log.name).read_text())


def start_alone(argv: Sequence[object], script: Path = CRASHING, **given: str) -> Done:
    """The command in a process of its own."""
    return subprocess.run(
        [sys.executable, str(script), *map(str, argv)],
        env={**environment(), **given},
        capture_output=True,
        text=True,
        timeout=120,
    )


def snapshot(out: Path) -> dict[str, bytes]:
    """Every file but the lock, also the hidden ones."""
    files = (path for path in sorted(out.rglob("*")) if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


def undisturbed(argv: Sequence[object], out: Path) -> tuple[dict[str, bytes], list[str]]:
    """The files of the command, which writes to `out`, and the steps it takes; `out` is then removed."""
    counts = out.with_name("steps")
    assert start(argv, CRASH_COUNT=str(counts)).returncode == 0
    files = snapshot(out)
    shutil.rmtree(out)
    return files, counts.read_text().splitlines()


def killed(argv: Sequence[object], step: str, run: Callable[..., Done] = start) -> None:
    """Run the command until it is killed at `step`, or one of its workers is."""
    done = run(argv, CRASH_AT=step)
    assert done.returncode == -signal.SIGKILL or (
        done.returncode == 1 and "a worker process was killed" in done.stderr and "same command again" in done.stderr
    ), (step, done)


@pytest.fixture
def scored(tmp_path: Path) -> Path:
    return write_run(tmp_path / "scored", SCORES)


def test_bin_killed_at_every_step(tmp_path: Path) -> None:
    """Every step in turn, each time on a fresh run."""
    scored, out = write_run(tmp_path / "scored", SCORES[:5]), tmp_path / "bins"
    argv = ["bin", scored, "--bins", 2, "--out", out]
    config = BinConfig(run=str(scored), bins=2, out=out)
    expected, steps = undisturbed(argv, out)
    assert {"fsync", "replace", "rename"} <= set(steps)
    for place in range(1, len(steps) + 1):
        killed(argv, f"{place}:after")
        bin_corpus(config)
        assert snapshot(out) == expected, place
        shutil.rmtree(out)


@pytest.mark.parametrize("form", ["mds", "megatron"])
def test_order_killed_at_every_step(form: str, tmp_path: Path) -> None:
    """Every step in turn, in an order of two parts; of a format with an index beside them, and one that joins them."""
    scored, bins, out = write_run(tmp_path / "scored", SCORES[:5]), tmp_path / "bins", tmp_path / "order"
    assert (
        main([*map(str, ["bin", scored, "--bins", 2, "--tokenize", "bytes", "--block-length", 8, "--out", bins])]) == 0
    )
    argv = ["order", bins, "--format", form, "--batch-size", 2, "--shard-size", "300B", "--out", out]
    expected, steps = undisturbed(argv, out)
    assert ("data/part-00001.mds" in expected) == (form == "mds")
    config = OrderConfig(bins=bins, format=form, batch_size=2, shard_size="300B", out=out)
    for place in range(2, len(steps) + 1, 4):  # a file is fsynced, renamed, and its folder fsynced
        killed(argv, f"{place}:after")
        order(config)
        assert snapshot(out) == expected, place
        shutil.rmtree(out)


def test_bin_killed_again_and_again(scored: Path, tmp_path: Path) -> None:
    """Every run is killed at its n-th step: what was made before must not be lost, nor be made wrong."""
    out = tmp_path / "bins"
    argv = ["bin", scored, "--bins", 2, "--out", out]
    expected, steps = undisturbed(argv, out)
    kills = 0
    while (done := start(argv, CRASH_AT="12:before")).returncode:
        assert done.returncode == -signal.SIGKILL
        kills += 1
        assert kills < len(steps)
    assert kills > 2
    assert snapshot(out) == expected


@pytest.mark.parametrize("step", ["2:before", "4:after", "9:after"])
def test_bin_in_two_processes(step: str, scored: Path, tmp_path: Path) -> None:
    """The steps are counted in each process: the workers are killed as well as the process that started them."""
    out = tmp_path / "bins"
    argv = ["bin", scored, "--bins", 2, "--workers", 2, "--out", out]
    expected, _ = undisturbed(argv, out)
    killed(argv, step)
    assert main([str(part) for part in argv]) == 0
    assert snapshot(out) == expected


@pytest.mark.timeout(300)
def test_bin_on_ray_killed(scored: Path, tmp_path: Path) -> None:
    """Whoever started the work is killed; Ray's own workers are in test_engine.py."""
    out = tmp_path / "bins"
    expected, steps = undisturbed(["bin", scored, "--bins", 2, "--out", out], out)
    argv = ["bin", scored, "--bins", 2, "--engine", "ray", "--out", out]
    killed(argv, "6:before", start_alone)  # its own first steps; the parts and bins are made by actors
    done = start_alone(argv)
    assert done.returncode == 0, done.stderr
    left_out = ("config.resolved.yaml", ".records.json")  # they say that it was Ray
    found = snapshot(out)
    assert {name: found[name] for name in expected if name not in left_out} == {
        name: data for name, data in expected.items() if name not in left_out
    }
    assert found.keys() == expected.keys()
    assert len(steps) > 20


def test_bin_killed_while_it_starts_afresh(scored: Path, tmp_path: Path) -> None:
    out = tmp_path / "bins"
    argv = ["bin", scored, "--bins", 2, "--out", out]
    expected, _ = undisturbed(argv, out)
    del expected["config.resolved.yaml"], expected[".records.json"]  # it says --overwrite
    for step in ("1:after", "2:after", "5:before"):
        assert main(["bin", str(scored), "--bins", "3", "--out", str(out), "--overwrite"]) == 0
        killed([*argv, "--overwrite"], step)
        again = ["--overwrite"] if step == "1:after" else []  # the former run is still whole then
        assert main([*map(str, argv), *again]) == 0
        assert {name: data for name, data in snapshot(out).items() if name in expected} == expected, step
        assert not (out / "data" / "bin=02").exists()


def test_joined_scores_killed(scored: Path, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    ids = [f"id-{row}" for row in range(len(SCORES))]
    pq.write_table(
        pa.table({"id": ids, "far": [float(len(ids) - row) for row in range(len(ids))]}), tmp_path / "far.parquet"
    )
    out = tmp_path / "bins"
    argv = ["bin", scored, "--by", "far", "--scores", tmp_path / "far.parquet", "--bins", 2, "--out", out]
    expected, _ = undisturbed(argv, out)
    for step in ("7:after", "8:before", "11:after"):
        killed(argv, step)
        assert main([str(part) for part in argv]) == 0
        assert snapshot(out) == expected, step
        shutil.rmtree(out)


def test_blocks_of_finished_bins_killed(scored: Path, tmp_path: Path) -> None:
    out, counts = tmp_path / "bins", tmp_path / "steps"
    assert main(["bin", str(scored), "--bins", "2", "--out", str(out)]) == 0
    argv = ["bin", scored, "--bins", 2, "--tokenize", "bytes", "--block-length", 8, "--out", out]
    assert main([str(part) for part in argv]) == 0  # the folder says from now on that it has blocks
    shutil.rmtree(out / "_blocks")
    assert start(argv, CRASH_COUNT=str(counts)).returncode == 0
    expected, steps = snapshot(out), len(counts.read_text().splitlines())
    for place, flags in ((steps - 12, []), (steps - 2, []), (4, ["--workers", 2])):
        shutil.rmtree(out / "_blocks")
        killed([*argv, *flags], f"{place}:before")
        assert main(["verify", str(out)]) == 1  # blocks are missing
        assert main([str(part) for part in argv]) == 0
        assert snapshot(out) == expected, place


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


def test_score_killed_at_steps_all_along(model: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "texts.jsonl", tmp_path / "scored"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in [*SENTENCES, "", *SENTENCES]))
    argv = ["score", source, "--model", model, "--max-tokens", 100, "--part-tokens", 30, "--out", out]
    expected, steps = undisturbed(argv, out)
    assert sum(name.endswith(".parquet") for name in expected) > 2
    assert len(steps) > 20
    for place in range(2, len(steps) + 1, max(1, len(steps) // 3)):
        killed(argv, f"{place}:after")
        assert main([str(part) for part in argv]) == 0
        assert snapshot(out) == expected, place
        shutil.rmtree(out)


# --- sorted on disk ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose rows do not fit into a sort with 16 MiB, in three parts."""
    letters = np.random.default_rng(0).integers(97, 123, (6000, 1000), dtype=np.uint8)
    ids = [row.tobytes().decode() for row in letters]
    return write_run(tmp_path_factory.mktemp("large") / "scored", [n % 7 for n in range(6000)], ids=ids, part_rows=2000)


@pytest.mark.parametrize("order", ["shuffle", "score"])
def test_bin_killed_while_it_sorts_on_disk(order: str, large: Path, tmp_path: Path) -> None:
    out = tmp_path / "bins"
    argv = ["bin", large, "--bins", 2, "--order", order, "--memory", "16MiB", "--out", out]
    expected, steps = undisturbed(argv, out)
    places = [place for place, step in enumerate(steps, 1) if step == "OSFile"]
    assert len(places) > 7, steps  # each bin has two runs, written and read
    for place in places[1::4]:
        killed(argv, f"{place}:after")
        assert list(out.glob(".pieces/.spill-*/run-0.arrows"))
        assert main([str(part) for part in argv]) == 0
        assert snapshot(out) == expected, (order, place)
        shutil.rmtree(out)


@pytest.mark.parametrize("workers", [1, 2])
def test_sort_killed_while_it_sorts_on_disk(workers: int, large: Path, tmp_path: Path) -> None:
    out = tmp_path / "out" / "sorted.jsonl"
    argv = ["sort", large, "--memory", "16MiB", "--out", out, "--workers", workers]
    out.parent.mkdir()
    expected, steps = undisturbed(argv, out.parent)
    assert list(expected) == ["sorted.jsonl"]
    assert {"OSFile", "fsync", "replace"} <= set(steps)
    out.parent.mkdir()
    for step in ("2:after", "5:after", "7:after") if workers == 1 else ("1:after", "2:before"):
        out.write_text("what was there before")
        failed = start(argv, CRASH_AT=step)
        assert failed.returncode == (-signal.SIGKILL if workers == 1 else 1), (step, failed)
        assert out.read_text() == "what was there before"
        assert main([str(part) for part in argv]) == 0
        assert snapshot(out.parent) == expected, step


# --- repairs ----------------------------------------------------------------------------------------------------------


def damage(run: Path) -> None:
    """Damage two files of a run, and take a file away."""
    files = sorted(path for path in run.glob("**/part-*") if path.parent.name != "unscored")
    for path in files[:2]:
        path.write_bytes(path.read_bytes()[:-9])
    files[-1].unlink()


def repaired_after_kills(run: Path, every: int) -> None:
    """Kill the repair of a damaged run at every so many of its steps: the next one must finish it."""
    whole, damaged = snapshot(run), run.with_name("damaged")
    damage(run)
    shutil.copytree(run, damaged)
    argv = ["verify", damaged / ".." / run.name, "--repair"]  # by another name than in config.resolved.yaml
    counts = run.with_name("steps")
    assert start(argv, CRASH_COUNT=str(counts)).returncode == 0
    assert snapshot(run) == whole
    steps = list(enumerate(counts.read_text().splitlines(), 1))
    for place, name in steps[every // 2 :: every]:
        shutil.rmtree(run)
        shutil.copytree(damaged, run)
        killed(argv, f"{place}:after")
        assert main([str(part) for part in argv]) == 0
        assert snapshot(run) == whole, (place, name)


def test_repair_of_bins_killed(scored: Path, tmp_path: Path) -> None:
    assert main(["bin", str(scored), "--bins", "3", "--out", str(tmp_path / "bins")]) == 0
    repaired_after_kills(tmp_path / "bins", every=9)


def test_repair_of_scores_killed(model: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "texts.jsonl", tmp_path / "scored"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in [*SENTENCES, "", *SENTENCES]))
    argv = ["score", source, "--model", model, "--max-tokens", 100, "--part-tokens", 30, "--out", out]
    assert main([str(part) for part in argv]) == 0
    repaired_after_kills(out, every=15)


def test_a_killed_repair_takes_nothing_away_for_good(scored: Path, tmp_path: Path) -> None:
    """What was damaged is all there is, once the input is gone."""
    bins = tmp_path / "bins"
    assert main(["bin", str(scored), "--bins", "3", "--out", str(bins)]) == 0
    damage(bins)
    damaged = snapshot(bins)
    done = start(["verify", bins, "--repair"], CRASH_AT="2:after")
    assert done.returncode == -signal.SIGKILL
    assert list(bins.glob("**/.damaged-*"))
    shutil.rmtree(scored)
    assert main(["verify", str(bins), "--repair"]) == 1
    assert snapshot(bins) == damaged


# --- other faults -----------------------------------------------------------------------------------------------------


def failing(argv: Sequence[object], capsys: pytest.CaptureFixture[str]) -> str:
    """The message of a command that must fail."""
    assert main([*map(str, argv), "--json"]) == 1
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return str(json.loads(captured.out)["error"])


def test_two_runs_at_once(scored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from fluxentropy.runs.directory import RunDirectory

    argv = ["bin", scored, "--bins", 2, "--out", tmp_path / "bins"]
    with RunDirectory(tmp_path / "bins"):
        found = failing(argv, capsys)
    assert f"{tmp_path / 'bins'} is being written by process {os.getpid()}: wait for it" in found
    assert main([str(part) for part in argv]) == 0


def test_a_target_that_cannot_be_written(scored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("in the way")
    found = failing(["bin", scored, "--bins", 2, "--out", tmp_path / "file" / "bins"], capsys)
    assert f"cannot write {tmp_path / 'file' / 'bins'}" in found


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder(scored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    found = failing(["bin", scored, "--bins", 2, "--out", tmp_path / "locked" / "bins"], capsys)
    assert "cannot write" in found and "Permission denied" in found


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk(workers: int, tmp_path: Path) -> None:
    scored = write_run(tmp_path / "scored", [float(n % 17) for n in range(2000)], part_rows=700)
    limited = tmp_path / "limited.py"
    limited.write_text(
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10000, 10000))\n"
        "if __name__ == '__main__':\n"
        "    from fluxentropy.cli.app import main\n"
        "    sys.exit(main(sys.argv[1:]))\n"
    )
    argv = ["bin", scored, "--bins", 2, "--workers", workers, "--out", tmp_path / "bins"]
    failed = start_alone(argv, limited)
    assert (failed.returncode, "Traceback" in failed.stderr) == (1, False), failed.stderr
    assert "cannot write" in failed.stderr and "File too large" in failed.stderr
    assert not list((tmp_path / "bins").rglob(".aside-*"))
    assert main([str(part) for part in argv]) == 0
    found = snapshot(tmp_path / "bins")
    shutil.rmtree(tmp_path / "bins")
    assert main([str(part) for part in argv]) == 0
    assert snapshot(tmp_path / "bins") == found


DEADLY = """
import os, signal, sys
from fluxentropy.ordering import sort as sortunits

def deadly(*arguments, spill, **options):
    if spill.name == "unit-00001":
        os.kill(os.getpid(), signal.SIGKILL)
    return sorted_runs(*arguments, spill=spill, **options)

sorted_runs, sortunits.sorted_runs = sortunits.sorted_runs, deadly
if __name__ == "__main__":
    from fluxentropy.cli.app import main
    sys.exit(main(sys.argv[1:]))
"""


def test_a_worker_of_sort_is_killed(scored: Path, tmp_path: Path) -> None:
    (tmp_path / "deadly.py").write_text(DEADLY)
    argv = ["sort", scored, "--workers", 2, "--out", tmp_path / "sorted.jsonl"]
    failed = start_alone(argv, tmp_path / "deadly.py")
    assert (failed.returncode, "Traceback" in failed.stderr) == (1, False), failed.stderr
    assert "part-00001.parquet" in failed.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deadly.py", "scored"]
    assert main([str(part) for part in argv]) == 0


def test_a_scored_part_that_changed_between_runs(
    scored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["bin", scored, "--bins", 2, "--out", tmp_path / "bins"]
    killed(argv, "9:after")
    shutil.rmtree(scored)
    write_run(scored, [*SCORES[:5], 6.5, *SCORES[6:]])
    found = failing(argv, capsys)
    assert "inputs.part-00001.parquet is" in found


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells starts of the machine apart")
def test_pieces_that_a_power_cut_tore(scored: Path, tmp_path: Path) -> None:
    out = tmp_path / "bins"
    argv = ["bin", scored, "--bins", 2, "--out", out]
    expected, steps = undisturbed(argv, out)
    killed(argv, f"{len(steps) - 12}:after")
    records = sorted((out / ".pieces").glob(".part-*.json"))
    assert len(records) == 3
    for record in records:  # as after a new start: what was not forced to the disk is lost
        record.write_text(json.dumps({**json.loads(record.read_text()), "boot": "an earlier one"}))
        piece = record.with_name(f"{record.stem[1:]}.arrow")
        piece.write_bytes(bytes(piece.stat().st_size))
    assert main([str(part) for part in argv]) == 0
    assert snapshot(out) == expected


def test_what_killed_processes_left_does_not_matter(scored: Path, tmp_path: Path) -> None:
    out = tmp_path / "bins"
    argv = ["bin", scored, "--bins", 2, "--out", out]
    expected, steps = undisturbed(argv, out)
    killed(argv, f"{len(steps) - 6}:after")
    for name in (".aside-1-bin=00", ".aside-99999-bin=01", ".pieces/.spill-0"):
        (out / name).mkdir(parents=True, exist_ok=True)
        (out / name / "part-00000.arrow").write_text("cut of")
    (out / ".pieces" / ".aside-part-00000.arrow").write_text("cut of")
    assert main([str(part) for part in argv]) == 0
    assert snapshot(out) == expected
