"""`fluxentropy average`: a weighted mean of a run's checkpoints, after the fact, as a model folder.

    --last 3                 1/3, 1/3, 1/3 of the last three
    --weights 0.2,0.3,0.5    these
    --ema 0.9                the shares that an exponential average of them all has, warmed up (optim.py)

Sums are in float64 and rounded once; a tied weight counts once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fluxentropy.config.results import Result, command
from fluxentropy.errors import FluxentropyError, RunError, UsageError
from fluxentropy.pretraining.export import export
from fluxentropy.pretraining.gpt import GPT, GPTConfig
from fluxentropy.pretraining.optim import ema_shares, put_weights, weighted_mean
from fluxentropy.pretraining.options import AverageConfig
from fluxentropy.pretraining.pretrain import make_model, open_blocks, open_training, read_config
from fluxentropy.pretraining.trainer import all_checkpoints, read_checkpoint
from fluxentropy.pretraining.validation import validate
from fluxentropy.runs.directory import RunRecord
from fluxentropy.runs.files import fingerprint_json, json_text, read_json, sha256_file
from fluxentropy.schedules.dataset import FOLDER, BlockSet

FACTS = "average.json"


@dataclass(frozen=True, kw_only=True)
class AverageResult(Result):
    """A model whose weights are a mean of those in checkpoints."""

    run: Path
    out: Path
    steps: tuple[int, ...]  # of the checkpoints
    weights: tuple[float, ...]  # of each
    val_loss: float | None  # nats per token, as at the end of the run; None: the bins are not there
    val_bpb: float | None  # the same in bits per byte

    def lines(self) -> list[str]:
        shown = ", ".join(
            f"{weight:.4g} of step {step:,}" for step, weight in zip(self.steps, self.weights, strict=True)
        )
        judged = "not validated: the run's bins are not there, or are others"
        if self.val_loss is not None:
            judged = f"validation loss {self.val_loss:.4f} nats per token, {self.val_bpb:.4f} bits per byte"
        return [shown, judged, f"score with it: fluxentropy score SOURCE --model {self.out} --out DIR"]


@command
def average(config: AverageConfig) -> AverageResult:
    """Average checkpoints of `config.run` and write the model; one that is there already stays.

    Errors: UsageError where `run` is no run of pretrain, or has not the checkpoints; ModelError where `out` is another
    folder.
    """
    record = RunRecord.read(config.run)
    if record.identity.get("kind") != "pretrain":
        raise UsageError(f"{config.run} is no run of pretrain")
    there = all_checkpoints(config.run / "checkpoints")
    steps = _chosen(config, sorted(there))
    shares = _shares(config, len(steps))
    facts: dict[str, Any] = {
        "run": fingerprint_json(record.identity),
        "checkpoints": {str(step): sha256_file(there[step]) for step in steps},
        "weights": list(shares),
    }
    known = read_json(config.out / FACTS) or {}
    if {name: known.get(name) for name in facts} != facts:
        blocks = _blocks(record)
        gpt = _mean(config.run, blocks, [there[step] for step in steps], shares)
        known = facts | {"val_loss": None, "val_bpb": None} | (_validated(config.run, gpt) if blocks else {})
        export(gpt, config.out, tokenizer=_tokenizer(config.run, blocks), beside={FACTS: json_text(known)})
    return AverageResult(
        run=config.run,
        out=config.out,
        steps=tuple(steps),
        weights=tuple(shares),
        val_loss=known["val_loss"],
        val_bpb=known["val_bpb"],
    )


def _chosen(config: AverageConfig, there: Sequence[int]) -> list[int]:
    """The steps whose checkpoints are averaged."""
    has = f"{config.run} has checkpoints of steps {', '.join(map(str, there))}" if there else f"{config.run} has none"
    keep = "a run keeps more with --keep or --checkpoint-at"
    given = sorted(int(step) for step in config.steps or there)
    missing = [step for step in given if step not in there]
    if missing:
        raise UsageError(f"--steps {missing[0]}: {has}; {keep}")
    if config.weights is not None and config.steps is not None and len(config.weights) != len(given):
        raise UsageError(f"--weights has {len(config.weights)} numbers and --steps {len(given)}: give as many")
    flag = next(name for name in ("last", "ema", "weights") if getattr(config, name) is not None)
    wanted = {"last": config.last, "ema": 2, "weights": len(config.weights or ())}[flag] or 0
    if len(given) < wanted:
        raise UsageError(f"--{flag}: it needs {wanted} checkpoints, and {has}; {keep}")
    return given if flag == "ema" else given[-wanted:]


def _shares(config: AverageConfig, count: int) -> list[float]:
    """The weight of each checkpoint, from the earliest on."""
    if config.weights is not None:
        return [float(weight) for weight in config.weights]
    return [1 / count] * count if config.ema is None else ema_shares(count, config.ema).tolist()


def _mean(run: Path, blocks: BlockSet | None, checkpoints: Sequence[Path], shares: Sequence[float]) -> GPT:
    """The model with the mean of the weights."""
    first = read_checkpoint(checkpoints[0])
    if "model" in first:
        gpt = GPT(GPTConfig(**first["model"]))
    elif blocks is not None:
        gpt = make_model(read_config(run), blocks)
    else:
        raise RunError(
            f"{run}: its checkpoints are of an earlier version, and its bins, which tell their size, are gone"
        )
    names = [name for name, _ in gpt.named_parameters()]

    def each(path: Path) -> Mapping[str, torch.Tensor]:
        state = read_checkpoint(path)["state_dict"]
        return {name: state[f"gpt.{name}"] for name in names}

    put_weights(gpt, weighted_mean((each(path) for path in checkpoints), shares))
    return gpt


def _blocks(record: RunRecord) -> BlockSet | None:
    """Those that the run was trained on, where they are there, and those to validate on: not others in their place."""
    try:
        blocks, held_out = open_blocks(read_config(record.path))
    except FluxentropyError:
        return None
    here = (blocks.fingerprint, held_out.blocks.fingerprint)
    return blocks if here == (record.identity.get("blocks"), record.identity.get("validation")) else None


def _tokenizer(run: Path, blocks: BlockSet | None) -> Path:
    places = [run / "export"] if blocks is None else [blocks.path / FOLDER / "tokenizer"]
    if not places[0].is_dir():
        raise RunError(f"{run}: neither its bins nor its export is there, which have the tokenizer")
    return places[0]


def _validated(run: Path, gpt: GPT) -> dict[str, float]:
    """The loss on what the run was validated on; nothing where that is not there."""
    config = read_config(run)
    try:
        training = open_training(config)
    except FluxentropyError:
        return {}
    device = torch.device("cuda" if config.accelerator != "cpu" and torch.cuda.is_available() else "cpu")
    masks = config.model.document_masks
    found = validate(
        gpt.to(device), training.held_out, training.sizes, batch=config.eval_batch, document_masks=masks
    ).metrics()
    gpt.to("cpu")
    return {name: found[name] for name in ("val_loss", "val_bpb")}
