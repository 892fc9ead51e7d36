"""Schedules by name: from `schedule: {name: periodic, cycles: 4}` to the object that decides the mixture.

u = tokens seen / budget, in [0, 1]; bins are ordered from low to high score. A schedule is one of three:

    Permutation   every block once in an epoch      targets(x, sizes)       orders.py
    Reweighting   a distribution for each u         mixture(u, sizes)       mixtures.py
    Adaptive      a distribution after each update  update(weights, losses) here

Two wrappers turn any of the first two into a control, and `merged` makes coarser bins of finer ones.
"""

from __future__ import annotations

import csv
import importlib
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np

from fluxentropy.config.checks import Options, Some
from fluxentropy.config.yaml import check_mapping, did_you_mean, from_plain, to_plain
from fluxentropy.errors import SourceError, UsageError
from fluxentropy.schedules.mixtures import (
    Anneal,
    GridStages,
    GrowingPool,
    Periodic,
    Reweighting,
    SlidingWindow,
    Stages,
    Tilt,
    WarmUp,
    within,
)
from fluxentropy.schedules.options import COMMON, ScheduleConfig
from fluxentropy.schedules.orders import (
    Curriculum,
    Decreasing,
    Folded,
    Increasing,
    Permutation,
    Random,
    Saw,
    Segment,
    Stair,
    Zigzag,
    keys,
)

# --- adaptive mixtures ------------------------------------------------------------------------------------------------
#
# Its state is the list of what it was told, so that whoever has the list has the schedule:
#
#     weights of steps [0, every)              n_k / N
#     weights of steps [s every, (s+1) every)  after the s-th loss vector


@dataclass(frozen=True, kw_only=True)
class Adaptive(Options, prefix="schedule.", digits="g"):
    """w <- (1 - floor) normalised(w exp(rate max(loss - reference, 0))) + floor / K, every `every` steps.

    The multiplicative update of DoReMi (Xie et al. 2023), with its smoothing, where no bin falls below floor / K; there
    the excess is cut at 0 token by token, here it is that of a bin's mean loss. losses and
    reference are in nats per token, one a bin; without a reference it is 0, and the loss itself counts. Bins without
    blocks keep weight 0.
    """

    every: Annotated[int, within(1, 10**9)] = 100
    rate: Annotated[float, within(0, 1000)] = 1.0
    floor: Annotated[float, within(0, 1)] = 0.1
    reference: tuple[float, ...] | None = None

    kind: ClassVar[str] = "reweighting"

    def start(self, sizes: np.ndarray) -> np.ndarray:
        """The weights before the first losses. -> (K,)"""
        return sizes / np.sum(sizes)

    def update(self, weights: np.ndarray, losses: Sequence[float] | np.ndarray) -> np.ndarray:
        """The weights (K,) after per-bin `losses` (K,); those of bins without weight may be NaN.

        Errors: `UsageError` where they are not K, or not finite.

        >>> Adaptive(floor=0.0).update(np.array([0.5, 0.5]), [0.0, np.log(3)]).round(3).tolist()
        [0.25, 0.75]
        """
        found = np.asarray(losses, np.float64)
        reference = np.zeros(len(weights)) if self.reference is None else np.asarray(self.reference)
        for name, values in (("losses", found), ("reference", reference)):
            if values.shape != weights.shape or not np.isfinite(values[weights > 0]).all():
                raise UsageError(f"schedule: {name} {values.tolist()}: give {len(weights)} finite numbers, one a bin")
        powers = np.where(weights > 0, self.rate * np.maximum(found - reference, 0), 0)
        raised = weights * np.exp(powers - powers.max())
        smooth = (weights > 0) / np.count_nonzero(weights)
        return (1 - self.floor) * raised / raised.sum() + self.floor * smooth

    def weights(self, sizes: np.ndarray, history: Sequence[Sequence[float]]) -> np.ndarray:
        """The weights (K,) after all losses of `history` (S, K), oldest first."""
        weights = self.start(sizes)
        for losses in history:
            weights = self.update(weights, losses)
        return weights


# --- custom mixtures --------------------------------------------------------------------------------------------------


WEIGHTS = Some("give a CSV with columns u, w_0, w_1, ..., or module:function", opening="{flag} is missing: ")


@dataclass(frozen=True, kw_only=True)
class Custom(Reweighting):
    """Weights from `weights`: a CSV with columns u, w_0, ..., w_(K-1), or `module:function`.

    Rows of the CSV need not sum to 1. Between rows weights are interpolated, or with interpolation step kept; outside
    of them they stay. The function takes u (n,) and sizes (K,) and returns weights (n, K), 0 or more.
    """

    weights: Annotated[str, WEIGHTS] = ""
    interpolation: Literal["linear", "step"] = "linear"

    def mixture(self, u: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        u = np.asarray(u, np.float64)
        if self.weights.endswith(".csv"):
            return _checked(self._from_table(u, len(sizes)), (len(u), len(sizes)), self.weights)
        try:
            found = np.asarray(self._function(u, np.asarray(sizes)), np.float64)
        except Exception as error:
            raise UsageError(f"schedule.weights {self.weights}: {type(error).__name__}: {error}") from error
        return _checked(found, (len(u), len(sizes)), self.weights)

    def _from_table(self, u: np.ndarray, bins: int) -> np.ndarray:
        rows = self._table
        if rows.shape[1] != bins + 1:
            raise UsageError(f"{self.weights}: weights of {rows.shape[1] - 1} bins, here are {bins}")
        rows = np.column_stack([rows[:, 0], _checked(rows[:, 1:], (len(rows), bins), self.weights)])
        if self.interpolation == "step":
            return rows[np.maximum(np.searchsorted(rows[:, 0], u, side="right") - 1, 0), 1:]
        return np.stack([np.interp(u, rows[:, 0], column) for column in rows[:, 1:].T], axis=1)

    @cached_property
    def _table(self) -> np.ndarray:
        return read_weights(Path(self.weights))

    @cached_property
    def _function(self) -> Any:
        module, _, name = self.weights.partition(":")
        try:
            return getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise UsageError(
                f"schedule.weights {self.weights}: no .csv file, and no module:function: {error}"
            ) from error


def read_weights(path: Path) -> np.ndarray:
    """The rows u, w_0, ..., w_(K-1) of a CSV. -> float64 (rows, K+1). Errors: `SourceError` names the file and line."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            header, *lines = list(csv.reader(file)) or [[]]
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"schedule.weights {path}: {getattr(error, 'strerror', None) or error}") from error
    expected = ["u", *(f"w_{k}" for k in range(len(header) - 1))]
    if [name.strip() for name in header] != expected or len(header) < 2:
        raise SourceError(f"{path}, line 1: columns {','.join(header) or '(none)'}: write u,w_0,w_1,...")
    rows = []
    for number, line in enumerate(lines, start=2):
        try:
            rows.append([float(cell) for cell in line])
        except ValueError as error:
            raise SourceError(f"{path}, line {number}: {error}") from error
        if len(line) != len(header):
            raise SourceError(f"{path}, line {number}: {len(line)} cells, expected {len(header)}")
    table = np.array(rows, np.float64).reshape(-1, len(header))
    if not len(table) or not np.isfinite(table).all():
        raise SourceError(f"{path}: " + ("a weight is not finite" if len(table) else "no rows below the header"))
    if (np.diff(table[:, 0]) <= 0).any() or table[0, 0] < 0 or table[-1, 0] > 1:
        raise SourceError(f"{path}: u must rise from row to row, from 0 to 1 at most")
    return table


def _checked(weights: np.ndarray, shape: tuple[int, int], name: str) -> np.ndarray:
    """`weights` with rows that sum to 1; UsageError where they cannot."""
    if weights.shape != shape:
        raise UsageError(f"schedule.weights {name}: weights of shape {weights.shape}, expected {shape}")
    sums = weights.sum(axis=1, keepdims=True)
    if not np.isfinite(weights).all() or (weights < 0).any() or (sums <= 0).any():
        raise UsageError(f"schedule.weights {name}: weights must be finite, 0 or more, and not all 0")
    return weights / sums


# --- schedules by name ------------------------------------------------------------------------------------------------


Schedule = Permutation | Reweighting | Adaptive
Groups = int | Sequence[int | str | Sequence[int]] | None

SCHEDULES: dict[str, type[Any]] = {
    "random": Random,
    "increasing": Increasing,
    "decreasing": Decreasing,
    "folded": Folded,
    "zigzag": Zigzag,
    "stair": Stair,
    "saw": Saw,
    "segment": Segment,
    "curriculum": Curriculum,
    "pool": GrowingPool,
    "window": SlidingWindow,
    "periodic": Periodic,
    "stages": Stages,
    "grid": GridStages,
    "warmup": WarmUp,
    "anneal": Anneal,
    "tilt": Tilt,
    "adaptive": Adaptive,
    "custom": Custom,
}


def make(name: str, *, bins: int | None = None, grid: Sequence[int] | None = None, **options: Any) -> Schedule:
    """The schedule of that name with the options that a configuration has for it: `make("periodic", cycles=4)`.

    bins: their number, which the controls shuffle_labels and balanced_labels need; grid: the shape of bins by two
    scores, if not that of the Sampler's bins. What `groups`, `static`, `stratify`, `keep` and `jitter` do is up to the
    `Sampler`.

    Errors: as of `make_schedule`; `UsageError` names an unknown option, and a value of another type.

    >>> make("window", width=0.5).mixture(np.array([0.0, 1.0]), np.array([10, 10])).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    for option in ("groups", "static", "stratify", "keep", "jitter"):
        if option in options:
            raise UsageError(f"schedule.{option}: give it to Sampler, the schedule itself does not know it")
    plain = {"name": name, **to_plain(options)}
    check_mapping(plain, ScheduleConfig, Path(f"make({name!r})"), "")
    config: ScheduleConfig = from_plain(ScheduleConfig, plain)
    if bins is None and (config.shuffle_labels, config.balanced_labels) != (None, None):
        raise UsageError("schedule.shuffle_labels, schedule.balanced_labels: say for how many bins, bins=…")
    return make_schedule(config, bins or 0, grid)


def make_schedule(config: ScheduleConfig, bins: int, grid: Sequence[int] | None = None) -> Schedule:
    """The schedule that `config` names, for so many bins (after grouping); `grid`: the shape, where the bins are one.

    Errors: `UsageError` names an unknown schedule, a parameter that the schedule does not take, and a bad value.
    """
    if config.name not in SCHEDULES:
        raise UsageError(f"schedule.name {config.name}{did_you_mean(config.name, SCHEDULES)}")
    cls, given = SCHEDULES[config.name], config.given()
    takes = [f.name for f in fields(cls) if f.name != "grid"]
    for name in given:
        if name not in takes:
            raise UsageError(f"schedule.{name}: {config.name} takes {', '.join([*takes, *COMMON[1:]])}")
    if cls is GridStages:
        if config.groups is not None:
            raise UsageError("schedule.groups with name: grid: the stages of a grid are its groups; leave groups out")
        given["grid"] = tuple(grid) if grid else None
    schedule: Schedule = cls(**given)
    for name, order in (("shuffle_labels", random_order), ("balanced_labels", balanced_order)):
        if (number := getattr(config, name)) is None:
            continue
        if isinstance(schedule, Adaptive):
            raise UsageError(f"schedule.{name}: adaptive knows no order of bins, so there is nothing to shuffle")
        if bins < 2:
            raise UsageError(f"schedule.{name}: {bins} bin has one order only")
        schedule = relabelled(schedule, order(bins, number))
    if config.static and isinstance(schedule, Adaptive):
        raise UsageError("schedule.static: the mixture of adaptive over the whole budget is not known before it")
    return schedule


# --- controls ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class RelabelledOrder(Permutation):
    """The permutation `base` over the bins in the order of `labels`: place i is taken by the bin labels[i]."""

    base: Permutation
    labels: tuple[int, ...]

    def targets(self, x: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, int]:
        found, denominator = self.base.targets(x, sizes[list(self.labels)])
        return found[:, np.argsort(self.labels)], denominator


@dataclass(frozen=True, kw_only=True)
class RelabelledMixture(Reweighting):
    """The reweighting `base` over the bins in the order of `labels`."""

    base: Reweighting
    labels: tuple[int, ...]

    def mixture(self, u: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        return self.base.mixture(u, sizes[list(self.labels)])[:, np.argsort(self.labels)]


def relabelled(schedule: Permutation | Reweighting, labels: tuple[int, ...]) -> Permutation | Reweighting:
    """The same pacing over bins in another order: a control for what the scores say."""
    if isinstance(schedule, Permutation):
        return RelabelledOrder(base=schedule, labels=labels)
    return RelabelledMixture(base=schedule, labels=labels)


def random_order(bins: int, seed: int) -> tuple[int, ...]:
    """Two or more bins in a random order, never their own."""
    return next(order for attempt in itertools.count() if (order := _hashed(bins, seed, attempt)) != (*range(bins),))


def balanced_order(bins: int, number: int) -> tuple[int, ...]:
    """Row `number` of Latin squares of orders of the bins, none of which is their own; a new square every `bins` rows.

    In the rows of a square each bin stands once at each place; where their number is even it also follows each other
    bin once (Williams 1949). First bins are of the lower and the upper half in turn, so that a few rows are balanced as
    well as can be. Two bins have one order that is not their own.

    >>> [balanced_order(4, number) for number in range(4)]
    [(1, 0, 3, 2), (2, 3, 0, 1), (0, 2, 1, 3), (3, 1, 2, 0)]
    """
    if bins == 2:
        return 1, 0
    zigzag = [-(k // 2) if k % 2 == 0 else (k + 1) // 2 for k in range(bins)]  # 0, 1, -1, 2, -2, ...
    for attempt in itertools.count():
        symbols = _hashed(bins, number // bins, attempt)
        rows = [tuple(symbols[(start + step) % bins] for step in zigzag) for start in range(bins)]
        if (*range(bins),) not in rows:
            break
    low, high = (
        [row for row in rows if (row[0] < (bins + 1) // 2) == lower] for lower in (True, False)
    )  # the lower half is the larger one
    return (low, high)[number % bins % 2][number % bins // 2]


def _hashed(bins: int, seed: int, attempt: int) -> tuple[int, ...]:
    return tuple(np.argsort(keys(seed, attempt, np.arange(bins))).tolist())


# --- groups -----------------------------------------------------------------------------------------------------------


def group_bins(groups: Groups, bins: int) -> list[list[int]]:
    """Which bins each coarser bin holds; None leaves them as they are.

    >>> group_bins(2, 5), group_bins(["0-1", "2+4", 3], 5)
    ([[0, 1, 2], [3, 4]], [[0, 1], [2, 4], [3]])
    """
    if groups is None:
        return [[k] for k in range(bins)]
    if not isinstance(groups, int) and len(groups) == 1 and isinstance(groups[0], int):  # --schedule.groups 4
        groups = groups[0]
    if isinstance(groups, int):
        if not 1 <= groups <= bins:
            raise UsageError(f"schedule.groups {groups}: use 1 to {bins}, the number of bins")
        return [part.tolist() for part in np.array_split(np.arange(bins), groups)]
    found = [_members(group) for group in groups]
    seen = sorted(k for group in found for k in group)
    if seen != list(range(bins)) or not all(found):
        twice = next((k for k in seen if seen.count(k) > 1), None)
        lost = next((k for k in range(bins) if k not in seen), None)
        problem = f"bin {twice} is in two groups" if twice is not None else f"bin {lost} is in no group"
        problem = problem if twice is not None or lost is not None else f"there are only bins 0 to {bins - 1}"
        raise UsageError(f"schedule.groups {list(groups)}: {problem}")
    return found


def _members(group: int | str | Sequence[int]) -> list[int]:
    """`2`, `0-3`, `0-1+5` or a list -> its bins."""
    if isinstance(group, int):
        return [group]
    if not isinstance(group, str):
        return list(group)
    found: list[int] = []
    for part in group.split("+"):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if match is None:
            raise UsageError(f"schedule.groups {group}: write a bin (3), a range (0-2), or several (0-2+5)")
        found += range(int(match[1]), int(match[2] or match[1]) + 1)
    return found
