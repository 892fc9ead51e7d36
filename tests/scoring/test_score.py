"""`fluxentropy score` end to end on a tiny model: resume, refusals, bad rows."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fakes import SENTENCES, save_model

import fluxentropy
from fluxentropy.cli.app import main
from fluxentropy.errors import FluxentropyError
from fluxentropy.runs.files import read_json
from fluxentropy.scoring import scorer
from fluxentropy.scoring.parts import ScoreParts
from fluxentropy.scoring.score import ScorePlanResult, ScoreResult
from fluxentropy.scoring.scorer import Scorer

N_TEXTS = 120
TINY_TEXTS = 40_000


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    rng = random.Random(0)
    path = tmp_path_factory.mktemp("source") / "texts.jsonl"
    records = [
        {"id": f"t{n}", "text": " ".join(rng.choices(SENTENCES, k=rng.randint(1, 6))), "n": n} for n in range(N_TEXTS)
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


@pytest.fixture(scope="module")
def scored(source: str, model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the source. Read only: take `copied`."""
    out = tmp_path_factory.mktemp("scored") / "run"
    assert main(command(source, model, out)) == 0
    return out


@pytest.fixture
def copied(scored: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(scored, tmp_path / "run"))


def command(source: str, model: str, out: Path, *more: str) -> list[str]:
    return ["score", source, "--model", model, "--out", str(out), "--max-tokens", "100", "--part-tokens", "300", *more]


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, dict[str, Any], str]:
    """Exit code, the JSON object on stdout, and stderr."""
    code = main([*argv, "--json"])
    captured = capsys.readouterr()
    return code, json.loads(captured.out), captured.err


def read(out: Path) -> pa.Table:
    return pa.concat_tables(pq.read_table(path) for path in sorted((out / "scores").glob("part-*.parquet")))


def snapshot(out: Path) -> dict[str, bytes]:
    """Every file of a run, also the hidden ones, by name; the lock is empty once nobody holds it."""
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def test_a_run_holds_every_text_in_order_with_its_columns(
    capsys: pytest.CaptureFixture[str], source: str, model: str, tmp_path: Path
) -> None:
    code, data, err = run(capsys, *command(source, model, tmp_path / "run"))
    table = read(tmp_path / "run")
    assert (code, data["rows"], data["resumed_rows"], len(table)) == (0, N_TEXTS, 0, N_TEXTS)
    assert table["id"].to_pylist() == [f"t{n}" for n in range(N_TEXTS)]
    assert table["n"].to_pylist() == list(range(N_TEXTS))
    assert set(table["status"].to_pylist()) == {"ok"}
    assert all(
        np.isfinite(table[name].to_numpy()).all() for name in ("entropy_mean", "varentropy_sum", "bits_per_byte")
    )
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["complete"] is True
    assert manifest["counts"]["tokens"] == sum(table["n_tokens"].to_pylist()) == data["tokens"]
    assert data["parts"] > 5
    assert "dtype fp32" in err
    assert (tmp_path / "run" / "config.resolved.yaml").is_file()


def without_paths(out: Path) -> dict[str, bytes]:
    """The files that do not name the --out, and are no leftovers of a process that was killed."""
    ignored = {"config.resolved.yaml", ".records.json"}
    return {name: data for name, data in snapshot(out).items() if name not in ignored and ".aside-" not in name}


def test_killed_at_any_time_and_rerun_gives_the_same_bytes(
    source: str, model: str, scored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the system once, between two parts; then by an error at one replacement of a file after the other."""
    out = tmp_path / "killed"
    argv = command(source, model, out)
    process = subprocess.Popen(
        [sys.executable, "-m", "fluxentropy", *argv], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while process.poll() is None and len(list(out.glob("scores/part-*.parquet"))) < 2:
        time.sleep(0.002)
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not json.loads((out / "manifest.json").read_text())["complete"]
    for place in (1, 2, 3, 7):
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", stops(os.replace, place, KeyboardInterrupt()))
            assert main(argv) == 130, place
    assert main(argv) == 0
    assert without_paths(out) == without_paths(scored)


def stops(function: Callable[..., Any], place: int, how: BaseException | signal.Signals) -> Callable[..., Any]:
    """`function`, until it is called for the `place`-th time: that call raises an error, or sends a signal."""
    calls = itertools.count(1)

    def call(*arguments: Any, **options: Any) -> Any:
        if next(calls) != place:
            return function(*arguments, **options)
        if isinstance(how, BaseException):
            raise how
        return os.kill(os.getpid(), how)

    return call


def test_sigint_ends_cleanly_with_130_and_resumes(
    source: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", stops(os.replace, 8, signal.SIGINT))
        assert main(command(source, model, out)) == 130
    err = capsys.readouterr().err
    assert "run the same command again to go on" in err
    assert "Traceback" not in err
    assert list(out.glob("scores/part-*.parquet"))
    assert not list(out.rglob(".aside-*"))
    assert main(command(source, model, out)) == 0
    assert len(read(out)) == N_TEXTS


def test_a_finished_run_is_not_done_again(
    capsys: pytest.CaptureFixture[str], source: str, model: str, copied: Path
) -> None:
    before = snapshot(copied)
    code, data, _ = run(capsys, *command(source, model, copied))
    assert (code, data["resumed_rows"], data["scored_tokens"]) == (0, N_TEXTS, 0)
    result = fluxentropy.score(source, model=model, out=copied, max_tokens=100, part_tokens=300)
    assert isinstance(result, ScoreResult) and not result.exit_code
    assert (result.out, result.rows, result.tokens, result.path) == (copied, N_TEXTS, data["tokens"], data["path"])
    assert list(result.to_dict()) == list(data)
    scored = f"{N_TEXTS} texts, {data['tokens']:,} tokens scored in {copied / 'scores'}, {data['parts']} parts"
    assert result.lines() == [scored]
    assert snapshot(copied) == before


def test_missing_parts_alone_are_made_again(
    capsys: pytest.CaptureFixture[str], source: str, model: str, copied: Path
) -> None:
    out = copied
    before = snapshot(out)
    lost = [out / "scores" / name for name in ("part-00001.parquet", ".part-00003.json", "part-00004.parquet")]
    tokens = sum(
        sum(pq.read_table(out / "scores" / f"part-0000{n}.parquet")["n_tokens"].to_pylist()) for n in (1, 3, 4)
    )
    for path in lost:
        path.unlink()
    times = {path: path.stat().st_mtime_ns for path in out.glob("scores/part-*")}
    code, data, _ = run(capsys, *command(source, model, out))
    assert (code, data["rows"]) == (0, N_TEXTS)
    assert data["scored_tokens"] <= tokens  # a text that occurs twice in a part is run once
    assert snapshot(out) == before
    kept = [path for path in times if "part-00003" not in path.name]
    assert len(kept) == data["parts"] - 3
    assert all(path.stat().st_mtime_ns == times[path] for path in kept)


def test_a_lost_last_part_is_made_again(
    capsys: pytest.CaptureFixture[str], source: str, model: str, copied: Path
) -> None:
    before = snapshot(copied)
    max((copied / "scores").glob("part-*")).unlink()
    assert run(capsys, *command(source, model, copied))[0] == 0
    assert snapshot(copied) == before


@pytest.mark.parametrize(
    ("flags", "difference"),
    [
        (["--max-tokens", "50"], "max_tokens is 100 there and 50 here"),
        (["--no-text"], "keep_text is True there and False here"),
    ],
)
def test_another_configuration_is_refused_with_the_difference(
    capsys: pytest.CaptureFixture[str], source: str, model: str, copied: Path, flags: list[str], difference: str
) -> None:
    base = ["score", source, "--model", model, "--out", str(copied), "--part-tokens", "300"]
    base += [] if "--max-tokens" in flags else ["--max-tokens", "100"]
    code, data, _ = run(capsys, *base, *flags)
    assert code == 1
    assert difference in data["error"]
    code, _, _ = run(capsys, *base, *flags, "--overwrite")
    assert code == 0


def test_a_resumed_run_of_a_gpu_keeps_the_batches_that_its_memory_had_room_for(
    source: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = [2**14]
    monkeypatch.setattr(scorer, "device_memory", lambda _: room)  # asked, it says how many tokens fit
    monkeypatch.setattr(Scorer, "_probe", lambda self, memory: memory[0])
    describe = ScoreParts.describe
    monkeypatch.setattr(ScoreParts, "describe", lambda self: dataclasses.replace(describe(self), device="cuda"))
    seen: list[int] = []
    call = ScoreParts.__call__

    def watched(self: ScoreParts, part: Any) -> Any:
        done = call(self, part)
        seen.append(self.scorer.batch_tokens)
        return done

    monkeypatch.setattr(ScoreParts, "__call__", watched)
    options = {"model": model, "max_tokens": 64, "part_tokens": 500}
    out = tmp_path / "run"
    fluxentropy.score(source, out=out, **options)
    before = snapshot(out)
    parts = sorted((out / "scores").glob("part-*.parquet"))
    parts[1].unlink()
    room[0] = 2**12  # another process has taken some of it
    fluxentropy.score(source, out=out, **options)
    assert set(seen) == {2**14}
    assert snapshot(out) == before
    with pytest.raises(FluxentropyError, match="another run.*batch_tokens"):
        fluxentropy.score(source, out=out, batch_tokens=100, **options)
    fluxentropy.score(source, out=out, overwrite=True, **options)
    assert read_json(out / "manifest.json")["identity"]["batch_tokens"] == 2**12


def test_a_changed_source_is_refused_by_name(capsys: pytest.CaptureFixture[str], model: str, tmp_path: Path) -> None:
    source = tmp_path / "texts.jsonl"
    source.write_text('{"text": "one"}\n')
    run(capsys, *command(str(source), model, tmp_path / "run"))
    source.write_text('{"text": "two"}\n')
    code, data, _ = run(capsys, *command(str(source), model, tmp_path / "run"))
    assert code == 1
    assert "sources.texts.jsonl" in data["error"]


def test_odd_texts_are_rows_with_a_status(capsys: pytest.CaptureFixture[str], model: str, tmp_path: Path) -> None:
    source = tmp_path / "odd.jsonl"
    texts = [None, "", "   ", "a", "nul \x00 inside", "lone \ud800 surrogate", "ok text", "ok text", "word " * 40000]
    source.write_text("".join(json.dumps({"id": "same", "text": text}) + "\n" for text in texts))
    code, data, _ = run(capsys, *command(str(source), model, tmp_path / "run"))
    rows = read(tmp_path / "run").to_pylist()
    assert (code, len(rows), data["duplicate_ids"]) == (0, 9, 8)
    status = [row["status"] for row in rows]
    assert status == ["null_text", "empty", "ok", "ok", "ok", "lone_surrogates", "ok", "ok", "ok"]
    assert [row["entropy_mean"] is None for row in rows] == [True, True, *[False] * 7]
    assert [row["text"] for row in rows][:5] == texts[:5]
    one_token = rows[3]
    assert (one_token["n_tokens"], one_token["surprisal_mean"], one_token["perplexity"]) == (1, None, None)
    assert rows[6]["entropy_mean"] == rows[7]["entropy_mean"]
    assert (rows[8]["truncated"], rows[8]["n_tokens"], rows[8]["n_bytes"]) == (True, 100, 200000)
    assert data["counts"]["status_null_text"] == 1


def test_bad_lines_fail_at_once_or_are_counted(capsys: pytest.CaptureFixture[str], model: str, tmp_path: Path) -> None:
    source = tmp_path / "bad.jsonl"
    source.write_text('{"text": "good"}\nnot json\n{"text": "good too"}\n')
    code, data, _ = run(capsys, *command(str(source), model, tmp_path / "run"))
    assert code == 1
    assert "bad.jsonl:2" in data["error"]
    code, data, _ = run(capsys, *command(str(source), model, tmp_path / "run"), "--on-error", "skip")
    assert (code, data["rows"], data["rejected"]) == (0, 2, 1)
    (rejected,) = [json.loads(line) for line in (tmp_path / "run" / "rejected.jsonl").read_text().splitlines()]
    assert (rejected["source_file"], rejected["line"]) == ("bad.jsonl", 2)


def test_standard_input_is_kept_so_that_a_run_resumes_without_it(
    source: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for given, resumed in ((source, 0), (os.devnull, N_TEXTS)):
        with open(given) as file:
            monkeypatch.setattr(sys, "stdin", file)
            code, data, err = run(capsys, *command("-", model, tmp_path / "run"))
        assert (code, data["rows"], data["resumed_rows"]) == (0, N_TEXTS, resumed), err


def test_dry_run_writes_nothing(capsys: pytest.CaptureFixture[str], source: str, model: str, tmp_path: Path) -> None:
    code, data, _ = run(capsys, *command(source, model, tmp_path / "run", "--dry-run"))
    assert (code, data["rows"]) == (0, N_TEXTS)
    assert data["estimated_tokens"] > N_TEXTS
    plan = fluxentropy.score(source, model=model, out=tmp_path / "run", max_tokens=100, part_tokens=300, dry_run=True)
    assert isinstance(plan, ScorePlanResult) and plan.to_dict() == data
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--model", "no-such-model-anywhere", "--offline"], 1, "no-such-model-anywhere"),
        (["--model", "./nowhere"], 1, "no such file or folder"),
        (["--max-tokens", "9999"], 2, "beyond the window of"),
        (["--text-field", "body"], 1, "body"),
        (["--device", "abacus"], 2, "abacus"),
    ],
)
def test_mistakes_are_one_clear_line(
    capsys: pytest.CaptureFixture[str],
    source: str,
    model: str,
    tmp_path: Path,
    flags: list[str],
    code: int,
    message: str,
) -> None:
    base = ["score", source, "--out", str(tmp_path / "run"), *([] if "--model" in flags else ["--model", model])]
    got, data, err = run(capsys, *base, *flags, *([] if "--max-tokens" in flags else ["--max-tokens", "100"]))
    assert got == code
    assert message in data["error"]
    assert "Traceback" not in err


def test_a_model_that_gives_nan_everywhere_fails_the_run(
    capsys: pytest.CaptureFixture[str], source: str, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    folder = save_model(tmp_path / "broken")
    broken = AutoModelForCausalLM.from_pretrained(folder)
    broken.model.norm.weight.data.fill_(float("nan"))
    broken.save_pretrained(folder)
    code, data, _ = run(capsys, *command(source, str(folder), tmp_path / "run"))
    assert (code, data["counts"]["status_nan"]) == (1, N_TEXTS)
    assert read(tmp_path / "run")["entropy_mean"].null_count == N_TEXTS


@pytest.mark.parametrize("name", ["empty.jsonl", "header.csv", "empty.parquet", "bad.jsonl"])
def test_a_source_without_rows_goes_through_all_commands(
    capsys: pytest.CaptureFixture[str], model: str, tmp_path: Path, name: str
) -> None:
    source, out, bins = tmp_path / name, tmp_path / "run", str(tmp_path / "bins")
    source.write_text({"header.csv": "id,text\n", "bad.jsonl": "bad\n"}.get(name, ""))
    if name == "empty.parquet":
        pq.ParquetWriter(source, pa.schema({"id": pa.string(), "text": pa.string()})).close()  # not one row group
    argv = command(str(source), model, out, "--on-error", "skip")
    code, data, _ = run(capsys, *argv)
    assert (code, data["rows"], data["parts"]) == (0, 0, 1)
    assert json.loads((out / "manifest.json").read_text())["complete"] is True
    assert read(out).schema.field("entropy_mean").type == pa.float64()
    before = snapshot(out)
    assert run(capsys, *argv)[1]["parts"] == 1
    assert snapshot(out)["scores/part-00000.parquet"] == before["scores/part-00000.parquet"]
    (out / "scores" / "part-00000.parquet").unlink()
    assert main(["verify", str(out)]) == 1
    assert main(["verify", str(out), "--repair"]) == 0
    assert snapshot(out)["scores/part-00000.parquet"] == before["scores/part-00000.parquet"]
    assert main(["sort", str(out), "--out", str(tmp_path / "sorted.jsonl")]) == 0
    assert (tmp_path / "sorted.jsonl").read_bytes() == b""
    capsys.readouterr()
    code, data, _ = run(capsys, "bin", str(out), "--bins", "4", "--tokenize", "bytes", "--out", bins)
    assert (code, data["counts"], data["edges"], data["blocks"]["blocks"]) == (0, [0], [], [0])
    assert main(["verify", bins]) == 0
    assert main(["report", str(out), bins, "--out", str(tmp_path / "page.html")]) == 0


def test_one_text_of_50_mb_is_cut_or_slid_over(capsys: pytest.CaptureFixture[str], model: str, tmp_path: Path) -> None:
    source = tmp_path / "large.txt"
    source.write_text("entropy measures uncertainty, " * (50_000_000 // 30))
    code, data, _ = run(capsys, *command(str(source), model, tmp_path / "run", "--no-text"))
    (row,) = read(tmp_path / "run").to_pylist()
    assert (code, row["n_tokens"], row["truncated"]) == (0, 100, True)
    assert row["n_bytes"] == source.stat().st_size
    assert "text" not in row
    assert data["seconds"] < 60


def test_tens_of_thousands_of_tiny_texts(capsys: pytest.CaptureFixture[str], model: str, tmp_path: Path) -> None:
    table = pa.table({"text": pa.array([f"dog {n % 1000}" for n in range(TINY_TEXTS)])})
    pq.write_table(table, tmp_path / "tiny.parquet")
    argv = ["score", str(tmp_path / "tiny.parquet"), "--model", model, "--out", str(tmp_path / "run")]
    code, data, _ = run(capsys, *argv, "--max-tokens", "100")
    assert (code, data["rows"], data["duplicate_ids"]) == (0, TINY_TEXTS, 0)
    assert data["parts"] == 3  # 16,384 rows each
    assert data["scored_tokens"] < data["tokens"] / 10  # the same text is run once a part
    assert data["peak_memory_bytes"] < 3 * 2**30


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX limits")
def test_a_full_disk_fails_by_name_and_the_run_resumes(
    source: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import resource

    argv = command(source, model, tmp_path / "run")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, hard))  # a write beyond it fails: Python ignores the signal
    try:
        code = main(argv)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    err = capsys.readouterr().err
    assert code == 1
    assert "cannot write" in err
    assert "part-" in err
    assert "Traceback" not in err
    assert not list((tmp_path / "run").rglob(".aside-*"))
    assert main(argv) == 0
    assert len(read(tmp_path / "run")) == N_TEXTS


def test_an_unwritable_target_is_named(
    capsys: pytest.CaptureFixture[str], source: str, model: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    code, data, _ = run(capsys, *command(source, model, tmp_path / "file" / "run"))
    assert code == 1
    assert f"cannot write {tmp_path / 'file' / 'run'}" in data["error"]
