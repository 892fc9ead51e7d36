"""The pictures of a diagnosis that are maps: contingency tables, correlation matrices, probability surfaces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy.ndimage import gaussian_filter

from fluxentropy.diagnostics import Diagnostics, Model, regimes
from fluxentropy.diagnostics_panels import label, panels, view
from fluxentropy.figure_labels import lettering
from fluxentropy.figures import GREY, SINGLE, new_figure

Box = tuple[float, float, float, float]  # left, right, low, high
CELLS = 200  # of a surface, along either side
FEW_POINTS = 400  # of a surface: more than these are shown by contours of their density


def draw_contingency(result: Diagnostics) -> Figure:
    """Rows by quartile and outcome: counts, shares of the column, and in colour how far from independence."""
    tested = {name: found for name, metric in result.metrics.items() if (found := metric.quartiles)}
    figure, grid = panels(len(tested), 1.75, columns=2)
    residuals = {name: _residuals(found.table) for name, found in tested.items()}
    limit = max(3.0, *(float(np.abs(values).max()) for values in residuals.values()))
    norm = TwoSlopeNorm(0, -limit, limit)
    image: Any = None
    for axes, (name, found) in zip(grid, tested.items(), strict=True):
        image = axes.imshow(residuals[name], cmap="RdBu_r", norm=norm, aspect="auto")
        part = found.table / found.table.sum(axis=0)
        texts = {cell: f"{count:,}\n{part[cell]:.1%}" for cell, count in np.ndenumerate(found.table)}
        _write_cells(axes, texts, np.abs(residuals[name]) / limit)
        axes.set_xticks(range(found.table.shape[1]), _bin_labels(found.edges))
        axes.set_yticks([0, 1], ["false", "true"])
        axes.set_xlabel(label(name))
        axes.set_ylabel(lettering(result.table.target_name, 30))
    figure.colorbar(image, ax=grid, label="Pearson residual", pad=0.02, aspect=12, shrink=1 / -(-len(tested) // 2))
    return figure


def _write_cells(axes: Axes, texts: Mapping[tuple[int, ...], str], shades: np.ndarray) -> None:
    """Write into the cells of a heat map without frame, in white where the shade (0 to 1) is dark."""
    for cell, text in texts.items():
        colour = "white" if shades[cell] > 0.65 else "black"
        axes.text(cell[1], cell[0], text, ha="center", va="center", fontsize=6.5, color=colour)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _residuals(table: np.ndarray) -> np.ndarray:
    expected = table.sum(axis=1, keepdims=True) * table.sum(axis=0) / table.sum()
    residuals: np.ndarray = (table - expected) / np.sqrt(expected)
    return residuals


def _bin_labels(edges: Sequence[float]) -> list[str]:
    """The bins between `edges`, in as many digits as tell them apart.

    >>> _bin_labels([2.5716, 2.919, 3.4352])
    ['≤ 2.57', '2.57–2.92', '2.92–3.44', '> 3.44']
    """
    for digits in range(3, 18):
        text = [f"{edge:,.0f}" if abs(edge) >= 10**digits else f"{edge:.{digits}g}" for edge in edges]
        if len(set(text)) == len(edges):
            break
    return [f"≤ {text[0]}", *(f"{low}–{high}" for low, high in pairwise(text)), f"> {text[-1]}"]


def draw_correlations(result: Diagnostics) -> Figure:
    """Correlations of the metrics of either regime and the target: Pearson below the diagonal, Spearman above it."""
    groups = regimes(list(result.metrics))
    target = result.table.target_name
    sizes = [len(names) + 1 for names in groups.values()]
    figure = new_figure(0.42 * sum(sizes) + 1.3 * len(groups) + 0.7, 0.42 * max(sizes) + 1.4)
    parts = figure.subplots(1, len(groups), squeeze=False, width_ratios=sizes)[0]
    image: Any = None
    for axes, (regime, names) in zip(parts, groups.items(), strict=True):
        places = [result.variables.index(name) for name in [*names, target]]
        below, above = result.pearson[np.ix_(places, places)], result.spearman[np.ix_(places, places)]
        shown = np.tril(below, -1) + np.triu(above, 1)
        np.fill_diagonal(shown, np.nan)
        axes.set_facecolor("#ededed")  # the diagonal
        image = axes.imshow(shown, cmap="RdBu_r", vmin=-1, vmax=1)
        texts = {cell: f"{value:.2f}".replace("-", "−") for cell, value in np.ndenumerate(shown) if np.isfinite(value)}
        undefined = np.argwhere(np.isnan(shown) & ~np.eye(len(shown), dtype=bool))
        _write_cells(axes, texts | dict.fromkeys(map(tuple, undefined), "–"), np.abs(shown))
        names_shown = [lettering(name, 22) for name in [*names, target]]
        axes.set_xticks(range(len(places)), names_shown, rotation=40, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(places)), names_shown)
        if len(groups) > 1:
            axes.set_title(regime)
    figure.colorbar(image, ax=list(parts), shrink=0.8, pad=0.02, ticks=[-1, -0.5, 0, 0.5, 1], label="correlation")
    figure.supxlabel("below the diagonal: Pearson, above: Spearman", fontsize=7, color=GREY)
    return figure


def draw_surface(result: Diagnostics, model: Model) -> Figure:
    """The fitted probability over two metrics, where there are rows, and where the rows of either outcome lie."""
    first, second = model.fit.names
    x, z, y = result.metrics[first].values, result.metrics[second].values, result.table.target
    box = (*view(x), *view(z))
    grid = np.meshgrid(np.linspace(*box[:2], CELLS), np.linspace(*box[2:], CELLS))
    surface = model.fit.predict({first: grid[0], second: grid[1]})
    density = _density_2d(x, z, box)
    border = _level(density, 0.99)
    inside = surface[density >= border]
    ticks = MaxNLocator(9, steps=[1, 2, 5, 10]).tick_values(float(inside.min()), float(inside.max()))
    figure = new_figure(SINGLE, 2.9)
    axes = figure.add_subplot()
    filled = axes.contourf(*grid, surface, levels=np.unique(np.clip(ticks, 0, 1)), cmap="viridis")
    outline = axes.contourf(*grid, density, levels=[border, np.inf], colors="none")
    filled.set_clip_path(outline.get_paths()[0], transform=axes.transData)
    (_draw_points if result.n <= FEW_POINTS else _draw_outlines)(axes, x, z, y, box)
    axes.set(xlim=box[:2], ylim=box[2:], xlabel=label(first), ylabel=label(second))
    figure.colorbar(filled, ax=axes, label="fitted probability of true", pad=0.02)
    what = "rows" if result.n <= FEW_POINTS else "half and 90% of the rows"
    title = f"{what} where {lettering(result.table.target_name, 30)} is"
    figure.legend(loc="outside upper center", ncols=2, title=title, title_fontsize=7)
    return figure


def _draw_points(axes: Axes, x: np.ndarray, z: np.ndarray, y: np.ndarray, _: Box) -> None:
    for chosen, face, edge, word in ((~y, "black", "white", "false"), (y, "white", "black", "true")):
        axes.scatter(x[chosen], z[chosen], s=11, facecolors=face, edgecolors=edge, linewidths=0.5, label=word)


def _draw_outlines(axes: Axes, x: np.ndarray, z: np.ndarray, y: np.ndarray, box: Box) -> None:
    """Lines around half and 90% of the rows of either outcome."""
    grid = np.meshgrid(np.linspace(*box[:2], CELLS), np.linspace(*box[2:], CELLS))
    styles: tuple[Any, ...] = ((~y, (0, (3, 2)), "false"), (y, "solid", "true"))
    for chosen, style, word in styles:
        density = _density_2d(x[chosen], z[chosen], box)
        levels = sorted({_level(density, share) for share in (0.5, 0.9)})
        axes.contour(*grid, density, levels=levels, colors="black", linewidths=0.8, linestyles=[style])
        axes.plot([], [], color="black", linewidth=0.8, linestyle=style, label=word)


def _density_2d(x: np.ndarray, z: np.ndarray, box: Box) -> np.ndarray:
    """A smoothed density over a grid of CELLS x CELLS points in `box`, rows along z."""
    left, right, low, high = box
    counts, _, _ = np.histogram2d(z, x, bins=CELLS, range=((low, high), (left, right)))
    factor = len(x) ** (-1 / 6)  # Scott's, in two dimensions
    widths = [
        float(np.clip(values.std() * factor / size * CELLS, 5, 25))
        for values, size in ((z, high - low), (x, right - left))
    ]
    smooth: np.ndarray = gaussian_filter(counts, widths, mode="constant")
    return smooth


def _level(density: np.ndarray, share: float) -> float:
    """The height above which `share` of the mass lies."""
    heights = np.sort(density, axis=None)[::-1]
    return float(heights[np.searchsorted(np.cumsum(heights), share * heights.sum())])
