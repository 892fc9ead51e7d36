"""`fluxentropy average`: the mean of checkpoints against sums of their state dicts, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from runfiles import metrics
from tokenruns import LENGTH, write_bins

import fluxentropy
from fluxentropy.cli.app import main
from fluxentropy.errors import FluxentropyError
from fluxentropy.pretraining.export import from_export
from fluxentropy.pretraining.pretrain import read_config
from fluxentropy.pretraining.trainer import all_checkpoints

STEPS, BATCH = 6, 8
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def bins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bins(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def run(bins: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with checkpoints after steps 2, 4, 5 and 6; its embedding is its head."""
    options: dict[str, Any] = {
        "model": {"n_layer": 1, "n_head": 2, "n_embd": 16, "tied": True},
        **{"tokens": STEPS * BATCH * LENGTH, "batch_size": BATCH, "holdout": 4, "accelerator": "cpu"},
        **{"checkpoint_every": 1, "checkpoint_at": [2, 4], "optim": {"lr": 0.02}},
    }
    return Path(fluxentropy.pretrain(**options, bins=bins, out=tmp_path_factory.mktemp("run") / "run").out)


def ema_shares(count: int, decay: float) -> list[float]:
    """By the recursion on unit vectors."""
    found = [1.0]
    for n in range(2, count + 1):
        kept = min(decay, n / (n + 9))
        found = [kept * share for share in found] + [1 - kept]
    return found


@pytest.mark.parametrize(
    ("options", "want"),
    [
        ({"last": 3}, {4: 1 / 3, 5: 1 / 3, 6: 1 / 3}),
        ({"weights": [0.2, 0.3, 0.5]}, {4: 0.2, 5: 0.3, 6: 0.5}),
        ({"weights": [0.25, 0.75], "steps": [5, 2]}, {5: 0.25, 2: 0.75}),
        ({"weights": [1.5, -0.5]}, {5: 1.5, 6: -0.5}),  # beyond the last
        ({"ema": 0.2}, dict(zip((2, 4, 5, 6), ema_shares(4, 0.2), strict=True))),
        ({"ema": 0.9, "steps": [4, 6]}, dict(zip((4, 6), ema_shares(2, 0.9), strict=True))),
    ],
)
def test_it_is_the_mean_of_the_state_dicts(
    options: dict[str, Any], want: dict[int, float], run: Path, tmp_path: Path
) -> None:
    found = fluxentropy.average(run, out=tmp_path / "mean", **options)
    assert dict(zip(found.steps, found.weights, strict=True)) == pytest.approx(want)
    states = {
        step: torch.load(path, weights_only=False)["state_dict"]
        for step, path in all_checkpoints(run / "checkpoints").items()
    }
    for name, ours in from_export(found.out).state_dict().items():
        theirs = sum(share * states[step][f"gpt.{name}"].double() for step, share in want.items())
        torch.testing.assert_close(ours, theirs[: len(ours)].float(), rtol=0, atol=1e-9)  # the padding is left out
    assert found.val_loss != metrics(run)[-1]["val_loss"] and found.val_bpb is not None


def test_the_last_alone_has_the_loss_of_the_run(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["average", str(run), "--last", "1", "--out", str(tmp_path / "one")]
    assert main(argv) == 0
    last = metrics(run)[-1]
    assert f"validation loss {last['val_loss']:.4f} nats per token, {last['val_bpb']:.4f}" in capsys.readouterr().out
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "one").iterdir()}
    assert main([*argv, "--json"]) == 0  # it is there already
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "one").iterdir()} == before
    printed = json.loads(capsys.readouterr().out)
    assert (printed["steps"], printed["weights"], printed["val_bpb"]) == ([6], [1.0], last["val_bpb"])
    assert main(["average", str(run), "--weights", "0.5,0.5", "--out", str(tmp_path / "one")]) == 1
    assert "one exists" in capsys.readouterr().err
    # what it wrote is a start for a training like any other export
    options = {"tokens": BATCH * LENGTH, "batch_size": BATCH, "holdout": 4, "accelerator": "cpu"}
    model = {"n_layer": 1, "n_head": 2, "n_embd": 16, "tied": True}
    bins = read_config(run).bins
    fluxentropy.pretrain(bins=bins, out=tmp_path / "next", from_=str(tmp_path / "one"), model=model, **options)
    assert metrics(tmp_path / "next")[0]["val_loss"] == last["val_loss"]


def test_without_its_bins_it_is_not_validated(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    config = copy / "config.resolved.yaml"
    config.write_text(config.read_text().replace(f"bins: {read_config(run).bins}", "bins: gone"))
    found = fluxentropy.average(copy, last=2, out=tmp_path / "mean")
    assert found.val_loss is None and "not validated" in found.lines()[1]
    assert (found.out / "tokenizer.json").read_bytes() == (run / "export/tokenizer.json").read_bytes()
    shutil.rmtree(copy / "export")
    with pytest.raises(FluxentropyError, match="neither its bins nor its export is there"):
        fluxentropy.average(copy, last=3, out=tmp_path / "three")
    assert not (tmp_path / "three").exists()


def test_it_is_not_validated_on_bins_that_took_the_place_of_its_own(run: Path, tmp_path: Path) -> None:
    other = write_bins(tmp_path / "corpus", seed=1)
    (other / "_blocks" / "tokenizer" / "tokenizer.json").write_text("{}")
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    config = copy / "config.resolved.yaml"
    config.write_text(config.read_text().replace(f"bins: {read_config(run).bins}", f"bins: {other}"))
    found = fluxentropy.average(copy, last=2, out=tmp_path / "mean")
    assert found.val_loss is None and "or are others" in found.lines()[1]
    assert (found.out / "tokenizer.json").read_bytes() == (run / "export/tokenizer.json").read_bytes()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"last": 5}, "--last: it needs 5 checkpoints, and .* has checkpoints of steps 2, 4, 5, 6; a run keeps more"),
        ({"last": 2, "steps": [3, 4]}, "--steps 3: .* has checkpoints of steps 2, 4, 5, 6"),
        ({"ema": 0.9, "steps": [4]}, "--ema: it needs 2 checkpoints"),
        ({"weights": [0.5, 0.4]}, "--weights: they sum to 0.9: let them sum to 1"),
        ({"weights": [0.5, 0.5], "steps": [2, 4, 5]}, "--weights has 2 numbers and --steps 3: give as many"),
        ({"weights": ["inf", "-inf"]}, "--weights: they sum to nan"),
        ({"weights": [0.5, 0.5], "steps": [4, 4]}, "--steps 4,4: name each step once"),
        ({"weights": ["a"]}, "take numbers separated by commas"),
        ({"last": 2, "ema": 0.5}, "--last --ema: give one of"),
        ({}, "no weights: give one of"),
        ({"ema": 1.0}, "--ema 1: use a number from 0 to below 1"),
        ({"last": 0}, "--last 0: use 1 or more"),
    ],
)
def test_refusals(more: dict[str, Any], message: str, run: Path, tmp_path: Path) -> None:
    with pytest.raises(FluxentropyError, match=message):
        fluxentropy.average(run, out=tmp_path / "mean", **more)
    assert not (tmp_path / "mean").exists()


def test_what_is_no_run_is_refused(bins: Path, tmp_path: Path) -> None:
    with pytest.raises(FluxentropyError, match="is no run of pretrain"):
        fluxentropy.average(bins, last=2, out=tmp_path / "mean")
