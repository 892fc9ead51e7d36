"""`fluxentropy schedule`: what a schedule will draw from each bin, as a table and a picture, before any training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from fluxentropy.config.results import Result, command
from fluxentropy.config.yaml import to_plain
from fluxentropy.figures import DOUBLE, GREY, LIGHT_STOPS, new_figure, palette, paper, save
from fluxentropy.ordering.bins import Bins
from fluxentropy.runs.files import plain, write_json
from fluxentropy.schedules.dataset import BlockSet
from fluxentropy.schedules.options import PlanConfig, ScheduleConfig
from fluxentropy.schedules.plan import Plan
from fluxentropy.schedules.sampler import Sampler, open_sampler
from fluxentropy.schedules.schedule import Adaptive
from fluxentropy.schedules.strata import Strata

# --- `fluxentropy schedule` -------------------------------------------------------------------------------------------


TENTHS = 10


@dataclass(frozen=True, kw_only=True)
class ScheduleResult(Result):
    """What a training under a schedule will draw from K bins; a picture and these numbers are in the folder `out`."""

    out: Path
    config: ScheduleConfig
    kind: str
    steps: int
    planned_steps: int  # fewer, where what follows depends on the losses; `drawn` and all that follows are of these
    tokens: int
    blocks: list[int]  # (K,) that there are
    drawn: list[int]  # (K,) blocks, each as often as it is drawn
    marginal: list[float]  # (K,) shares of what is drawn
    epochs: list[float]  # (K,)
    mixture: list[list[float | None]]  # (10, K) shares in each tenth of what is planned; None for one without steps
    fingerprint: str
    kept: dict[str, Any] | None  # what `keep` left: rule, of (K,) blocks
    strata: dict[str, Any] | None  # column, tokens that are off, values: name, blocks, drawn, in_batch, off
    plan: Plan = field(repr=False)
    length: int = field(repr=False)  # tokens a block
    asked: int = field(repr=False)  # blocks to be drawn

    def lines(self) -> list[str]:
        drawn, config = self.plan.blocks, self.config
        name = config.name + ", a static mixture like it" * config.static
        if config.jitter is not None and not config.static:
            name += f", jitter {config.jitter:g}"
        kind = "reweighting" if config.static else self.plan.schedule.kind
        lines = [
            f"{name} ({kind}): {self.steps:,} steps of {int(self.plan.batches[0]):,} blocks of {self.length:,} tokens, "
            f"{self.tokens:,} tokens, {drawn / sum(self.blocks):.3g} epochs"
        ]
        if self.kept is not None:
            lines.append(f"kept are {sum(self.blocks):,} of {sum(self.kept['of']):,} blocks ({self.kept['rule']})")
        if drawn < self.asked:
            lines.append(
                f"it stops after {drawn:,} of {self.asked:,} blocks, where a bin is used up (--exhausted stop)"
            )
        if self.planned_steps < self.steps:
            lines.append(
                f"planned are the first {self.planned_steps:,} steps; then the mixture follows the losses of the bins"
            )
        lines += ["", *table(self.plan)]
        if self.strata is not None:
            lines += ["", *strata_table(self.strata)]
        lines += ["", f"picture    {self.out / 'mixture.png'} (and .svg)"]
        return [*lines, f"numbers    {self.out / 'mixture.json'}"]


@command
def schedule(config: PlanConfig) -> ScheduleResult:
    """Plan a training, draw the plan into `config.out`, and say what it is."""
    blocks = BlockSet.open(config.bins)
    sampler = open_sampler(config, blocks)
    plan = sampler.plan
    bins = Bins.read(config.bins)
    by = bins.label if bins else "score"
    draw_plan(plan, config.out / "mixture", tokens_per_block=blocks.length, by=by, note=_note(config.schedule))
    record = _record(sampler, blocks.length)
    write_json(config.out / "mixture.json", {"config": to_plain(config.schedule), **record})
    asked = config.tokens // blocks.length if config.tokens is not None else int(plan.sizes.sum())
    return ScheduleResult(
        out=config.out, config=config.schedule, plan=plan, length=blocks.length, asked=asked, **record
    )


def _record(sampler: Sampler, length: int) -> dict[str, Any]:
    """The plan in numbers: `mixture` is that of each tenth of what is planned, K numbers each."""
    plan, chosen = sampler.plan, sampler.chosen
    there = [int(chosen.counts[:, group].sum()) for group in sampler.members]
    return plain(
        {
            "kind": "reweighting" if isinstance(plan.schedule, Adaptive) else plan.schedule.kind,
            "steps": plan.steps,
            "planned_steps": plan.known,
            "tokens": plan.blocks * length,
            "blocks": plan.sizes,
            "drawn": plan.counts[-1],
            "marginal": plan.marginal,
            "epochs": plan.epochs,
            "mixture": plan.realised(TENTHS),
            "fingerprint": plan.fingerprint,
            "kept": None if chosen.keep is None else {"rule": chosen.keep.strip(), "of": there},
            "strata": None if chosen.strata is None else _strata(plan, chosen.strata),
        }
    )


def _strata(plan: Plan, strata: Strata) -> dict[str, Any]:
    """The strata of a plan in numbers; `in_batch`: the fewest and the most blocks in a batch, the last left out."""
    parts = zip(strata.names, plan.strata, strata.off / strata.tokens, strict=True)
    return {
        "column": strata.column,
        "off": strata.off.sum() / strata.tokens.sum(),
        "lost": list(strata.lost),
        "values": [
            {
                "name": name,
                "blocks": part.sizes.sum(),
                "drawn": part.counts[-1].sum(),
                "in_batch": [of(part.batches[: max(plan.steps - 1, 1)]) for of in (np.min, np.max)],
                "off": off,
            }
            for name, part, off in parts
        ],
    }


def _note(config: ScheduleConfig) -> str:
    """What the picture of a plan says above it."""
    said = [f"kept: {config.keep.strip()}"] if config.keep else []
    said += [f"each batch has its share of every {config.stratify}"] if config.stratify else []
    return "; ".join(said)


def strata_table(strata: Mapping[str, Any]) -> list[str]:
    """Lines of a table: a row for each value of the column, and what its blocks hold of others.

    >>> values = [{"name": "news", "blocks": 40, "drawn": 40, "in_batch": [3, 4], "off": 0.031}]
    >>> print("\\n".join(strata_table({"column": "source", "off": 0.031, "lost": [], "values": values})))
    each batch has its share of every source; 3.1 % of the tokens have another value than their block
     source  blocks   drawn  in a batch  off (%)
       news      40      40       3 - 4      3.1
    """
    values = strata["values"]
    name = max(len(strata["column"]), *(len(value["name"]) for value in values))
    width = max(len(f"{max(value['drawn'], value['blocks']):,}") for value in values)
    width = max(width, 6)
    lines = [
        f"each batch has its share of every {strata['column']}; {100 * strata['off']:.1f} % of the tokens have another "
        f"value than their block",
        f" {strata['column']:>{name}}  {'blocks':>{width}}  {'drawn':>{width}}  in a batch  off (%)",
    ]
    for value in values:
        low, high = value["in_batch"]
        lines.append(
            f" {value['name']:>{name}}  {value['blocks']:>{width},}  {value['drawn']:>{width},}  "
            f"{f'{low} - {high}' if low != high else low:>10}  {100 * value['off']:7.1f}"
        )
    if strata["lost"]:
        first = ", ".join(strata["lost"][:3]) + ", ..." * (len(strata["lost"]) > 3)
        lines.append(f"no block is mostly of {first} ({len(strata['lost']):,} in all): their tokens stand with others")
    return lines


def table(plan: Plan) -> list[str]:
    """Lines of a table: a row for each bin, a column for each tenth of what is planned.

    >>> from fluxentropy.schedules.orders import Increasing
    >>> from fluxentropy.schedules.plan import make_plan
    >>> print("\\n".join(table(make_plan(Increasing(), [40, 60], batch_size=2))))
    share of each bin (%), by the tenth of the budget
     bin  blocks    .0    .1    .2    .3    .4    .5    .6    .7    .8    .9    all  epochs
       0      40   100   100   100   100     0     0     0     0     0     0     40    1.00
       1      60     0     0     0     0   100   100   100   100   100   100     60    1.00
    """
    mixture = 100 * plan.realised(TENTHS)
    width = max(len(f"{int(plan.sizes.max()):,}"), 6)
    tenths = "".join(f"{f'.{tenth}':>6}" for tenth in range(TENTHS))
    lines = [
        "share of each bin (%), by the tenth of the budget",
        f" bin  {'blocks':>{width}}{tenths}    all  epochs",
    ]
    for number, size in enumerate(plan.sizes.tolist()):
        cells = "".join(f"{_percent(share):>6}" for share in mixture[:, number])
        total = _percent(100 * plan.marginal[number])
        lines.append(f"{number:4}  {size:>{width},}{cells}{total:>7}{plan.epochs[number]:8.2f}")
    return lines


def _percent(share: float) -> str:
    """`12`, `0.3`, `0`, and a dash for a part without steps."""
    if np.isnan(share):
        return "-"
    return f"{share:.0f}" if share >= 1 or share == 0 else f"{share:.1f}" if share >= 0.05 else "<.1"


# --- the picture ------------------------------------------------------------------------------------------------------


PIECES, CELLS = 200, 60  # parts of the budget, at most: of areas, and of a heat map
STACKED = 24  # bins that are drawn as areas; more make a heat map


def draw_plan(plan: Plan, path: Path, *, tokens_per_block: int, by: str, note: str = "") -> list[Path]:
    """Write `path`.png and `path`.svg; `by`: the score that the bins are of; `note`: what stands above.

    Errors: `RunError` where it cannot.
    """
    with paper():
        return save(plan_figure(plan, tokens_per_block=tokens_per_block, by=by, note=note), path)


def plan_figure(plan: Plan, *, tokens_per_block: int, by: str, note: str = "") -> Figure:
    """Left: the mixture over the tokens. Right: epochs of each bin. Use it within `paper()`."""
    bins = len(plan.sizes)
    pieces = min(PIECES if bins <= STACKED else CELLS, plan.known)
    name = f"bin by {by}".replace(" and ", "\nand ") + ", low to high"
    at = plan.counts[plan.cuts(pieces)].sum(axis=1) * tokens_per_block
    mixture = plan.realised(pieces)
    figure = new_figure(DOUBLE, 2.7)
    left, right = figure.subplots(1, 2, width_ratios=(4, 1))
    if bins <= STACKED:
        colours = ListedColormap([tuple(colour) for colour in palette(LIGHT_STOPS, bins + 2)[1:-1]])
        _areas(left, at, mixture, colours)
        norm = BoundaryNorm(np.arange(bins + 1) - 0.5, bins)
        bar = figure.colorbar(ScalarMappable(norm, colours), ax=left, pad=0.01, aspect=30)
        bar.set_label(name)
        bar.ax.minorticks_off()
        bar.set_ticks(list(range(bins)) if bins <= 12 else [0, bins - 1])
        bar.ax.tick_params(length=0)
        bar.outline.set_visible(False)
    else:
        mesh = left.pcolormesh(
            at, np.arange(bins + 1) - 0.5, mixture.T, norm=PowerNorm(0.5, 0, 1), cmap="viridis", rasterized=True
        )
        left.set_ylabel(name)
        figure.colorbar(mesh, ax=left, pad=0.01, aspect=30).set_label("share of the blocks")
    left.set(xlabel="tokens seen", xlim=(0, at[-1]))
    left.xaxis.set_major_formatter(EngFormatter(sep=""))
    if plan.known < plan.steps:
        note = "; ".join(filter(None, [f"the first {plan.known:,} of {plan.steps:,} steps", note]))
    left.set_title(note, loc="left", fontsize=7, color=GREY)
    _epochs(right, plan)
    return figure


def _areas(axes: Axes, at: np.ndarray, mixture: np.ndarray, colours: ListedColormap) -> None:
    """Stacked areas, the lowest bin at the bottom, constant over each piece."""
    tops = np.cumsum(np.nan_to_num(mixture), axis=1)
    tops = np.concatenate([tops, tops[-1:]])
    below = np.zeros(len(at))
    for number, top in enumerate(tops.T):
        axes.fill_between(at, below, top, step="post", color=colours(number), linewidth=0, rasterized=len(at) > 100)
        below = top
    axes.set(ylabel="share of the blocks", ylim=(0, 1))


def _epochs(axes: Axes, plan: Plan) -> None:
    """Bars: epochs of each bin; a line at the mean of all blocks."""
    bins = np.arange(len(plan.sizes))
    axes.barh(bins, plan.epochs, height=0.75, color="#4a7fb0")
    mean = plan.counts[-1].sum() / plan.sizes.sum()
    axes.axvline(mean, color=GREY, linewidth=0.8, linestyle=(0, (4, 3)))
    axes.set_title("dashed: all blocks", loc="left", fontsize=7, color=GREY)
    axes.set(xlabel="epochs", ylabel="bin", xlim=(0, max(float(plan.epochs.max()), mean) * 1.08))
    axes.yaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.xaxis.set_major_locator(MaxNLocator(3))
