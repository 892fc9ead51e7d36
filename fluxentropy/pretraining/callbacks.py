"""What happens at the end of a step, each a callback, in this order: averages, validation, questions, the ledger,
metrics, the checkpoint. What one finds out it puts into the module's `row`.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.utilities.throughput import get_available_flops

from fluxentropy.evaluation.answering import Reader
from fluxentropy.evaluation.hellaswag import make_item, summarise, to_table
from fluxentropy.evaluation.questions import ACCURACIES, open_questions, read_task
from fluxentropy.models.loading import Decoder
from fluxentropy.models.paths import choose_path
from fluxentropy.pretraining.export import to_transformers
from fluxentropy.pretraining.gpt import GPT
from fluxentropy.pretraining.ledger import Ledger, step_row
from fluxentropy.pretraining.optim import EMA, LastK, averaged, ema_horizon
from fluxentropy.pretraining.options import AverageOptions
from fluxentropy.pretraining.trainer import FOR_GOOD, GPTModule, Training, all_checkpoints, checkpoint_path
from fluxentropy.pretraining.trunk import metric_rows
from fluxentropy.pretraining.validation import ValidationLoss, validate
from fluxentropy.runs.files import atomic_path
from fluxentropy.runs.progress import Progress
from fluxentropy.runs.tables import MetricsFile
from fluxentropy.schedules.dataset import FOLDER
from fluxentropy.schedules.schedule import Adaptive

# --- callbacks --------------------------------------------------------------------------------------------------------


class StepCallback(lightning.Callback):
    """A callback at the end of each step of the optimizer."""

    def __init__(self, training: Training) -> None:
        self.plan = training

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (batch_idx + 1) % self.plan.parts == 0:
            self.step_end(trainer, pl_module, batch_idx // self.plan.parts)

    def step_end(self, trainer: lightning.Trainer, module: GPTModule, step: int) -> None:
        raise NotImplementedError


class Averaging(StepCallback):
    """Averages of the weights, by what their columns end with; their state is in the checkpoints."""

    def __init__(self, training: Training, options: AverageOptions, gpt: GPT) -> None:
        super().__init__(training)
        self.every = options.every
        self.averages: dict[str, EMA | LastK] = {
            suffix: EMA(gpt, decay) if options.kind == "ema" else LastK(options.k)
            for suffix, decay in options.suffixes().items()
        }

    def step_end(self, trainer: lightning.Trainer, module: GPTModule, step: int) -> None:
        if (step + 1) % self.every == 0 or step + 1 == self.plan.steps:
            for average in self.averages.values():
                average.update(module.gpt)

    def inside(self, gpt: GPT) -> Iterator[str]:
        """The suffix of each average that has weights by now, while the model has them inside."""
        for suffix, average in self.averages.items():
            if average:
                with averaged(gpt, average.average()):
                    yield suffix

    def state_dict(self) -> dict[str, Any]:
        states = {suffix: average.state_dict() for suffix, average in self.averages.items()}
        return states.get("_averaged", states)  # one alone has its own, as in checkpoints of earlier versions

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for suffix, average in self.averages.items():
            average.load_state_dict(state_dict.get(suffix, state_dict))


def average_horizon(options: AverageOptions, steps: int, since: int = 0) -> dict[str, float]:
    """The steps that each average of a run of `steps` reaches back over, by its suffix: about, where it is exponential.

    since: the step after which the averages begin, in a branch.
    """
    every = options.every
    updates = steps // every - since // every + (steps % every > 0)  # the last step always counts
    reach = {
        suffix: ema_horizon(updates, decay) if options.kind == "ema" else min(options.k, updates)
        for suffix, decay in options.suffixes().items()
    }
    return {suffix: min(float(value * every), float(steps - since)) for suffix, value in reach.items()}


class Validation(StepCallback):
    """The loss on held-out blocks, overall and by bin; adaptive schedules learn from it."""

    def __init__(self, training: Training, average: Averaging | None) -> None:
        super().__init__(training)
        self.average = average
        self.every = training.config.eval_every or max(training.budget // 10, 1)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        if self.plan.start_step == 0:
            pl_module.row = {"step": 0, "tokens": 0} | self.loss(trainer, pl_module).metrics()

    def step_end(self, trainer: lightning.Trainer, module: GPTModule, step: int) -> None:
        sampler = self.plan.sampler
        learns = isinstance(sampler.plan.schedule, Adaptive) and step + 1 == sampler.plan.known < sampler.steps
        if not (learns or step + 1 == self.plan.steps or self.plan.crosses(step, self.every)):
            return
        found = self.loss(trainer, module)
        module.row |= found.metrics()
        for suffix in self.average.inside(module.gpt) if self.average else ():
            metrics = self.loss(trainer, module).metrics()
            module.row |= {f"{name}{suffix}": value for name, value in metrics.items()}
        if learns:
            sampler.learn(found.by_bin(self.plan.members))

    def loss(self, trainer: lightning.Trainer, module: GPTModule) -> ValidationLoss:
        config, started = self.plan.config, time.perf_counter()
        with trainer.precision_plugin.forward_context():
            found = validate(
                module.gpt,
                self.plan.held_out,
                self.plan.sizes,
                batch=config.eval_batch,
                rank=trainer.global_rank,
                world=trainer.world_size,
                document_masks=config.model.document_masks,
            )
        sums = torch.from_numpy(found.stacked()).to(module.device)
        if trainer.world_size > 1:
            sums = trainer.strategy.reduce(sums, reduce_op="sum")
        module.aside += time.perf_counter() - started
        return ValidationLoss.of(sums.cpu().numpy())


class Bookkeeping(StepCallback):
    """The ledger and metrics.csv; loggers get the same rows."""

    def __init__(self, training: Training, ledger: Ledger, metrics: MetricsFile) -> None:
        super().__init__(training)
        self.ledger, self.metrics = ledger, metrics
        self.mixture: dict[str, float] = {}  # of the last step, for the loggers: the ledger has it too

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        if trainer.is_global_zero:
            if self.plan.branching:
                self._inherit()
            self.ledger.start(self.plan.start_step)
            self.metrics.start(self.plan.start_step if self.plan.start_step else -1)
            if self.plan.start_step == 0:
                self._write(trainer, pl_module.row)

    def step_end(self, trainer: lightning.Trainer, module: GPTModule, step: int) -> None:
        if not trainer.is_global_zero:
            return
        row = module.row
        ids = self.plan.sampler.batch(step)
        drawn = step_row(row["step"], row["tokens"], ids, self.plan.blocks.first, row["lr"])
        self.ledger.add(drawn)
        self.mixture = {f"mixture_bin_{number:02d}": count / len(ids) for number, count in enumerate(drawn["bins"])}
        due = row["step"] % self.plan.config.log_every == 0 or row["step"] == self.plan.steps
        if due or "val_loss" in row or "acc" in row:
            self._write(trainer, row)

    def _inherit(self) -> None:
        """A branch begins with what its trunk wrote up to here."""
        trunk, step = self.plan.trunk, self.plan.start_step
        assert trunk is not None and trunk.run is not None
        self.ledger.inherit(trunk.run, step)
        self.metrics.replace(metric_rows(trunk.run, step))

    def _write(self, trainer: lightning.Trainer, row: dict[str, Any]) -> None:
        self.metrics.append(row)
        numbers = {name: value for name, value in row.items() if name != "step" and math.isfinite(value)}
        for logger in trainer.loggers:
            logger.log_metrics(numbers | self.mixture, step=row["step"])


class Throughput(StepCallback):
    """Progress on stderr; speed in `timings.csv`, which is of this machine and this hour, and no part of the result.

    The time of validation and of questions does not count.
    """

    def __init__(self, training: Training, file: MetricsFile, flops_per_token: int) -> None:
        super().__init__(training)
        self.file, self.flops = file, flops_per_token
        self.progress: Progress | None = None
        self.since = self.ended = time.perf_counter()
        self.waited = 0.0
        self.tokens = 0

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        self.progress = None
        if trainer.is_global_zero:
            left = self.plan.budget - int(self.plan.tokens[self.plan.start_step])
            self.progress = Progress(left)
            self.file.start(self.plan.start_step)
        self.since = self.ended = time.perf_counter()
        pl_module.aside = 0.0

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.waited += time.perf_counter() - self.ended

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self.ended = time.perf_counter()

    def step_end(self, trainer: lightning.Trainer, module: GPTModule, step: int) -> None:
        new = int(self.plan.tokens[step + 1] - self.plan.tokens[step])
        self.tokens += new
        if self.progress is None:
            return
        self.progress.update(new, step=step + 1, loss=f"{module.row['train_loss']:.4f}")
        if (step + 1) % self.plan.config.log_every == 0 or step + 1 == self.plan.steps:
            now = time.perf_counter()
            seconds = now - self.since - module.aside
            module.aside = 0.0
            peak = get_available_flops(module.device, torch.bfloat16) if module.device.type == "cuda" else None
            rate = self.tokens / seconds
            self.file.append(
                {
                    "step": step + 1,
                    "seconds": seconds,
                    "tokens_per_second": rate,
                    "waiting_for_blocks": self.waited / seconds,
                    "mfu": rate * self.flops / (peak * trainer.world_size) if peak else math.nan,
                }
            )
            self.since, self.waited, self.tokens = now, 0.0, 0

    def on_train_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        if self.progress is not None:
            self.progress.close()


class Checkpoints(StepCallback):
    """A checkpoint by steps, whole or not at all, after the ledger's piece up to it. Some are kept for good."""

    def __init__(self, training: Training, folder: Path, ledger: Ledger) -> None:
        super().__init__(training)
        self.folder, self.ledger = folder, ledger
        self.every = training.config.checkpoint_every or max(training.steps // 20, 1)
        self.for_good = training.kept_steps()

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        for step, path in all_checkpoints(self.folder).items():  # of a run that was begun without --checkpoint-at
            if step in self.for_good and trainer.is_global_zero:
                path.replace(checkpoint_path(self.folder, step, for_good=True))

    def step_end(self, trainer: lightning.Trainer, module: GPTModule, step: int) -> None:
        for_good = step + 1 in self.for_good
        if (step + 1) % self.every and step + 1 != self.plan.steps and not for_good:
            return
        path = checkpoint_path(self.folder, step + 1, for_good=for_good)
        if not trainer.is_global_zero:
            trainer.save_checkpoint(path.with_name(f".aside-{path.name}"))
            return
        self.ledger.save()
        with atomic_path(path) as aside:
            trainer.save_checkpoint(aside)
        passing = [old for old in all_checkpoints(self.folder).values() if not old.name.endswith(FOR_GOOD)]
        for old in passing[: -self.plan.config.keep]:
            old.unlink()


# --- questions on the way ---------------------------------------------------------------------------------------------


class QuestionRounds(StepCallback):
    """Accuracies and the right ending's log-likelihood per byte: those of ACCURACIES, `answer_loglikelihood` (nats);
    of averaged weights too, where there are any."""

    def __init__(self, training: Training, average: Averaging | None) -> None:
        super().__init__(training)
        self.average = average
        options = training.config.questions
        self.task = read_task(options.task)
        questions = open_questions(options.data, self.task, limit=options.limit)
        self.questions = list(itertools.chain.from_iterable(questions.batches()))
        self.every = options.every or training.budget + 1
        self.tokenizer: Any = None

    def step_end(self, trainer: lightning.Trainer, module: GPTModule, step: int) -> None:
        due = self.plan.crosses(step, self.every) or step + 1 == self.plan.steps
        if due and trainer.is_global_zero:
            started = time.perf_counter()
            module.row |= self.answer(module)
            for suffix in self.average.inside(module.gpt) if self.average else ():
                module.row |= {f"{name}{suffix}": value for name, value in self.answer(module).items()}
            module.aside += time.perf_counter() - started

    def answer(self, module: GPTModule) -> dict[str, float]:
        """Answers to all questions, as metrics."""
        reader = self._reader(module)
        prompts = reader.encode(
            [question.context for question in self.questions],
            [question.endings for question in self.questions],
            self.task.delimiter,
        )
        rows = zip(self.questions, prompts, reader.read(prompts), strict=True)
        items = [make_item(*row, vocabulary=reader.vocabulary) for row in rows]
        facts = summarise(to_table(items))
        right = [
            item.logliks[item.label] / item.ending_bytes[item.label]
            for item in items
            if item.logliks is not None and item.label is not None and item.ending_bytes is not None
        ]
        found = {name: facts[name]["value"] for name in ACCURACIES if facts[name]["n"]}
        return found | ({"answer_loglikelihood": sum(right) / len(right)} if right else {})

    def _reader(self, module: GPTModule) -> Reader:
        from transformers import AutoTokenizer

        if self.tokenizer is None:
            self.tokenizer = AutoTokenizer.from_pretrained(self.plan.blocks.path / FOLDER / "tokenizer")
        model: Any = to_transformers(module.gpt)
        model.to(module.device).eval().requires_grad_(False)
        decoder = Decoder.of(model, self.tokenizer, name="the model in training", fingerprint="")
        path, _ = choose_path(decoder)
        assert path is not None  # without packing there is always the plain path
        return Reader(decoder, path)
