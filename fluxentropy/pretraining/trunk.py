"""Given weights that a training starts from: a model folder, or a run of `pretrain` at one of its steps.

    --from RUN@600             a new training: its own plan, budget and rates, from step 0
    --from RUN@600 --branch    the plan of the run, its trunk, goes on after step 600, under other rates or averages

A branch begins with the trunk's metrics and ledger up to that step, so that its own are those of the whole training;
without any other option it is, bit for bit, the trunk. What decides its result is in its identity, so it goes on when
the trunk is gone.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fluxentropy.config.yaml import read_yaml, to_plain
from fluxentropy.errors import FluxentropyError, RunError, UsageError
from fluxentropy.pretraining.export import from_export, read_tokenizer, tokenizer_files
from fluxentropy.pretraining.gpt import GPT, GPTConfig
from fluxentropy.pretraining.ledger import read_steps
from fluxentropy.pretraining.options import PretrainConfig
from fluxentropy.pretraining.trainer import Training, Trunk, all_checkpoints, latest_checkpoint, read_checkpoint
from fluxentropy.runs.directory import CONFIG, RunRecord, difference
from fluxentropy.runs.files import fingerprint_json
from fluxentropy.schedules.dataset import FOLDER, BlockSet
from fluxentropy.schedules.schedule import Adaptive

OPTIONS = ("from", "branch", "keep_optimizer")  # of PretrainConfig: the identity has what they stand for

# what a branch has from its trunk; how it is validated and logged is its own, as are rates, averages and clipping
SHARED = ("model", "schedule", "tokens", "batch_size", "seed", "exhausted", "holdout", "short_start", "short_tokens")


def open_trunk(config: PretrainConfig, training: Training, gpt: GPT) -> Trunk | None:
    """What `config.from_` names; `gpt` gets its weights.

    Errors: UsageError names what there is not, or what does not fit; RunError a checkpoint that cannot be read.
    """
    if config.from_ is None:
        return None
    path, step = split_place(config.from_)
    if path.absolute() == config.out.absolute():
        raise UsageError(f"--from {config.from_}: this is --out: choose another folder to write to")
    record = RunRecord.read(path)
    try:
        if record.identity.get("kind") == "pretrain":
            return _of_run(config, training, gpt, record, step)
        if step is None and (path / "config.json").is_file():
            return _of_model(config, training, gpt, path)
    except NotThereError:
        if (found := _recorded(config)) is not None:
            return found
        raise
    if (found := _recorded(config)) is not None:
        return found
    kind = record.identity.get("kind")
    what = f"is a run of {kind}, not of pretrain" if kind else "is no run of pretrain, and no model folder"
    raise UsageError(f"--from {config.from_}: {path} {what if path.exists() else 'is not there'}")


def split_place(text: str) -> tuple[Path, int | None]:
    """RUN@STEP -> the run and the step; an @ in the name of a folder that is there is a part of it.

    >>> split_place("runs/a@600"), split_place("runs/a")
    ((PosixPath('runs/a'), 600), (PosixPath('runs/a'), None))
    """
    path, at, step = text.rpartition("@")
    if not at or Path(text).exists():
        return Path(text), None
    if not step.isdecimal():
        raise UsageError(f"--from {text}: after the @ stands the number of a step, such as {path}@600")
    return Path(path), int(step)


class NotThereError(UsageError):
    """A checkpoint that a run has not, or no longer."""


# --- a run ------------------------------------------------------------------------------------------------------------


def _of_run(config: PretrainConfig, training: Training, gpt: GPT, record: RunRecord, step: int | None) -> Trunk:
    """The trunk that is a run at a step (None: that of its last checkpoint)."""
    there = all_checkpoints(record.path / "checkpoints")
    step = max(there, default=0) if step is None else step
    if step not in there:
        raise NotThereError(_no_checkpoint(config, record.path, step, sorted(there)))
    path, before = there[step], record.identity.get("trunk", {})
    state = read_checkpoint(path)
    optimizer = config.branch or config.keep_optimizer
    _check_model(config, gpt.config, state, record, exact=optimizer)
    _check_tokenizer(config, training.blocks, state, record)
    if optimizer:
        _check_optimizer(config, state, record)
    if config.branch:
        _check_plan(config, training, record, step)
    put_matching(gpt, {name.removeprefix("gpt."): weight for name, weight in state["state_dict"].items()})
    seen = int(before.get("before", 0)) + _tokens_at(record.path, step)
    same = record.identity.get("average") == to_plain(config.average)
    identity = {
        "branch": config.branch,
        "optimizer": optimizer,
        "weights": hash_state(state, optimizer=optimizer),
        "run": fingerprint_json(record.identity),
        "step": step,
        "tokens": seen,
        "before": int(before.get("before", 0)) if config.branch else seen,
        "threads": record.identity.get("threads"),
        "averaged_since": (int(before.get("averaged_since", 0)) if same else step) if config.branch else 0,
    }
    return Trunk(
        name=str(config.from_),
        branch=config.branch,
        identity=identity,
        run=record.path,
        checkpoint=path,
        optimizer=state["optimizer_states"][0] if config.keep_optimizer and not config.branch else None,
    )


def _no_checkpoint(config: PretrainConfig, run: Path, step: int, there: list[int]) -> str:
    if there:
        return (
            f"--from {config.from_}: {run} has no checkpoint of step {step}; it has those of "
            f"{', '.join(map(str, there))}. Name one of these; the next run keeps more with --checkpoint-at"
        )
    ends = f": {run / 'export'} has its last weights" if (run / "export").is_dir() else ""
    return f"--from {config.from_}: {run} has no checkpoint any more{ends}; a run keeps some with --checkpoint-at"


def _tokens_at(run: Path, step: int) -> int:
    """Tokens of the first `step` steps of a run."""
    return int(read_steps(run, step)["tokens"][-1].as_py()) if step else 0


def _check_model(
    config: PretrainConfig, here: GPTConfig, state: Mapping[str, Any], record: RunRecord, *, exact: bool
) -> None:
    if "model" in state:
        _check_architecture(config, here, GPTConfig(**state["model"]), exact=exact)
    elif found := difference(record.identity.get("model"), to_plain(config.model)):  # of an earlier version
        raise UsageError(f"--from {config.from_}: model.{found}: give the model's options as they are there")


def _check_architecture(config: PretrainConfig, here: GPTConfig, there: GPTConfig, *, exact: bool) -> None:
    """exact: the weights are as large too, as the optimizer's state is."""
    free = {"zero_init"} | (set() if exact else {"vocab_multiple"})
    free |= {"block_size"} if here.positions == "rotary" and not config.branch else set()
    names = [f.name for f in dataclasses.fields(GPTConfig) if f.name not in free]
    views = {"n_kv_head": "kv_heads", "n_hidden": "hidden"}
    pairs = {name: [getattr(one, views.get(name, name)) for one in (there, here)] for name in names}
    found = [f"{name} is {there!r} there and {here!r} here" for name, (there, here) in pairs.items() if there != here]
    if found:
        raise UsageError(
            f"--from {config.from_}: the model there is another: {', '.join(found)}; give the options under --model "
            f"as they are there"
        )


def _check_tokenizer(config: PretrainConfig, blocks: BlockSet, state: Mapping[str, Any], record: RunRecord) -> None:
    if record.identity.get("blocks") == blocks.fingerprint:
        return
    there = state.get("tokenizer")
    if there is None:  # of an earlier version
        try:
            bins = read_yaml(record.path / CONFIG, PretrainConfig)["bins"]
            there = BlockSet.open(Path(bins)).facts["tokenizer"]["fingerprint"]
        except (FluxentropyError, KeyError) as error:
            raise UsageError(
                f"--from {config.from_}: the bins that it was trained on tell its tokenizer, and are not there: {error}"
            ) from error
    if there != blocks.facts["tokenizer"]["fingerprint"]:
        raise UsageError(_other_tokenizer(config, blocks))


def _other_tokenizer(config: PretrainConfig, blocks: BlockSet) -> str:
    return (
        f"--from {config.from_}: its tokenizer is another than that of {blocks.path}: make the blocks with it, "
        f"`fluxentropy bin … --tokenize`"
    )


def _check_optimizer(config: PretrainConfig, state: Mapping[str, Any], record: RunRecord) -> None:
    flag = "--branch" if config.branch else "--keep-optimizer"
    if not state.get("optimizer_states"):
        raise UsageError(f"--from {config.from_}: the checkpoint holds no optimizer's state: leave out {flag}")
    there = record.identity["optim"]["kind"]
    if there != config.optim.kind:
        raise UsageError(
            f"--from {config.from_} {flag}: optim.kind is {there} there and {config.optim.kind} here, and one's state "
            f"is nothing to the other: use --optim.kind {there}, or leave out {flag}"
        )
    if config.strategy == "fsdp":
        raise UsageError(f"{flag} with --strategy fsdp: its shards take no other state; use --strategy ddp")


def _check_plan(config: PretrainConfig, training: Training, record: RunRecord, step: int) -> None:
    """Whether a branch goes on with the plan of its trunk."""
    plain, measured = to_plain(config), isinstance(training.sampler.plan.schedule, Adaptive)
    data = {"blocks": training.blocks.fingerprint, "plan": training.sampler.plan.fingerprint}
    data |= {"validation": training.held_out.blocks.fingerprint} if measured else {}
    here = {name: plain[name] for name in SHARED} | data
    there = {name: record.identity.get(name) for name in here}
    if found := difference(there, here):
        raise UsageError(
            f"--from {config.from_} --branch: {found}, and a branch goes on with the plan of its trunk: give it the "
            f"same, or leave out --branch for a new training"
        )
    if step >= training.steps:
        raise UsageError(
            f"--from {config.from_} --branch: step {step} is the last one, nothing is left to train: name an earlier "
            f"step, RUN@STEP, or leave out --branch for a new training"
        )


def _recorded(config: PretrainConfig) -> Trunk | None:
    """The trunk of a run that goes on, or is finished, where the trunk itself is gone; its own checkpoints have all."""
    record = RunRecord.read(config.out)
    known = record.identity.get("trunk")
    begun = record.complete or latest_checkpoint(config.out / "checkpoints") is not None
    if known is None or config.overwrite or not begun:
        return None
    if read_yaml(config.out / CONFIG, PretrainConfig).get("from") != config.from_:
        return None
    asked = {"branch": config.branch, "optimizer": config.branch or config.keep_optimizer}
    return Trunk(name=str(config.from_), branch=config.branch, identity={**known, **asked})


# --- a model folder ---------------------------------------------------------------------------------------------------


def _of_model(config: PretrainConfig, training: Training, gpt: GPT, path: Path) -> Trunk:
    """The trunk that is a NanoChat or a GPT-2 of transformers. Errors: ModelError as of `from_export`, too."""
    for flag in ("branch", "keep_optimizer"):
        if getattr(config, flag):
            raise UsageError(
                f"--from {config.from_} {config.flag(flag)}: a model folder holds no optimizer's state: leave it out, "
                f"or name a run of pretrain"
            )
    model = from_export(path)
    _check_architecture(config, gpt.config, model.config, exact=False)
    _check_files(config, training.blocks, path)
    put_matching(gpt, model.state_dict())
    weights = hash_state({"state_dict": model.state_dict()}, optimizer=False)
    return Trunk(
        name=str(config.from_), branch=False, identity={"branch": False, "optimizer": False, "weights": weights}
    )


def _check_files(config: PretrainConfig, blocks: BlockSet, path: Path) -> None:
    """Whether the tokenizer in a model folder is that of the blocks: the same files, or the same rules and tokens."""
    ours = blocks.path / FOLDER / "tokenizer"
    files = {file.name: file.read_bytes() for file in tokenizer_files(path)}
    if files == {file.name: file.read_bytes() for file in tokenizer_files(ours)}:
        return
    here, there = (read_tokenizer(folder, 2**31) for folder in (ours, path))
    if _rules(here) != _rules(there):
        raise UsageError(_other_tokenizer(config, blocks))


def _rules(tokenizer: Any) -> Any:
    """What decides the tokens of a text."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return tokenizer.get_vocab()
    rules = json.loads(backend.to_str())
    return [rules[name] for name in ("model", "normalizer", "pre_tokenizer")] + [tokenizer.get_vocab()]


# --- weights ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def put_matching(gpt: GPT, weights: Mapping[str, Tensor]) -> None:
    """Copy the weights into `gpt`; rows that only pad its vocabulary keep theirs."""
    for name, own in gpt.state_dict().items():
        rows = min(len(own), len(weights[name]))
        own[:rows].copy_(weights[name][:rows])


def hash_state(state: Mapping[str, Any], *, optimizer: bool) -> str:
    """The SHA-256 of the weights in a checkpoint, and of its optimizer's state: names, types, shapes and bits."""
    digest = hashlib.sha256()
    for name, value in _values(state["state_dict"], "weights"):
        _add(digest, name, value)
    if optimizer:
        states = [one["state"] for one in state["optimizer_states"]]
        for name, value in _values(states, "optimizer"):
            _add(digest, name, value)
    return digest.hexdigest()


def _values(found: Any, name: str) -> Iterator[tuple[str, Any]]:
    """The leaves of nested mappings and lists, by their paths, in order."""
    if isinstance(found, Mapping):
        for key in sorted(found, key=str):
            yield from _values(found[key], f"{name}.{key}")
    elif isinstance(found, list | tuple):
        for place, value in enumerate(found):
            yield from _values(value, f"{name}.{place}")
    else:
        yield name, found


def _add(digest: Any, name: str, value: Any) -> None:
    if isinstance(value, Tensor):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().contiguous().reshape(-1).view(torch.uint8).numpy())
    else:
        digest.update(f"{name} {value!r}".encode())


# --- what a branch inherits -------------------------------------------------------------------------------------------


def metric_rows(run: Path, step: int) -> Iterator[dict[str, str]]:
    """The rows of a run's metrics.csv up to a step, as text. Errors: RunError where there is no such file."""
    try:
        with open(run / "metrics.csv", encoding="utf-8", newline="") as file:
            yield from (row for row in csv.DictReader(file) if int(row["step"]) <= step)
    except (OSError, ValueError, KeyError) as error:
        raise RunError(f"{run / 'metrics.csv'} cannot be read, a branch begins with its rows: {error}") from error
