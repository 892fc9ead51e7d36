"""The pictures of a diagnosis, each as PNG and SVG.

draw_diagnostics(result, folder)    # distributions.png, distributions.svg, fitted_curves.png, …
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FormatStrFormatter, MaxNLocator, NullLocator
from scipy.ndimage import gaussian_filter, gaussian_filter1d

from fluxentropy.evaluation.diagnostics import Diagnostics, Model, regimes
from fluxentropy.evaluation.statistics import Share, shares
from fluxentropy.figures import DOUBLE, GREY, SINGLE, lettering, new_figure, paper, save

# --- panels -----------------------------------------------------------------------------------------------------------


TRUE, FALSE = "#0072b2", "#d55e00"  # Okabe and Ito's blue and vermilion
UNITS = (("sqrt_varentropy", "nats"), ("varentropy", "nats²"), ("entropy", "nats"), ("surprisal", "nats"))
COLUMNS = 3  # panels side by side, at most


def label(metric: str) -> str:
    """A metric's name with its unit, where it is one of this project's.

    >>> label("sqrt_varentropy_mean"), label("varentropy"), label("length")
    ('sqrt_varentropy_mean (nats)', 'varentropy (nats²)', 'length')
    """
    unit = next((unit for name, unit in UNITS if metric == name or metric.startswith(name + "_")), None)
    return lettering(f"{metric} ({unit})" if unit else metric, 32)


def panels(count: int, height: float, columns: int = COLUMNS) -> tuple[Figure, list[Axes]]:
    """A figure with `count` panels, of which a lone one is as wide as a column of a paper."""
    wide = min(count, columns)
    rows = -(-count // columns)
    figure = new_figure(SINGLE if wide == 1 else DOUBLE, height * rows)
    grid = figure.subplots(rows, wide, squeeze=False)
    for spare in grid.flat[count:]:
        spare.remove()
    return figure, list(grid.flat[:count])


def view(x: np.ndarray) -> tuple[float, float]:
    """The limits that show nearly all of `x`: a few outliers would squeeze the rest."""
    low, high = np.quantile(x, [0.002, 0.998])
    if low == high:
        low, high = x.min(), x.max()
    margin = 0.03 * (high - low)
    return max(low - margin, x.min()), min(high + margin, x.max())


def is_long_tailed(x: np.ndarray) -> bool:
    """Whether only a logarithmic axis shows `x`.

    >>> is_long_tailed(np.array([1.0, 2.0, 500.0])), is_long_tailed(np.array([0.0, 2.0, 500.0]))
    (True, False)
    """
    return bool(x.min() > 0 and np.quantile(x, 0.99) > 10 * np.median(x))


def message(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, lettering(text, 34), transform=axes.transAxes, ha="center", va="center", color=GREY, fontsize=7)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def reference(axes: Axes, *, x: float | None = None, y: float | None = None) -> None:
    """A dashed line at what no effect would look like."""
    draw, place = (axes.axvline, x) if y is None else (axes.axhline, y)
    assert place is not None
    draw(place, color=GREY, linewidth=0.6, linestyle=(0, (4, 3)), zorder=1)


# --- maps -------------------------------------------------------------------------------------------------------------


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


# --- figures ----------------------------------------------------------------------------------------------------------


GRID = 512  # points of a curve


def draw_diagnostics(result: Diagnostics, folder: Path) -> list[Path]:
    """Draw every picture that the results allow into `folder`, and return the files."""
    fitted = {key: model for key, model in result.models.items() if model.fit.ok}
    drawings: dict[str, Callable[[], Figure]] = {"distributions": partial(draw_distributions, result)}
    if fitted:
        drawings["effects"] = partial(draw_effects, fitted)
    drawings["fitted_curves"] = partial(draw_fitted_curves, result)
    if any(metric.quartiles for metric in result.metrics.values()):
        drawings["contingency"] = partial(draw_contingency, result)
    drawings["correlation_matrices"] = partial(draw_correlations, result)
    for key, model in fitted.items():
        if len(model.fit.names) == 2:
            drawings[f"surface_{file_name(key)}"] = partial(draw_surface, result, model)
    if any(model.calibration for model in fitted.values()):
        drawings["reliability"] = partial(draw_reliability, fitted)
    files: list[Path] = []
    with paper():
        for name, draw in drawings.items():
            files += save(draw(), folder / name)
    return files


def file_name(key: str) -> str:
    """A model's key as part of a file's name; keys that differ give names that differ.

    >>> file_name("entropy+Correctly Answered/2")
    'entropy+Correctly%20Answered%2F2'
    """
    return quote(key, safe="+")


# --- one metric -------------------------------------------------------------------------------------------------------


def draw_distributions(result: Diagnostics) -> Figure:
    """Histograms of each metric by outcome, with densities and means."""
    y = result.table.target
    figure, grid = panels(len(result.metrics), 2.1)
    for axes, (name, metric) in zip(grid, result.metrics.items(), strict=True):
        x = metric.values
        axes.set_xlabel(label(name))
        if np.ptp(x) == 0:
            message(axes, f"{x[0]:g} in every row")
            continue
        if is_long_tailed(x):
            x = np.log10(x)
            axes.xaxis.set_major_formatter(lambda power, _: f"{10**power:,.0f}" if power > 2 else f"{10**power:.3g}")
        low, high = view(x)
        edges = np.linspace(low, high, int(np.clip(np.sqrt(len(x)) / 2, 8, 40)) + 1)
        for chosen, colour in ((x[~y], FALSE), (x[y], TRUE)):
            counts, _ = np.histogram(chosen, edges)
            axes.stairs(counts / (len(chosen) * np.diff(edges)), edges, color=colour, alpha=0.5, linewidth=0.5)
            axes.plot(*_density(chosen, low, high), color=colour)
            axes.axvline(chosen.mean(), color=colour, linewidth=0.8, linestyle=(0, (3, 2)))
        axes.set_xlim(low, high)
        axes.set_ylim(bottom=0)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
    grid[0].set_ylabel("density")
    _legend(figure, result)
    return figure


def _density(x: np.ndarray, low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    """A Gaussian kernel density with Silverman's bandwidth, mirrored at 0 where nothing is below: grid, density."""
    quarter, three_quarters = np.quantile(x, [0.25, 0.75])
    spread = min(x.std(), (three_quarters - quarter) / 1.349) or x.std() or (high - low) / 50
    bandwidth = 0.9 * spread * len(x) ** -0.2
    first = min(x.min(), low) - 4 * bandwidth
    first = max(first, 0.0) if x.min() >= 0 else first
    last = max(x.max(), high) + 4 * bandwidth
    cells = int(np.clip((last - first) / bandwidth * 16, GRID, 2**16))
    counts, edges = np.histogram(x, cells, (first, last))
    step = edges[1] - edges[0]
    smooth = gaussian_filter1d(counts / (len(x) * step), bandwidth / step, mode="reflect")
    middle = (edges[1:] + edges[:-1]) / 2
    shown = (middle >= low) & (middle <= high)
    return middle[shown], smooth[shown]


def _legend(figure: Figure, result: Diagnostics) -> None:
    """Which colour is which outcome, above all panels."""
    positive = int(result.table.target.sum())
    patches = [
        Patch(facecolor=colour, alpha=0.6, label=f"{word} (n = {count:,})")
        for colour, word, count in ((TRUE, "true", positive), (FALSE, "false", result.n - positive))
    ]
    title = lettering(result.table.target_name, 60)
    figure.legend(handles=patches, loc="outside upper center", ncols=2, title=title, title_fontsize=7)


def draw_fitted_curves(result: Diagnostics) -> Figure:
    """The fitted probability over each metric with its 95% band, and the share of true rows in bins."""
    y = result.table.target
    figure, grid = panels(len(result.metrics), 2.2)
    bins = int(np.clip(result.n // 50, 4, 20))
    for axes, (name, metric) in zip(grid, result.metrics.items(), strict=True):
        x, fit = metric.values, result.models[name].fit
        axes.set_xlabel(label(name))
        if np.ptp(x) == 0:
            message(axes, f"{x[0]:g} in every row")
            continue
        low, high = view(x)
        if is_long_tailed(x):
            axes.set_xscale("log")
        reference(axes, y=result.rate)
        if fit.ok:
            along = np.geomspace(low, high, GRID) if axes.get_xscale() == "log" else np.linspace(low, high, GRID)
            axes.fill_between(along, *fit.band({name: along}), color=TRUE, alpha=0.2, linewidth=0, zorder=2)
            axes.plot(along, fit.predict({name: along}), color=TRUE, zorder=3)
        found = shares(y, x, bins)
        at, rates, errors = _as_arrays(found)
        axes.errorbar(at, rates, yerr=errors, fmt="o", color="#303030", markersize=2.4, elinewidth=0.6, zorder=4)
        axes.set_xlim(low, high)
        _limit_to_unit(axes)
        axes.grid(axis="y")
    grid[0].set_ylabel("share true")
    return figure


def _as_arrays(found: Sequence[Share]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where the bins are (n,), their shares of true rows (n,), and these less and up to their limits (2, n)."""
    at, rates, low, high = np.array([(share.at, share.rate, share.low, share.high) for share in found]).T
    return at, rates, np.stack([rates - low, high - rates]).clip(0)


def _limit_to_unit(axes: Axes) -> None:
    """A probability's axis ends at 0 and 1 where the data come near."""
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, -0.03), min(high, 1.03))


# --- models -----------------------------------------------------------------------------------------------------------


def draw_effects(models: Mapping[str, Model]) -> Figure:
    """Odds ratios per standard deviation and AUCs of all models, with their intervals."""
    rows = [(key, place) for key, model in models.items() for place in range(len(model.fit.names))]
    figure = new_figure(DOUBLE, 0.24 * len(rows) + 0.75)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=[1.2, 1])
    names = []
    for height, (key, place) in enumerate(rows):
        model = models[key]
        ratio, low, high = model.fit.odds_ratios[place]
        name, beside = model.fit.names[place], [other for other in model.fit.names if other != model.fit.names[place]]
        names.append(lettering(name if not beside else f"{name}, beside {beside[0]}", 60))
        left.errorbar(
            ratio, height, xerr=[[ratio - low], [high - ratio]], fmt="o", color=TRUE, markersize=3.5, elinewidth=1
        )
        if place == 0 and model.auc is not None:
            middle = height + (len(model.fit.names) - 1) / 2
            auc = model.auc - (model.auc_optimism or 0)
            right.plot(model.auc_interval or (auc, auc), [middle, middle], color=TRUE, linewidth=1)
            right.plot(auc, middle, "o", color=TRUE, markersize=3.5)
            if model.cross:
                right.plot(
                    model.cross.auc.mean(), middle, "o", markerfacecolor="white", color="#303030", markersize=3.5
                )
    left.set_yticks(range(len(rows)), names)
    left.invert_yaxis()
    _odds_axis(left)
    reference(left, x=1)
    reference(right, x=0.5)
    right.set_xlabel("AUC")
    right.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    right.plot([], [], "o", color=TRUE, markersize=3.5, label="without optimism")
    right.plot([], [], "o", markerfacecolor="white", color="#303030", markersize=3.5, label="cross-validated")
    figure.legend(loc="outside upper right", ncols=2)
    for axes in (left, right):
        axes.grid(axis="x")
        axes.tick_params(axis="y", length=0)
    return figure


def _odds_axis(axes: Axes) -> None:
    """A logarithmic axis with ticks that are round numbers, however wide it is."""
    axes.set_xscale("log")
    axes.set_xlabel("odds ratio per standard deviation")
    low, high = axes.get_xlim()
    if high / low > 3:
        ticks = [digit * 10.0**power for power in range(-12, 13) for digit in ((1, 2, 5) if high / low < 1e3 else (1,))]
        axes.xaxis.set_major_locator(FixedLocator(ticks))
        axes.set_xlim(low, high)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.xaxis.set_minor_locator(NullLocator())


def draw_reliability(models: Mapping[str, Model]) -> Figure:
    """What cross-validated models predict against what is true, in bins."""
    drawn = {key: model.calibration for key, model in models.items() if model.calibration}
    figure, grid = panels(len(drawn), 2.3)
    for axes, (key, found) in zip(grid, drawn.items(), strict=True):
        at, rates, errors = _as_arrays(found.bins)
        ends = np.array([at.min(), at.max(), *(rates - errors[0]), *(rates + errors[1])])
        low, high = max(ends.min() - 0.02, 0), min(ends.max() + 0.02, 1)
        axes.plot([low, high], [low, high], color=GREY, linewidth=0.6, linestyle=(0, (4, 3)), zorder=1)
        axes.errorbar(at, rates, yerr=errors, fmt="o", color=TRUE, markersize=2.8, elinewidth=0.7, zorder=3)
        axes.set(xlim=(low, high), ylim=(low, high), aspect="equal")
        axes.grid()
        axes.set_title(f"{lettering(key, 36)}\nexpected error {found.expected_error:.3f}")
        axes.locator_params(nbins=5)
    grid[0].set_ylabel("share true")
    for axes in grid:
        axes.set_xlabel("predicted probability")
    return figure
