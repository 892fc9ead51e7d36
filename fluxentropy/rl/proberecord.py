"""What a probe found out about one step: typed, with standard errors, and flat for a table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from fluxentropy.rl.estimate import Estimate, jackknife_error
from fluxentropy.rl.kernel import KernelSplit, KernelStatistics
from fluxentropy.rl.secondorder import EntropyExpansion
from fluxentropy.rl.sequence_entropy import SequenceEntropy
from fluxentropy.rl.snis import MeasuredChange
from fluxentropy.rl.twobatch import TwoBatch
from fluxentropy.rl.ustatistics import UStatistic

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
