"""The gradient of one optimizer step on a rollout, summed over micro-batches of any size.

The controller sees the whole batch once before; token averages are over the whole batch. The log-probabilities that
were stored when sampling are those of the old policy. Where they differ from the training's forward by rounding alone,
the latter are: then the ratio of a step on the policy's own responses is exactly 1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fluxentropy.errors import RunError
from fluxentropy.rl.experiment import Experiment
from fluxentropy.rl.grpoloss import Objective, normaliser, target_loss, token_loss
from fluxentropy.rl.responses import Responses
from fluxentropy.rl.rollouts import Rollout
from fluxentropy.rl.tokenpass import TokenValues, all_values, token_values
from fluxentropy.rl.updatebatch import TokenBatch, TokenPlan

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
