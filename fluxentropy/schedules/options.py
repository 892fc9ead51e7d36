"""Options of schedules: what stands under `schedule:` in a configuration, and what a plan needs besides it.

Annotations are evaluated here, not kept as text, as in `config/options.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Group, Parameter

from fluxentropy.config.checks import Check, Min, Options, Some
from fluxentropy.config.options import INPUT, OUTPUT, SIZE, SWITCH, WORK, parse_bytes
from fluxentropy.errors import UsageError

SCHEDULE = Parameter(group=Group("Schedule", sort_key=2.5))
COMMON = ("name", "groups", "shuffle_labels", "balanced_labels", "static", "stratify", "keep", "jitter")  # of all
LATER = ("stratify", "keep", "jitter", "sections", "transition", "front", "back", "begin")
"""What earlier versions did not know: unset, it is no part of a run's identity, so that their runs go on."""


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig(Options, prefix="--schedule."):
    """A schedule by its name, with its parameters; null stands for the schedule's own default."""

    name: Annotated[str, SCHEDULE] = "random"
    """random, increasing, decreasing, folded, zigzag, stair, saw, segment, curriculum (each block once an epoch); \
pool, window, periodic, stages, grid, warmup, anneal, tilt, adaptive, custom (reweighting)."""
    descending: Annotated[bool | None, Parameter(negative=()), SCHEDULE] = None
    """From high to low scores instead of from low to high (pool, window, periodic, stages, warmup, stair, saw, \
curriculum)."""
    pacing: Annotated[str | None, SCHEDULE] = None
    """How the pool grows: polynomial, exponential, logarithmic, step, competence, root (pool)."""
    start: Annotated[float | None, SCHEDULE] = None
    """Share of the corpus that is open at first (pool)."""
    full: Annotated[float | None, SCHEDULE] = None
    """Share of the budget after which all of the corpus is open (pool)."""
    power: Annotated[float | None, SCHEDULE] = None
    """Power p of polynomial, competence and root (pool)."""
    steps: Annotated[int | None, SCHEDULE] = None
    """Steps of the pacing called step (pool)."""
    width: Annotated[float | None, SCHEDULE] = None
    """Share of the corpus in the window (window, periodic, warmup, anneal)."""
    wave: Annotated[str | None, SCHEDULE] = None
    """cosine, triangle or sawtooth (periodic)."""
    cycles: Annotated[int | None, SCHEDULE] = None
    """Cycles in the budget (periodic), or passes in an epoch (folded, zigzag) or over each transition (stair, saw)."""
    sections: Annotated[int | None, SCHEDULE] = None
    """Sections of the corpus, with a transition around each cut between them (stair, saw)."""
    transition: Annotated[float | None, SCHEDULE] = None
    """Share of the corpus on either side of a cut that is its transition (stair, saw)."""
    front: Annotated[float | None, SCHEDULE] = None
    """Share of the corpus that is chosen for the start (segment)."""
    back: Annotated[float | None, SCHEDULE] = None
    """Share of the corpus that is chosen for the end (segment)."""
    stages: Annotated[int | None, SCHEDULE] = None
    """Number of stages (stages)."""
    method: Annotated[str | None, SCHEDULE] = None
    """sequential, cumulative or hybrid (stages, grid)."""
    share: Annotated[float | None, SCHEDULE] = None
    """Share of the newest stage, with hybrid (stages, grid)."""
    ends: Annotated[tuple[float, ...] | None, SCHEDULE] = None
    """Shares of the budget at which stages end, but for the last; null: equally long ones (stages, grid)."""
    axis: Annotated[str | None, SCHEDULE] = None
    """Which score of the grid makes the stages: first, second, or diagonal for both (grid)."""
    until: Annotated[float | None, SCHEDULE] = None
    """Share of the budget after which bins are drawn in proportion to their sizes (warmup, curriculum)."""
    since: Annotated[float | None, SCHEDULE] = None
    """Share of the budget before which bins are drawn in proportion to their sizes (anneal)."""
    target: Annotated[str | None, SCHEDULE] = None
    """low or high: the end of the corpus that training ends with (anneal, segment)."""
    begin: Annotated[str | None, SCHEDULE] = None
    """low or high: the end of the corpus that training begins with (segment, curriculum); all: with a random draw of \
it (curriculum)."""
    betas: Annotated[tuple[float, ...] | None, SCHEDULE] = None
    """Strengths of the tilt at the start and at the end (tilt)."""
    every: Annotated[int | None, SCHEDULE] = None
    """Steps from one update of the weights to the next (adaptive)."""
    rate: Annotated[float | None, SCHEDULE] = None
    """Step size of an update (adaptive)."""
    floor: Annotated[float | None, SCHEDULE] = None
    """Share that is spread evenly over the bins (adaptive)."""
    reference: Annotated[tuple[float, ...] | None, SCHEDULE] = None
    """Loss of each bin, in nats per token, that is no excess; null: 0 (adaptive)."""
    weights: Annotated[str | None, SCHEDULE] = None
    """A CSV with columns u, w_0, w_1, ..., or module:function (custom)."""
    interpolation: Annotated[str | None, SCHEDULE] = None
    """linear or step, between the rows of the CSV (custom)."""
    groups: Annotated[int | tuple[int | str, ...] | None, SCHEDULE] = None
    """Coarser bins: their number, or which bins each holds, such as 0-1, 2, 3+5, 4."""
    shuffle_labels: Annotated[int | None, SCHEDULE, Min(0)] = None
    """A control: the same pacing with the bins in a random order, by this seed."""
    balanced_labels: Annotated[int | None, SCHEDULE, Min(0)] = None
    """A control: the same, by a row of a Latin square. Over as many successive numbers as there are bins, each bin is \
first once, and last once."""
    static: Annotated[bool, SWITCH, SCHEDULE] = False
    """A control: all the time the mixture that the schedule has over the whole budget."""
    stratify: Annotated[str | None, SCHEDULE, Some("name a column of the bins' shards", "{flag} is empty: ")] = None
    """Column of the bins, such as source: every batch holds each of its values in its share, each in the schedule's \
order."""
    keep: Annotated[str | None, SCHEDULE] = None
    """Draw from a share of the blocks only: lowest, middle or highest, and the share, such as "lowest 0.5"; of each \
value with stratify."""
    jitter: Annotated[float | None, SCHEDULE] = None
    """Shuffle within windows of the order: a share of the epoch, below 1, or a number of blocks (schedules that draw \
each block once an epoch)."""

    def given(self) -> dict[str, object]:
        """The parameters that are set, without those that every schedule takes."""
        return {
            f.name: value for f in fields(self) if f.name not in COMMON and (value := getattr(self, f.name)) is not None
        }

    @staticmethod
    def identity(plain: Mapping[str, Any]) -> dict[str, Any]:
        """What `plain`, a schedule as a mapping, adds to the identity of a run."""
        return {name: value for name, value in plain.items() if name not in LATER or value is not None}


@dataclass(frozen=True, kw_only=True)
class BudgetOptions(Options):
    """Which blocks are drawn, and how many: what `pretrain` and `schedule` share."""

    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    tokens: Annotated[int | None, WORK, Min(1)] = None
    """Budget, in tokens. Default: one epoch of all blocks that the schedule draws from."""
    batch_size: Annotated[int, WORK, Min(1)] = 32
    """Blocks in a batch, over all ranks and accumulated batches."""
    seed: Annotated[int, WORK, Min(0)] = 0
    """Seed of the order of blocks."""
    exhausted: Annotated[Literal["reshuffle", "redistribute", "stop"], WORK] = "reshuffle"
    """What happens when a bin is used up before the budget is: draw it again, draw from the others, or stop there."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.schedule.shuffle_labels is not None and self.schedule.balanced_labels is not None:
            raise UsageError("schedule.balanced_labels: shuffle_labels orders the bins in another way, leave one out")


@dataclass(frozen=True, kw_only=True)
class PlanConfig(BudgetOptions):
    """Options of `fluxentropy schedule`."""

    bins: Annotated[Path, INPUT]
    """Folder that bin wrote with --tokenize."""
    out: Annotated[Path, OUTPUT] = Path("schedule")
    """Folder for the picture and the numbers; those of an earlier plan are replaced."""


@dataclass(frozen=True, kw_only=True)
class OrderConfig(Options):
    """Options of `fluxentropy order`."""

    bins: Annotated[Path, INPUT] = field(kw_only=False)
    """Folder that bin wrote; with --tokenize for formats of tokens."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    texts: Annotated[int | None, WORK, Min(1)] = None
    """Budget, in texts, for formats of texts. Default: one epoch."""
    tokens: Annotated[int | None, WORK, Min(1)] = None
    """Budget, in tokens; for formats of texts by the mean of each bin. Default: one epoch."""
    batch_size: Annotated[int | None, WORK, Min(1)] = None
    """Units in a batch of the schedule, in which they are mixed. Default: 32 blocks, as in pretrain, or 1,024 texts."""
    seed: Annotated[int, WORK, Min(0)] = 0
    """Seed of the order inside the bins."""
    exhausted: Annotated[Literal["reshuffle", "redistribute", "stop"], WORK] = "reshuffle"
    """What happens when a bin is used up before the budget is: draw it again, draw from the others, or stop there."""
    holdout: Annotated[int, INPUT, Min(0)] = 0
    """Blocks at the end of each bin that are left out; pretrain holds 16 out, unless it is told otherwise."""
    text_field: Annotated[str | None, INPUT] = None
    """Column of the texts. Default: the one that was scored, else text."""
    format: Annotated[str, OUTPUT]
    """jsonl, parquet, arrow, mds, webdataset (texts); nanogpt-bin, megatron (blocks of tokens)."""
    out: Annotated[Path, OUTPUT]
    """Folder to write. The same command again resumes it."""
    shard_size: Annotated[str, OUTPUT, SIZE] = "256MB"
    """Size of a file, before compression."""
    overwrite: Annotated[bool, SWITCH, OUTPUT] = False
    """Start afresh, even where --out holds an order."""
    memory: Annotated[str, WORK, SIZE, Check(lambda size: parse_bytes(size) >= 2**24, "use 16 MiB or more")] = "256MB"
    """Memory to put texts in order in; a larger corpus goes through the disk, where it needs its own size once more."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.texts is not None and self.tokens is not None:
            raise UsageError("--texts and --tokens: give one of them")
        BudgetOptions(schedule=self.schedule)  # its own checks
