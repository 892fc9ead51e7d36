"""One object that says how a real optimizer step changed the entropy, and why.

    from fluxentropy.rl import EntropyProbe
    from fluxentropy.rl.probe import Sampler, responses

    batch = responses(prompt_ids, tokens, eos=eos, sampler=Sampler(temperature=1.0))
    probe = EntropyProbe(policy, batch, optimizer=optimizer)   # before the step
    loss.backward()
    optimizer.step()
    record = probe.measure()                                   # after it, before zero_grad

The batch is one that `policy` sampled before the step, other than the one the update used: then the update is no
random variable, and the standard errors are those between the batch's prompts. Costs are in forward passes over the
batch, the model's copy of its parameters apart; memory is linear in the rows of one pass.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from fluxentropy.errors import UsageError
from fluxentropy.rl.probe.attribution import Attribution, attribute
from fluxentropy.rl.probe.change import EntropyExpansion, MeasuredChange, expand, ghost_radius, measured_change
from fluxentropy.rl.probe.estimate import Estimate, SequenceEntropy, jackknife_error, sequence_entropy
from fluxentropy.rl.probe.kernel import (
    KernelSplit,
    KernelStatistics,
    TwoBatch,
    UStatistic,
    covariance_change,
    entropy_side,
    entropy_weights,
    fisher_gradients,
    kernel_change,
    kernel_statistics,
    multi_prompt_u,
    pairs,
    update_change,
    update_side,
)
from fluxentropy.rl.probe.policy import (
    ROWS,
    Forward,
    Parameters,
    Policy,
    Weights,
    check_sampled_by,
    flatten,
    prompt_gradients,
    sequence_stats,
)
from fluxentropy.rl.probe.samples import Responses
from fluxentropy.rl.probe.step import AdamWRecorder, can_split, difference, learning_rates, snapshot, update_weights

# --- the record -------------------------------------------------------------------------------------------------------


COVARIANCE = "A / norm"  # what `covariance_per_lr` is of, with S; it was A alone in versions that did not say


class Change(NamedTuple):
    """A first-order change of both entropies: nats a sequence, nats a token."""

    per_sequence: Estimate
    per_token: Estimate


@dataclass(frozen=True, kw_only=True)
class KernelReport:
    """The Fisher kernel's account of this batch's part of the step, in nats a sequence.

    `change`: by kind of pair. `statistics`: blocks and spectrum over the entropy batch. `covariance`: the formula of a
    diagonal kernel, -Cov(S, A/norm) (Cui et al.), for the update batch with its clipping, per unit of rate: times the
    rate it stands beside `change`. `sketch`: its size, None exact.
    """

    change: KernelSplit
    statistics: KernelStatistics
    covariance: float
    sketch: int | None


@dataclass(frozen=True, kw_only=True)
class ProbeRecord:
    """One step. Parts that were not run are None; entropies and changes are in nats.

    Attributes:
        entropy: before the step.
        step_norm: ‖d‖₂.
        measured: the change by importance weights of prefixes.
        snis: the same by self-normalised weights of whole responses.
        expansion: first and second order along the step, whose end is η = 1; `second` NaN where only the first was run.
        split: first-order change of AdamW's parts "batch", "momentum" and "decay"; they sum to the expansion's first.
        ghost_radius: the smallest over all tokens, in steps.
        two_batch, u_statistic, kernel: of the update's batch; see `EntropyProbe`.
        seconds: wall-clock time of each part.
        warnings: what makes the numbers doubtful, in words.
    """

    entropy: SequenceEntropy
    step_norm: float
    measured: MeasuredChange | None = None
    snis: MeasuredChange | None = None
    expansion: EntropyExpansion | None = None
    split: dict[str, Change] | None = None
    ghost_radius: float | None = None
    two_batch: TwoBatch | None = None
    u_statistic: UStatistic | None = None
    kernel: KernelReport | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def row(self) -> dict[str, float]:
        """Every number by name, for one row of a table; an estimate's standard error is NAME_se."""
        found: dict[str, float] = {}

        def put(name: str, value: Estimate | float) -> None:
            if isinstance(value, Estimate):
                found[name], found[f"{name}_se"] = value
            else:
                found[name] = float(value)

        put("entropy_per_sequence", self.entropy.rao_blackwell)
        put("entropy_per_token", self.entropy.per_token)
        put("entropy_naive", self.entropy.naive)
        put("variance_ratio", self.entropy.variance_ratio)
        put("mean_length", self.entropy.mean_length)
        put("step_norm", self.step_norm)
        if self.measured is not None:
            put("measured_per_sequence", self.measured.per_sequence)
            put("measured_per_token", self.measured.per_token)
            put("effective_sample_size", self.measured.effective_sample_size)
            put("largest_weight", self.measured.largest_weight)
        if self.snis is not None:
            put("snis_per_sequence", self.snis.per_sequence)
            put("snis_per_token", self.snis.per_token)
        if self.expansion is not None:
            for unit in ("per_sequence", "per_token"):
                expansion = getattr(self.expansion, unit)
                put(f"first_{unit}", expansion.first)
                put(f"second_{unit}", expansion.second)
                put(f"predicted_{unit}", expansion.quadratic)
                put(f"eta_star_{unit}", expansion.eta_star)
        for name, gap in self._gaps():
            put(f"measured_minus_{name}", gap)
        for part, change in (self.split or {}).items():
            put(f"{part}_per_sequence", change.per_sequence)
            put(f"{part}_per_token", change.per_token)
        if self.ghost_radius is not None:
            put("ghost_radius", self.ghost_radius)
        if self.two_batch is not None:
            error = float(self.two_batch.conservative_variance) ** 0.5
            put("two_batch_per_sequence", Estimate(float(self.two_batch.value), error))
        if self.u_statistic is not None:
            error = float(self.u_statistic.jackknife_variance) ** 0.5
            put("u_statistic_per_sequence", Estimate(float(self.u_statistic.value), error))
        if self.kernel is not None:
            for kind in ("total", "identical", "same_prompt", "cross_prompt"):
                put(f"kernel_{kind}", getattr(self.kernel.change, kind))
            put("kernel_effective_rank", self.kernel.statistics.effective_rank)
            put("covariance_per_lr", self.kernel.covariance)
        return found

    def _gaps(self) -> Iterator[tuple[str, Estimate]]:
        """What the measured change is above each other estimate of it.

        All are of the same prompts, so that their errors are correlated: the standard error is that of the difference.
        """
        if self.measured is None:
            return
        for place, unit in enumerate(("per_sequence", "per_token")):
            measured, others = getattr(self.measured, unit), self.measured.without[:, place]
            if self.snis is not None:
                yield (
                    f"snis_{unit}",
                    _difference(measured, getattr(self.snis, unit), others, self.snis.without[:, place]),
                )
            expansion = None if self.expansion is None else getattr(self.expansion, unit)
            if expansion is not None and expansion.without is not None:
                first, quadratic = expansion.without.unbind(-1)
                yield f"first_{unit}", _difference(measured, expansion.first, others, first)
                yield f"predicted_{unit}", _difference(measured, expansion.quadratic, others, quadratic)


def _difference(a: Estimate, b: Estimate, without_a: Tensor, without_b: Tensor) -> Estimate:
    """a - b, both of the same prompts; `without_*` (B,) are their values without each prompt."""
    return Estimate(a.value - b.value, jackknife_error(without_a - without_b))


# --- the probe --------------------------------------------------------------------------------------------------------


Part = Literal["measured", "first_order", "split", "range", "second_order", "two_batch", "kernel", "u_statistic"]
PARTS: tuple[Part, ...] = get_args(Part)
OF_THE_UPDATE = ("two_batch", "kernel", "u_statistic")

# Forward passes over the batch that each part costs, as benchmarks/probe.py finds them on a small transformer on a CPU.
# A forward-mode pass has three matrix products for one and, with float64 reductions, costs about five passes.
COSTS: dict[Part, float] = {
    "measured": 1.5, "first_order": 5.5, "split": 13, "range": 4.5, "second_order": 16, "two_batch": 18,
    "u_statistic": 16,
}  # fmt: skip

KERNEL_COST = 10.0  # of each direction of the sketch, and of the exact kernel


class EntropyProbe:
    """Everything about one step; make it before the step, call `measure` after.

    Args:
        policy: the module that is trained; see `Policy` for `forward`.
        batch: at least 3 prompts with responses that the policy sampled as it is now, from the whole vocabulary. Their
            stored log-probabilities, where given, must agree with the policy's to within `max_gap` nats a token.
        optimizer: the optimizer, for "split" (AdamW) and the parts of the update; None to leave these out.
        update: the responses with advantages that the update uses, for "two_batch", "kernel" and "u_statistic"; the
            update is then the ascent (1/BG) Σ (A/norm) ∇S, times the learning rate or AdamW's preconditioner.
        norm: the constant that the update divides sums over tokens by.
        parts: which parts to run; None for all that have what they need, but for "kernel" and "u_statistic". The first
            order comes with the second.
        budget: at most about so many forward passes over the batch (`COSTS`); parts are taken in the order of `PARTS`
            while they fit.
        sketch: directions of the kernel's projection, each a pass over both batches; None for the exact kernel of
            a small model.
        min_ess: the share of the responses below which the effective sample size is a warning.
        rows: responses in one pass.

    Errors: `UsageError` for too few prompts, a truncating sampler, responses of another policy or temperature (with the
    gap), and parts that lack what they need; `ModelError` for logits that are no distribution.
    """

    def __init__(
        self,
        policy: nn.Module,
        batch: Responses,
        *,
        optimizer: torch.optim.Optimizer | None = None,
        update: Responses | None = None,
        norm: float | None = None,
        parts: Collection[Part] | None = None,
        budget: float | None = None,
        sketch: int | None = 32,
        max_gap: float = 1e-2,
        min_ess: float = 0.5,
        rows: int = ROWS,
        forward: Forward | None = None,
    ) -> None:
        batch.need(prompts=3, reason="a probe with standard errors")
        batch.need_whole_vocabulary("a change of the entropy")
        self._module, self._policy, self._batch = policy, Policy(policy, forward=forward), batch
        self._optimizer, self._update, self._norm = optimizer, update, norm
        self._sketch, self._min_ess, self._rows = sketch, min_ess, rows
        self.parts = self._choose(parts, budget)
        start = time.perf_counter()
        self._stats = sequence_stats(self._policy, batch, rows=rows)
        check_sampled_by(self._stats, batch, max_gap)
        self._seconds = {"entropy": time.perf_counter() - start}
        self._recorder: AdamWRecorder | None = None
        self._rates: Parameters = {}
        if optimizer is not None and (update is not None or {"split", *OF_THE_UPDATE} & set(self.parts)):
            if can_split(optimizer):
                self._recorder = AdamWRecorder(policy, optimizer)
            else:
                self._rates = learning_rates(policy, optimizer)
        self._before = self._recorder.before if self._recorder else snapshot(policy)

    def _choose(self, parts: Collection[Part] | None, budget: float | None) -> tuple[Part, ...]:
        """The parts to run, in the order of `PARTS`."""
        has_update = None not in (self._update, self._norm, self._optimizer)
        if parts is None:
            wanted = {
                "split": can_split(self._optimizer),
                "two_batch": has_update,
                "kernel": False,
                "u_statistic": False,
            }
            chosen = [part for part in PARTS if wanted.get(part, True)]
        else:
            if unknown := set(parts) - set(PARTS):
                raise UsageError(f"part {min(unknown)!r}: choose of {', '.join(PARTS)}")
            chosen = [part for part in PARTS if part in parts]
            if "split" in chosen and not can_split(self._optimizer):
                raise UsageError("the part 'split' needs optimizer=, an AdamW or an Adam without weight decay")
            if (wants := [part for part in chosen if part in OF_THE_UPDATE]) and not has_update:
                raise UsageError(f"the part {wants[0]!r} needs update=, norm= and optimizer=")
        for part in chosen:
            self._check_update(part)
        if budget is not None:
            chosen = self._within(chosen, budget)
        return tuple(part for part in chosen if part != "first_order" or "second_order" not in chosen)

    def _check_update(self, part: Part) -> None:
        """Refuse at once an update that `part` could not use after the step."""
        if self._update is None or part not in OF_THE_UPDATE:
            return
        if self._update.advantages is None:
            raise UsageError(f"the part {part!r} needs advantages in the update's responses")
        self._update.need_whole_vocabulary(f"the part {part!r}")
        self._update.need(prompts=3 if part == "u_statistic" else 2, reason=f"the part {part!r} of the update")
        if part == "kernel":
            for batch in (self._batch, self._update):
                batch.need(responses=2, reason="the kernel's leave-one-out mean")

    def _within(self, parts: list[Part], budget: float) -> list[Part]:
        left, kept = budget - 1, []  # one pass for the entropy itself
        for part in parts:
            cost = COSTS[part] if part != "kernel" else KERNEL_COST * (self._sketch or 1)
            if cost <= left:
                kept.append(part)
                left -= cost
        return kept

    def measure(self, *, clip: float = 1.0) -> ProbeRecord:
        """The record of the step taken since the probe was made.

        `clip` is the factor that clipping multiplied the gradients by (`clip_factor`); the parts of the update use it.
        """
        step = difference(self._module, self._before)
        found: dict[str, Any] = {}
        split = self._recorder.split() if self._recorder else None
        for part in self.parts:
            start = time.perf_counter()
            if part == "measured":
                after = sequence_stats(self._policy, self._batch, rows=self._rows)
                found["measured"] = measured_change(self._stats, after, self._batch.mask)
                found["snis"] = measured_change(self._stats, after, self._batch.mask, weights="sequence")
            elif part == "split":
                assert split is not None
                directions = {"batch": split.batch, "momentum": split.momentum, "decay": split.decay}
                found["split"] = {name: _first(self._expand(d, 1)) for name, d in directions.items()}
            elif part == "range":
                radii = ghost_radius(self._policy, self._batch, step, params=self._before, rows=self._rows)
                found["ghost_radius"] = float(radii.min())
            elif part in OF_THE_UPDATE:
                found[part] = self._of_the_update(part, split.preconditioner if split else self._rates, clip)
            else:
                found["expansion"] = self._expand(step, 2 if part == "second_order" else 1)
            self._seconds[part] = time.perf_counter() - start
        record = ProbeRecord(
            entropy=sequence_entropy(self._stats, self._batch.mask),
            step_norm=float(flatten(step).norm()),
            seconds=dict(self._seconds),
            **found,
        )
        return self._with_warnings(record)

    def attribute(self, *, clip: float = 1.0) -> Attribution:
        """Every token's part in the first-order change by the update, after the step and before zero_grad.

        `clip` as in `measure`. Costs a backward and a forward-mode pass. Errors: `UsageError` without `update` and all
        that it needs.
        """
        if None in (self._update, self._norm, self._optimizer):
            raise UsageError("the attribution needs update=, norm= and optimizer=")
        assert self._update is not None and self._norm is not None
        P = self._recorder.split().preconditioner if self._recorder else self._rates
        return attribute(
            self._policy, self._batch, self._update, norm=self._norm, lr=clip, preconditioner=P, params=self._before,
            rows=self._rows,
        )  # fmt: skip

    def _expand(self, direction: Parameters, order: int) -> EntropyExpansion:
        return expand(self._policy, self._batch, direction, order=order, params=self._before, rows=self._rows)

    def _of_the_update(self, part: str, P: Parameters, clip: float) -> TwoBatch | UStatistic | KernelReport:
        update, norm, params, rows = self._update, self._norm, self._before, self._rows
        assert update is not None and update.advantages is not None and norm is not None
        if part == "two_batch":
            return update_change(
                self._policy, self._batch, update, norm=norm, lr=clip, preconditioner=P, params=params, rows=rows
            )
        if part == "u_statistic":
            return self._u_statistic(update, update_weights(update.advantages, update.mask, norm), P, clip)
        features = [
            fisher_gradients(self._policy, b, preconditioner=P, sketch=self._sketch, params=params, rows=rows)
            for b in (self._batch, update)
        ]
        B, G = self._batch.shape
        x, y = entropy_side(self._stats.logp.sum(-1)), clip * update_side(update.advantages, norm)
        S = sequence_stats(self._policy, update, params, rows=rows).logp.sum(-1)
        return KernelReport(
            change=kernel_change(features[0] @ features[1].T, x, y, *pairs(self._batch, update)),
            statistics=kernel_statistics(features[0] @ features[0].T, torch.arange(B).repeat_interleave(G)),
            covariance=clip * covariance_change(S, update.advantages.double(), norm),
            sketch=self._sketch,
        )

    def _u_statistic(self, update: Responses, Y: Weights, P: Parameters, clip: float) -> UStatistic:
        """From one gradient pair a prompt of the update's batch, all kept: 2BP numbers."""
        stats = sequence_stats(self._policy, update, self._before, rows=self._rows)
        X = entropy_weights(stats, update.mask, "to_go")
        x, y = (
            torch.stack([flatten(g) for g in prompt_gradients(self._policy, update, w, self._before, rows=self._rows)])
            for w in (X, Y)
        )
        return multi_prompt_u(clip * (x * flatten({n: P[n] for n in self._before})) @ y.T)

    def _with_warnings(self, record: ProbeRecord) -> ProbeRecord:
        said = []
        if (measured := record.measured) is not None:
            share = measured.effective_sample_size / measured.responses
            if not share >= self._min_ess:
                said.append(
                    f"effective sample size {measured.effective_sample_size:.1f} of {measured.responses} responses: "
                    "the step is too large for this batch to measure"
                )
        if record.expansion is not None and record.expansion.per_token.eta_star < 1:
            said.append(
                f"eta* {record.expansion.per_token.eta_star:.2g}: the second-order term is larger than the first, "
                "because the step is large or because the first nearly vanishes"
            )
        if record.ghost_radius is not None and record.ghost_radius < 1:
            said.append(f"ghost radius {record.ghost_radius:.2g}: the expansion may not converge up to the whole step")
        return dataclasses.replace(record, warnings=tuple(said))


def _first(expansion: EntropyExpansion) -> Change:
    return Change(expansion.per_sequence.first, expansion.per_token.first)
