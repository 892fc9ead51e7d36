"""The arms of a comparison: what the user asks for, the random arm it is judged against, and its controls.

    increasing             the arm                                     against its random arm: does it help?
    increasing-reversed    the other way round
    increasing-shuffled    the same pacing, bins in another order      is it the scores, or any pacing?
    increasing-static      the same mixture all the time               is it the order, or the mixture?

An arm may start from another, its trunk: `from: increasing@0.6`. It branches off the trunk's run of the same seed, and
has other rates or averages; or, where it has a schedule or bins of its own, it is a new training on what is left of the
budget. Its random arm starts from that of its trunk, and where only the trunk is ordered its controls start from the
trunk's.

A control that would be another arm over again is that arm: the static mixture of a schedule that draws every block once
is `random`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fluxentropy.config.yaml import did_you_mean, from_plain, to_plain
from fluxentropy.errors import UsageError
from fluxentropy.experiments.options import CONTROLS, CompareConfig
from fluxentropy.pretraining.options import PretrainConfig, TrainingOptions, step_at
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
    trunk: Arm | None = None  # that it starts from
    share: float = 0.0  # of the trunk's steps, after which it does

    @property
    def anew(self) -> bool:
        """Whether it is a new training with the trunk's weights, not a branch that goes on with its plan."""
        return self.trunk is not None and not {"schedule", "bins"}.isdisjoint(self.own)

    def config(self, base: TrainingOptions, bins: Path, out: Path, place: int = 0) -> PretrainConfig:
        """The run of this arm with the seed at `place`, in the comparison in `out`."""
        seed = base.seed + place
        plain: dict[str, Any] = {
            "bins": bins,
            **merged(self.trunk.config(base, bins, out, place) if self.trunk else base, self.own),
        }
        if self.trunk is None:
            model_seed = (base.seed if base.model_seed is None else base.model_seed) + place
            plain |= {"seed": seed, "model_seed": model_seed}
        else:
            plain |= self._start(self.trunk.config(base, bins, out, place))
        if self.mixed and (self.trunk is None or self.anew):
            plain["schedule"]["balanced_labels"] += place
        found: PretrainConfig = from_plain(PretrainConfig, {**plain, "out": out / "cells" / self.name / f"seed-{seed}"})
        return found

    def _start(self, trunk: PretrainConfig) -> dict[str, Any]:
        """The options that say where the run of the trunk is taken up."""
        blocks, _ = open_blocks(trunk)
        batches = open_sampler(trunk, blocks).plan.batches
        step = step_at(self.share, len(batches))
        found: dict[str, Any] = {"from": f"{trunk.out}@{step}", "branch": not self.anew}
        if self.anew:  # with another seed, else it would begin with the blocks that the trunk has begun with
            found |= {"tokens": int(batches[step:].sum()) * blocks.length, "seed": trunk.seed + ANEW}
        return found


ANEW = 1_000_000  # between the seeds of a run and of a new training that starts from it


def merged(base: Any, own: Mapping[str, Any]) -> dict[str, Any]:
    """The options `base` with what one arm has of its own: sections are merged, but for the schedule, a whole."""
    plain: dict[str, Any] = to_plain(base)
    for name, value in own.items():
        if name == "from":  # what it names is no folder
            continue
        whole = name == "schedule" or not isinstance(value, Mapping)
        plain[name] = to_plain(value) if whole else plain[name] | dict(value)
    plain["schedule"] = to_plain(from_plain(ScheduleConfig, plain["schedule"]))
    return plain


def _options(config: CompareConfig, arm: Arm) -> dict[str, Any]:
    """What an arm has, with what it has from its trunk."""
    return merged(_options(config, arm.trunk) if arm.trunk else config.base, arm.own)


def all_arms(config: CompareConfig) -> list[Arm]:
    """The arms of `config` with what is always among them: random ones first, then each arm with its controls.

    Errors: UsageError names the arm whose options do not fit its bins.
    """
    asked = {name: dict(own or {}) for name, own in config.arms.items()}
    found: dict[str, Arm] = {}
    for name in asked:
        _find(config, name, asked, found, ())
    for name, arm in [*found.items()]:
        found[name] = dataclasses.replace(arm, baseline=_baseline(config, arm, found))
    signatures: dict[Any, str] = {}
    for name, arm in found.items():
        signatures.setdefault(_signature(config, arm), name)
    for name, arm in sorted(found.items(), key=lambda item: depth(item[1])):
        if arm.kind == "arm":
            kinds = [kind for kind in CONTROLS if kind in config.controls or f"{name}-{kind}" in asked]
            controls = {kind: _control(config, arm, kind, found, signatures) for kind in kinds}
            found[name] = dataclasses.replace(arm, controls={kind: other for kind, other in controls.items() if other})
    if not found:
        raise UsageError(
            "arms: there are none; write what to compare, such as {increasing: {schedule: {name: increasing}}}"
        )
    return sorted(found.values(), key=lambda arm: arm.kind != "random")


def depth(arm: Arm) -> int:
    """How many arms it starts from, one after the other."""
    return 0 if arm.trunk is None else 1 + depth(arm.trunk)


def _find(
    config: CompareConfig, name: str, asked: Mapping[str, dict[str, Any]], found: dict[str, Arm], above: tuple[str, ...]
) -> Arm:
    """Put an arm that the user wrote into `found`, its trunk before it, and return it."""
    if name not in found:
        own = asked.get(name, {"schedule": {"name": RANDOM}})
        start = {} if "from" not in own else _trunk(config, name, asked, found, (*above, name))
        found[name] = _asked(config, Arm(name=name, own=own, kind="arm", **start), asked)
    return found[name]


def _trunk(
    config: CompareConfig, name: str, asked: Mapping[str, dict[str, Any]], found: dict[str, Arm], above: tuple[str, ...]
) -> dict[str, Any]:
    """The trunk that the arm `name` asks for, and the share. Errors: UsageError says what is wrong with it."""
    own, said = asked[name], f"arms.{name}.from {asked[name]['from']}"
    of, _, share = str(own["from"]).rpartition("@")
    try:
        after = float(share)
    except ValueError:
        after = 0.0
    if not of or not 0 < after < 1:
        raise UsageError(f"{said}: write an arm and a share of its steps between 0 and 1, such as {of or name}@0.6")
    if of not in asked and of != RANDOM:
        raise UsageError(f"{said}: there is no such arm{did_you_mean(of, [*asked, RANDOM])}")
    if of in above:
        raise UsageError(f"{said}: {' starts from '.join([*above[above.index(of) :], of])}: let one have no from")
    trunk = _find(config, of, asked, found, above)
    if trunk.anew:
        raise UsageError(f"{said}: {of} is a new training itself, on what its trunk left; start from its trunk")
    fixed = [key for key in own if key in ("exhausted", "short_start", "short_tokens")]
    if fixed and {"schedule", "bins"}.isdisjoint(own):
        raise UsageError(
            f"arms.{name}.{fixed[0]}: a branch has it from its trunk {of}; it may have lr, optim, average and clip of "
            f"its own, or a schedule or bins, which make it a new training"
        )
    return {"trunk": trunk, "share": after}


def _asked(config: CompareConfig, arm: Arm, asked: Mapping[str, Any]) -> Arm:
    """An arm as the user wrote it, with its kind; one named like a control of another is this control."""
    of, _, kind = arm.name.rpartition("-")
    schedule = _options(config, arm)["schedule"]
    if kind in CONTROLS and of in asked:
        mixed = schedule["balanced_labels"] is not None
        return dataclasses.replace(arm, kind=kind, of=of, mixed=mixed)
    whole = schedule["name"] == RANDOM and schedule["keep"] is None
    random = whole and (arm.trunk is None or arm.trunk.kind == "random")
    return dataclasses.replace(arm, kind="random" if random else "arm")


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
    start: dict[str, Any] = {}
    if arm.trunk is not None:
        start = {"trunk": found[_baseline(config, arm.trunk, found)], "share": arm.share}
        own["from"] = f"{start['trunk'].name}@{arm.share:g}"
    if arm.trunk is None or arm.anew:
        own["schedule"] = {"name": RANDOM} | ({} if like["stratify"] is None else {"stratify": like["stratify"]})
    found[name] = Arm(name=name, own=own, kind="random", baseline=name, **start)
    return name


def _treatment(config: CompareConfig, arm: Arm) -> dict[str, Any]:
    """What decides a run, but for the order of the blocks, and the bins, it is of: batches stay stratified."""
    options = _options(config, arm)
    found = {name: value for name, value in options.items() if name not in ("schedule", "bins")}
    found["stratify"] = options["schedule"]["stratify"]
    return found if arm.trunk is None else found | {"from": [_treatment(config, arm.trunk), arm.share, arm.anew]}


def _signature(config: CompareConfig, arm: Arm) -> Any:
    """What two arms share that are the same run. Errors: UsageError names the arm whose plan cannot be made."""
    run = arm.config(config.base, config.bins, config.out)
    try:
        blocks, _ = open_blocks(run)
        plan = open_sampler(run, blocks).plan
    except UsageError as error:
        raise UsageError(f"arms.{arm.name}: {error}") from error
    members = group_bins(run.schedule.groups, blocks.bins)
    before = None if arm.trunk is None else _signature(config, arm.trunk)
    return repr((_treatment(config, arm), blocks.fingerprint, plan.fingerprint, members, arm.mixed, before))


# --- controls ---------------------------------------------------------------------------------------------------------


def _control(
    config: CompareConfig, arm: Arm, kind: str, found: dict[str, Arm], signatures: dict[Any, str]
) -> str | None:
    """The name of the arm that is the control `kind` of `arm`, added to `found` where none is; None without any."""
    name = f"{arm.name}-{kind}"
    if name in found:
        return name
    run = arm.config(config.base, config.bins, config.out)
    trunk, own = arm.trunk, dict(arm.own)
    by_trunk = trunk is not None and (not arm.anew or run.schedule.name == RANDOM)
    if trunk is not None and by_trunk:  # what was ordered was the trunk: this starts from that control of it
        if (same := found[trunk.name].controls.get(kind)) is None:
            return None
        trunk = found[same]
        own["from"] = f"{same}@{arm.share:g}"
    else:
        schedule = control_schedule(run.schedule, kind, open_blocks(run)[0].bins)
        if schedule is None:
            return None
        own["schedule"] = {k: v for k, v in to_plain(schedule).items() if v is not None and v is not False}
    control = Arm(
        name=name,
        own=own,
        kind=kind,  # type: ignore[arg-type]
        of=arm.name,
        baseline=arm.baseline,
        mixed=kind == "shuffled" and not by_trunk,
        trunk=trunk,
        share=arm.share,
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
