"""The trainer: a GPT under a plan of blocks, in Lightning.

    loader -> training_step (loss of a part of a batch) -> one optimizer step a batch -> callbacks, at the end of a step

What a step does follows from the step's number alone: its blocks (`schedules/sampler.py`), its learning rate, the
length of its pieces. A run is resumed by giving the loader another first step, and Lightning the checkpoint.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from fluxentropy.config.yaml import to_plain
from fluxentropy.errors import RunError, UsageError
from fluxentropy.pretraining.gpt import GPT
from fluxentropy.pretraining.loader import BlockBatches, LengthWarmUp, block_loader, cut_blocks
from fluxentropy.pretraining.optim import build_optimizer, scale_learning_rates
from fluxentropy.pretraining.options import PretrainConfig, step_at
from fluxentropy.pretraining.validation import HeldOut
from fluxentropy.runs.directory import RunRecord
from fluxentropy.runs.engine import usable_cores
from fluxentropy.schedules.dataset import BlockSet
from fluxentropy.schedules.sampler import Sampler

# --- the trainer ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Trunk:
    """What a training starts from."""

    name: str  # as --from says
    branch: bool
    identity: Mapping[str, Any]
    """branch, optimizer (whether its state is taken over), weights (a hash, with that state), and of a run: run (its
    identity, hashed), step, tokens (that the weights have seen), before (of these, those before step 1 of the plan of
    the training that starts here), threads, averaged_since (the step after which the averages begin)."""
    run: Path | None = None  # None: a model folder, or a run that is gone
    checkpoint: Path | None = None
    optimizer: Mapping[str, Any] | None = field(default=None, repr=False)  # state of the one of a new training

    @property
    def step(self) -> int:
        return int(self.identity.get("step", 0))

    def facts(self) -> dict[str, Any]:
        """What a manifest says of it."""
        known = ("branch", "optimizer", "step", "tokens")
        return {"from": self.name} | {name: self.identity[name] for name in known if name in self.identity}


@dataclass(kw_only=True)
class Training:
    """What is trained on: the same on every rank."""

    config: PretrainConfig
    blocks: BlockSet  # to train on
    held_out: HeldOut
    sampler: Sampler
    members: list[list[int]]  # bins of each bin of the plan
    sizes: Tensor  # (V,) bytes of each token
    start_step: int = 0
    trunk: Trunk | None = None  # whose weights the model has
    branching: bool = False  # it starts from the checkpoint of the trunk, not from one of its own
    tokens: np.ndarray = field(init=False)  # (T+1,) seen before each step

    def __post_init__(self) -> None:
        self.tokens = np.append(0, np.cumsum(self.sampler.plan.batches)) * self.blocks.length

    @property
    def steps(self) -> int:
        return self.sampler.steps

    @property
    def budget(self) -> int:
        """Tokens of the whole training."""
        return int(self.tokens[-1])

    @property
    def parts(self) -> int:
        """Forward passes of a device in a step."""
        share = self.config.batch_size // self.config.devices
        return -(-share // (self.config.micro_batch or share))

    def kept_steps(self) -> set[int]:
        """The steps of --checkpoint-at. Errors: UsageError names one that the training has not."""
        found = {step_at(place, self.steps) for place in self.config.checkpoint_at}
        if found and max(found) > self.steps:
            raise UsageError(f"--checkpoint-at {max(found)}: the training has {self.steps} steps")
        return found

    def crosses(self, step: int, every: int) -> bool:
        """Whether the tokens seen pass a multiple of `every` in this step."""
        return bool(self.tokens[step + 1] // every > self.tokens[step] // every)

    def learning_rate(self, step: int) -> float:
        """The factor of all peak rates: that of the middle of the step."""
        return self.config.lr.factor(float(self.tokens[step] + self.tokens[step + 1]) / 2, self.budget)


class GPTModule(lightning.LightningModule):
    """One step after the other; `row` collects what is known of the last one."""

    def __init__(self, gpt: GPT, training: Training) -> None:
        super().__init__()
        self.gpt, self.training_plan = gpt, training
        self.row: dict[str, Any] = {}
        self.aside = 0.0  # seconds spent on other things than training since the last row of timings.csv
        self._run: list[Any] = [torch.compile(gpt) if training.config.compile else gpt]  # hidden: no second copy
        self._loss: Tensor | None = None  # summed over the parts of the step
        config = training.config
        self._lengths = None
        if config.short_start is not None:
            self._lengths = LengthWarmUp(
                length=training.blocks.length, start=config.short_start, tokens=config.short_tokens
            )

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer, trunk = build_optimizer(self.gpt, self.training_plan.config.optim), self.training_plan.trunk
        if trunk is not None and trunk.optimizer is not None:
            groups = optimizer.state_dict()["param_groups"]  # rates and the like are those of this training
            optimizer.load_state_dict({"state": trunk.optimizer["state"], "param_groups": groups})
        return optimizer

    def on_train_batch_start(self, batch: dict[str, Any], batch_idx: int) -> None:
        training, (step, part) = self.training_plan, divmod(batch_idx, self.training_plan.parts)
        if batch["step"] != step:
            raise RunError(f"the loader is at step {batch['step']}, training at step {step}: this must not happen")
        if part == 0:
            factor = training.learning_rate(step)
            scale_learning_rates(self.trainer.optimizers[0], factor)
            self._loss = None
            self.row = {
                "step": step + 1,
                "tokens": int(training.tokens[step + 1]),
                "lr": training.config.optim.lr * factor,
            }

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """The part's loss, scaled so that the mean over parts and ranks is the mean over the step's targets."""
        training, step = self.training_plan, batch["step"]
        ids, starts = batch["input_ids"], batch.get("starts")
        if self._lengths is not None:
            ids, starts = _pieces(ids, starts, self._lengths.at(int(training.tokens[step])))
        loss = self._run[0](ids[:, :-1], ids[:, 1:], starts=None if starts is None else starts[:, :-1], reduction="sum")
        self._loss = loss.detach() + (0 if self._loss is None else self._loss)
        targets = int(training.sampler.plan.batches[step]) * training.blocks.length
        return loss * (training.parts * self.trainer.world_size / targets)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """The mean loss of the step, over all ranks; nothing is learnt from one that is not a number."""
        training, step = self.training_plan, self.row["step"] - 1
        total = float(self.trainer.strategy.reduce(self._loss, reduce_op="sum"))
        targets = int(training.sampler.plan.batches[step]) * training.blocks.length
        self.row["train_loss"] = total / targets
        if not math.isfinite(total):
            raise RunError(self._bad("loss", total, step))

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        limit = self.training_plan.config.clip or math.inf
        whole: Any = self.trainer.strategy.model
        if hasattr(whole, "clip_grad_norm_"):  # FSDP knows the norm over its shards
            norm = float(whole.clip_grad_norm_(limit))
        else:
            norm = float(torch.nn.utils.clip_grad_norm_(self.gpt.parameters(), limit))
        self.row["grad_norm"] = norm
        if not math.isfinite(norm):
            raise RunError(self._bad("gradient's norm", norm, self.row["step"] - 1))

    def _bad(self, what: str, value: float, step: int) -> str:
        ids = self.training_plan.sampler.batch(step).tolist()
        return (
            f"the {what} at step {step} is {value}, with the blocks {', '.join(map(str, ids))}: "
            f"lower --optim.lr, or look at these blocks; the last checkpoint is from before"
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        blocks = self.training_plan.blocks
        checkpoint["sampler"] = self.training_plan.sampler.state(self.row.get("step", 0))
        checkpoint |= {"model": to_plain(self.gpt.config), "tokenizer": blocks.facts["tokenizer"]["fingerprint"]}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Lightning counts parts of steps; where the devices are more or fewer now, the same steps have other parts.

        A branch has from its trunk the optimizer's state, but not its rates and the like.
        """
        if self.training_plan.branching:
            [optimizer] = checkpoint["optimizer_states"]
            optimizer["param_groups"] = build_optimizer(self.gpt, self.training_plan.config.optim).state_dict()[
                "param_groups"
            ]
            assert self.training_plan.trunk is not None
            if self.training_plan.trunk.identity["averaged_since"] == self.training_plan.start_step:
                checkpoint["callbacks"].pop("Averaging", None)
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        done = self.training_plan.start_step * self.training_plan.parts
        for counts in (progress["total"], progress["current"]):
            counts |= {"ready": done, "started": done, "processed": done, "completed": done - 1}


def _pieces(ids: Tensor, starts: Tensor | None, length: int) -> tuple[Tensor, Tensor | None]:
    """Blocks in pieces of `length`; a document that began before its piece begins with it."""
    if starts is None:
        return cut_blocks(ids, length), None
    begin = torch.arange((ids.shape[1] - 1) // length, device=ids.device).repeat(len(ids))[:, None] * length
    return cut_blocks(ids, length), (cut_blocks(starts, length) - begin).clamp(min=0)


class BlockData(lightning.LightningDataModule):
    """The loader of a rank, from the step at which the training starts."""

    def __init__(self, training: Training) -> None:
        super().__init__()
        self.training = training

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        training, trainer = self.training, self.trainer
        assert trainer is not None
        batches = BlockBatches(
            training.blocks,
            training.sampler,
            rank=trainer.global_rank,
            world=trainer.world_size,
            parts=training.parts,
            starts=training.config.model.document_masks,
        )
        return block_loader(
            batches,
            start_step=training.start_step,
            workers=training.config.workers,
            pin_memory=trainer.strategy.root_device.type == "cuda",
        )


def make_trainer(training: Training, callbacks: list[lightning.Callback]) -> lightning.Trainer:
    """A Trainer that does what the configuration says, and nothing by itself."""
    config = training.config
    precision = _precision(config)
    return lightning.Trainer(
        accelerator=config.accelerator,
        devices=config.devices,
        strategy=config.strategy if config.strategy != "auto" or config.devices == 1 else "ddp",
        precision=precision,  # type: ignore[arg-type]
        max_epochs=1,
        accumulate_grad_batches=training.parts,
        gradient_clip_val=config.clip,
        use_distributed_sampler=False,
        logger=make_loggers(config) or False,
        callbacks=callbacks,
        default_root_dir=config.out,
        log_every_n_steps=1,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def _precision(config: PretrainConfig) -> str:
    gpu = config.accelerator != "cpu" and torch.cuda.is_available()
    if config.precision == "auto":
        return "bf16-mixed" if gpu and torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    return {"fp32": "32-true", "bf16": "bf16-mixed"}[config.precision]


def make_loggers(config: PretrainConfig) -> list[Any]:
    """Lightning's loggers by name. Errors: UsageError says which package one needs."""
    found: list[Any] = []
    for name in config.loggers:
        try:
            if name == "tensorboard":
                from lightning.pytorch.loggers import TensorBoardLogger

                found.append(TensorBoardLogger(config.out, name="tensorboard", version=""))
            elif name == "wandb":
                from lightning.pytorch.loggers import WandbLogger

                found.append(WandbLogger(name=config.out.name, save_dir=config.out, project="fluxentropy"))
            else:
                found.append(trackio_logger(config.out.name))
        except ModuleNotFoundError as error:
            raise UsageError(f"--loggers {name}: pip install 'fluxentropy[{name}]'") from error
    return found


def trackio_logger(name: str) -> Any:
    """Trackio as a logger of Lightning."""
    import importlib

    from lightning.pytorch.loggers.logger import Logger

    trackio: Any = importlib.import_module("trackio")

    class TrackioLogger(Logger):
        def __init__(self) -> None:
            super().__init__()
            self.run = trackio.init(project="fluxentropy", name=name, resume="allow")

        @property
        def name(self) -> str:
            return "trackio"

        @property
        def version(self) -> str:
            return name

        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
            trackio.log(metrics, step=step)

        def log_hyperparams(self, params: Any, *_: Any, **__: Any) -> None:
            return None

        def finalize(self, status: str) -> None:
            trackio.finish()

    return TrackioLogger()


@contextlib.contextmanager
def quiet_lightning() -> Iterator[None]:
    """Lightning tells nothing but errors: what it advises on is decided here."""
    names = ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            warnings.filterwarnings("ignore", module="torch")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


# --- checkpoints ------------------------------------------------------------------------------------------------------


FOR_GOOD = ".kept.ckpt"  # what the name of a checkpoint ends with that is never deleted


def checkpoint_path(folder: Path, step: int, *, for_good: bool = False) -> Path:
    """
    >>> [checkpoint_path(Path("c"), 7, for_good=kept).name for kept in (False, True)]
    ['step-00000007.ckpt', 'step-00000007.kept.ckpt']
    """
    return folder / f"step-{step:08d}{FOR_GOOD if for_good else '.ckpt'}"


def all_checkpoints(folder: Path) -> dict[int, Path]:
    """The checkpoints in `folder` by step, in order; where a step has two, the one that is kept for good."""
    return {step_of(path): path for path in sorted(folder.glob("step-*.ckpt"))}


def step_of(checkpoint: Path) -> int:
    """The step in the name of a checkpoint."""
    return int(checkpoint.name[len("step-") :].partition(".")[0])


def latest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the most steps."""
    return next(reversed(all_checkpoints(folder).values()), None)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Errors: RunError for one that is damaged."""
    try:
        found: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=False, mmap=True)
    except Exception as error:  # torch and pickle raise many kinds
        raise RunError(f"{path} cannot be read: {str(error).splitlines()[0] if str(error) else error!r}") from error
    return found


# --- threads ----------------------------------------------------------------------------------------------------------
#
# torch sums some gradients by thread, on a CPU that of LayerNorm's weights for one, so the sums depend on how many
# there are. A run notes the number with which it was begun, and goes on with it.


log = logging.getLogger(__name__)


@contextlib.contextmanager
def as_begun(out: Path, accelerator: str, *, new: int | None = None) -> Iterator[dict[str, int]]:
    """What is done meanwhile has the threads of the run in `out`; a new run has `new`, or as many as torch has now.

    Yields the number for the run's identity; nothing for a run of an earlier version, which did not note it.

    Errors: RunError where this machine has fewer cores, unless OMP_NUM_THREADS asks for that many all the same, or
    the training is on a GPU, where the threads decide nothing.
    """
    identity = RunRecord.read(out).facts.get("identity")
    before = torch.get_num_threads()
    number = asked = before if new is None else new
    if identity is not None and "threads" not in identity:
        log.warning(
            f"{out} was begun by an earlier version, which did not note its number of threads: the result is bit for "
            f"bit that of a run that was not stopped if it had as many as now, {asked}"
        )
    elif identity is not None:
        number = int(identity["threads"])
        _check(out, number, accelerator)
        if number != asked:
            log.info(f"with {number} threads a run, as {out} was begun, instead of {asked}")
    torch.set_num_threads(number)
    try:
        yield {} if identity is not None and "threads" not in identity else {"threads": number}
    finally:
        torch.set_num_threads(before)


def _check(out: Path, number: int, accelerator: str) -> None:
    gpu = accelerator != "cpu" and (torch.cuda.is_available() or torch.backends.mps.is_available())
    cores = usable_cores()
    if gpu or number <= cores or os.environ.get("OMP_NUM_THREADS") == str(number):
        return
    raise RunError(
        f"{out} was begun with {number} threads, and this machine has {cores} cores: go on where there are as many; "
        f"or here, slowly and with the same result, with OMP_NUM_THREADS={number}; or start afresh with --overwrite"
    )
