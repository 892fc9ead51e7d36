"""The pictures of a diagnosis, each as PNG and SVG.

draw_diagnostics(result, folder)    # distributions.png, distributions.svg, fitted_curves.png, …
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from urllib.parse import quote

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FormatStrFormatter, MaxNLocator, NullLocator
from scipy.ndimage import gaussian_filter1d

from fluxentropy.diagnostics import Diagnostics, Model
from fluxentropy.diagnostics_maps import draw_contingency, draw_correlations, draw_surface
from fluxentropy.diagnostics_panels import FALSE, TRUE, is_long_tailed, label, message, panels, reference, view
from fluxentropy.figure_labels import lettering
from fluxentropy.figures import DOUBLE, GREY, new_figure, paper, save
from fluxentropy.prediction import Share, shares

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
