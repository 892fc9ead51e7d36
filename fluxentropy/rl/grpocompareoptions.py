"""Options of `fluxentropy grpo-compare`.

Annotations are evaluated here, not kept as text, as in `options.py`.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from fluxentropy.compareoptions import ARMS, check_arm
from fluxentropy.errors import UsageError
from fluxentropy.options import JSON, OUTPUT, SWITCH, WORK, EngineOptions, at_least
from fluxentropy.rl.grpooptions import EVALUATION, GRPOConfig, GRPOOptions
from fluxentropy.yamlfile import from_plain, to_plain

NONE = "none"  # the arm that all others are compared with
OWN = ("controller", "loss", "kl", "optim")  # what an arm may have of its own; all else is the same for all of them


@dataclass(frozen=True, kw_only=True)
class GRPOCompareConfig(EngineOptions):
    """Options of `fluxentropy grpo-compare`."""

    base: Annotated[GRPOOptions, Parameter(show=False)] = field(default_factory=GRPOOptions)
    arms: Annotated[dict[str, Any], JSON, ARMS] = field(default_factory=dict)
    """Name of each arm and what it has of its own: controller, loss, kl, optim, such as {bonus: {controller: {name: \
bonus}}}. What all arms share are options of grpo under base: in the file, or as flags such as --base.steps. The arm \
none is always there."""
    seeds: Annotated[int, ARMS] = 3
    """Runs of each arm. Those of one seed have the same weights after the warm-up and the same problems by step."""
    samples: Annotated[int, EVALUATION] = 16
    """Responses to each held-out problem after the training, for pass@k."""
    collapse: Annotated[float, EVALUATION] = 0.5
    """An entropy has collapsed that is below this share of that of the first step."""
    margin: Annotated[float, EVALUATION] = 0.01
    """Differences of reward, accuracy and pass@k below this do not matter: an arm equals none where a larger one is \
ruled out on either side (two one-sided tests)."""
    gpus_per_worker: Annotated[float | None, WORK] = None
    """GPUs of each Ray actor, or a share of one."""
    train: Annotated[bool, WORK] = True
    """Train what is not finished; with --no-train only the finished runs are judged."""
    keep_checkpoints: Annotated[bool, SWITCH, OUTPUT] = False
    """Keep the checkpoints of finished runs; their exported models are always kept."""
    out: Annotated[Path, OUTPUT]
    """Folder to write: a run of grpo for each arm and seed, and the judgement. The same command again goes on."""
    overwrite: Annotated[bool, SWITCH, OUTPUT] = False
    """Start afresh, even where --out holds a comparison."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, self, "seeds")
        at_least(1, self, "samples")
        if not 0 < self.margin < float("inf"):
            raise UsageError(f"--margin {self.margin:g}: use a positive difference of rewards, such as 0.01")
        if not 0 < self.collapse < 1:
            raise UsageError(f"--collapse {self.collapse:g}: use a share between 0 and 1")
        if self.gpus_per_worker is not None and not (self.engine == "ray" and self.gpus_per_worker > 0):
            raise UsageError(f"--gpus-per-worker {self.gpus_per_worker:g}: use a number above 0, with --engine ray")
        for name, own in self.arms.items():
            check_arm(name, own, GRPOOptions, OWN, example="{controller: {name: bonus}}")
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
