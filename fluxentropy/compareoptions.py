"""Options of `fluxentropy compare`.

Annotations are evaluated here, not kept as text, as in `options.py`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Group, Parameter

from fluxentropy.errors import UsageError
from fluxentropy.options import INPUT, JSON, OUTPUT, SWITCH, WORK, EngineOptions, at_least
from fluxentropy.pretrainoptions import PretrainConfig, TrainingOptions
from fluxentropy.yamlfile import check_mapping

ARMS = Parameter(group=Group("Arms", sort_key=2))
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
Control = Literal["reversed", "shuffled", "static"]
CONTROLS: tuple[Control, ...] = ("reversed", "shuffled", "static")
# what an arm may have of its own; all else is the same for all of them
OWN = ("schedule", "bins", "exhausted", "optim", "lr", "average", "clip", "short_start", "short_tokens")


@dataclass(frozen=True, kw_only=True)
class CompareConfig(EngineOptions):
    """Options of `fluxentropy compare`."""

    bins: Annotated[Path, INPUT]
    """Folder that bin wrote with --tokenize."""
    base: Annotated[TrainingOptions, Parameter(show=False)] = field(default_factory=TrainingOptions)
    arms: Annotated[dict[str, Any], JSON, ARMS] = field(default_factory=dict)
    """Name of each arm and what it has of its own: schedule, bins, lr, average, ... What all arms share are options \
of pretrain under base: in the file, or as flags such as --base.tokens."""
    controls: Annotated[tuple[Control, ...], ARMS] = CONTROLS
    """Controls that each arm gets: its reverse, shuffled labels of bins, its mixture without its order."""
    seeds: Annotated[int, ARMS] = 5
    """Runs of each arm. Runs of one seed have the same initial weights, and the same order of blocks in each bin."""
    margin: Annotated[float, ARMS] = 0.5
    """Differences below this many per cent of the loss do not matter: two arms are equal where a larger one is ruled \
out on either side (two one-sided tests)."""
    sources: Annotated[str | None, INPUT] = None
    """Column of the bins with the source of each text, to judge by source; of a path its last part counts."""
    gpus_per_worker: Annotated[float | None, WORK] = None
    """GPUs of each Ray actor, or a share of one."""
    train: Annotated[bool, WORK] = True
    """Train what is not finished; with --no-train only the finished runs are judged."""
    keep_checkpoints: Annotated[bool, SWITCH, OUTPUT] = False
    """Keep the checkpoints of finished runs; their exported models are always kept."""
    out: Annotated[Path, OUTPUT]
    """Folder to write: a run of pretrain for each arm and seed, and the judgement. The same command again goes on."""
    overwrite: Annotated[bool, SWITCH, OUTPUT] = False
    """Start afresh, even where --out holds a comparison."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, self, "seeds")
        if not 0 < self.margin < float("inf"):
            raise UsageError(f"--margin {self.margin:g}: use a positive number of per cent, such as 0.5")
        if self.gpus_per_worker is not None and not (self.engine == "ray" and self.gpus_per_worker > 0):
            raise UsageError(f"--gpus-per-worker {self.gpus_per_worker:g}: use a number above 0, with --engine ray")
        if self.base.devices != 1:
            raise UsageError(
                f"base.devices {self.base.devices}: each run has one device; train several at once with --workers"
            )
        for name, own in self.arms.items():
            check_arm(name, own, PretrainConfig, OWN, example="{schedule: {name: increasing}}")
        foreign = [name for name, own in self.arms.items() if Path((own or {}).get("bins", self.bins)) != self.bins]
        if foreign and self.base.validation is None:
            raise UsageError(
                f"arms.{foreign[0]}.bins: its blocks may hold what the other arms are validated on: give all arms the "
                f"same texts to be judged on, that no arm is trained on, with base.validation"
            )


def check_arm(name: Any, own: Any, run: type, keys: Sequence[str], *, example: str) -> None:
    """UsageError where an arm has a name that makes no folder, or options of `run` that it cannot have of its own."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise UsageError(f"arms.{name}: begin a name with a letter or digit, and use letters, digits, ., _, + and -")
    if own is not None and not isinstance(own, dict):
        raise UsageError(f"arms.{name}: write a mapping, such as {example}, not {own!r}")
    check_mapping(own or {}, run, Path("--arms"), f"{name}.")
    for key in own or {}:
        if key not in keys:
            raise UsageError(f"arms.{name}.{key}: all arms share it, so it goes under base; own are {', '.join(keys)}")
