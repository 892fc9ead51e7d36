"""What happens at the end of a step of GRPO, in this order: evaluation, metrics, speed, the checkpoint."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import lightning
import torch

from fluxentropy.metricsfile import MetricsFile
from fluxentropy.progress import Progress
from fluxentropy.rl.attribution import attribution_path, write_attribution
from fluxentropy.rl.experiment import Experiment
from fluxentropy.rl.grpomodule import GRPOModule
from fluxentropy.rl.responselog import write_piece
from fluxentropy.store import atomic_path
from fluxentropy.trainer import latest_checkpoint


class GRPOCallback(lightning.Callback):
    """A callback at the start of the training and at the end of each step."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self.steps = experiment.config.steps

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        self.step_end(pl_module, int(batch) + 1)

    def step_end(self, module: GRPOModule, done: int) -> None:
        """After `done` steps."""
        raise NotImplementedError


class Evaluation(GRPOCallback):
    """Rewards on the problems held out."""

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:  # noqa: ARG002
        if self.experiment.start_step == 0:
            pl_module.row = {"step": 0, **self.experiment.evaluate()}

    def step_end(self, module: GRPOModule, done: int) -> None:
        if done % self.experiment.config.eval_every and done != self.steps:
            return
        start = time.perf_counter()
        module.row |= self.experiment.evaluate()
        module.seconds["evaluation"] = time.perf_counter() - start


class Rows(GRPOCallback):
    """metrics.csv, and the responses of probed steps with what their tokens did."""

    def __init__(self, experiment: Experiment, metrics: MetricsFile) -> None:
        super().__init__(experiment)
        self.metrics = metrics

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:  # noqa: ARG002
        start = self.experiment.start_step
        self.metrics.start(start if start else -1)
        if start == 0:
            self.metrics.append(pl_module.row)

    def step_end(self, module: GRPOModule, done: int) -> None:
        self.metrics.append(module.row)
        out = self.experiment.config.out
        if module.rows:
            write_piece(out, done, module.rows)
        if module.attribution is not None:
            write_attribution(attribution_path(out, done), module.attribution, step=done)


class Speed(GRPOCallback):
    """Progress on stderr, and timings.csv, which is of this machine and this hour, and no part of the result."""

    def __init__(self, experiment: Experiment, file: MetricsFile) -> None:
        super().__init__(experiment)
        self.file, self.since = file, time.perf_counter()
        self.progress = Progress(experiment.config.steps - experiment.start_step, unit="steps")

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:  # noqa: ARG002
        self.file.start(self.experiment.start_step)
        self.since = time.perf_counter()

    def step_end(self, module: GRPOModule, done: int) -> None:
        now = time.perf_counter()
        seconds, self.since = now - self.since, now
        row = module.row
        self.progress.update(1, reward=f"{row['reward']:.3f}", entropy=f"{row['entropy_per_token']:.3f}")
        self.file.append(
            {"step": done, "seconds": seconds, **module.seconds, "tokens_per_second": row["tokens"] / seconds}
        )

    def on_train_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:  # noqa: ARG002
        self.progress.close()


class StateCheckpoints(GRPOCallback):
    """A checkpoint by steps, whole or not at all; that of step 0 stays, for it is the reference."""

    def __init__(self, experiment: Experiment, folder: Path) -> None:
        super().__init__(experiment)
        self.folder = folder
        self.every = experiment.config.checkpoint_every or max(self.steps // 20, 1)

    def step_end(self, module: GRPOModule, done: int) -> None:
        if done % self.every and done != self.steps:
            return
        save_state(module.state(done), self.folder)
        kept = sorted(self.folder.glob("step-*.ckpt"))[1:]
        for old in kept[: -self.experiment.config.keep]:
            old.unlink()


def save_state(state: dict[str, Any], folder: Path) -> None:
    """Write the state of after a step."""
    with atomic_path(folder / f"step-{state['step']:08d}.ckpt") as aside:
        torch.save(state, aside)


def load_states(folder: Path) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """The state of after the warm-up and the last one; None where there is none."""
    latest = latest_checkpoint(folder)
    if latest is None:
        return None
    first = min(folder.glob("step-*.ckpt"))
    return load_state(first), load_state(latest)


def load_state(path: Path) -> dict[str, Any]:
    """A state that was saved, on the CPU."""
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=False)
    return state
