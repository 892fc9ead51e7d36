"""The pictures of how far models agree: entropies, ranks, distances, PCA, explained variance, spread of ranks.

Large corpora are drawn with about 2,000 texts, taken at an even stride of the baseline's order; every number in the
pictures, running medians included, rests on all texts.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from fluxentropy.figures import (
    DOUBLE,
    GREY,
    SINGLE,
    ModelLook,
    label_ends,
    label_points,
    lettering,
    luminance,
    model_look,
    new_figure,
    paper,
    running_median,
    save,
)

if TYPE_CHECKING:
    from fluxentropy.agreement.statistics import Agreement


SHOWN = 2000  # texts drawn as points, at most
VECTORS = 4000  # points of a picture, above which its SVG holds them as an image
BAR, CUMULATIVE = "#4a7fb0", "#a04000"
NOTE: dict[str, Any] = {"loc": "left", "fontsize": 7, "color": GREY}  # a title that says what the marks are
INTERVALS = "95% bootstrap intervals"
NUMBERS = StrMethodFormatter("{x:,.10g}")


def draw_agreement(
    values: np.ndarray, labels: Sequence[str], agreement: Agreement, *, baseline: int, unit: str, out: Path
) -> list[Path]:
    """Draw the pictures of `agreement`, as PNG and SVG, into the folder `out`. -> the files

    values: (n_texts, M) float64, NaN where a model has no score; labels: M, short; `baseline`: the column whose order
    the texts take; unit: what the scores are, "mean entropy (nats)". Errors: `RunError` where `out` cannot be written.
    """
    with paper():
        pictures = agreement_figures(values, labels, agreement, baseline=baseline, unit=unit)
        return [file for name, figure in pictures for file in save(figure, out / name)]


def agreement_figures(
    values: np.ndarray, labels: Sequence[str], agreement: Agreement, *, baseline: int, unit: str
) -> Iterator[tuple[str, Figure]]:
    """The names and figures that `draw_agreement` saves. Use it within `paper()`."""
    values = np.where(np.isfinite(values), values, np.nan)
    looks = model_look(agreement.models)
    labels = [lettering(label) for label in labels]
    order = np.argsort(values[:, baseline], kind="stable")
    ordered = values[order[: np.isfinite(values[:, baseline]).sum()]]  # NaN sorts last
    yield "entropies", _entropies(ordered, labels, looks, baseline, unit)
    yield "ranks", _ranks(ordered, labels, looks, agreement, baseline)
    yield "distance_matrix", _distance_matrix(labels, agreement, unit)
    yield "pca_models", _pca_models(labels, looks, agreement, unit)
    yield "explained_variance", _explained_variance(agreement)
    yield "rank_spread", _rank_spread(agreement)


# --- texts ------------------------------------------------------------------------------------------------------------


def _entropies(
    ordered: np.ndarray, labels: Sequence[str], looks: Sequence[ModelLook], baseline: int, unit: str
) -> Figure:
    """Every model's scores, with the texts in the baseline's order: points, a running median, a label at its end."""
    n, models = ordered.shape
    window = n // 15 | 1
    shown, sample = _thinned(n)
    many = len(shown) * models > VECTORS
    points: dict[str, Any] = {"linestyle": "none", "markeredgewidth": 0, "zorder": 2}
    points |= {"markersize": 1.9, "alpha": 0.2} if many else {"markersize": 2.7, "alpha": 0.35}
    casing = [patheffects.withStroke(linewidth=2.4, foreground="white")]
    line: dict[str, Any] = {
        "markersize": 4.5,
        "markeredgecolor": "white",
        "markeredgewidth": 0.5,
        "path_effects": casing,
    }
    figure = new_figure(DOUBLE, max(3.3, 0.16 * sum(label.count("\n") + 1 for label in labels) + 0.8))
    axes = figure.add_subplot()
    axes.set_rasterization_zorder(2.5 if many else None)
    ends = np.empty(models)
    for model in [*(model for model in range(models) if model != baseline), baseline]:
        look: dict[str, Any] = {"color": looks[model].colour, "marker": looks[model].marker}
        width = 1.6 if model == baseline else 1.1
        places, medians = running_median(ordered[:, model], window)
        ends[model] = medians[np.isfinite(medians)][-1]
        axes.plot(shown + 1, ordered[shown, model], **look, **points)
        axes.plot(places + 1, medians, **look, **line, markevery=(model / models / 6, 1 / 6), zorder=3, linewidth=width)
    axes.set(xlabel=f"texts in the order of {labels[baseline]} (baseline)", ylabel=unit)
    axes.set_xlim(1 - 0.01 * n, n * 1.01)
    axes.set_title(f"points: {sample}" + f"; lines: running median of {window:,} texts" * (window > 1), **NOTE)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.xaxis.set_major_formatter(NUMBERS)
    label_ends(axes, ends, labels, looks)
    return figure


def _ranks(
    ordered: np.ndarray, labels: Sequence[str], looks: Sequence[ModelLook], agreement: Agreement, baseline: int
) -> Figure:
    """One panel a model: the texts' ranks by it against their ranks by the baseline, of the texts both have scored."""
    others = [model for model in range(len(labels)) if model != baseline]
    scored = np.isfinite(ordered)  # the baseline's column is all true
    n = int(scored[:, others].sum(axis=0).max())
    shown, notes = _thinned(n)
    columns = len(others) if len(others) < 5 else min((4, 3), key=lambda columns: -len(others) % columns)
    rows = -(-len(others) // columns)
    side = min(2.7, DOUBLE / columns)
    figure = new_figure(min(side * columns + 0.5, DOUBLE), (side + 0.2) * rows + 0.3)
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    points: dict[str, Any] = {"linestyle": "none", "markeredgewidth": 0, "alpha": 0.7 if n < 500 else 0.4}
    points |= {"markersize": float(np.clip(32 / np.sqrt(n), 1.6, 5)), "rasterized": len(shown) * len(others) > VECTORS}
    limits = agreement.intervals.get("spearman")
    for axes, model in zip(panels.flat, others, strict=False):
        x, y = (_ranks_at(ordered[scored[:, model], column], shown) for column in (baseline, model))
        axes.plot(x, y, color=looks[model].colour, marker=looks[model].marker, **points)
        axes.plot([1, n], [1, n], color=GREY, linewidth=0.6, linestyle=(0, (4, 3)), zorder=1)
        between = "" if limits is None else " [{:.2f}, {:.2f}]".format(*limits[baseline, model])
        axes.set_title(f"{labels[model]}\nρ = {agreement.spearman[baseline, model]:.2f}{between}", fontsize=7.5)
        axes.set(aspect="equal", xlim=(1 - 0.03 * n, 1.03 * n), ylim=(1 - 0.03 * n, 1.03 * n))
        axes.tick_params(labelbottom=model in others[-columns:])
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(3, integer=True))
            axis.set_major_formatter(NUMBERS)
    for axes in panels.flat[len(others) :]:
        axes.set_axis_off()
    notes += ("" if scored.all() else ", those that both have scored") + "; dashed: equal ranks"
    notes += "" if limits is None else f"; in brackets: {INTERVALS}"
    figure.suptitle(textwrap.fill(notes, int(18 * figure.get_figwidth())), fontsize=7, color=GREY)
    figure.supxlabel(f"rank by {labels[baseline]} (baseline)", fontsize=8)
    figure.supylabel("rank by the other model", fontsize=8)
    return figure


def _ranks_at(scores: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The ranks of the scores at those `places` that there are, among all scores (n,). Ties share their mean rank.

    >>> _ranks_at(np.array([0.5, 0.1, 0.5]), np.array([0, 1, 5]))
    array([2.5, 1. ])
    """
    at, in_order = scores[places[places < len(scores)]], np.sort(scores)
    return (np.searchsorted(in_order, at, "left") + np.searchsorted(in_order, at, "right") + 1) / 2


def _thinned(n: int) -> tuple[np.ndarray, str]:
    """Places of about `SHOWN` of `n` texts, and words for them: `every 50th of 100,000 texts shown`."""
    stride = -(-n // SHOWN)
    ending = "th" if stride % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(stride % 10, "th")
    words = f"every {stride:,}{ending} of {n:,} texts shown" if stride > 1 else f"all {n:,} texts"
    return np.arange(0, n, stride), words


# --- models -----------------------------------------------------------------------------------------------------------


def _distance_matrix(labels: Sequence[str], agreement: Agreement, unit: str) -> Figure:
    """Distances below the diagonal, rank correlations above it, models in the order of the tree on top."""
    order = list(agreement.order)
    models = len(order)
    below = np.tri(models, k=-1, dtype=bool)
    distance = np.where(below, agreement.euclidean[np.ix_(order, order)], np.nan)
    rho = np.where(below.T, agreement.spearman[np.ix_(order, order)], np.nan)
    side = models * float(np.clip(5.2 / models, 0.27, 0.55))
    margin = 0.075 * max(len(line) for label in labels for line in label.split("\n")) + 0.2
    figure = new_figure(max(side, 2.4) + margin, side * 1.15 + margin + 0.7)
    grid = figure.add_gridspec(2, 2, height_ratios=(side, 0.1))
    axes = figure.add_subplot(grid[0, :])
    far = Normalize(0, float(np.nanmax(distance)) or 1.0)
    alike = Normalize(min(float(np.floor(np.nanmin(rho) * 10) / 10), 0.9), 1)
    scales = (
        (distance, far, matplotlib.colormaps["Blues"], f"below the diagonal:\nEuclidean distance,\n{unit}"),
        (rho, alike, matplotlib.colormaps["Oranges"], "above the diagonal:\nSpearman's ρ\n"),
    )
    for place, (cells, scale, colours, title) in enumerate(scales):
        mesh = axes.pcolormesh(np.ma.masked_invalid(cells), cmap=colours, norm=scale, edgecolor="white", linewidth=0.8)
        bar = figure.colorbar(mesh, cax=figure.add_subplot(grid[1, place]), orientation="horizontal")
        bar.set_label(title, fontsize=7)
        bar.outline.set_visible(False)
        bar.locator = MaxNLocator(4)
        _write_cells(axes, cells, scale, colours)
    names = [labels[model] for model in order]
    axes.set_xticks(np.arange(models) + 0.5, names, rotation=90, linespacing=0.9)
    axes.set_yticks(np.arange(models) + 0.5, names, linespacing=0.9)
    axes.tick_params(length=0)
    axes.set(xlim=(0, models), ylim=(models, 0), aspect="equal")
    axes.spines[:].set_visible(False)
    _dendrogram(axes.inset_axes((0, 1.01, 1, 0.14)), agreement)
    return figure


def _write_cells(axes: Axes, cells: np.ndarray, scale: Normalize, colours: Colormap) -> None:
    """Write each number into its cell, in black or white, whichever stands out."""
    largest = float(np.nanmax(np.abs(cells)))
    decimals = 2 if largest <= 1 else int(np.clip(2 - np.floor(np.log10(largest)), 0, 2))
    style = f".{decimals}f" if 0.01 <= largest < 1e4 else ".2g"
    for row, column in np.argwhere(np.isfinite(cells)):
        value = cells[row, column]
        back = luminance(np.array(colours(scale(value)))[None, :3])[0]
        ink = "black" if back > 0.179 else "white"  # at 0.179 both have a contrast of 4.58
        axes.text(column + 0.5, row + 0.5, format(value, style), ha="center", va="center", fontsize=7, color=ink)


def _dendrogram(axes: Axes, agreement: Agreement) -> None:
    """The tree of `agreement.linkage`, its leaves above the columns of the heat map."""
    models = len(agreement.order)
    x, y = np.empty(2 * models - 1), np.zeros(2 * models - 1)
    x[list(agreement.order)] = np.arange(models) + 0.5
    for node, (left, right, height, _) in enumerate(agreement.linkage, start=models):
        a, b = int(left), int(right)
        x[node], y[node] = (x[a] + x[b]) / 2, height
        axes.plot([x[a], x[a], x[b], x[b]], [y[a], height, height, y[b]], color=GREY, linewidth=0.8)
    axes.set(xlim=(0, models), ylim=(0, (y.max() or 1) * 1.05))
    axes.set_axis_off()


def _pca_models(labels: Sequence[str], looks: Sequence[ModelLook], agreement: Agreement, unit: str) -> Figure:
    """Models as points on the first two principal components; equal steps on both axes, so that distances are true."""
    points, ratios = agreement.coordinates[:, :2], agreement.explained_variance_ratio[:2]
    limits = agreement.intervals.get("coordinates", np.stack([agreement.coordinates] * 2, axis=-1))[:, :2]  # (M, 2, 2)
    reach = np.fmax(1.3 * np.abs(points).max(axis=0), 1.05 * np.nanmax(np.abs(limits), axis=(0, 2)))
    half_x = float(reach[0]) or 1.0
    half_y = float(np.clip(reach[1], 0.4 * half_x, half_x))
    crowded = sum(label.count("\n") + 1 for label in labels) > 10 or max(map(len, labels)) > 20
    width = DOUBLE if crowded else 5.0
    figure = new_figure(width, (width - 0.6) * half_y / half_x + 0.65)
    axes = figure.add_subplot()
    axes.axhline(0, color="#dddddd", linewidth=0.6, zorder=0)
    axes.axvline(0, color="#dddddd", linewidth=0.6, zorder=0)
    point: dict[str, Any] = {"markersize": 6.5, "markeredgecolor": "white", "markeredgewidth": 0.5}
    for (x, y), (across, up), look in zip(points, limits, looks, strict=True):
        axes.plot(across, [y, y], [x, x], up, color=look.colour, linewidth=0.7, alpha=0.6, zorder=1)
        axes.plot([x], [y], marker=look.marker, color=look.colour, **point)
    axes.set(xlim=(-half_x, half_x), ylim=(-half_y, half_y), aspect="equal")
    axes.set_xlabel(f"PC1 of {unit}, {ratios[0]:.1%} of the variance")
    axes.set_ylabel(f"PC2, {ratios[1]:.1%} of the variance")
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.set_title(f"lines through the points: {INTERVALS}" * ("coordinates" in agreement.intervals), **NOTE)
    label_points(axes, points, labels)
    return figure


# --- numbers ----------------------------------------------------------------------------------------------------------


def _explained_variance(agreement: Agreement) -> Figure:
    """Bars: each component's share of the variance, its number below; line: cumulative."""
    shares = 100 * agreement.explained_variance_ratio[: len(agreement.models) - 1]  # M centred points span no more
    at = np.arange(1, len(shares) + 1)
    figure = new_figure(float(np.clip(0.36 * len(shares) + 0.8, SINGLE, DOUBLE)), 2.5)
    axes = figure.add_subplot()
    axes.bar(at, shares, width=0.62, color=BAR)
    axes.plot(at, shares.cumsum(), color=CUMULATIVE, marker="o", markersize=3, linewidth=1, clip_on=False)
    whiskers = _whiskers(axes, at, agreement, "explained_variance_ratio", 100)
    axes.set_title("line: cumulative" + f"; {whiskers}" * bool(whiskers), **NOTE)
    axes.set_xticks(at, [f"{place}\n{share:.1f}" for place, share in zip(at, shares, strict=True)])
    axes.set(xlabel="principal component, its share (%)", ylabel="variance between models (%)", ylim=(0, 105))
    middle, reach = (len(at) + 1) / 2, max(len(at), 4) / 2 + 0.1
    axes.set_xlim(middle - reach, middle + reach)
    return figure


def _rank_spread(agreement: Agreement) -> Figure:
    """How far the models' ranks of a text lie apart, for texts of low to high mean rank."""
    at = np.arange(1, len(agreement.rank_sd_by_quintile) + 1)
    figure = new_figure(SINGLE, 2.4)
    axes = figure.add_subplot()
    axes.plot(at, agreement.rank_sd_by_quintile, color=BAR, marker="o", markersize=4, linewidth=0.8)
    axes.set_title(_whiskers(axes, at, agreement, "rank_sd_by_quintile"), **NOTE)
    axes.set(xlabel="quintile of the mean rank, lowest scores first", xticks=at, xlim=(0.5, len(at) + 0.5))
    axes.set_ylabel(f"SD of ranks between models\n(of {agreement.n_complete:,} texts)")
    axes.set_ylim(0)
    axes.yaxis.set_major_formatter(NUMBERS)
    return figure


def _whiskers(axes: Axes, at: np.ndarray, agreement: Agreement, name: str, factor: float = 1) -> str:
    """Draw the intervals of the numbers `name`, which need not hold them. -> words for the lines, where any"""
    if name not in agreement.intervals:
        return ""
    low, high = factor * agreement.intervals[name][: len(at)].T
    axes.vlines(at, low, high, color="black", linewidth=0.9, zorder=4)
    return f"black lines: {INTERVALS}"
