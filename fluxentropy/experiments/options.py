"""Options of `fluxentropy compare`, `grpo-compare` and `grpo-study`. The text under a field is its help."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Group, Parameter

from fluxentropy.config.checks import Check, Min, Options, Positive, Some
from fluxentropy.config.options import INPUT, JSON, OUTPUT, SWITCH, WORK, EngineOptions
from fluxentropy.config.yaml import check_mapping, from_plain, to_plain
from fluxentropy.errors import UsageError
from fluxentropy.pretraining.options import EVALUATION, PretrainConfig, TrainingOptions
from fluxentropy.rl.grpo.options import GRPOConfig, GRPOOptions

ARMS = Parameter(group=Group("Arms", sort_key=2))
SHIFT = 100  # between the seeds that are judged and those that --rates are chosen on
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
Control = Literal["reversed", "shuffled", "static"]
CONTROLS: tuple[Control, ...] = ("reversed", "shuffled", "static")
NONE = "none"  # the arm that all other controllers are compared with

# what an arm may have of its own; all else is the same for all of them
OWN = (
    *("schedule", "bins", "exhausted", "optim", "lr", "average", "clip", "short_start", "short_tokens"),
    *("from", "keep_optimizer"),
)
OWN_RL = ("controller", "loss", "kl", "optim")


@dataclass(frozen=True, kw_only=True)
class ComparisonOptions(EngineOptions, digits="g"):
    """What the comparisons share."""

    base: Any
    arms: Annotated[dict[str, Any], JSON, ARMS] = field(default_factory=dict)
    seeds: Annotated[int, ARMS, Min(1)]
    margin: Annotated[float, ARMS]
    train: Annotated[bool, WORK] = True
    """Train what is not finished; with --no-train only the finished runs are judged."""
    keep_checkpoints: Annotated[bool, SWITCH, OUTPUT] = False
    """Keep the checkpoints of finished runs; their exported models are always kept."""
    out: Annotated[Path, OUTPUT]
    """Folder to write: a run for each arm and seed, and the judgement. The same command again goes on."""
    overwrite: Annotated[bool, SWITCH, OUTPUT] = False
    """Start afresh, even where --out holds a comparison."""

    def check_arms(self, run: type, keys: Sequence[str], example: str) -> None:
        """UsageError where an arm has a name that makes no folder, or options of `run` it cannot have of its own."""
        for name, own in self.arms.items():
            if not isinstance(name, str) or not NAME.fullmatch(name):
                raise UsageError(
                    f"arms.{name}: begin a name with a letter or digit, and use letters, digits, ., _, + and -"
                )
            if own is not None and not isinstance(own, dict):
                raise UsageError(f"arms.{name}: write a mapping, such as {example}, not {own!r}")
            check_mapping(own or {}, run, Path("--arms"), f"{name}.")
            for key in own or {}:
                if key not in keys:
                    raise UsageError(
                        f"arms.{name}.{key}: all arms share it, so it goes under base; own are {', '.join(keys)}"
                    )


@dataclass(frozen=True, kw_only=True)
class CompareConfig(ComparisonOptions):
    """Options of `fluxentropy compare`."""

    bins: Annotated[Path, INPUT]
    """Folder that bin wrote with --tokenize."""
    base: Annotated[TrainingOptions, Parameter(show=False)] = field(default_factory=TrainingOptions)
    arms: Annotated[dict[str, Any], JSON, ARMS] = field(default_factory=dict)
    """Name of each arm and what it has of its own: schedule, bins, lr, average, ... What all arms share are options \
of pretrain under base: in the file, or as flags such as --base.tokens. An arm with from: ARM@0.6 branches off the run \
of that arm of the same seed after 60 % of its steps, with other rates or averages; one that has a schedule or bins, \
too, is a new training on what is left of the budget, with the weights alone, or keep_optimizer: true."""
    controls: Annotated[tuple[Control, ...], ARMS] = CONTROLS
    """Controls that each arm gets: its reverse, shuffled labels of bins, its mixture without its order."""
    seeds: Annotated[int, ARMS] = 5
    """Runs of each arm. Runs of one seed have the same initial weights, and the same order of blocks in each bin."""
    rates: Annotated[tuple[float, ...], ARMS] = ()
    """Peak learning rates, such as 0.006 0.012 0.024: each arm that has no optim.lr of its own gets the one with the \
lowest loss on seeds that are not judged. A control has the rate of its arm. Default: all have that of base."""
    tuning_seeds: Annotated[int, ARMS, Min(1)] = 3
    """Runs at each of the rates."""
    margin: Annotated[float, ARMS, Positive("number of per cent, such as 0.5")] = 0.5
    """Differences below this many per cent of the loss do not matter: two arms are equal where a larger one is ruled \
out on either side (two one-sided tests)."""
    sources: Annotated[str | None, INPUT] = None
    """Column of the bins with the source of each text, to judge by source; of a path its last part counts."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.base.devices != 1:
            raise UsageError(
                f"base.devices {self.base.devices}: each run has one device; train several at once with --workers"
            )
        self.check_arms(PretrainConfig, OWN, "{schedule: {name: increasing}}")
        shown = [f"{rate:g}" for rate in self.rates]  # as in the names of the arms that they are tried by
        for rate in self.rates:
            if not 0 < rate < math.inf or shown.count(f"{rate:g}") > 1:
                raise UsageError(f"--rates {rate:g}: give different numbers above 0, such as 0.006 0.012 0.024")
        if self.rates and self.seeds > SHIFT:
            raise UsageError(
                f"--seeds {self.seeds} with --rates: they are chosen on the {SHIFT}th seed and later ones, which no "
                f"judged run may have: use at most {SHIFT} seeds"
            )
        foreign = [name for name, own in self.arms.items() if Path((own or {}).get("bins", self.bins)) != self.bins]
        if foreign and self.base.validation is None:
            raise UsageError(
                f"arms.{foreign[0]}.bins: its blocks may hold what the other arms are validated on: give all arms the "
                f"same texts to be judged on, that no arm is trained on, with base.validation"
            )


@dataclass(frozen=True, kw_only=True)
class GRPOCompareConfig(ComparisonOptions):
    """Options of `fluxentropy grpo-compare`."""

    base: Annotated[GRPOOptions, Parameter(show=False)] = field(default_factory=GRPOOptions)
    arms: Annotated[dict[str, Any], JSON, ARMS] = field(default_factory=dict)
    """Name of each arm and what it has of its own: controller, loss, kl, optim, such as {bonus: {controller: {name: \
bonus}}}. What all arms share are options of grpo under base: in the file, or as flags such as --base.steps. The arm \
none is always there."""
    seeds: Annotated[int, ARMS] = 3
    """Runs of each arm. Those of one seed have the same weights after the warm-up and the same problems by step."""
    samples: Annotated[int, EVALUATION, Min(1)] = 16
    """Responses to each held-out problem after the training, for pass@k."""
    collapse: Annotated[float, EVALUATION, Check(lambda share: 0 < share < 1, "use a share between 0 and 1")] = 0.5
    """An entropy has collapsed that is below this share of that of the first step."""
    margin: Annotated[float, EVALUATION, Positive("difference of rewards, such as 0.01")] = 0.01
    """Differences of reward, accuracy and pass@k below this do not matter: an arm equals none where a larger one is \
ruled out on either side (two one-sided tests)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_arms(GRPOOptions, OWN_RL, "{controller: {name: bonus}}")
        if not [name for name in self.arms if name != NONE]:
            raise UsageError("arms: there is none to compare; write for example {bonus: {controller: {name: bonus}}}")

    def all_arms(self) -> dict[str, dict[str, Any]]:
        """What each arm has of its own, `none` first."""
        return {NONE: dict(self.arms.get(NONE) or {})} | {name: dict(own or {}) for name, own in self.arms.items()}

    def run(self, arm: str, place: int = 0) -> GRPOConfig:
        """The run of an arm with the seed at `place`. Errors: UsageError names the arm with a bad value."""
        plain = to_plain(self.base)
        for name, value in self.all_arms()[arm].items():
            plain[name] = dict(value) if name == "controller" else plain[name] | dict(value)
        seed = self.base.seed + place
        folder = self.out / "cells" / arm / f"seed-{seed}"
        try:
            found: GRPOConfig = from_plain(GRPOConfig, {**plain, "seed": seed, "out": folder})
        except UsageError as error:
            raise UsageError(f"arms.{arm}: {error}") from error
        return found


PROBED = Some("name runs of grpo with probes, or a folder that holds some", opening="no run: ")


@dataclass(frozen=True, kw_only=True)
class GRPOStudyConfig(Options, digits="g"):
    """Options of `fluxentropy grpo-study`."""

    runs: Annotated[tuple[str, ...], INPUT, PROBED] = field(kw_only=False)
    """Finished runs of grpo with --probe.every, or folders that hold some, such as that of a grpo-compare."""
    unit: Annotated[Literal["sequence", "token"], WORK] = "sequence"
    """Of measured and predicted changes and the optimizer's parts: nats a sequence, or a token."""
    tolerance: Annotated[float, WORK, Positive("share, such as 0.1")] = 0.1
    """A prediction is good enough whose relative error is below this share of the measured change."""
    rare: Annotated[Literal["entropy", "median"], WORK] = "entropy"
    """Which tokens are rare: ln p < -H of their own distribution, where natural gradient changes sign, or below the \
median log-probability of the step's tokens."""
    bootstrap: Annotated[int, WORK, Min(100)] = 2000
    """Resamples of blocks of steps, and of runs, that the intervals of one run, and of eight or more, are made of."""
    seed: Annotated[int, WORK, Min(0)] = 0
    """Of the resamples."""
    out: Annotated[Path, OUTPUT]
    """Folder to write: study.md, study.json and figures."""
