"""The arms of a comparison: what the user asks for, the random arm it is judged against, and its controls.

    increasing             the arm                                     against its random arm: does it help?
    increasing-reversed    the other way round
    increasing-shuffled    the same pacing, bins in another order      is it the scores, or any pacing?
    increasing-static      the same mixture all the time               is it the order, or the mixture?

A control that would be another arm over again is that arm: the static mixture of a schedule that draws every block once
is `random`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fluxentropy.config.yaml import from_plain, to_plain
from fluxentropy.errors import UsageError
from fluxentropy.experiments.options import CONTROLS, CompareConfig
from fluxentropy.pretraining.options import PretrainConfig, TrainingOptions
from fluxentropy.pretraining.pretrain import open_blocks
from fluxentropy.schedules.options import ScheduleConfig
from fluxentropy.schedules.sampler import open_sampler
from fluxentropy.schedules.schedule import SCHEDULES, Adaptive, group_bins

# --- what all comparisons share ---------------------------------------------------------------------------------------


Record = Mapping[str, Any]  # of a cell
STEMS = {"compare": "comparison", "grpo-compare": "grpo_comparison"}  # of the files with the judgement


# --- the arms of a comparison -----------------------------------------------------------------------------------------


RANDOM = "random"
Kind = Literal["random", "arm", "reversed", "shuffled", "static"]


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One arm: what it has of its own, over what all arms share."""

    name: str
    own: Mapping[str, Any]
    kind: Kind
    of: str | None = None  # the arm that this is a control of
    baseline: str = RANDOM  # the random arm it is judged against
    controls: Mapping[str, str] = field(default_factory=dict)  # kind of control -> the arm that is it
    mixed: bool = False  # each seed has the next row of balanced_labels

    def config(self, base: TrainingOptions, bins: Path, out: Path, place: int = 0) -> PretrainConfig:
        """The run of this arm with the seed at `place`, in the comparison in `out`."""
        plain = merged(base, self.own)
        if self.mixed:
            plain["schedule"]["balanced_labels"] += place
        seed = base.seed + place
        model_seed = (base.seed if base.model_seed is None else base.model_seed) + place
        folder = out / "cells" / self.name / f"seed-{seed}"
        own: PretrainConfig = from_plain(
            PretrainConfig, {"bins": bins, **plain, "seed": seed, "model_seed": model_seed, "out": folder}
        )
        return own


def merged(base: TrainingOptions, own: Mapping[str, Any]) -> dict[str, Any]:
    """What all share with what one arm has of its own: sections are merged, but for the schedule, which is a whole."""
    plain: dict[str, Any] = to_plain(base)
    for name, value in own.items():
        whole = name == "schedule" or not isinstance(value, Mapping)
        plain[name] = to_plain(value) if whole else plain[name] | dict(value)
    plain["schedule"] = to_plain(from_plain(ScheduleConfig, plain["schedule"]))
    return plain


def all_arms(config: CompareConfig) -> list[Arm]:
    """The arms of `config` with what is always among them: random ones first, then each arm with its controls.

    Errors: UsageError names the arm whose options do not fit its bins.
    """
    asked = {name: dict(own or {}) for name, own in config.arms.items()}
    found = {name: _asked(config, name, own, asked) for name, own in asked.items()}
    for name, arm in [*found.items()]:
        found[name] = dataclasses.replace(arm, baseline=_baseline(config, arm, found))
    signatures: dict[Any, str] = {}
    for name, arm in found.items():
        signatures.setdefault(_signature(config, arm), name)
    for name, arm in [*found.items()]:
        if arm.kind == "arm":
            kinds = [kind for kind in CONTROLS if kind in config.controls or f"{name}-{kind}" in asked]
            controls = {kind: _control(config, arm, kind, found, signatures) for kind in kinds}
            found[name] = dataclasses.replace(arm, controls={kind: other for kind, other in controls.items() if other})
    if not found:
        raise UsageError(
            "arms: there are none; write what to compare, such as {increasing: {schedule: {name: increasing}}}"
        )
    return sorted(found.values(), key=lambda arm: arm.kind != "random")


def _asked(config: CompareConfig, name: str, own: dict[str, Any], asked: Mapping[str, Any]) -> Arm:
    """An arm as the user wrote it; one named like a control of another is this control."""
    of, _, kind = name.rpartition("-")
    if kind in CONTROLS and of in asked:
        mixed = merged(config.base, own)["schedule"]["balanced_labels"] is not None
        return Arm(name=name, own=own, kind=kind, of=of, mixed=mixed)
    schedule = merged(config.base, own)["schedule"]
    plain = schedule["name"] == RANDOM and schedule["keep"] is None and schedule["stratify"] is None
    return Arm(name=name, own=own, kind="random" if plain else "arm")


def _baseline(config: CompareConfig, arm: Arm, found: dict[str, Arm]) -> str:
    """The random arm that is trained like this one; it is added to `found` where there is none."""
    like = _treatment(config, arm)
    same = [other for other in found.values() if other.kind == "random" and _treatment(config, other) == like]
    for other in sorted(same, key=lambda other: other.own.get("bins") != arm.own.get("bins")):
        return other.name
    plain = like == _treatment(config, Arm(name=RANDOM, own={}, kind="random"))
    name = RANDOM if plain else f"{arm.name}-{RANDOM}"
    if name in found:
        raise UsageError(
            f"arms.{name}: this is the name of the random arm that {arm.name} is judged against; rename it"
        )
    own = {key: value for key, value in arm.own.items() if key not in ("schedule", "bins")}
    found[name] = Arm(name=name, own=own | {"schedule": {"name": RANDOM}}, kind="random", baseline=name)
    return name


def _treatment(config: CompareConfig, arm: Arm) -> dict[str, Any]:
    """What decides a run, but for the schedule and the bins it is of."""
    return {name: value for name, value in merged(config.base, arm.own).items() if name not in ("schedule", "bins")}


def _signature(config: CompareConfig, arm: Arm) -> Any:
    """What two arms share that are the same run. Errors: UsageError names the arm whose plan cannot be made."""
    run = arm.config(config.base, config.bins, config.out)
    try:
        blocks, _ = open_blocks(run)
        plan = open_sampler(run, blocks).plan
    except UsageError as error:
        raise UsageError(f"arms.{arm.name}: {error}") from error
    members = group_bins(run.schedule.groups, blocks.bins)
    return repr((_treatment(config, arm), blocks.fingerprint, plan.fingerprint, members, arm.mixed))


# --- controls ---------------------------------------------------------------------------------------------------------


def _control(
    config: CompareConfig, arm: Arm, kind: str, found: dict[str, Arm], signatures: dict[Any, str]
) -> str | None:
    """The name of the arm that is the control `kind` of `arm`, added to `found` where none is; None without any."""
    name = f"{arm.name}-{kind}"
    if name in found:
        return name
    run = arm.config(config.base, config.bins, config.out)
    schedule = control_schedule(run.schedule, kind, open_blocks(run)[0].bins)
    if schedule is None:
        return None
    given = {k: v for k, v in to_plain(schedule).items() if v is not None and v is not False}
    own = dict(arm.own) | {"schedule": given}
    control = Arm(
        name=name,
        own=own,
        kind=kind,  # type: ignore[arg-type]
        of=arm.name,
        baseline=arm.baseline,
        mixed=kind == "shuffled",
    )
    same = signatures.setdefault(_signature(config, control), name)
    if same == name:
        found[name] = control
    return same


def control_schedule(schedule: ScheduleConfig, kind: str, bins: int) -> ScheduleConfig | None:
    """A control of a schedule over `bins` bins; None where there is none, such as for `adaptive`, or a selection.

    >>> control_schedule(ScheduleConfig(name="increasing"), "reversed", 4).name
    'decreasing'
    >>> control_schedule(ScheduleConfig(name="folded"), "reversed", 3).groups
    ('2', '1', '0')
    """
    cls = SCHEDULES[schedule.name]
    labels = (schedule.shuffle_labels, schedule.balanced_labels)
    if cls is Adaptive or schedule.name == RANDOM or schedule.static or labels != (None, None):
        return None
    if kind == "static":
        return dataclasses.replace(schedule, static=True)
    if kind == "shuffled":
        return dataclasses.replace(schedule, balanced_labels=0)
    turned = {"increasing": "decreasing", "decreasing": "increasing"}
    if schedule.name in turned:
        return dataclasses.replace(schedule, name=turned[schedule.name])
    if any(f.name == "descending" for f in dataclasses.fields(cls)):
        begin = {"low": "high", "high": "low"}.get(schedule.begin or "", schedule.begin)
        return dataclasses.replace(schedule, descending=not schedule.descending, begin=begin)
    if schedule.name == "grid":  # its stages are its groups
        return None
    groups = group_bins(schedule.groups, bins)[::-1]
    return dataclasses.replace(schedule, groups=tuple("+".join(map(str, group)) for group in groups))
