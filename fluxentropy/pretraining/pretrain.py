"""`fluxentropy pretrain`: token blocks in, a trained GPT out, resumable to the exact step."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from fluxentropy.config.results import Result, command
from fluxentropy.config.yaml import from_plain, read_yaml, to_plain, to_yaml
from fluxentropy.errors import FluxentropyError, ModelError, RunError, SourceError, UsageError
from fluxentropy.evaluation.questions import ACCURACIES, FORMAT
from fluxentropy.models.tokenizers import token_bytes
from fluxentropy.ordering.bins import Bin, Bins
from fluxentropy.pretraining.callbacks import (
    Averaging,
    Bookkeeping,
    Checkpoints,
    QuestionRounds,
    StepCallback,
    Throughput,
    Validation,
    average_horizon,
)
from fluxentropy.pretraining.export import export, family
from fluxentropy.pretraining.gpt import GPT, GPTConfig
from fluxentropy.pretraining.ledger import PIECES, Ledger, hash_ids, read_steps
from fluxentropy.pretraining.optim import BATCHED, WARMED_UP
from fluxentropy.pretraining.options import LedgerConfig, PretrainConfig
from fluxentropy.pretraining.trainer import (
    BlockData,
    GPTModule,
    Training,
    as_begun,
    latest_checkpoint,
    make_trainer,
    quiet_lightning,
    read_checkpoint,
)
from fluxentropy.pretraining.trunk import OPTIONS, open_trunk, split_place
from fluxentropy.pretraining.validation import HeldOut
from fluxentropy.runs.check import Findings
from fluxentropy.runs.directory import RunDirectory, RunRecord
from fluxentropy.runs.engine import Engine
from fluxentropy.runs.files import atomic_path, fingerprint_json, sha256_file, versions
from fluxentropy.runs.tables import MetricsFile, last_row
from fluxentropy.schedules.dataset import FOLDER, BlockSet
from fluxentropy.schedules.options import ScheduleConfig
from fluxentropy.schedules.sampler import Draws, open_sampler
from fluxentropy.schedules.schedule import group_bins

# --- `fluxentropy pretrain` -------------------------------------------------------------------------------------------


OWNED = ("metrics.csv", "timings.csv", "ledger.parquet", PIECES, "export*", "tensorboard", "wandb")

# what changes how a run is done, but not its result
FREE = (
    *("bins", "validation", "out", "overwrite", "allow_changed_bins", "checkpoint_every", "keep"),
    *("checkpoint_at", "loggers"),
    *("workers", "accelerator", "devices", "strategy", "compile"),
)

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PretrainResult(Result):
    """A trained GPT."""

    out: Path
    parameters: int
    steps: int
    tokens: int  # trained on
    val_loss: float  # nats per token, after the last step
    val_bpb: float  # the same in bits per byte
    metrics: Mapping[str, float]  # the last row of metrics.csv
    facts: Mapping[str, Any] = field(repr=False)  # what the manifest says of the training
    said_of_average: Sequence[str] = field(repr=False)

    @property
    def export(self) -> Path:
        """The model, a folder of `transformers`."""
        return self.out / "export"

    def lines(self) -> list[str]:
        return [
            f"{self.parameters:,} parameters trained on {self.tokens:,} tokens in {self.steps:,} steps",
            f"validation loss {self.val_loss:.4f} nats per token, {self.val_bpb:.4f} bits per byte",
            *self.said_of_average,
            f"metrics in {self.out / 'metrics.csv'}, what was seen in {self.out / 'ledger.parquet'}",
            f"score with it: fluxentropy score SOURCE --model {self.export} --out DIR",
        ]

    def to_dict(self) -> dict[str, Any]:
        return {"out": str(self.out), **self.metrics, **self.facts}


@command
def pretrain(config: PretrainConfig) -> PretrainResult:
    """Train a GPT on the blocks of `config.bins`, going on from the last checkpoint of the same command."""
    training = open_training(config)
    training.kept_steps()
    gpt = make_model(config, training.blocks)
    training.trunk = open_trunk(config, training, gpt)
    own = training.trunk.identity["threads"] if training.trunk and config.branch else None  # else not to the bit
    with _run_directory(config) as run, as_begun(config.out, config.accelerator, new=own) as threads:
        if run is not None:
            run.begin({**_identity(config, training), **threads}, to_yaml(config))
        if run is None or not run.complete:
            _train(training, gpt, config.out / "checkpoints")
            if run is not None:
                run.finish({**_facts(training, gpt), "files": _written(config.out)})
        if run is not None:
            shutil.rmtree(config.out / PIECES, ignore_errors=True)  # ledger.parquet has all of it
    facts, last = _facts(training, gpt), last_row(config.out / "metrics.csv")
    return PretrainResult(
        out=config.out,
        **{name: facts[name] for name in ("parameters", "steps", "tokens")},
        val_loss=last["val_loss"],
        val_bpb=last["val_bpb"],
        metrics=last,
        facts=facts,
        said_of_average=_said_of_average(training, last),
    )


# --- what is trained --------------------------------------------------------------------------------------------------


def open_training(config: PretrainConfig) -> Training:
    """Blocks, sampler and held-out blocks. Errors: UsageError, SourceError name what does not fit together."""
    blocks, held_out = open_blocks(config)
    return Training(
        config=config,
        blocks=blocks,
        held_out=held_out,
        sampler=open_sampler(config, blocks),
        members=group_bins(config.schedule.groups, blocks.bins),
        sizes=torch.from_numpy(token_bytes(read_tokenizer(blocks), blocks.vocabulary)),
    )


def open_blocks(config: PretrainConfig) -> tuple[BlockSet, HeldOut]:
    """The blocks to train on, and those to validate on. Errors: as of `open_training`."""
    blocks = BlockSet.open(config.bins)
    if config.validation is not None:
        other = BlockSet.open(config.validation)
        _check_same(blocks, other, config)
        kept = other.counts if config.eval_blocks is None else np.minimum(other.counts, config.eval_blocks)
        held_out = HeldOut(blocks=other, first=other.counts - kept)
    else:
        whole, blocks = blocks, blocks.without_end(config.holdout)
        held_out = HeldOut(blocks=whole, first=blocks.counts)
    if not len(held_out):
        raise SourceError(f"{config.validation or config.bins} has no block to validate on")
    return blocks, held_out


def _check_same(blocks: BlockSet, other: BlockSet, config: PretrainConfig) -> None:
    for name in ("length", "vocabulary"):
        here, there = getattr(blocks, name), getattr(other, name)
        if here != there:
            raise UsageError(f"--validation {config.validation}: its {name} is {there}, that of {config.bins} {here}")
    one, two = (found.facts["tokenizer"]["fingerprint"] for found in (blocks, other))
    if one != two:
        raise UsageError(f"--validation {config.validation}: its tokenizer is another than that of {config.bins}")
    if blocks.bins != other.bins and config.schedule.name == "adaptive":
        raise UsageError(
            f"--validation {config.validation} has {other.bins} bins, {config.bins} {blocks.bins}, and adaptive learns "
            f"from the loss of each bin: cut it with --edges {config.bins / 'bins.json'}"
        )


def read_tokenizer(blocks: BlockSet) -> Any:
    """The tokenizer that made the blocks."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(blocks.path / FOLDER / "tokenizer")


def make_model(config: PretrainConfig, blocks: BlockSet) -> GPT:
    """The model with its initial weights, which follow from the seed alone. Errors: UsageError names a wrong size."""
    options = config.model
    changes = {
        name: value
        for name in ("n_layer", "n_head", "n_embd", "n_kv_head", "n_hidden", "vocab_multiple", "soft_cap", "tied")
        if (value := getattr(options, name)) is not None
    }
    sizes = {
        "vocab_size": options.vocab_size or blocks.vocabulary,
        "block_size": options.block_size or blocks.length,
    }
    for name, has, needed in (
        ("vocab_size", sizes["vocab_size"], blocks.vocabulary),
        ("block_size", sizes["block_size"], blocks.length),
    ):
        if has < needed:
            raise UsageError(f"--model.{name.replace('_', '-')} {has}: the blocks in {blocks.path} need {needed}")
    try:
        architecture = GPTConfig.preset(options.preset, **changes, **sizes)
        family(architecture)  # what cannot be exported is not trained
    except (ValueError, ModelError) as error:
        raise UsageError(f"model: {error}") from error
    seed = config.seed if config.model_seed is None else config.model_seed
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GPT(architecture)


# --- training ---------------------------------------------------------------------------------------------------------


def _train(training: Training, gpt: GPT, folder: Path) -> None:
    config = training.config
    checkpoint = latest_checkpoint(folder)
    if checkpoint is None and training.trunk is not None and training.trunk.branch:
        training.branching, checkpoint = True, training.trunk.checkpoint
    if checkpoint is not None:
        training.start_step = _resume(training, checkpoint)
        how = f"branching off {config.from_}" if training.branching else "resuming"
        log.info(f"{how} after step {training.start_step:,} of {training.steps:,}")
    log.info(f"{gpt.num_parameters():,} parameters, {training.steps:,} steps, {training.budget:,} tokens")
    average = Averaging(training, config.average, gpt) if config.average.kind != "none" else None
    ledger = Ledger(config.out)
    metrics = MetricsFile(config.out / "metrics.csv", metric_columns(training))
    timings = ("step", "seconds", "tokens_per_second", "waiting_for_blocks", "mfu")
    callbacks: list[StepCallback] = [
        *([average] if average else []),
        Validation(training, average),
        *([QuestionRounds(training, average)] if config.questions.data else []),
        Bookkeeping(training, ledger, metrics),
        Throughput(
            training, MetricsFile(config.out / "timings.csv", timings), gpt.flops_per_token(training.blocks.length)
        ),
        Checkpoints(training, folder, ledger),
    ]
    module = GPTModule(gpt, training)
    with quiet_lightning():
        trainer = make_trainer(training, list(callbacks))
        if training.start_step < training.steps:
            _fit(trainer, module, BlockData(training), checkpoint)
        elif checkpoint is not None:  # killed between the last checkpoint and the end
            _load(module, average, checkpoint)
    if trainer.is_global_zero:
        ledger.finish(training.steps)
        _export(gpt, config.out / "export", training)
        for suffix in average.inside(gpt) if average is not None else ():
            _export(gpt, config.out / f"export{suffix.replace('_', '-')}", training)


def _fit(trainer: Any, module: GPTModule, data: BlockData, checkpoint: Path | None) -> None:
    try:
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=False)
    except SystemExit as error:  # what Lightning makes of Ctrl-C
        raise KeyboardInterrupt from error


def _resume(training: Training, checkpoint: Path) -> int:
    state = torch.load(checkpoint, map_location="cpu", weights_only=False, mmap=True)["sampler"]
    return training.sampler.resume(state, allow_changed=training.config.allow_changed_bins)


def _load(module: GPTModule, average: Averaging | None, checkpoint: Path) -> None:
    state = torch.load(checkpoint, map_location="cpu", weights_only=False)
    module.load_state_dict(state["state_dict"])
    if average is not None:
        average.load_state_dict(state["callbacks"][average.state_key])


def _export(gpt: GPT, folder: Path, training: Training) -> None:
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed before it was complete
    export(gpt, folder, tokenizer=training.blocks.path / FOLDER / "tokenizer")


def metric_columns(training: Training) -> list[str]:
    """The columns of metrics.csv."""
    bins = range(training.held_out.blocks.bins)
    questions = [*ACCURACIES, "answer_loglikelihood"] if training.config.questions.data else []
    by_bin = [f"{name}_bin_{number:02d}" for name in ("val_loss", "val_bpb") for number in bins]
    averages = ["val_loss", "val_bpb", *questions, *by_bin]
    return [
        *("step", "tokens", "train_loss", "val_loss", "val_bpb", "lr", "grad_norm"),
        *questions,
        *by_bin,
        *(f"{name}{suffix}" for suffix in training.config.average.suffixes() for name in averages),
    ]


# --- what a run is ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _run_directory(config: PretrainConfig) -> Iterator[RunDirectory | None]:
    """The run directory, on the first rank; the others only read."""
    ranks = [os.environ.get(name, "0") for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID")]
    if any(rank != "0" for rank in ranks):
        yield None
        return
    with RunDirectory(config.out, overwrite=config.overwrite, folder="checkpoints", suffix=".ckpt", owned=OWNED) as run:
        yield run


def _identity(config: PretrainConfig, training: Training) -> dict[str, Any]:
    """Everything that decides the result."""
    plain = {name: value for name, value in to_plain(config).items() if name not in (*FREE, *OPTIONS)}
    plain["schedule"] = ScheduleConfig.identity(plain["schedule"])
    data = {
        "blocks": training.blocks.fingerprint,
        "validation": training.held_out.blocks.fingerprint,
        "plan": training.sampler.plan.fingerprint,
        "schedule": plain["schedule"],
    }
    if config.allow_changed_bins:  # the run stays what it was begun as
        before = RunRecord.read(config.out).identity
        data |= {name: before[name] for name in data if name in before}
    if config.average.kind == "ema":
        data["ema"] = WARMED_UP  # earlier versions had another average
    if config.optim.kind == "muon":
        data["muon"] = BATCHED
    if config.questions.data:
        data["answers"] = FORMAT
    if training.trunk is not None:
        data["trunk"] = dict(training.trunk.identity)
    return {"kind": "pretrain", **plain, **data}


def _facts(training: Training, gpt: GPT) -> dict[str, Any]:
    return {
        "steps": training.steps,
        "tokens": training.budget,
        "parameters": gpt.num_parameters(),
        "losses": [list(losses) for losses in training.sampler.plan.history],  # that an adaptive schedule was told
        **_average_facts(training),
        **({"trunk": training.trunk.facts()} if training.trunk else {}),
        "versions": versions(),
    }


def _horizons(training: Training) -> dict[str, float]:
    since = int(training.trunk.identity.get("averaged_since", 0)) if training.trunk else 0
    return average_horizon(training.config.average, training.steps, since)


def _average_facts(training: Training) -> dict[str, Any]:
    """What averages reach back over, in steps: a number, or by decay where there are several."""
    found = {suffix.removeprefix("_averaged_"): value for suffix, value in _horizons(training).items()}
    return {"average_horizon": found.get("_averaged", found)} if found else {}


def _written(out: Path) -> dict[str, str]:
    """The SHA-256 of each file that a finished run holds for good."""
    files = [out / "metrics.csv", out / "ledger.parquet", *sorted(out.glob("export*/*"))]
    return {str(path.relative_to(out)): sha256_file(path) for path in files}


def _said_of_average(training: Training, row: Mapping[str, float]) -> list[str]:
    """What averaged weights are worth, and over how many steps they are averaged."""
    options, lines = training.config.average, []
    for suffix, horizon in _horizons(training).items():
        decay = options.suffixes()[suffix]
        about = "about " * (options.kind == "ema")
        said = f"averaged over {about}the last {horizon:,.0f} of {training.steps:,} steps"
        if options.kind == "ema" and (full := options.every / (1 - decay)) > horizon:
            said += f" (a decay of {decay:g} reaches back {full:,.0f} in longer runs)"
        loss, bpb = (row[f"{name}{suffix}"] for name in ("val_loss", "val_bpb"))
        lines.append(f"{said}: {loss:.4f} nats per token, {bpb:.4f} bits per byte")
    return lines


# --- `fluxentropy ledger` ---------------------------------------------------------------------------------------------


LINEAGE = ("id", "source_file", "source_row")


@dataclass(frozen=True, kw_only=True)
class LedgerResult(Result):
    """How often the finished training in `run` has seen each document, in the table `out`."""

    run: Path
    steps: int  # drawn again, and compared
    documents: int
    seen: int  # documents of which any block was drawn
    out: Path
    most: int = field(repr=False)  # times that a document was seen
    origin: Sequence[str] = field(repr=False)  # what the weights saw before, and where

    def lines(self) -> list[str]:
        return [
            f"{self.steps:,} steps, each with the blocks that its hash says",
            *self.origin,
            f"{self.documents:,} documents: {self.seen:,} seen, {self.documents - self.seen:,} not; "
            f"at most {self.most:,} times",
            str(self.out),
        ]


@command
def ledger(config: LedgerConfig) -> LedgerResult:
    """Draw all blocks of a finished run again, compare them with its ledger, and sum up their documents.

    A branch has the steps of its trunk among its own. Where a new training began with the weights of a run, the column
    `times_before` says how often these have seen each of its documents before.

    Errors: RunError where the run is not complete, its blocks have changed, or a step's hash is not that of its blocks.
    """
    training, drawn = draw_again(config.run)
    table, steps = _seen(training.blocks, drawn)
    record = RunRecord.read(config.run)
    before = seen_before(record)
    if before:
        places = zip(*(table[name].to_pylist() for name in LINEAGE if name in table.column_names), strict=True)
        table = table.append_column("times_before", pa.array([before[place] for place in places], pa.int64()))
    out = config.out or config.run / "documents.parquet"
    with atomic_path(out) as path:
        pq.write_table(table, path, compression="zstd")
    times = np.asarray(table["times"])
    return LedgerResult(
        run=config.run,
        steps=steps,
        documents=len(table),
        seen=int((times > 0).sum()),
        out=out,
        most=int(times.max(initial=0)),
        origin=_origin(record, before),
    )


def _origin(record: RunRecord, before: Mapping[Any, int] | None) -> list[str]:
    """What a run's weights saw before its first step, in words."""
    trunk = record.facts.get("trunk")
    if trunk is None:
        return []
    lines = [f"the first {trunk['step']:,} of them are those of {trunk['from']}"] if trunk["branch"] else []
    earlier = record.identity["trunk"].get("before")
    if earlier is None:
        return [f"it began with the weights of {trunk['from']}; what these saw is not known"]
    if earlier:
        total = earlier + record.facts["tokens"]
        lines += [f"its weights saw {earlier:,} tokens before, in {trunk['from']}: {total:,} tokens in all"]
        lines += ["which documents is not known: that run, or its bins, are not there"] if before is None else []
    return lines


def seen_before(record: RunRecord) -> Counter[Any] | None:
    """How often the weights of a run had seen each document before its first step, by the document's lineage.

    None where this cannot be told any more. Errors: RunError where a step of an earlier run holds other blocks.
    """
    trunk = record.facts.get("trunk")
    if trunk is None:
        return Counter()
    path, _ = split_place(trunk["from"])
    there = RunRecord.read(path)
    if fingerprint_json(there.identity) != record.identity["trunk"].get("run"):  # gone, another, or a model folder
        return None
    earlier = seen_before(there)
    if trunk["branch"] or earlier is None:  # its own steps are those of the trunk, too
        return earlier
    try:
        training, drawn = draw_again(path, trunk["step"])
    except SourceError:
        return None
    table, _ = _seen(training.blocks, drawn)
    places = zip(*(table[name].to_pylist() for name in LINEAGE if name in table.column_names), strict=True)
    earlier.update(dict(zip(places, table["times"].to_pylist(), strict=True)))
    return earlier


def _seen(blocks: BlockSet, drawn: Iterator[np.ndarray]) -> tuple[pa.Table, int]:
    """How often and when each document was drawn, in so many steps."""
    times = np.zeros(int(blocks.first[-1]), np.int64)
    first = np.full(len(times), np.iinfo(np.int64).max)
    last = np.zeros(len(times), np.int64)
    steps = 0
    for steps, ids in enumerate(drawn, 1):
        np.add.at(times, ids, 1)
        np.minimum.at(first, ids, steps)
        np.maximum.at(last, ids, steps)
    return pa.concat_tables(_documents(blocks, times, first, last)), steps


def draw_again(run: Path, steps: int | None = None) -> tuple[Training, Iterator[np.ndarray]]:
    """What a finished run was trained on, and the blocks (B,) of each of its steps, compared with the ledger.

    With `steps`, only of the first ones, also of a run that is not finished.

    Errors: UsageError where `run` is no such run; RunError names the step whose hash is another.
    """
    record = RunRecord.read(run)
    if record.identity.get("kind") != "pretrain" or not (record.complete or steps):
        raise UsageError(f"{run} is no finished run of pretrain")
    training, losses = open_training(read_config(run)), record.facts.get("losses") or []
    if not record.complete and (checkpoint := latest_checkpoint(run / "checkpoints")):
        losses = read_checkpoint(checkpoint)["sampler"]["losses"]
    table = pq.read_table(run / "ledger.parquet") if steps is None else read_steps(run, steps)
    return training, _drawn(run, training.sampler, losses, table["ids_hash"].to_pylist())


def _drawn(run: Path, sampler: Draws, losses: Sequence[Sequence[float]], hashes: Sequence[str]) -> Iterator[np.ndarray]:
    for step, hashed in enumerate(hashes):
        while step >= sampler.plan.known and losses:
            sampler.learn(losses[len(sampler.plan.history)])
        ids = sampler.batch(step)
        if hash_ids(ids) != hashed:
            raise RunError(f"{run}: step {step + 1} of the ledger does not hold the blocks that its hash says")
        yield ids


def read_config(path: Path, **changes: Any) -> PretrainConfig:
    """The configuration in a YAML file, or of a run, with changes."""
    file = path / "config.resolved.yaml" if path.is_dir() else path
    config: PretrainConfig = from_plain(PretrainConfig, {**read_yaml(file, PretrainConfig), **changes})
    return config


def _documents(blocks: BlockSet, times: np.ndarray, first: np.ndarray, last: np.ndarray) -> Iterator[pa.Table]:
    """A table for each bin: its documents in their order. One that no block holds was seen 0 times."""
    bins = Bins.load(blocks.path)
    for number, start in enumerate(blocks.first[:-1].tolist()):
        sources = _lineage(bins[number])
        columns = {
            "times": np.zeros(len(sources), np.int64),
            "first_step": np.full(len(sources), np.iinfo(np.int64).max),
            "last_step": np.zeros(len(sources), np.int64),
        }
        for index in range(int(blocks.counts[number])):
            documents = np.unique(blocks.read(number, index).documents)
            block = start + index
            np.maximum.at(columns["times"], documents, times[block])
            np.minimum.at(columns["first_step"], documents, first[block])
            np.maximum.at(columns["last_step"], documents, last[block])
        unseen = columns["times"] == 0
        table = sources.append_column("bin", pa.array(np.full(len(sources), number, np.int32)))
        table = table.append_column("times", pa.array(columns["times"]))
        for name in ("first_step", "last_step"):
            table = table.append_column(name, pa.array(columns[name], mask=unseen))
        yield table


def _lineage(one: Bin) -> pa.Table:
    """Where the rows of a bin's shards come from."""
    tables = []
    for path in one.files:
        with pa.memory_map(str(path)) as source:
            table = pa.ipc.open_file(source).read_all()
            tables.append(table.select([name for name in LINEAGE if name in table.column_names]))
    return pa.concat_tables(tables)


# --- checks of trainings ----------------------------------------------------------------------------------------------


def check_training(findings: Findings, manifest: dict[str, Any], _: Engine) -> None:
    """Compare the files with the manifest, and draw the blocks of all steps again. A training is not repaired."""
    _check_files(findings, manifest)
    findings.summary = f"{manifest['steps']:,} steps, {manifest['tokens']:,} tokens"
    if any(problem.path.name == "ledger.parquet" for problem in findings.problems):
        return

    try:
        findings.rows = sum(len(ids) for ids in draw_again(findings.run)[1])
    except FluxentropyError as error:
        findings.notes.append(f"the ledger could not be compared with the blocks: {error}")


def check_grpo(findings: Findings, manifest: dict[str, Any], _: Engine) -> None:
    """Compare the files with the manifest."""
    _check_files(findings, manifest)
    findings.summary = f"{manifest['steps']:,} steps"


def _check_files(findings: Findings, manifest: dict[str, Any]) -> None:
    for name, known in manifest["files"].items():
        path = findings.run / name
        findings.files += 1
        if not path.is_file():
            findings.add(path, "it is missing", None)
        elif sha256_file(path) != known:
            findings.add(path, "it is not as it was written: its SHA-256 is another one", None)
