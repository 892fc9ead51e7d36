"""The reference implementation of GRPO: a Lightning module that optimises by hand, so that every part is in view.

    problems -> rollout -> rewards -> advantages -> for each inner epoch: plan, gradient, optimizer step, adjustment

A step follows from the weights, the optimizer's state, `beta` and the controller's state before it, and its number.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
import torch

from fluxentropy.errors import RunError
from fluxentropy.pretraining.optim import build_optimizer, scale_learning_rates
from fluxentropy.pretraining.trainer import latest_checkpoint
from fluxentropy.rl.grpo.experiment import Experiment
from fluxentropy.rl.grpo.loss import adapted_beta, advantages
from fluxentropy.rl.grpo.rollouts import Rollout
from fluxentropy.rl.grpo.update import BatchUpdate, Gradient, StepWatch, response_rows, write_piece
from fluxentropy.rl.probe.attribution import Attribution, attribution_path, write_attribution
from fluxentropy.rl.probe.estimate import sequence_entropy
from fluxentropy.rl.probe.policy import SequenceStats
from fluxentropy.rl.probe.step import clip_factor
from fluxentropy.runs.files import atomic_path
from fluxentropy.runs.progress import Progress
from fluxentropy.runs.tables import MetricsFile

# --- the module -------------------------------------------------------------------------------------------------------


class GRPOModule(lightning.LightningModule):
    """One step after the other: `row` collects what is known of the last one, `rows` its responses where it is probed,
    `attribution` what their tokens did, `seconds` where its time went."""

    def __init__(self, experiment: Experiment) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model = experiment.policy.model
        self.experiment = experiment
        self.beta = experiment.config.kl.beta
        self.row: dict[str, float | int] = {}
        self.rows: list[dict[str, Any]] = []
        self.attribution: Attribution | None = None
        self.seconds: dict[str, float] = {}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return build_optimizer(self.model, self.experiment.config.optim)

    @property
    def inner(self) -> torch.optim.Optimizer:
        """The optimizer itself."""
        return self.trainer.optimizers[0]

    def training_step(self, batch: int) -> None:
        step, config = int(batch), self.experiment.config
        self.model.eval()  # no dropout: the policy that is trained is the one that was sampled
        self.seconds = {}
        factor = config.lr.factor(step + 0.5, config.steps)
        scale_learning_rates(self.inner, factor)
        with self._timed("rollout"):
            rollout = self.experiment.roll_out(step)
        found = advantages(rollout.rewards, config.loss.advantages)
        with self._timed("update"):
            update = BatchUpdate(self.experiment, rollout, found, step=step, beta=self.beta)
        self.row = {"step": step + 1, "lr": config.optim.lr * factor, "beta": self.beta}
        self.attribution = None
        gradients, norms = [], []
        for epoch in range(config.inner_epochs):
            gradient, norm = self._optimizer_step(update, step, epoch)
            gradients.append(gradient)
            norms.append(norm)
        self.row |= facts_of(rollout, gradients, norms)
        first = gradients[0]
        if config.kl.target is not None and self.beta:
            self.beta = adapted_beta(self.beta, first.kl, config.kl.target)
        self.rows = response_rows(step + 1, rollout, found, first) if self._probed(step) else []

    def _optimizer_step(self, update: BatchUpdate, step: int, epoch: int) -> tuple[Gradient, float]:
        """One step of the optimizer on the whole rollout, scaled as the controller says; the gradient's norm."""
        config, optimizer = self.experiment.config, self.optimizers()
        with self._timed("update"):
            gradient = update.gradient(epoch, self.manual_backward)
            limit = config.clip or math.inf
            norm = float(torch.nn.utils.clip_grad_norm_(self.experiment.policy.trainable().values(), limit))
            if not math.isfinite(norm):
                prompts = ", ".join(repr(problem.prompt) for problem in update.rollout.problems[:3])
                raise RunError(
                    f"step {step}: the gradient's norm is {norm}, with the prompts {prompts}, ...: lower --optim.lr; "
                    f"the last checkpoint is from before"
                )
        with self._timed("probe"):
            probed = epoch == 0 and self._probed(step)
            watch = StepWatch(self.experiment, self.inner, update, epoch=epoch, probed=probed)
        optimizer.step()  # type: ignore[union-attr]
        with self._timed("probe"):
            length = watch.adjust()
            self.row |= watch.measure(clip=clip_factor(norm, limit))
        optimizer.zero_grad()  # type: ignore[union-attr]
        self.attribution = watch.attribution or self.attribution
        if watch.controls:
            gradient.facts["step_length"] = length
        return gradient, norm

    def _probed(self, step: int) -> bool:
        every = self.experiment.config.probe.every
        return every is not None and (step + 1) % every == 0

    @contextlib.contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[what] = self.seconds.get(what, 0.0) + time.perf_counter() - start

    def state(self, step: int) -> dict[str, Any]:
        """Everything that the steps after `step` of them follow from."""
        controller = self.experiment.controller
        return {
            "step": step,
            "weights": {name: p.detach().cpu().clone() for name, p in self.experiment.policy.trainable().items()},
            "optimizer": self.inner.state_dict(),
            "beta": self.beta,
            "controller": None if controller is None else controller.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a `state`; the weights are in the policy already."""
        self.inner.load_state_dict(state["optimizer"])
        self.beta = state["beta"]
        if self.experiment.controller is not None:
            self.experiment.controller.load_state_dict(state["controller"])


def facts_of(rollout: Rollout, gradients: list[Gradient], norms: list[float]) -> dict[str, float | int]:
    """The row of metrics of a step: entropies of before it, means over inner epochs of the rest."""
    first, batch, rewards = gradients[0], rollout.responses, rollout.rewards
    shape = (*batch.shape, -1)
    stats = SequenceStats(*(tensor.double().view(shape).cpu() for tensor in (first.logp, first.entropy)))
    entropy = sequence_entropy(stats, batch.mask.cpu())
    return {
        "reward": float(rewards.mean()),
        "reward_sd": float(rewards.std(correction=0)),
        "checker_errors": rollout.checker_errors,
        "length": entropy.mean_length,
        "tokens": int(batch.lengths.sum()),
        "entropy_per_token": entropy.per_token.value,
        "entropy_per_token_se": entropy.per_token.se,
        "entropy_per_sequence": entropy.rao_blackwell.value,
        "entropy_per_sequence_se": entropy.rao_blackwell.se,
        "entropy_naive": entropy.naive.value,
        "entropy_naive_se": entropy.naive.se,
        "variance_ratio": entropy.variance_ratio,
        "kl": first.kl,
        "clip_fraction": _mean([gradient.clip_fraction for gradient in gradients]),
        "loss": _mean([gradient.loss for gradient in gradients]),
        "grad_norm": _mean(norms),
        "logp_gap": first.gap,
        **{
            f"controller_{name}": _mean([gradient.facts[name] for gradient in gradients if name in gradient.facts])
            for name in dict.fromkeys(name for gradient in gradients for name in gradient.facts)
        },
    }


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


# --- callbacks --------------------------------------------------------------------------------------------------------


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
