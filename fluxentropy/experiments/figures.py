"""The pictures of a comparison, with intervals over the seeds.

Of schedules: validation curves, differences by bin and source, mixtures, effects. Of controllers: rewards and entropies
by step, pass@k, effects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator
from scipy import stats

from fluxentropy.experiments.arms import Record
from fluxentropy.experiments.judging import ENTROPY, LOWEST, REWARD, by_arm
from fluxentropy.experiments.options import NONE
from fluxentropy.experiments.statistics import LEVEL
from fluxentropy.figures import DOUBLE, GREY, LIGHT_STOPS, SINGLE, luminance, new_figure, palette, paper, save

COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#b8860b",
    "#56b4e9",
    "#6a3d9a",
    "#8c564b",
)  # after Okabe and Ito

GREYS = (GREY, "#9a9a9a", "#c4c4c4")
LINES = {"random": "-", "arm": "-", "reversed": (0, (5, 2)), "shuffled": (0, (1, 1.2)), "static": (0, (4, 1, 1, 1))}
VERDICTS = {"better": "#009e73", "worse": "#d55e00"}  # else grey
NOTE: dict[str, Any] = {"loc": "left", "fontsize": 7, "color": GREY}  # a title that says what the marks are
FOREST = f"lines: {LEVEL:.0%} t intervals; grey: what would not be detected; p after Holm"
RESAMPLED = "; |: bootstrap"
SHOWN_FROM = 0.1  # of the budget: losses before it would leave no room for differences
WINDOW = 0.05  # of the steps: what a point of a curve is the mean of
TREATED = (REWARD, "greedy accuracy", "pass@")  # families of the upper forest plot, in this order
Runs = Mapping[str, Mapping[int, Record]]  # arm -> seed -> record of a cell


def draw_comparison(command: str, record: Record, records: Sequence[Record], out: Path) -> list[Path]:
    """Draw a judgement and the records of its cells into the folder `out`, as PNG and SVG. -> the files"""
    runs = {name: mine for name, mine in by_arm(record["arms"], records).items() if mine}
    with paper():
        if command == "compare":
            figures = {
                "curves": curves(record, runs),
                "differences": differences(record),
                "mixture": mixtures(record, runs),
            }
        else:
            figures = {"trajectories": trajectories(record, runs), "pass_at_k": passes(record)}
        figures["effects"] = effects(command, record)
        return [file for name, figure in figures.items() if figure for file in save(figure, out / name)]


def colours_of(record: Record) -> dict[str, str]:
    """A colour for each arm; controls have that of their arm, random ones and `none` are grey."""
    kinds = {name: arm.get("kind", "random" if name == NONE else "arm") for name, arm in record["arms"].items()}
    random, asked = ([name for name in kinds if kinds[name] == kind] for kind in ("random", "arm"))
    found = {name: COLOURS[place % len(COLOURS)] for place, name in enumerate(asked)}
    found |= {name: GREYS[place % len(GREYS)] for place, name in enumerate(random)}
    return {name: found.get(name) or found.get(arm.get("of")) or GREY for name, arm in record["arms"].items()}


# --- lines over the training ------------------------------------------------------------------------------------------


def curves(record: Record, runs: Runs) -> Figure:
    """Left: bits per byte over the tokens. Right: the difference to the random arm. Means and t intervals of seeds."""
    figure = new_figure(DOUBLE, 3.1)
    left, right = figure.subplots(1, 2)
    colours = colours_of(record)
    for name, arm in record["arms"].items():
        if name not in runs:
            continue
        look = {"color": colours[name], "linestyle": LINES[arm["kind"]], "label": name}
        tokens, values = _stacked(runs[name], sorted(runs[name]))
        kept = tokens >= SHOWN_FROM * tokens[-1]
        if arm["kind"] in ("random", "arm"):
            band(left, tokens[kept], values[:, kept], look)
        shared = sorted(runs[name].keys() & runs.get(arm["baseline"], {}).keys())
        if name != arm["baseline"] and shared:
            (_, ours), (at, theirs) = (_stacked(runs[one], shared) for one in (name, arm["baseline"]))
            both, mine, other = np.intersect1d(tokens[kept], at, return_indices=True)  # adaptive ones have more
            look |= {} if arm["kind"] == "arm" else {"linewidth": 0.9}
            band(right, both, 100 * (ours[:, kept][:, mine] / theirs[:, other] - 1), look, shade=arm["kind"] == "arm")
    right.axhline(0, color=GREY, linewidth=0.6)
    left.set(xlabel="tokens", ylabel="validation, bits per byte")
    right.set(xlabel="tokens", ylabel="difference to random (%)")
    bands = f"means; bands: {LEVEL:.0%} t intervals"
    for axes, note in ((left, bands), (right, "paired by seed; below 0 is better")):
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.set_title(note, **NOTE)
    return _finished(figure)


def _stacked(runs: Mapping[int, Record], seeds: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Tokens (E,) and bits per byte (S, E) of the runs of an arm."""
    return np.array(runs[seeds[0]]["tokens"]), np.array([runs[seed]["bpb"] for seed in seeds])


def smoothed(values: np.ndarray, width: int) -> np.ndarray:
    """Means over a window of `width` steps around each, shorter at the ends. (S, T) -> (S, T)

    >>> smoothed(np.array([[0.0, 3.0, 6.0]]), 3).tolist()
    [[1.5, 3.0, 4.5]]
    """
    half, T = width // 2, values.shape[1]
    sums = np.cumsum(np.pad(values, ((0, 0), (1, 0))), axis=1)
    low, high = np.maximum(np.arange(T) - half, 0), np.minimum(np.arange(T) + half + 1, T)
    return np.asarray((sums[:, high] - sums[:, low]) / (high - low))


def trajectories(record: Record, runs: Runs) -> Figure:
    """Left: reward over the steps. Right: entropy, with the limit of a collapse. Means and t intervals of seeds."""
    figure = new_figure(DOUBLE, 3.1)
    panels = dict(zip(("reward", "entropy"), figure.subplots(1, 2), strict=True))
    colours = colours_of(record)
    for name in record["arms"]:
        if name not in runs:
            continue
        mine = [runs[name][seed] for seed in sorted(runs[name])]
        steps = np.array(mine[0]["steps"])
        width = 2 * round(WINDOW * len(steps) / 2) + 1
        look = {"color": colours[name], "label": name} | ({"linestyle": (0, (4, 1.5))} if name == NONE else {})
        for key, axes in panels.items():
            band(axes, steps, smoothed(np.array([one[key] for one in mine]), width), look)
    first = [arm["first entropy"]["mean"] for arm in record["arms"].values() if arm["seeds"]]
    panels["entropy"].axhline(record["collapse"] * float(np.mean(first)), color=GREY, linewidth=0.6, linestyle=":")
    panels["reward"].set(xlabel="step", ylabel="mean reward of the rollout")
    panels["entropy"].set(xlabel="step", ylabel="entropy (nats per token)")
    panels["entropy"].set_ylim(bottom=0)
    panels["reward"].set_title(f"means of {width} steps; bands: {LEVEL:.0%} t intervals", **NOTE)
    panels["entropy"].set_title(f"dotted: {record['collapse']:.0%} of the first step, a collapse", **NOTE)
    return _finished(figure)


def band(axes: Axes, at: np.ndarray, values: np.ndarray, look: dict[str, Any], *, shade: bool = True) -> None:
    """The mean of `values` (S, E) as a line, its t interval as a band where there are two or more."""
    mean = values.mean(axis=0)
    axes.plot(at, mean, **look)
    if shade and len(values) > 1:
        half = stats.t.ppf((1 + LEVEL) / 2, len(values) - 1) * stats.sem(values, axis=0)
        axes.fill_between(at, mean - half, mean + half, color=look["color"], alpha=0.15, linewidth=0)


def _finished(figure: Figure) -> Figure:
    """Two panels with few ticks, and one legend below them that has each label once."""
    found: dict[str, Any] = {}
    for axes in figure.axes:
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.grid(axis="y")
        for line, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, line)
    ncols = min(len(found), 4)
    figure.legend(list(found.values()), list(found), loc="outside lower center", ncols=ncols, handlelength=3.2)
    return figure


# --- bins and sources -------------------------------------------------------------------------------------------------


def differences(record: Record) -> Figure | None:
    """Rows: arms against their random arm; columns: bins, and sources. In bold where the t interval leaves out 0."""
    shown = [one for one in record["comparisons"] if one["family"] in ("against random", "controls") and one["seeds"]]
    if not shown:
        return None
    bins = len(shown[0]["bins_percent"])
    sources = list(shown[0]["sources_percent"])
    cells = [[*one["bins_percent"], *one["sources_percent"].values()] for one in shown]
    values = np.array([[_value(cell["mean"]) for cell in row] for row in cells])
    reach = max(float(np.nanmax(np.abs(values))), 1e-9)
    norm, colours = Normalize(-reach, reach), matplotlib.colormaps["RdBu_r"]
    figure = new_figure(DOUBLE, 0.26 * len(shown) + 1.3)
    axes = figure.add_subplot()
    mesh = axes.pcolormesh(np.ma.masked_invalid(values), cmap=colours, norm=norm, edgecolor="white", linewidth=0.8)
    for row, column in np.argwhere(np.isfinite(values)):
        cell = cells[row][column]
        sure = cell["low"] is not None and (cell["low"] > 0 or cell["high"] < 0)
        back = luminance(np.array(colours(norm(values[row, column])))[None, :3])[0]
        look: dict[str, Any] = {"color": "black" if back > 0.179 else "white", "fontsize": 6}
        if sure:
            look["fontweight"] = "bold"
        axes.text(column + 0.5, row + 0.5, f"{values[row, column]:+.2f}", ha="center", va="center", **look)
    if sources:
        axes.axvline(bins, color="black", linewidth=1)
    axes.set_xticks(np.arange(bins + len(sources)) + 0.5, [*(f"bin {k}" for k in range(bins)), *sources], rotation=45)
    axes.tick_params(length=0)
    axes.set_yticks(np.arange(len(shown)) + 0.5, [one["arm"] for one in shown])
    axes.set_ylim(len(shown), 0)
    axes.spines[:].set_visible(False)
    axes.set_title(f"final bits per byte against random (%); bold: the {LEVEL:.0%} t interval leaves out 0", **NOTE)
    bar = figure.colorbar(mesh, ax=axes, pad=0.01, aspect=20)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=6)
    return figure


def _value(number: float | None) -> float:
    return np.nan if number is None else number


# --- mixtures ---------------------------------------------------------------------------------------------------------


def mixtures(record: Record, runs: Runs) -> Figure:
    """A panel an arm: the share of each bin over the tokens, as its first seed has drawn it."""
    names = [name for name in record["arms"] if name in runs]
    columns = len(names) if len(names) < 5 else min((4, 3, 5), key=lambda columns: -len(names) % columns)
    rows = -(-len(names) // columns)
    figure = new_figure(DOUBLE, 1.15 * rows + 0.5)
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    most = 0
    for axes, name in zip(panels.flat, names, strict=False):
        first = runs[name][min(runs[name])]
        drawn = np.array(first["mixture"])  # (pieces, K)
        most = max(most, drawn.shape[1])
        at = np.linspace(0, first["tokens"][-1], len(drawn) + 1)
        tops = np.vstack([np.cumsum(drawn, axis=1), np.ones(drawn.shape[1])])
        tops[-1] = tops[-2]
        below = np.zeros(len(at))
        for number, colour in enumerate(_shades(drawn.shape[1])):
            axes.fill_between(at, below, tops[:, number], step="post", color=colour, linewidth=0)
            below = tops[:, number]
        axes.set_title(name, loc="left", fontsize=7)
        axes.set(xlim=(0, at[-1]), ylim=(0, 1))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.xaxis.set_major_locator(MaxNLocator(3))
    for axes in panels.flat[len(names) :]:
        axes.set_visible(False)
    for axes in panels.flat[max(len(names) - columns, 0) : len(names)]:  # nothing is below them
        axes.tick_params(labelbottom=True)
    figure.supxlabel("tokens", fontsize=8)
    figure.supylabel("share of the blocks", fontsize=8)
    scale = ScalarMappable(BoundaryNorm(np.arange(most + 1) - 0.5, most), ListedColormap(_shades(most)))
    bar = figure.colorbar(scale, ax=panels, pad=0.01, aspect=30)
    bar.set_label("bin, low to high score")
    bar.ax.minorticks_off()
    bar.set_ticks(list(range(most)) if most <= 12 else [0, most - 1])
    bar.ax.tick_params(length=0)
    bar.outline.set_visible(False)
    return figure


def _shades(bins: int) -> list[tuple[float, ...]]:
    return [tuple(colour) for colour in palette(LIGHT_STOPS, bins + 2)[1:-1]]


# --- pass@k -----------------------------------------------------------------------------------------------------------


def passes(record: Record) -> Figure:
    """pass@k over k; means of seeds, with t intervals beside each other."""
    figure = new_figure(1.35 * SINGLE, 2.9)
    axes = figure.add_subplot()
    colours = colours_of(record)
    shown = [(name, arm) for name, arm in record["arms"].items() if arm["seeds"]]
    for place, (name, arm) in enumerate(shown):
        ks = [int(k) for k in arm["pass_at_k"]]
        at = np.arange(len(ks)) + 0.5 * (place / max(len(shown) - 1, 1) - 0.5)
        values = list(arm["pass_at_k"].values())
        mean = np.array([value["mean"] for value in values])
        look: dict[str, Any] = {"color": colours[name], "label": name, "marker": "o", "markersize": 3}
        if values[0]["low"] is None:
            axes.plot(at, mean, linewidth=0.8, **look)
            continue
        ends = np.array([[value["mean"] - value["low"], value["high"] - value["mean"]] for value in values]).T
        axes.errorbar(at, mean, ends, linewidth=0.8, elinewidth=0.8, **look)
    axes.set_xticks(range(len(ks)), [str(k) for k in ks])
    axes.set(xlabel="k responses to a held-out problem", ylabel="pass@k")
    axes.grid(axis="y")
    axes.set_title(f"means of the seeds; bars: {LEVEL:.0%} t intervals", **NOTE)
    figure.legend(loc="outside right center")
    return figure


# --- effects ----------------------------------------------------------------------------------------------------------


def effects(command: str, record: Record) -> Figure | None:
    """Forest plots: a row a comparison, families apart, with the verdict at its end; of controllers entropies below."""
    shown = [one for one in record["comparisons"] if one["seeds"]]
    families = list(dict.fromkeys(one["family"] for one in shown))
    if not families:
        return None
    if command == "compare":
        measure, digits = "percent", 2
        panels = {"difference in final bits per byte (%), below 0 is better": families}
    else:
        measure, digits = "difference", 3
        above = [family for family in families if family.startswith(TREATED)]
        panels = {
            f"difference to {NONE}; above 0 is better": above,
            f"difference to {NONE} (nats per token)": [ENTROPY, LOWEST],
        }
    rows = [
        [row for family in names for row in (family, *(one for one in shown if one["family"] == family))]
        for names in panels.values()
    ]
    figure = new_figure(DOUBLE, 0.19 * sum(map(len, rows)) + 0.7 * len(rows) + 0.2)
    heights = [len(part) + 1 for part in rows]
    axes = figure.subplots(len(rows), 1, height_ratios=heights, squeeze=False)[:, 0]
    for panel, part, label in zip(axes, rows, panels, strict=True):
        forest(panel, part, measure, label, digits=digits)
    resampled = any(one[measure]["bootstrap_low"] is not None for one in shown)
    axes[0].set_title(FOREST + RESAMPLED * resampled, **NOTE)
    return figure


def forest(axes: Axes, rows: Sequence[str | Record], measure: str, label: str, *, digits: int) -> None:
    """A row a comparison with the paired difference `measure`, and names of families as headings between them."""
    for place, row in enumerate(rows):
        if isinstance(row, str):
            head: dict[str, Any] = {"fontsize": 7, "fontweight": "bold", "ha": "right", "va": "center"}
            axes.text(-0.014, place, row, transform=axes.get_yaxis_transform(), **head)
            continue
        found = row[measure]
        colour = VERDICTS.get(row["verdict"], GREY)
        if found["detectable"] is not None:
            axes.barh(place, 2 * found["detectable"], left=-found["detectable"], height=0.62, color="#eeeeee", zorder=0)
        if found["low"] is not None:
            if found["bootstrap_low"] is not None:
                ends = [found["bootstrap_low"], found["bootstrap_high"]]
                axes.plot(ends, [place] * 2, color="black", marker="|", markersize=5, markeredgewidth=0.8, linewidth=0)
            axes.plot([found["low"], found["high"]], [place] * 2, color=colour, linewidth=2.2, solid_capstyle="butt")
        axes.plot([found["mean"]], [place], marker="D", markersize=3.5, color=colour, markeredgewidth=0)
        p = f", p = {row['p_holm']:.2g}" if row["p_holm"] is not None else ""
        note: dict[str, Any] = {"fontsize": 6.5, "color": colour, "va": "center"}
        said = f"{found['mean']:+.{digits}f}  {row['verdict']}{p}"
        axes.text(1.01, place, said, transform=axes.get_yaxis_transform(), **note)
    axes.axvline(0, color="black", linewidth=0.6)
    named = [(place, row) for place, row in enumerate(rows) if not isinstance(row, str)]
    axes.set_yticks([place for place, _ in named], [f"{row['arm']}  vs  {row['against']}" for _, row in named])
    axes.tick_params(axis="y", length=0)
    axes.set(xlabel=label, ylim=(len(rows) - 0.4, -0.6))
    axes.spines["left"].set_visible(False)
