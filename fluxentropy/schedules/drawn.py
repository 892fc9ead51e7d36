"""What an order draws: a schedule over a budget in texts or blocks, as the number of the unit at each position."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fluxentropy.config.yaml import to_plain
from fluxentropy.errors import UsageError
from fluxentropy.schedules.dataset import BlockSet
from fluxentropy.schedules.formats.format import Span
from fluxentropy.schedules.options import BudgetOptions, OrderConfig
from fluxentropy.schedules.orders import Permutation
from fluxentropy.schedules.sampler import Sampler, open_sampler
from fluxentropy.schedules.schedule import group_bins
from fluxentropy.schedules.strata import Strata, read_strata, read_text_strata
from fluxentropy.schedules.texts import TextSet

BATCH = {"text": 1024, "block": 32}  # units in a batch of the schedule


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """The order of units in bins, by their numbers over all bins: a schedule over a budget, and nothing else.

    It follows from `facts`, which the manifest keeps, and the strata, which a file beside it keeps, so that `verify`
    needs no bins.
    """

    sampler: Sampler
    members: list[list[int]]  # the bins that each bin of the plan is made of
    facts: dict[str, Any]

    @classmethod
    def of(
        cls,
        options: BudgetOptions,
        counts: np.ndarray,
        grid: Sequence[int] | None,
        length: int,
        strata: Strata | None = None,
    ) -> Drawn:
        """The order of `counts` (K,) units of `length` tokens, with `stratify` of these `strata`.

        Errors: UsageError, as of `Sampler`.
        """
        assert strata is not None or options.schedule.stratify is None or not counts.sum()
        units = BlockSet(
            path=Path("bins"),
            length=length,
            vocabulary=0,
            eos_token_id=None,
            fingerprint="",
            counts=counts,
            facts={},
            files=(),
            file_ends=(),
            grid=tuple(grid) if grid else None,
        )
        facts = {
            "options": to_plain(options),
            "counts": counts.tolist(),
            "grid": list(grid) if grid else None,
            "length": length,
        }
        members = group_bins(options.schedule.groups, len(counts))
        return cls(sampler=open_sampler(options, units, strata), members=members, facts=facts)

    @functools.cached_property
    def ends(self) -> np.ndarray:
        """Units drawn before each step, and at the end all. (T+1,)"""
        return np.append(0, np.cumsum(self.sampler.plan.batches))

    @functools.cached_property
    def first(self) -> np.ndarray:
        """The number of each bin's first unit, and at the end that of all units. (K+1,)"""
        return self.sampler.blocks.first

    @property
    def strata(self) -> Strata | None:
        return self.sampler.chosen.strata

    @property
    def units(self) -> int:
        return int(self.ends[-1])

    def numbers(self, start: int, stop: int) -> np.ndarray:
        """The units at the positions `start` to `stop - 1`; best by many thousands. -> int64 (stop - start,)"""
        low = int(np.searchsorted(self.ends, start, side="right")) - 1
        high = int(np.searchsorted(self.ends, stop, side="left"))
        before = int(self.ends[low])
        return self.sampler.draws(low, high)[start - before : stop - before]

    def drawn_bytes(self, unit_bytes: np.ndarray) -> np.ndarray:
        """About how many bytes are drawn before each step; `unit_bytes` (K,): of a unit of each bin. (T+1,)"""
        counts, plan = self.sampler.blocks.counts, self.sampler.plan
        sizes = [float(counts[group] @ unit_bytes[group]) / max(int(counts[group].sum()), 1) for group in self.members]
        return np.asarray(plan.counts @ np.array(sizes))


def spans(ends: np.ndarray, size: np.ndarray, part: float) -> list[Span]:
    """Parts of about `part` bytes, cut between batches. ends, size (T+1,): units and bytes before each step.

    >>> spans(np.array([0, 2, 4, 6]), np.array([0, 10, 20, 30]), 20)
    [Span(first=0, rows=4), Span(first=4, rows=2)]
    """
    found, step = [], 0
    while step < len(ends) - 1:
        stop = max(int(np.searchsorted(size, size[step] + part, side="right")) - 1, step + 1)
        found.append(Span(first=int(ends[step]), rows=int(ends[stop] - ends[step])))
        step = stop
    return found


def units_by_bin(drawn: Drawn) -> np.ndarray:
    """Units drawn of each bin. (K,)"""
    found = np.zeros(len(drawn.first) - 1, np.int64)
    for start in range(0, drawn.units, 2**18):
        numbers = drawn.numbers(start, min(start + 2**18, drawn.units))
        found += np.bincount(np.searchsorted(drawn.first, numbers, side="right") - 1, minlength=len(found))
    return found


# --- budgets ----------------------------------------------------------------------------------------------------------


def draw_blocks(config: OrderConfig, blocks: BlockSet) -> Drawn:
    """The order of blocks, as `pretrain` draws them."""
    column = config.schedule.stratify
    strata = read_strata(blocks, column) if column is not None and len(blocks) else None
    return Drawn.of(_budget(config, "block", config.tokens), blocks.counts, blocks.grid, blocks.length, strata)


def draw_texts(config: OrderConfig, texts: TextSet) -> Drawn:
    """The order of texts, over a budget in texts, or in tokens by the mean tokens of a text of each bin.

    A schedule that draws each text once an epoch gets whole epochs, or less than one.

    Errors: UsageError, also where a budget is in tokens, and the bins do not know those of their texts.
    """
    bins, column = texts.bins, config.schedule.stratify
    means = mean_tokens(texts)
    if config.tokens is not None and means is None:
        raise UsageError(
            f"--tokens {config.tokens}: {bins.path} knows no tokens of its texts; give --texts, or bin a table that "
            f"has them as whole numbers in a column n_tokens"
        )
    strata = read_text_strata(bins, column) if column is not None and texts.counts.sum() else None

    def of(units: int | None) -> Drawn:
        try:
            return Drawn.of(_budget(config, "text", units), texts.counts, bins.grid, 1, strata)
        except UsageError as error:
            said = str(error).replace("or need a smaller --block-length than their texts", "nothing can be drawn")
            raise UsageError(re.sub(r"(?<!stratify )\bblock(s?)\b", r"text\1", said)) from error

    if config.tokens is None or means is None:
        return of(config.texts)
    found = of(None)
    kept = found.sampler.chosen.kept.sum(axis=0)
    total, rows = float(kept @ means), int(kept.sum())
    if not total:
        raise UsageError(f"--tokens {config.tokens}: the texts that are drawn from have no tokens; give --texts")
    units = max(round(config.tokens * rows / total), 1)
    if isinstance(found.sampler.plan.schedule, Permutation):
        return of(round(config.tokens / total) * rows if config.tokens > total else units)
    for _ in range(3):  # the mixture, and so the mean, may change a little with the budget
        found = of(units)
        units = max(round(config.tokens * found.units / max(float(units_by_bin(found) @ means), 1)), 1)
    return of(units)


def mean_tokens(texts: TextSet) -> np.ndarray | None:
    """The mean tokens of a text of each bin, (K,); None where the bins do not know them."""
    known = [tokens for tokens in texts.bins.tokens if tokens is not None]
    if len(known) < len(texts.counts) or not sum(known):  # bins of earlier versions say 0
        return None
    return np.array(known) / np.maximum(texts.counts, 1)


def _budget(config: OrderConfig, unit: str, tokens: int | None) -> BudgetOptions:
    return BudgetOptions(
        schedule=config.schedule,
        tokens=tokens,
        batch_size=config.batch_size or BATCH[unit],
        seed=config.seed,
        exhausted=config.exhausted,
    )
