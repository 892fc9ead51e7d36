"""`fluxentropy pretrain` end to end on a tiny model: what it writes, that it resumes to the bit, what it refuses."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from tokenruns import LENGTH, write_bins

import fluxentropy
from fluxentropy.cli.app import main
from fluxentropy.pretraining.callbacks import Bookkeeping, Checkpoints
from fluxentropy.pretraining.pretrain import LedgerResult, pretrain, read_config
from fluxentropy.pretraining.trainer import GPTModule
from fluxentropy.schedules.dataset import BlockSet

FORKED = Path(__file__).parents[1] / "forked.py"
STEPS, BATCH = 12, 8
SMALL = ["--model.n-layer", "1", "--model.n-head", "2", "--model.n-embd", "16", "--model.vocab-multiple", "1"]
SMALL += ["--batch-size", str(BATCH), "--tokens", str(STEPS * BATCH * LENGTH), "--holdout", "4", "--accelerator", "cpu"]
SMALL += ["--log-every", "1", "--eval-every", str(4 * BATCH * LENGTH)]
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def bins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bins(tmp_path_factory.mktemp("corpus"))


def command(bins: Path, out: Path, *more: object) -> list[str]:
    every = [] if "--checkpoint-every" in more else ["--checkpoint-every", "1"]
    return ["pretrain", "--bins", str(bins), "--out", str(out), *SMALL, *every, *map(str, more)]


def rows(out: Path) -> list[dict[str, float | None]]:
    with open(out / "metrics.csv", newline="") as file:
        return [{name: float(cell) if cell else None for name, cell in row.items()} for row in csv.DictReader(file)]


def result(out: Path) -> dict[str, bytes]:
    """All files that must not depend on how often a run was killed: not the speed, nor the lock."""
    leave = ("timings.csv", ".lock", "config.resolved.yaml", ".records.json")
    files = (path for path in sorted(out.rglob("*")) if path.is_file() and path.name not in leave)
    return {str(path.relative_to(out)): path.read_bytes() for path in files if path.suffix != ".ckpt"}


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "export" / "model.safetensors")


@pytest.fixture(scope="module")
def whole(bins: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed, with two accumulated parts a step."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert main(command(bins, out, "--micro-batch", BATCH // 2)) == 0
    return out


def test_what_a_run_writes(bins: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = rows(whole)
    assert [row["step"] for row in found] == list(range(STEPS + 1))
    assert [row["tokens"] for row in found] == [step * BATCH * LENGTH for step in range(STEPS + 1)]
    first, last = found[0], found[-1]
    assert abs((first["val_loss"] or 0) - np.log(400)) < 0.1  # it knows nothing yet
    assert (last["val_loss"] or 9) < (first["val_loss"] or 0) - 0.3
    assert [row["step"] for row in found if row["val_loss"] is not None] == [0, 4, 8, 12]
    held = [last[f"val_loss_bin_{number:02d}"] for number in range(3)]
    assert abs(np.mean(held) - last["val_loss"]) < 1e-9  # 4 blocks of each bin
    ledger = pq.read_table(whole / "ledger.parquet")
    assert ledger["step"].to_pylist() == list(range(1, STEPS + 1))
    assert all(sum(drawn) == BATCH for drawn in ledger["bins"].to_pylist())
    manifest = json.loads((whole / "manifest.json").read_text())
    assert manifest["complete"] and manifest["steps"] == STEPS
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"text": "the quick brown fox"}\n')
    capsys.readouterr()
    argv = ["score", texts, "--model", whole / "export", "--max-tokens", LENGTH, "--out", tmp_path / "scored", "--json"]
    assert main([str(part) for part in argv]) == 0
    assert json.loads(capsys.readouterr().out)["counts"]["status_ok"] == 1


def test_a_finished_run_is_left_alone(bins: Path, whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.glob("export/*")}
    capsys.readouterr()
    assert main([*command(bins, whole, "--micro-batch", BATCH // 2), "--json"]) == 0
    printed, row = json.loads(capsys.readouterr().out), rows(whole)[-1]
    assert {path: path.stat().st_mtime_ns for path in whole.glob("export/*")} == before
    found = pretrain(read_config(whole))
    assert (found.out, found.export.is_dir(), found.steps, found.tokens) == (whole, True, STEPS, row["tokens"])
    assert (found.val_loss, found.val_bpb) == (row["val_loss"], row["val_bpb"]) and found.parameters > 0
    assert found.to_dict() == printed and printed["steps"] == STEPS


class StoppedError(Exception):
    pass


def stop_after(patch: pytest.MonkeyPatch, step: int, callback: type) -> None:
    """Let a run end in the middle of what `callback` does at the end of a step."""
    own = callback.step_end  # type: ignore[attr-defined]

    def step_end(self: Any, trainer: Any, module: Any, number: int) -> None:
        if number == step:
            raise StoppedError
        own(self, trainer, module, number)

    patch.setattr(callback, "step_end", step_end)


@pytest.mark.parametrize("more", [["--checkpoint-every", 1], ["--checkpoint-every", 5]])
def test_stopped_at_every_step_it_goes_on_to_the_same_bits(
    more: list[object], bins: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One run, stopped before the checkpoint of each step in turn: many times within the one epoch."""
    out = tmp_path / "run"
    argv = command(bins, out, "--micro-batch", BATCH // 2, *more)
    for step in range(0, STEPS, 1 if more[1] == 1 else 3):
        with monkeypatch.context() as patch:
            stop_after(patch, step, Checkpoints if step % 2 else Bookkeeping)
            assert main(argv) == 1
    assert main(argv) == 0
    assert result(out) == result(whole)


def test_stopped_in_the_middle_of_accumulation(
    bins: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    argv = command(bins, out, "--micro-batch", BATCH // 2)
    own = GPTModule.training_step
    for place in (1, 7, 8, 15):  # parts, counted over the run
        with monkeypatch.context() as patch:

            def training_step(self: Any, batch: Any, batch_idx: int, place: int = place) -> Any:
                if batch_idx == place:
                    raise StoppedError
                return own(self, batch, batch_idx)

            patch.setattr(GPTModule, "training_step", training_step)
            assert main(argv) == 1
    assert main(argv) == 0
    assert result(out) == result(whole)


def forked(environments: list[dict[str, str]], argv: list[str], **more: str) -> tuple[list[int], str]:
    """How the command ended in each of the environments, and what was said: see forked.py."""
    paths = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, str(FORKED), json.dumps(environments), *argv],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **more},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return [int(line) for line in done.stdout.splitlines() if line.lstrip("-").isdigit()], done.stderr


@pytest.mark.timeout(300)
def test_killed_by_the_system(bins: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    argv = command(bins, out, "--micro-batch", BATCH // 2)
    codes, said = forked([{"CRASH_AT": "9:after"}, {"CRASH_AT": "31:before"}], argv)
    assert codes == [-signal.SIGKILL] * 2, said
    assert not (out / "export").exists()
    assert main(argv) == 0
    assert "resuming after step" in capsys.readouterr().err
    assert result(out) == result(whole)


def test_parts_do_not_change_the_result(bins: Path, whole: Path, tmp_path: Path) -> None:
    assert main(command(bins, tmp_path / "run", "--micro-batch", 2, "--workers", 2)) == 0
    for one, two in zip(rows(whole), rows(tmp_path / "run"), strict=True):
        assert [name for name, value in one.items() if value is None] == [
            name for name, value in two.items() if value is None
        ]
        assert {name: value for name, value in two.items() if value is not None} == pytest.approx(
            {name: value for name, value in one.items() if value is not None}, rel=1e-4
        )
    found = [pq.read_table(out / "ledger.parquet") for out in (whole, tmp_path / "run")]
    assert found[0] == found[1]


@pytest.mark.timeout(300)
def test_two_processes_go_on_with_the_run_of_one(
    bins: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DDP over gloo takes up a checkpoint of a single process: the same blocks in each step, the same model."""
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_after(patch, 6, Checkpoints)
        assert main(command(bins, out, "--micro-batch", BATCH // 2)) == 1
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    ranks = [{"LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port} for rank in range(2)]
    codes, said = forked(ranks, command(bins, out, "--micro-batch", BATCH // 2, "--devices", 2), TOGETHER="1")
    assert codes == [0, 0], said
    assert "resuming after step 6" in said
    assert pq.read_table(out / "ledger.parquet") == pq.read_table(whole / "ledger.parquet")
    for name, tensor in weights(whole).items():
        torch.testing.assert_close(weights(out)[name], tensor, rtol=1e-3, atol=1e-4)
    assert rows(out)[-1]["val_loss"] == pytest.approx(rows(whole)[-1]["val_loss"], rel=1e-3)


def test_processes_that_read_blocks_go_on_where_none_did(
    bins: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And back: Lightning would replay the epoch's beginning from loader processes that are started again."""
    out = tmp_path / "run"
    for step, workers in ((3, 0), (7, 2)):
        with monkeypatch.context() as patch:
            stop_after(patch, step, Checkpoints)
            assert main(command(bins, out, "--micro-batch", BATCH // 2, "--workers", workers)) == 1
    assert main(command(bins, out, "--micro-batch", BATCH // 2)) == 0
    assert result(out) == result(whole)


VARIANTS: dict[str, list[object]] = {
    "averages": ["--average.kind", "ema", "--average.decay", "0.5"],
    "last": ["--average.kind", "last", "--average.k", "3"],
    "masks": ["--model.document-masks"],
    "short": ["--short-start", "4", "--short-tokens", "600"],
    "gpt2": ["--model.preset", "gpt2", "--optim.kind", "adamw"],
    "adaptive": ["--schedule.name", "adaptive", "--schedule.every", "3"],
    "increasing": ["--schedule.name", "increasing"],
    "periodic": ["--schedule.name", "periodic", "--schedule.cycles", "2"],
    "seed": ["--seed", "1"],
}


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_resume_to_the_same_bits(
    name: str,
    bins: Path,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    argv = command(bins, tmp_path / "one", *VARIANTS[name], "--checkpoint-every", 4)
    assert main(argv) == 0
    again = command(bins, tmp_path / "two", *VARIANTS[name], "--checkpoint-every", 4)
    with monkeypatch.context() as patch:
        stop_after(patch, 6, Checkpoints)
        assert main(again) == 1
    assert main(again) == 0
    assert result(tmp_path / "one") == result(tmp_path / "two")
    assert rows(tmp_path / "one") != rows(whole)
    last = rows(tmp_path / "one")[-1]
    assert (last["val_loss"] or 9) < np.log(400) - 0.1
    if name in ("averages", "last"):
        assert last["val_loss_averaged"] is not None and last["val_loss_averaged"] != last["val_loss"]
        by_bin = [last[f"val_loss_bin_{number:02d}_averaged"] or 0 for number in range(3)]
        assert np.mean(by_bin) == pytest.approx(last["val_loss_averaged"])
        assert (tmp_path / "one" / "export-averaged" / "model.safetensors").exists()
        manifest = json.loads((tmp_path / "one" / "manifest.json").read_text())
        assert manifest["average_horizon"] == {"averages": 2.0, "last": 3.0}[name]
        capsys.readouterr()
        assert main(argv) == 0
        said = (
            f"averaged over {'about ' * (name == 'averages')}the last {manifest['average_horizon']:.0f} of 12 steps: "
        )
        assert f"{said}{last['val_loss_averaged']:.4f} nats" in capsys.readouterr().out


def test_questions_are_answered_on_the_way(bins: Path, tmp_path: Path) -> None:
    questions = tmp_path / "questions.jsonl"
    records = [
        {"ind": n, "activity_label": "x", "ctx": "the quick", "endings": ["brown fox", "a", "b", "c"], "label": 0}
        for n in range(3)
    ]
    questions.write_text("".join(json.dumps(record) + "\n" for record in records))
    every = 6 * BATCH * LENGTH
    argv = command(bins, tmp_path / "run", "--questions.data", questions, "--questions.every", every)
    assert main([*argv, "--average.kind", "ema"]) == 0
    asked = [row for row in rows(tmp_path / "run") if row["answer_loglikelihood"] is not None]
    assert [row["step"] for row in asked] == [6, 12]
    assert all(row["answer_loglikelihood_averaged"] != row["answer_loglikelihood"] for row in asked)


def test_ledger_of_documents(bins: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["ledger", str(whole), "--out", str(tmp_path / "documents.parquet"), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    result = fluxentropy.ledger(whole, out=tmp_path / "documents.parquet")
    assert isinstance(result, LedgerResult) and result.to_dict() == data
    assert (result.run, result.steps, result.documents) == (whole, STEPS, 60)
    table = pq.read_table(tmp_path / "documents.parquet").to_pydict()
    assert sorted(table["id"]) == sorted(f"id-{row}" for row in range(60))
    # by brute force, from the drawn blocks
    blocks = BlockSet.open(bins)
    seen: dict[tuple[int, int], list[int]] = {}
    from fluxentropy.pretraining.pretrain import open_training, read_config

    training = open_training(read_config(whole))
    for step in range(STEPS):
        for number in training.sampler.batch(step).tolist():
            bin_, index = (int(part[0]) for part in training.blocks.places(np.array([number])))
            for document in set(blocks.read(bin_, index).documents.tolist()):
                seen.setdefault((bin_, document), []).append(step + 1)
    found = {}
    row_of_bin: dict[int, int] = {}
    for place, bin_ in enumerate(table["bin"]):
        row = row_of_bin[bin_] = row_of_bin.get(bin_, -1) + 1
        if table["times"][place]:
            found[bin_, row] = (table["first_step"][place], table["last_step"][place])
    assert found == {key: (min(steps), max(steps)) for key, steps in seen.items()}
    damaged = tmp_path / "damaged"
    shutil.copytree(whole, damaged)
    table = pq.read_table(whole / "ledger.parquet").to_pylist()
    table[4]["ids_hash"] = "0" * 16
    import pyarrow as pa

    pq.write_table(pa.Table.from_pylist(table), damaged / "ledger.parquet")
    assert main(["ledger", str(damaged)]) == 1
    assert "step 5 of the ledger" in capsys.readouterr().err


def test_verify(bins: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["verify", str(whole)]) == 0
    assert "12 steps, 1,536 tokens" in (said := capsys.readouterr().out) and "nothing is missing" in said
    damaged = tmp_path / "damaged"
    shutil.copytree(whole, damaged)
    (damaged / "metrics.csv").write_text("step\n")
    (damaged / "export" / "model.safetensors").unlink()
    assert main(["verify", str(damaged)]) == 1
    said = capsys.readouterr().out
    assert "metrics.csv: it is not as it was written" in said and "model.safetensors: it is missing" in said


def test_loggers_get_metrics_and_the_mixture(bins: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert main(command(bins, tmp_path / "run", "--loggers", "tensorboard", "--schedule.name", "increasing")) == 0
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    losses = [(event.step, event.value) for event in events.Scalars("train_loss")]
    assert losses == [
        (row["step"], pytest.approx(row["train_loss"]))
        for row in rows(tmp_path / "run")
        if row["train_loss"] is not None
    ]
    ledger = pq.read_table(tmp_path / "run" / "ledger.parquet")["bins"].to_pylist()
    assert [event.value for event in events.Scalars("mixture_bin_02")] == [drawn[2] / BATCH for drawn in ledger]


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        (["--model.vocab-size", 300], 2, "--model.vocab-size 300: the blocks in"),
        (["--model.block-size", 8], 2, "--model.block-size 8: the blocks in"),
        (["--model.n-kv-head", 3], 2, "n_head 2 is not a multiple of n_kv_head 3"),
        (["--model.preset", "gpt2", "--model.soft-cap", 15], 2, "model: soft_cap 15.0: with learned positions"),
        (["--model.preset", "gpt2", "--model.n-kv-head", 1], 2, "model: n_kv_head 1: with learned positions"),
        (["--model.value-embeddings"], 2, "model.value_embeddings true: there are none any more"),
        (["--strategy", "fsdp"], 2, "Muon needs whole matrices"),
        (
            ["--strategy", "fsdp", "--optim.kind", "adamw", "--average.kind", "ema"],
            2,
            "the average is of whole weights",
        ),
        (["--optim.lr", "1e30", "--clip", "1e30"], 1, "with the blocks "),
        (["--loggers", "wandb"], 2, "pip install 'fluxentropy[wandb]'"),
    ],
)
def test_refusals(
    more: list[object], code: int, message: str, bins: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(bins, tmp_path / "run", *more)) == code
    assert message in capsys.readouterr().err


def test_other_blocks_are_refused_by_name(
    bins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        stop_after(patch, 6, Checkpoints)
        assert main(command(bins, tmp_path / "run")) == 1
    (tmp_path / "other").mkdir()
    other = write_bins(tmp_path / "other", seed=1)
    capsys.readouterr()
    assert main(command(other, tmp_path / "run")) == 1
    assert "holds another run: blocks is" in capsys.readouterr().err
    assert main(command(other, tmp_path / "run", "--allow-changed-bins", "--schedule.name", "increasing")) == 0
    assert "resuming after step 6" in capsys.readouterr().err
    assert [row["step"] for row in rows(tmp_path / "run")] == list(range(STEPS + 1))
    assert main(["ledger", str(tmp_path / "run")]) == 1  # drawn from these blocks the first steps are others
    assert "step 1 of the ledger" in capsys.readouterr().err


def test_validation_on_another_corpus(bins: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "held").mkdir()
    held = write_bins(tmp_path / "held", seed=2, edges=bins / "bins.json")
    assert main(command(bins, tmp_path / "run", "--validation", held)) == 0
    blocks = BlockSet.open(held)
    last = rows(tmp_path / "run")[-1]
    by_bin = np.array([last[f"val_loss_bin_{number:02d}"] for number in range(3)], dtype=float)
    assert last["val_loss"] == pytest.approx(float(by_bin @ blocks.counts / blocks.counts.sum()))
    assert main(command(bins, tmp_path / "some", "--validation", held, "--eval-blocks", "2")) == 0
    some = rows(tmp_path / "some")[-1]
    equal = [some[f"val_loss_bin_{number:02d}"] for number in range(3)]
    assert some["val_loss"] == pytest.approx(float(np.mean(equal, dtype=float)))  # as many blocks of each bin
    assert some["val_loss"] != last["val_loss"]
    (tmp_path / "four").mkdir()
    four = write_bins(tmp_path / "four", bins=4)
    assert main(command(bins, tmp_path / "no", "--validation", four, "--schedule.name", "adaptive")) == 2
    assert "has 4 bins" in capsys.readouterr().err
    assert main(command(bins, tmp_path / "other", "--validation", four)) == 0
    assert "val_loss_bin_03" in rows(tmp_path / "other")[-1]
