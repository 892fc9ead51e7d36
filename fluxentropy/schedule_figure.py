"""The picture of a plan: the share of each bin over the tokens, and how often each bin is drawn in all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from fluxentropy.colours import LIGHT_STOPS, palette
from fluxentropy.figures import DOUBLE, GREY, new_figure, paper, save
from fluxentropy.plan import Plan

PIECES, CELLS = 200, 60  # parts of the budget, at most: of areas, and of a heat map
STACKED = 24  # bins that are drawn as areas; more make a heat map


def draw_plan(plan: Plan, path: Path, *, tokens_per_block: int, by: str) -> list[Path]:
    """Write `path`.png and `path`.svg; `by`: the score that the bins are of. Errors: `RunError` where it cannot."""
    with paper():
        return save(plan_figure(plan, tokens_per_block=tokens_per_block, by=by), path)


def plan_figure(plan: Plan, *, tokens_per_block: int, by: str) -> Figure:
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
        left.set_title(f"the first {plan.known:,} of {plan.steps:,} steps", loc="left", fontsize=7, color=GREY)
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
