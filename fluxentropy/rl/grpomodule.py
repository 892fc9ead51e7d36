"""The reference implementation of GRPO: a Lightning module that optimises by hand, so that every part is in view.

    problems -> rollout -> rewards -> advantages -> for each inner epoch: plan, gradient, optimizer step, adjustment

A step follows from the weights, the optimizer's state, `beta` and the controller's state before it, and its number.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from typing import Any

import lightning
import torch

from fluxentropy.errors import RunError
from fluxentropy.optim import build_optimizer, scale_learning_rates
from fluxentropy.rl.advantages import advantages
from fluxentropy.rl.attribution import Attribution
from fluxentropy.rl.experiment import Experiment
from fluxentropy.rl.grpoloss import adapted_beta
from fluxentropy.rl.grpoprobe import StepWatch
from fluxentropy.rl.grpoupdate import BatchUpdate, Gradient
from fluxentropy.rl.passes import SequenceStats
from fluxentropy.rl.responselog import response_rows
from fluxentropy.rl.rollouts import Rollout
from fluxentropy.rl.sequence_entropy import sequence_entropy
from fluxentropy.rl.step import clip_factor


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
