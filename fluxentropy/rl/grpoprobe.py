"""What is watched around one optimizer step: the entropy probe, and what a controller wants to know of the step.

The entropy batch has prompts and random numbers of its own, and is sampled before the step: where the step is probed,
and before every step where the controller adjusts steps.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math

import torch

from fluxentropy.errors import RunError, UsageError
from fluxentropy.rl.attribution import Attribution, row
from fluxentropy.rl.control import apply
from fluxentropy.rl.controllers.base import Base
from fluxentropy.rl.experiment import Experiment
from fluxentropy.rl.grpooptions import GRPOConfig
from fluxentropy.rl.grpoupdate import BatchUpdate
from fluxentropy.rl.policy import flatten
from fluxentropy.rl.probe import OF_THE_UPDATE, PARTS, EntropyProbe
from fluxentropy.rl.responses import Responses
from fluxentropy.rl.step import AdamWRecorder, can_split, difference, snapshot
from fluxentropy.rl.stepview import view_step
from fluxentropy.yamlfile import did_you_mean

SKETCH = 32  # directions of the kernel
OF_THE_OPTIMIZER = ("split", *OF_THE_UPDATE)  # parts that explain the step by the optimizer's own


class StepWatch:
    """One optimizer step: made before it, with the gradient at hand; `adjust` and then `measure` after it.

    Where tokens are attributed, `measure` sets `attribution`, whose update is the rollout with its advantages.
    """

    def __init__(
        self, experiment: Experiment, optimizer: torch.optim.Optimizer, update: BatchUpdate, *, epoch: int, probed: bool
    ) -> None:
        self.experiment, self.step, self.epoch = experiment, update.step, epoch
        self.controls = adjusts(experiment.controller)
        self.attribution: Attribution | None = None
        self._probe: EntropyProbe | None = None
        if not (probed or self.controls):
            return
        self._batch, self._update = experiment.entropy_batch(self.step, epoch), update.batch
        if probed:
            self._probe = self._make_probe(optimizer, update)
        if self.controls:
            model = experiment.policy.model
            self._recorder = AdamWRecorder(model, optimizer) if can_split(optimizer) else None
            self._before = self._recorder.before if self._recorder else snapshot(model)

    def _make_probe(self, optimizer: torch.optim.Optimizer, update: BatchUpdate) -> EntropyProbe:
        config = self.experiment.config
        known = can_split(optimizer) and not self.controls
        plain = known and not obstacle(config, self.experiment.controller)
        responses, norm = update_of(update.batch, config)
        with _in_full(self._batch):
            return EntropyProbe(
                self.experiment.policy.model,
                self._batch if config.precision == "fp32" else dataclasses.replace(self._batch, logp=None),
                optimizer=optimizer if known else None,
                update=responses if plain else None,
                norm=norm if plain else None,
                parts=config.probe.parts,  # type: ignore[arg-type]
                budget=config.probe.budget,
                sketch=SKETCH if config.probe.kernel == "sketch" else None,
                max_gap=config.max_logp_gap,
            )

    def adjust(self) -> float:
        """Ask the controller what the step shall be, and take that; its length in units of the optimizer's step."""
        controller = self.experiment.controller
        if not self.controls or controller is None:
            return 1.0
        module, recorder = self.experiment.policy.model, self._recorder
        number = self.step * self.experiment.config.inner_epochs + self.epoch + 1
        with _in_full(self._batch):
            view = view_step(
                module,
                self._batch,
                self._before,
                step=number,
                preconditioner=None if recorder is None else lambda: recorder.split().preconditioner,
            )
            answer = controller.adjust(view)
        if answer == 1.0:
            return 1.0
        whole = float(flatten(difference(module, self._before)).norm())
        apply(module, self._before, answer)
        length = float(flatten(difference(module, self._before)).norm())
        if not math.isfinite(length):
            raise RunError(f"step {self.step}: the controller {controller.name} makes a step of {length}")
        return length / whole if whole else 1.0

    def measure(self, *, clip: float) -> dict[str, float]:
        """The probe's numbers, for the row of metrics; none where the step is not probed."""
        if self._probe is None:
            return {}
        with _in_full(self._batch):
            found = self._probe.measure(clip=clip).row()
            if attributes(self.experiment.config, self.experiment.controller):
                attribution = self._probe.attribute(clip=clip)
                found |= row(attribution)
                self.attribution = dataclasses.replace(attribution, update=self._update)
        return {f"probe_{name}": value for name, value in found.items()}


def adjusts(controller: Base | None) -> bool:
    """Whether a controller looks at the steps that were taken."""
    return controller is not None and controller.adjusts


def obstacle(config: GRPOConfig, controller: Base | None) -> str:
    """Why a step cannot be split over the tokens of its rollout, in words; empty where it can be."""
    if config.optim.kind != "adamw":
        return f"--optim.kind {config.optim.kind}: only steps of AdamW are split over tokens"
    if controller is not None:
        return f"the controller {controller.name}: it changes the update that would be split over tokens"
    if config.rollout.prompts < 2:
        return f"--rollout.prompts {config.rollout.prompts}: standard errors need at least 2"
    return ""


def attributes(config: GRPOConfig, controller: Base | None) -> bool:
    """Whether probed steps are split over tokens: as asked for, or where nothing hinders or limits the probe."""
    probe = config.probe
    if probe.attribution is None:
        return probe.parts is None and probe.budget is None and not obstacle(config, controller)
    return probe.attribution


def check_parts(config: GRPOConfig, controller: Base | None) -> None:
    """Raise `UsageError` for parts of the probe that cannot be run."""
    asked = config.probe.parts or ()
    for part in asked:
        if part not in PARTS:
            raise UsageError(f"--probe.parts {part} is unknown{did_you_mean(part, PARTS)}")
        if part in OF_THE_UPDATE and controller is not None:
            raise UsageError(f"--probe.parts {part} with a controller: it changes the update that this part explains")
        if part in OF_THE_OPTIMIZER and (adjusts(controller) or config.optim.kind != "adamw"):
            what = f"--optim.kind {config.optim.kind}" if config.optim.kind != "adamw" else "a controller of steps"
            raise UsageError(f"--probe.parts {part} with {what}: this part explains steps of AdamW alone")
    if config.probe.attribution and (hindered := obstacle(config, controller)):
        raise UsageError(f"--probe.attribution with {hindered}")


def update_of(batch: Responses, config: GRPOConfig) -> tuple[Responses, float]:
    """The policy-gradient part of the loss as the probe takes it: (1/BG) sum of A / norm, with advantages and norm."""
    if config.loss.average == "constant":
        return batch, float(config.rollout.max_tokens)
    if config.loss.average == "tokens":
        return batch, float(batch.lengths.double().mean())
    assert batch.advantages is not None
    return dataclasses.replace(batch, advantages=batch.advantages / batch.lengths), 1.0


def _in_full(batch: Responses) -> contextlib.AbstractContextManager[None]:
    """Derivatives are taken in float32 or better, whatever the training's precision."""
    return torch.autocast(batch.ids.device.type, enabled=False)
