"""Trainings that start from given weights: new ones, and branches of a run, which go on with its plan."""

from __future__ import annotations

import csv
import json
import shutil
from collections import Counter
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
from fluxentropy.errors import FluxentropyError
from fluxentropy.pretraining.callbacks import Checkpoints
from fluxentropy.pretraining.pretrain import draw_again, read_config
from fluxentropy.pretraining.trainer import all_checkpoints

STEPS, BATCH, AT = 10, 8, 6
pytestmark = pytest.mark.usefixtures("one_thread")
BASE: dict[str, Any] = {
    "model": {"n_layer": 1, "n_head": 2, "n_embd": 16, "vocab_multiple": 1},
    "tokens": STEPS * BATCH * LENGTH,
    "batch_size": BATCH,
    "holdout": 4,
    "accelerator": "cpu",
    "log_every": 1,
    "eval_every": 2 * BATCH * LENGTH,
    "checkpoint_every": 4,
    "keep": 1,
    "optim": {"lr": 0.02},
    "lr": {"schedule": "constant"},
}


@pytest.fixture(scope="module")
def bins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bins(tmp_path_factory.mktemp("corpus"))


def train(bins: Path, out: Path, **options: Any) -> Any:
    return fluxentropy.pretrain(**{**BASE, "bins": bins, "out": out, **options})


@pytest.fixture(scope="module")
def trunk(bins: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that has kept its checkpoint after 6 of 10 steps, and the last."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("trunk") / "run"
    train(bins, out, checkpoint_at=[AT / STEPS], average={"kind": "ema", "decay": [0.5, 0.9]})
    return out


def rows(out: Path) -> list[dict[str, str]]:
    with open(out / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def result(out: Path) -> dict[str, bytes]:
    """What a run has found out: its manifest says how."""
    leave = ("timings.csv", ".lock", "config.resolved.yaml", ".records.json", "manifest.json")
    files = (path for path in sorted(out.rglob("*")) if path.is_file() and path.name not in leave)
    return {str(path.relative_to(out)): path.read_bytes() for path in files if path.suffix != ".ckpt"}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def state(out: Path, step: int) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(all_checkpoints(out / "checkpoints")[step], weights_only=False)
    return found


def stop_at(patch: pytest.MonkeyPatch, step: int) -> None:
    own = Checkpoints.step_end

    def step_end(self: Any, trainer: Any, module: Any, number: int) -> None:
        if number + 1 == step:
            raise RuntimeError("stopped")
        own(self, trainer, module, number)

    patch.setattr(Checkpoints, "step_end", step_end)


def test_a_checkpoint_is_kept_for_good(trunk: Path) -> None:
    assert [path.name for path in sorted((trunk / "checkpoints").glob("*"))] == [
        "step-00000006.kept.ckpt",
        "step-00000010.ckpt",
    ]
    assert state(trunk, AT)["sampler"]["step"] == AT


# --- branches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"optim": {"lr": 0.02, "kind": "adamw"}, "average": {"kind": "last", "k": 3}, "model": BASE["model"]},
        {"schedule": {"name": "adaptive", "every": 4}, "eval_every": None},
        {"short_start": 4, "short_tokens": 900, "micro_batch": 4},
    ],
    ids=["ema", "adamw", "adaptive", "short"],
)
def test_a_branch_with_unchanged_options_is_the_trunk_to_the_bit(more: Any, bins: Path, tmp_path: Path) -> None:
    same = {"average": {"kind": "ema", "decay": [0.5, 0.9]}, "checkpoint_at": [AT], **more}
    train(bins, tmp_path / "trunk", **same)
    train(bins, tmp_path / "branch", from_=f"{tmp_path / 'trunk'}@{AT}", branch=True, **same)
    assert result(tmp_path / "branch") == result(tmp_path / "trunk")
    shutil.rmtree(tmp_path / "trunk" / "export")
    manifest = json.loads((tmp_path / "branch" / "manifest.json").read_text())
    assert manifest["trunk"] == {
        "from": f"{tmp_path / 'trunk'}@{AT}",
        "branch": True,
        "optimizer": True,
        "step": AT,
        "tokens": AT * BATCH * LENGTH,
    }


def test_a_branch_decays_where_its_trunk_goes_on(bins: Path, trunk: Path, tmp_path: Path) -> None:
    """One that decays after its step is the run that would have decayed there, as both are at the peak before."""
    decay = {"schedule": "trapezoid", "decay": 0.4}
    found = train(bins, tmp_path / "branch", from_=f"{trunk}@{AT}", branch=True, lr=decay)
    train(bins, tmp_path / "alone", lr=decay)
    assert found.steps == STEPS and result(tmp_path / "branch") == result(tmp_path / "alone")
    ours, theirs = rows(tmp_path / "branch"), rows(trunk)
    assert ours[: AT + 1] == [{name: row[name] for name in ours[0]} for row in theirs[: AT + 1]]
    assert ours[AT + 2]["lr"] < theirs[AT + 2]["lr"]
    # its peak rate is its own, too, though the trunk's stands in the optimizer's state
    train(bins, tmp_path / "half", from_=f"{trunk}@{AT}", branch=True, optim={"lr": 0.01, "weight_decay": 0.0})
    assert float(rows(tmp_path / "half")[-1]["lr"]) == 0.01
    groups = state(tmp_path / "half", STEPS)["optimizer_states"][0]["param_groups"]
    assert {group["initial_lr"] for group in groups} == {0.01} and {g["weight_decay"] for g in groups} == {0.0}
    # and so on: a branch of a branch
    train(bins, tmp_path / "two", from_=f"{trunk}@{AT}", branch=True, lr=decay, checkpoint_at=[8])
    train(bins, tmp_path / "three", from_=f"{tmp_path / 'two'}@8", branch=True, lr=decay)
    assert result(tmp_path / "three") == result(tmp_path / "alone")


def test_averages_of_a_branch(bins: Path, trunk: Path, tmp_path: Path) -> None:
    """The same ones go on; others begin at the branch."""
    average = {"kind": "ema", "decay": [0.5, 0.9]}
    train(bins, tmp_path / "same", from_=f"{trunk}@{AT}", branch=True, average=average)
    assert result(tmp_path / "same") == result(trunk)
    last = train(bins, tmp_path / "last", from_=f"{trunk}@{AT}", branch=True, average={"kind": "last", "k": 8})
    assert last.facts["average_horizon"] == STEPS - AT
    assert [bool(row["val_loss_averaged"]) for row in rows(tmp_path / "last") if row["val_loss"]] == [
        False,
        *(step > AT for step in range(2, STEPS + 1, 2)),
    ]
    ema = train(bins, tmp_path / "ema", from_=f"{trunk}@{AT}", branch=True, average={"kind": "ema", "decay": 0.9})
    assert ema.facts["average_horizon"] == pytest.approx(1 + 4 / 9)  # after its four


def test_several_averages_have_their_own_names(bins: Path, trunk: Path, tmp_path: Path) -> None:
    """Each is what a run of its decay alone has."""
    for decay in (0.5, 0.9):
        train(bins, tmp_path / f"{decay}", average={"kind": "ema", "decay": decay})
        alone = rows(tmp_path / f"{decay}")
        assert [row["val_bpb_averaged"] for row in alone] == [row[f"val_bpb_averaged_{decay}"] for row in rows(trunk)]
        one, other = (
            weights(folder) for folder in (tmp_path / f"{decay}/export-averaged", trunk / f"export-averaged-{decay}")
        )
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert "val_bpb_averaged" not in rows(trunk)[0] and not (trunk / "export-averaged").exists()
    manifest = json.loads((trunk / "manifest.json").read_text())
    assert manifest["average_horizon"] == {"0.5": 2.0, "0.9": pytest.approx(1 + 10 / 9)}
    assert "export-averaged-0.9/model.safetensors" in manifest["files"]


def test_an_average_of_nothing_yet_is_not_validated(bins: Path, tmp_path: Path) -> None:
    train(bins, tmp_path / "run", average={"kind": "last", "k": 2, "every": 5})
    judged = [row for row in rows(tmp_path / "run") if row["val_loss"]]
    assert [(row["step"], bool(row["val_loss_averaged"])) for row in judged] == [
        *(("0", False), ("2", False), ("4", False), ("6", True), ("8", True), ("10", True))
    ]


def test_the_key_in_a_file_is_the_word(bins: Path, trunk: Path, tmp_path: Path) -> None:
    file = tmp_path / "branch.yaml"
    options = BASE | {"from": f"{trunk}@{AT}", "branch": True, "bins": str(bins)}
    file.write_text(json.dumps(options))  # which is YAML, too
    assert main(["pretrain", "--config", str(file), "--out", str(tmp_path / "file")]) == 0
    argv = ["pretrain", "--config", str(tmp_path / "file" / "config.resolved.yaml")]
    assert main([*argv, "--from", f"{trunk}@{STEPS}", "--out", str(tmp_path / "flag")]) == 2  # a flag wins
    assert result(tmp_path / "file") == result(fluxentropy.pretrain(**options, out=tmp_path / "python").out)
    file.write_text(json.dumps({"from_": "x"}))
    with pytest.raises(FluxentropyError, match="unknown key from_: did you mean from?"):
        read_config(file)


def test_a_killed_branch_goes_on_also_without_its_trunk(bins: Path, trunk: Path, tmp_path: Path) -> None:
    alone = train(bins, tmp_path / "alone", from_=f"{trunk}@{AT}", branch=True, clip=0.1)
    copy = Path(shutil.copytree(trunk, tmp_path / "trunk"))
    options = {"from_": f"{copy}@{AT}", "branch": True, "clip": 0.1}
    for step in (7, 8, 9):  # before its first checkpoint, which is that of step 8, and after
        with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError, match="stopped"):
            stop_at(patch, step)
            train(bins, tmp_path / "run", **options)
    # another trunk of the same name is refused
    train(bins, tmp_path / "other", checkpoint_at=[AT], seed=0, model_seed=5)
    shutil.move(copy, tmp_path / "aside")
    shutil.copytree(tmp_path / "other", copy)
    with pytest.raises(FluxentropyError, match="holds another run: trunk.weights is"):
        train(bins, tmp_path / "run", **options)
    shutil.rmtree(copy)
    with pytest.raises(FluxentropyError, match="is not there"):
        train(bins, tmp_path / "new", **options)
    found = train(bins, tmp_path / "run", **options)
    assert result(tmp_path / "run") == result(alone.out)
    assert found.metrics == alone.metrics and train(bins, tmp_path / "run", **options).facts == found.facts


def test_ledger_and_verify_of_a_branch(bins: Path, trunk: Path, tmp_path: Path) -> None:
    train(bins, tmp_path / "branch", from_=f"{trunk}@{AT}", branch=True, clip=0.1)
    found = fluxentropy.ledger(tmp_path / "branch")
    assert found.steps == STEPS and f"the first {AT} of them are those of {trunk}@{AT}" in found.lines()[1]
    fluxentropy.ledger(trunk, out=tmp_path / "trunk.parquet")
    assert pq.read_table(found.out).equals(pq.read_table(tmp_path / "trunk.parquet"))
    assert main(["verify", str(tmp_path / "branch")]) == 0


# --- new trainings ----------------------------------------------------------------------------------------------------


def test_a_new_training_starts_with_the_weights_alone(bins: Path, trunk: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"tokens": 3 * BATCH * LENGTH, "schedule": {"name": "increasing"}, "seed": 4}
    run = train(bins, tmp_path / "run", from_=str(trunk), **options)
    folder = train(bins, tmp_path / "folder", from_=str(trunk / "export"), **options)
    assert run.steps == folder.steps == 3
    assert rows(run.out)[0]["step"] == "0" and rows(run.out)[0]["val_loss"] == rows(trunk)[-1]["val_loss"]
    leave = ("manifest.json",)
    one, other = ({k: v for k, v in result(out).items() if k not in leave} for out in (run.out, folder.out))
    assert one == other  # the export has all of the weights
    # the optimizer's state makes a difference, and is that of the checkpoint
    kept = train(bins, tmp_path / "kept", from_=f"{trunk}@{AT}", keep_optimizer=True, checkpoint_at=[1], **options)
    bare = train(bins, tmp_path / "bare", from_=f"{trunk}@{AT}", **options)
    assert rows(kept.out)[0] == rows(bare.out)[0] and rows(kept.out)[3] != rows(bare.out)[3]
    adamw = {"optim": {"lr": 0.02, "kind": "adamw"}}
    train(bins, tmp_path / "adamw", **adamw)
    train(bins, tmp_path / "more", from_=str(tmp_path / "adamw"), keep_optimizer=True, checkpoint_at=[1], **adamw)
    counts = {float(one["step"]) for one in state(tmp_path / "more", 1)["optimizer_states"][0]["state"].values()}
    assert counts == {STEPS + 1.0}


def test_a_model_folder_of_gpt2(bins: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"model": BASE["model"] | {"preset": "gpt2"}, "tokens": 2 * BATCH * LENGTH}
    train(bins, tmp_path / "run", **options)
    train(bins, tmp_path / "more", from_=str(tmp_path / "run" / "export"), **options)
    assert rows(tmp_path / "more")[0]["val_loss"] == rows(tmp_path / "run")[-1]["val_loss"]
    with pytest.raises(FluxentropyError, match="block_size is 16 there and 32 here"):  # positions are weights there
        longer = options["model"] | {"block_size": 32}
        train(bins, tmp_path / "no", **options | {"from_": str(tmp_path / "run" / "export"), "model": longer})


def test_a_new_training_may_have_other_bins_and_longer_inputs(trunk: Path, tmp_path: Path) -> None:
    other = write_bins(tmp_path, seed=3, texts=90)
    model = BASE["model"] | {"block_size": 64, "vocab_multiple": 64}
    found = train(other, tmp_path / "run", from_=f"{trunk}@{AT}", model=model, tokens=2 * BATCH * LENGTH)
    assert found.steps == 2
    # a branch with a padded vocabulary would need a larger state of the optimizer
    with pytest.raises(FluxentropyError, match="vocab_multiple is 1 there and 64 here"):
        train(other, tmp_path / "no", from_=f"{trunk}@{AT}", model=model, keep_optimizer=True)


def test_the_ledger_of_a_new_training_counts_the_trunk(bins: Path, trunk: Path, tmp_path: Path) -> None:
    train(bins, tmp_path / "one", from_=f"{trunk}@{AT}", tokens=2 * BATCH * LENGTH, seed=1)
    train(bins, tmp_path / "two", from_=str(tmp_path / "one"), tokens=BATCH * LENGTH, seed=2)
    found = fluxentropy.ledger(tmp_path / "two")
    assert found.steps == 1 and f"{9 * BATCH * LENGTH:,} tokens in all" in found.lines()[1]
    documents = pq.read_table(found.out).to_pydict()
    one = pq.read_table(fluxentropy.ledger(tmp_path / "one").out).to_pydict()
    assert documents["times_before"] == [a + b for a, b in zip(one["times"], one["times_before"], strict=True)]
    # by brute force: a document is seen as often as that block of it which is drawn most often
    training, drawn = draw_again(trunk, AT)
    drawn_blocks = Counter(int(number) for ids in drawn for number in ids)
    times: Counter[tuple[int, int]] = Counter()
    for number, count in drawn_blocks.items():
        bin_, index = (int(place[0]) for place in training.blocks.places(np.array([number])))
        for document in set(training.blocks.read(bin_, index).documents.tolist()):
            times[bin_, document] = max(times[bin_, document], count)
    rows_of = [one["bin"][:place].count(bin_) for place, bin_ in enumerate(one["bin"])]
    assert one["times_before"] == [times[place] for place in zip(one["bin"], rows_of, strict=True)]
    shutil.move(tmp_path / "one", tmp_path / "away")
    gone = fluxentropy.ledger(tmp_path / "two")
    assert "which documents is not known" in gone.lines()[2]
    assert "times_before" not in pq.read_table(gone.out).column_names


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("at", "more", "message"),
    [
        ("@7", {}, "has no checkpoint of step 7; it has those of 6, 10. Name one"),
        ("@x", {}, "after the @ stands the number of a step"),
        ("@6", {"model": BASE["model"] | {"n_layer": 2}}, "the model there is another: n_layer is 1 there and 2 here"),
        ("@6", {"model": BASE["model"] | {"preset": "gpt2"}}, "positions is 'rotary' there and 'learned' here, no"),
        ("", {"branch": True}, "step 10 is the last one, nothing is left to train"),
        ("@6", {"branch": True, "schedule": {"name": "increasing"}}, "schedule.name is 'random' there and 'incr"),
        ("@6", {"branch": True, "tokens": 9 * BATCH * LENGTH}, "tokens is 1280 there and 1152 here, and a branch"),
        ("@6", {"branch": True, "seed": 3}, "seed is 0 there and 3 here, and a branch goes on with the plan of its"),
        ("@6", {"branch": True, "optim": {"kind": "adamw"}}, "optim.kind is muon there and adamw here"),
        ("/export", {"branch": True}, "--branch: a model folder holds no optimizer's state"),
        ("/export", {"keep_optimizer": True}, "--keep-optimizer: a model folder holds no optimizer's state"),
        ("/checkpoints", {}, "is no run of pretrain, and no model folder"),
        ("-gone", {}, "is not there"),
        ("", {"checkpoint_at": [11]}, "--checkpoint-at 11: the training has 10 steps"),
        ("", {"checkpoint_at": [float("inf")]}, "use shares between 0 and 1, or whole numbers"),
        ("", {"checkpoint_at": [2.5]}, "use shares between 0 and 1, or whole numbers"),
        ("", {"average": {"decay": [0.9, 0.9]}}, "use a number from 0 to below 1, or several, each once"),
    ],
)  # fmt: skip
def test_refusals(at: str, more: dict[str, Any], message: str, bins: Path, trunk: Path, tmp_path: Path) -> None:
    with pytest.raises(FluxentropyError, match=None) as caught:
        train(bins, tmp_path / "run", **{"from_": f"{trunk}{at}", **more})
    assert message in str(caught.value)
    assert not (tmp_path / "run" / "manifest.json").exists()


def test_more_refusals(bins: Path, trunk: Path, tmp_path: Path) -> None:
    other = write_bins(tmp_path, seed=3)
    with pytest.raises(FluxentropyError, match="blocks is .* and a branch goes on with the plan of its trunk"):
        train(other, tmp_path / "run", from_=f"{trunk}@{AT}", branch=True)
    with pytest.raises(FluxentropyError, match="--branch is for --from"):
        train(bins, tmp_path / "run", branch=True)
    with pytest.raises(FluxentropyError, match="this is --out"):
        train(bins, trunk, from_=f"{trunk}@{AT}")
    with pytest.raises(FluxentropyError, match="is a run of bins, not of pretrain"):
        train(bins, tmp_path / "run", from_=str(bins))
    from fakes import make_tokenizer

    for folder in (tmp_path / "export", tmp_path / "bare"):
        shutil.copytree(trunk / "export", folder)
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<one more>"])
    tokenizer.save_pretrained(tmp_path / "export")
    with pytest.raises(FluxentropyError, match="its tokenizer is another than that of"):
        train(bins, tmp_path / "run", from_=str(tmp_path / "export"))
    for path in (tmp_path / "bare").glob("tokenizer*"):
        path.unlink()
    with pytest.raises(FluxentropyError, match="holds no tokenizer"):
        train(bins, tmp_path / "run", from_=str(tmp_path / "bare"))
    copy = Path(shutil.copytree(trunk, tmp_path / "copy"))
    found = state(copy, AT)
    del found["optimizer_states"]
    torch.save(found, all_checkpoints(copy / "checkpoints")[AT])
    with pytest.raises(FluxentropyError, match="holds no optimizer's state: leave out --branch"):
        train(bins, tmp_path / "run", from_=f"{copy}@{AT}", branch=True)
    found["tokenizer"] = "another"
    torch.save(found, all_checkpoints(copy / "checkpoints")[AT])
    with pytest.raises(FluxentropyError, match="its tokenizer is another than that of"):
        train(other, tmp_path / "run", from_=f"{copy}@{AT}")
    all_checkpoints(copy / "checkpoints")[AT].write_bytes(b"PK")
    with pytest.raises(FluxentropyError, match="cannot be read"):
        train(bins, tmp_path / "run", from_=f"{copy}@{AT}")
    shutil.rmtree(copy / "checkpoints")
    with pytest.raises(FluxentropyError, match=r"has no checkpoint any more: .*export has its last weights"):
        train(bins, tmp_path / "run", from_=str(copy))


def test_checkpoints_of_an_earlier_version(bins: Path, trunk: Path, tmp_path: Path) -> None:
    """They say neither their architecture nor their tokenizer: the run does."""
    copy = Path(shutil.copytree(trunk, tmp_path / "copy"))
    found = state(copy, AT)
    del found["model"], found["tokenizer"]
    torch.save(found, all_checkpoints(copy / "checkpoints")[AT])
    train(bins, tmp_path / "branch", from_=f"{copy}@{AT}", branch=True, average={"kind": "ema", "decay": [0.5, 0.9]})
    assert result(tmp_path / "branch") == result(trunk)
    with pytest.raises(FluxentropyError, match=r"model.n_layer is 1 there and 2 here"):
        train(bins, tmp_path / "no", from_=f"{copy}@{AT}", model=BASE["model"] | {"n_layer": 2})
    other = write_bins(tmp_path, seed=3)
    train(other, tmp_path / "new", from_=f"{copy}@{AT}", tokens=BATCH * LENGTH)
