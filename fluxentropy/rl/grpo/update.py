"""The gradient of one optimizer step on a rollout, summed over micro-batches of any size.

The controller sees the whole batch once before; token averages are over the whole batch. The log-probabilities that
were stored when sampling are those of the old policy. Where they differ from the training's forward by rounding alone,
the latter are: then the ratio of a step on the policy's own responses is exactly 1.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from fluxentropy.config.yaml import did_you_mean
from fluxentropy.errors import RunError, UsageError
from fluxentropy.rl.control.base import Base, TokenBatch, TokenPlan, view_step
from fluxentropy.rl.control.control import apply
from fluxentropy.rl.grpo.experiment import Experiment
from fluxentropy.rl.grpo.loss import (
    Objective,
    TokenValues,
    all_values,
    normaliser,
    target_loss,
    token_loss,
    token_values,
)
from fluxentropy.rl.grpo.options import GRPOConfig
from fluxentropy.rl.grpo.rollouts import Rollout
from fluxentropy.rl.probe.attribution import Attribution, row
from fluxentropy.rl.probe.policy import flatten
from fluxentropy.rl.probe.probe import OF_THE_UPDATE, PARTS, EntropyProbe
from fluxentropy.rl.probe.samples import Responses
from fluxentropy.rl.probe.step import AdamWRecorder, can_split, difference, snapshot
from fluxentropy.runs.files import atomic_path

# --- the gradient of a step -------------------------------------------------------------------------------------------


NUCLEUS = "nucleus_entropy"
ROUNDING = 1e-4  # nats; in float32 the two forward passes differ by 1e-7 to 1e-5


@dataclass(kw_only=True)
class Gradient:
    """What was found while the gradient was made: means over tokens, and each token's values (N, L)."""

    loss: float = 0.0
    clip_fraction: float = 0.0
    kl: float = float("nan")
    gap: float = 0.0
    logp: Tensor = field(default_factory=lambda: torch.empty(0))
    entropy: Tensor = field(default_factory=lambda: torch.empty(0))
    facts: dict[str, float] = field(default_factory=dict)


class BatchUpdate:
    """The optimizer's steps on one rollout. `advantages` (B, G); `beta` is that of this step."""

    def __init__(self, experiment: Experiment, rollout: Rollout, advantages: Tensor, *, step: int, beta: float) -> None:
        config, stored = experiment.config, rollout.responses
        assert stored.logp is not None
        self.experiment, self.rollout, self.step = experiment, rollout, step
        device = stored.ids.device
        self.batch: Responses = dataclasses.replace(stored, advantages=advantages.to(device))
        self.mask = stored.mask.flatten(0, 1)  # (N, L)
        self.advantages = advantages.flatten().to(device)
        self.old_logp = stored.logp.flatten(0, 1).clone()
        self.factors = normaliser(self.mask, config.loss.average, config.rollout.max_tokens)
        self.rows = config.micro_batch or len(self.mask)
        self.objective = Objective(
            ratio=config.loss.ratio,
            clip=(config.loss.clip_low, config.loss.clip_high),
            beta=beta,
            entropy_bonus=config.loss.entropy_bonus,
        )
        self.ref_logp: Tensor | None = None
        if experiment.reference is not None:
            model = experiment.policy.model
            self.ref_logp = all_values(model, self.batch, rows=self.rows, params=experiment.reference).logp

    def gradient(self, epoch: int, backward: Callable[[Tensor], None]) -> Gradient:
        """Add the gradient of the loss to the parameters' by `backward` of each micro-batch's part.

        Errors: RunError names the prompt of a loss that is not finite, and of a stored log-probability that is not
        the policy's.
        """
        found = Gradient()
        plan, now = self._plan(epoch)
        nucleus = [NUCLEUS] if plan is not None and plan.target is not None and plan.nucleus else []
        target = None if now is None else target_loss(plan, now.extra[NUCLEUS] if nucleus else now.entropy)
        found.facts = dict((plan.facts if plan else None) or {})
        parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        for first in range(0, len(self.mask), self.rows):
            rows = slice(first, first + self.rows)
            values = token_values(self.experiment.policy.model, self.batch, rows, extra=nucleus)
            if epoch == 0:
                found.gap = max(found.gap, self._check_gap(rows, values.logp.detach()))
            losses = token_loss(
                values.logp,
                self.old_logp[rows],
                values.entropy,
                self.advantages[rows],
                self.mask[rows],
                self.objective,
                ref_logp=None if self.ref_logp is None else self.ref_logp[rows],
                plan=plan,
                rows=rows,
            )
            self._check_finite(losses.loss.detach(), rows)
            total = (losses.loss * self.factors[rows]).sum()
            found.loss += float(total.detach())
            if target is not None:
                total = total + (target.weights[rows] * (values.extra[NUCLEUS] if nucleus else values.entropy)).sum()
            backward(total)
            parts.append((values.logp.detach(), values.entropy.detach(), losses.clipped, losses.kl))
        found.logp, found.entropy, clipped, kl = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        found.loss += 0.0 if target is None else target.loss
        tokens = float(self.mask.sum())
        found.clip_fraction = float(clipped.sum()) / tokens
        if self.ref_logp is not None:
            found.kl = float(kl.double().sum()) / tokens
        return found

    def _plan(self, epoch: int) -> tuple[TokenPlan | None, TokenValues | None]:
        """What the controller makes of the whole batch, from a pass without gradients."""
        controller = self.experiment.controller
        if controller is None:
            return None, None
        now = all_values(self.experiment.policy.model, self.batch, rows=self.rows, extra=controller.statistics)
        if epoch == 0:
            self._check_gap(slice(None), now.logp)
        batch = TokenBatch(
            mask=self.mask,
            logp=now.logp,
            old_logp=self.old_logp,
            entropy=now.entropy,
            advantages=self.advantages,
            clip=self.objective.clip,
            **now.extra,
        )
        return controller.plan(batch, self.experiment.generator(self.step, epoch)), now

    def _check_gap(self, rows: slice, logp: Tensor) -> float:
        """The largest difference from the stored log-probabilities; rounding is taken out of these."""
        stored = self.rollout.responses.logp
        assert stored is not None
        gaps = torch.where(self.mask[rows], (logp - stored.flatten(0, 1)[rows]).abs(), 0.0)
        worst, limit = float(gaps.max()), self.experiment.config.max_logp_gap
        if not worst <= limit:
            row = int(gaps.amax(1).argmax()) + (rows.start or 0)
            raise RunError(
                f"step {self.step}: the log-probability of a token of {self._response(row)} was stored as another one "
                f"than the training's forward gives, by {worst:.3g} nats, more than --max-logp-gap {limit:g}: "
                f"is the model's cache, or its padding on the left, right?"
            )
        self.old_logp[rows] = torch.where(gaps <= ROUNDING, logp, self.old_logp[rows])
        return worst

    def _check_finite(self, loss: Tensor, rows: slice) -> None:
        bad = ~loss.isfinite().all(1)
        if bad.any():
            row = int(bad.nonzero()[0]) + rows.start
            value = loss[row - rows.start][~loss[row - rows.start].isfinite()][0]
            raise RunError(
                f"step {self.step}: the loss of {self._response(row)} is {float(value)}: lower --optim.lr, or look at "
                f"this prompt; the last checkpoint is from before"
            )

    def _response(self, row: int) -> str:
        n, g = divmod(row, self.batch.shape[1])
        return f"the response {self.rollout.texts[n][g]!r} to the prompt {self.rollout.problems[n].prompt!r}"


# --- the log of responses ---------------------------------------------------------------------------------------------


PIECES = ".responses"

SCHEMA = pa.schema(
    [
        ("step", pa.int32()),
        ("prompt", pa.int32()),
        ("response", pa.int32()),
        ("prompt_text", pa.string()),
        ("response_text", pa.string()),
        ("answer", pa.string()),
        ("reward", pa.float64()),
        ("advantage", pa.float64()),
        ("length", pa.int32()),
        ("logp", pa.float64()),
        ("entropy", pa.float64()),
    ]
)


def response_rows(step: int, rollout: Rollout, advantages: Tensor, gradient: Gradient) -> list[dict[str, Any]]:
    """A row for each response: `prompt` and `response` count from 0; `logp` is S and `entropy` the sum of H_k, nats."""
    B, G = rollout.responses.shape
    logp, entropy = (values.double().sum(1).view(B, G).tolist() for values in (gradient.logp, gradient.entropy))
    return [
        {
            "step": step,
            "prompt": n,
            "response": g,
            "prompt_text": problem.prompt,
            "response_text": rollout.texts[n][g],
            "answer": problem.answer,
            "reward": float(rollout.rewards[n, g]),
            "advantage": float(advantages[n, g]),
            "length": int(rollout.responses.lengths[n, g]),
            "logp": logp[n][g],
            "entropy": entropy[n][g],
        }
        for n, problem in enumerate(rollout.problems)
        for g in range(G)
    ]


def write_piece(out: Path, step: int, rows: list[dict[str, Any]]) -> None:
    """Keep the rows of a step; those of an earlier try are replaced."""
    with atomic_path(out / PIECES / f"step-{step:08d}.parquet", durable=False) as aside:
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), aside)


def gather(out: Path) -> None:
    """Write `responses.parquet` of all pieces, in the order of steps."""
    with atomic_path(out / "responses.parquet") as aside, pq.ParquetWriter(aside, SCHEMA) as writer:
        for piece in sorted((out / PIECES).glob("step-*.parquet")):
            writer.write_table(pq.read_table(piece, schema=SCHEMA))


def drop_pieces(out: Path) -> None:
    """Remove what `gather` has put together."""
    shutil.rmtree(out / PIECES, ignore_errors=True)


# --- the probe around a step ------------------------------------------------------------------------------------------
#
# The entropy batch has prompts and random numbers of its own, and is sampled before the step: where the step is probed,
# and before every step where the controller adjusts steps.


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
