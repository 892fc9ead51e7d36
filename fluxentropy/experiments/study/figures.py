"""The pictures of a study of probed runs: predictions, parts, tokens, prompts; groups along the x axis."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.colors
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, PercentFormatter, StrMethodFormatter

from fluxentropy.experiments.study.answers import PREDICTIONS
from fluxentropy.figures import DOUBLE, GREY, new_figure, paper, save
from fluxentropy.rl.grpo.figures import BLUE, GREEN, KINDS, LOOKS, NOTE, RUST, SPLIT

Record = Mapping[str, Any]
FIGURES = ("predicted_measured", "errors", "parts", "tokens", "prompts")
COLUMNS = 3  # panels beside each other
MARKS = {"first": (BLUE, "o"), "predicted": (RUST, "s"), "snis": (GREEN, "^")}
PARTS = {"optimizer": SPLIT, "pairs": KINDS}


def draw_study(record: Record, out: Path) -> list[Path]:
    """Draw `study.json` into the folder `out`, as PNG and SVG; what is missing is left out. -> the files"""
    with paper():
        return [file for name, figure in study_figures(record) for file in save(figure, out / name)]


def study_figures(record: Record) -> Iterator[tuple[str, Figure]]:
    """The names and figures that `draw_study` saves. Use it within `paper()`."""
    groups = record["groups"]
    if any(group["predictions"] for group in groups.values()):
        yield "predicted_measured", predicted(record)
        yield "errors", errors(record)
    if any(group["optimizer"] or group["pairs"] for group in groups.values()):
        yield "parts", parts(groups)
    if any(group["tokens"] for group in groups.values()):
        yield "tokens", tokens(groups)
    if any(group["prompts"] for group in groups.values()):
        yield "prompts", prompts(groups)


# --- predictions ------------------------------------------------------------------------------------------------------


def predicted(record: Record) -> Figure:
    """A panel a learning rate: each step's measured change over its predictions, and the errors of the difference."""
    shown = {label: group for label, group in record["groups"].items() if group["predictions"]}
    rows = -(-len(shown) // COLUMNS)
    columns = -(-len(shown) // rows)
    figure = new_figure(DOUBLE if columns > 1 else 0.6 * DOUBLE, 2.4 * rows + 0.5)
    panels = figure.subplots(rows, columns, squeeze=False)
    for axes, label in zip(panels.flat, shown, strict=False):
        _points(axes, record, label)
    for axes in panels.flat[len(shown) :]:
        axes.set_visible(False)
    for axes in panels[:, 0]:
        axes.set_ylabel(f"measured (nats a {record['unit']})")
    for axes in panels.flat[max(len(shown) - columns, 0) : len(shown)]:
        axes.set_xlabel(f"predicted (nats a {record['unit']})")
    note = f"dashed: equal; grey: within {record['tolerance']:.0%}; bars: 95% intervals of the difference"
    figure.suptitle(note, x=0.01, ha="left", fontsize=7, color=GREY)
    figure.legend(*panels.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def _points(axes: Axes, record: Record, label: str) -> None:
    points, unit = record["points"][label], record["unit"]
    measured, reach = _column(points, f"measured_per_{unit}"), 1e-12
    for name in ("first", "predicted"):
        if name not in record["groups"][label]["predictions"]:
            continue
        colour, mark = MARKS[name]
        predicted = _column(points, f"{name}_per_{unit}")
        half = _column(points, f"{name}_half")
        here = np.isfinite(measured + predicted)
        look: dict[str, Any] = {"color": colour, "markersize": 2.6, "markeredgewidth": 0, "elinewidth": 0.6}
        axes.errorbar(
            predicted[here], measured[here], np.nan_to_num(half[here]), fmt=mark, label=PREDICTIONS[name], **look
        )
        reach = max(reach, *np.abs(measured[here]), *np.abs(predicted[here]))
    line = 1.15 * reach * np.array([-1, 0, 1])
    share = record["tolerance"]
    axes.fill_between(line, line * (1 - share), line * (1 + share), color=GREY, alpha=0.25, linewidth=0, zorder=0)
    axes.plot(line, line, color=GREY, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
    axes.set(xlim=(line[0], line[2]), ylim=(line[0], line[2]))
    axes.set_title(label, fontsize=8)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(4, symmetric=True))
        axis.set_major_formatter(StrMethodFormatter("{x:.3g}"))


def _column(points: Record, name: str) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in points[name]], dtype=float)


def errors(record: Record) -> Figure:
    """The relative error of each prediction, with the noise and without."""
    figure = new_figure(DOUBLE, 2.8)
    groups = record["groups"]
    titles = {"rms": "as measured, with noise", "rms_true": "noise taken off"}
    seen = [record["tolerance"]]
    for axes, (key, title) in zip(figure.subplots(1, 2, sharey=True), titles.items(), strict=True):
        for place, (name, (colour, mark)) in enumerate(MARKS.items()):
            found = [group["predictions"].get(name, {}).get(key) for group in groups.values()]
            seen += dots(axes, found, 0.18 * (place - 1), color=colour, marker=mark, label=PREDICTIONS[name])
        axes.axhline(record["tolerance"], color=GREY, linewidth=0.8, linestyle=(0, (4, 3)))
        axes.set_yscale("symlog", linthresh=0.01, linscale=0.4)  # an error may be 0 when the noise is taken off
        named(axes, groups)
        axes.set_title(f"{title}; 95% intervals; dashed: tolerated", **NOTE)
    first = figure.axes[0]
    first.set(ylabel="error / measured change (rms)", ylim=(-0.002, 1.5 * max(seen)))
    first.set_yticks([at for at in (0, 0.01, 0.1, 1, 10, 100) if at < 1.5 * max(seen)])
    first.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    figure.legend(*first.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


# --- parts ------------------------------------------------------------------------------------------------------------


def parts(groups: Record) -> Figure:
    """A panel a kind of parts: shares of a step's change."""
    kinds = [kind for kind in PARTS if any(group[kind] for group in groups.values())]
    figure = new_figure(DOUBLE, 2.9)
    titles = {"optimizer": "first-order change, by the optimizer's step", "pairs": "this batch's part, by pairs"}
    for kind, axes in zip(kinds, figure.subplots(1, len(kinds), squeeze=False)[0], strict=True):
        for place, (name, label, colour) in enumerate(PARTS[kind]):
            found = [group[kind]["parts"][name]["share"] if group[kind] else None for group in groups.values()]
            bar(axes, found, 0.26 * (place - 1), 0.24, color=colour, label=label)
        axes.axhline(0, color="black", linewidth=0.6)
        low, high = axes.get_ylim()
        axes.set(ylabel="share of a step's change", ylim=(max(low, -3), min(high, 4)))  # a whole near 0 has no limits
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        named(axes, groups)
        axes.set_title(f"{titles[kind]}; 95% intervals", **NOTE)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.25), ncols=3, borderaxespad=0, columnspacing=1.2)
    return figure


# --- tokens -----------------------------------------------------------------------------------------------------------


def tokens(groups: Record) -> Figure:
    """Above: quadrants' shares of the tokens and of what lowers and raises. Below: concentration, and positions."""
    known = {label: group for label, group in groups.items() if group["tokens"]}
    figure = new_figure(DOUBLE, 5.0)
    (tops, bottoms) = figure.subplots(2, 2)
    for axes, key, title in ((tops[0], "down", "what lowers the entropy"), (tops[1], "up", "what raises it")):
        for place, (name, (label, colour)) in enumerate(LOOKS.items()):
            found = [group["tokens"]["classes"][name] for group in known.values()]
            shift = 0.2 * (place - 1.5)
            bar(axes, [one[key] for one in found], shift, 0.18, color=colour, label=label)
            ticks = [np.nan if one["tokens"]["value"] is None else one["tokens"]["value"] for one in found]
            axes.plot(np.arange(len(ticks)) + shift, ticks, "_", color="black", markersize=9, markeredgewidth=1.4)
        axes.set_title(f"shares of {title}; black lines: of the tokens", **NOTE)
        axes.set(ylim=(0, None))
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        named(axes, known)
    figure.legend(*tops[0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    _concentration(bottoms[0], known)
    _positions(bottoms[1], known)
    return figure


def _concentration(axes: Axes, groups: Record) -> None:
    look = colours(list(groups))
    for label, group in groups.items():
        for of, style in (("tokens", "-"), ("responses", (0, (4, 2)))):
            curve = group["tokens"]["curves"][of]
            if curve:
                name = label if of == "tokens" else None
                axes.plot(group["tokens"]["grid"], curve, color=look[label], linestyle=style, label=name)
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.6)
    axes.set(xlabel="share of the tokens (full) or responses (dashed),\nlargest first", ylabel="share of Σ |part|")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_title("concentration, means of steps; grey: all alike", **NOTE)
    axes.legend(loc="lower right", title="learning rate", title_fontsize=7)


def _positions(axes: Axes, groups: Record) -> None:
    look, longer = colours(list(groups)), False
    for label, group in groups.items():
        classes = group["tokens"]["classes"]
        names = [name for name in classes if name.startswith(("token_", "eighth_"))]
        longer |= any(name.startswith("eighth_") for name in names)
        for key, style in (("down", "-"), ("up", (0, (4, 2)))):
            found = [classes[name][key]["value"] for name in names]
            shares = [np.nan if one is None else one for one in found]
            at = [int(name.rpartition("_")[2]) + 1 for name in names]
            axes.plot(at, shares, color=look[label], linestyle=style, marker="o", markersize=2.2)
    axes.set(xlabel="eighth of the response" if longer else "token of the response", ylabel="share", ylim=(0, None))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_title("by position; full: of what lowers, dashed: raises", **NOTE)


# --- prompts ----------------------------------------------------------------------------------------------------------


def prompts(groups: Record) -> Figure:
    """The relative error of the entropy per token over prompts."""
    known = {label: group for label, group in groups.items() if group["prompts"]}
    figure = new_figure(0.6 * DOUBLE, 2.9)
    axes = figure.add_subplot()
    look = colours(list(known))
    for label, group in known.items():
        by = group["prompts"]["by_responses"]
        for G, style in ((min(by, key=int), (0, (4, 2))), (max(by, key=int), "-")):
            found = by[G]["curve"]["per_token"]
            sizes = sorted(map(int, found))
            values = [found[str(size)]["value"] for size in sizes]
            name = label if style == "-" else None
            axes.plot(sizes, values, color=look[label], linestyle=style, marker="o", markersize=2.2, label=name)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(10, (1, 2, 5)))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set(xlabel="prompts", ylabel="standard error / entropy per token")
    axes.set_title("medians of steps; full: all responses, dashed: 1 each", **NOTE)
    axes.legend(loc="best", title="learning rate", title_fontsize=7)
    return figure


# --- groups along the x axis ------------------------------------------------------------------------------------------


def colours(labels: Sequence[str]) -> dict[str, str]:
    """A colour for each learning rate, in their order, from dark to light."""
    places = np.linspace(0.05, 0.85, len(labels)) if len(labels) > 1 else [0.3]
    return {
        label: matplotlib.colors.to_hex(matplotlib.colormaps["viridis"](at))
        for label, at in zip(labels, places, strict=True)
    }


def _numbers(found: Sequence[Record | None]) -> tuple[np.ndarray, np.ndarray]:
    """Values (n,) and the lengths of their intervals' arms (2, n); NaN where there is none."""
    rows = [
        [np.nan if one is None or one[key] is None else one[key] for key in ("value", "low", "high")] for one in found
    ]
    value, low, high = np.array(rows, dtype=float).T
    return value, np.maximum(np.nan_to_num([value - low, high - value]), 0)


def dots(axes: Axes, found: Sequence[Record | None], shift: float, **look: Any) -> list[float]:
    """Values with intervals, at the places of the groups. -> all ends that were drawn"""
    value, arms = _numbers(found)
    at = np.arange(len(value)) + shift
    here = np.isfinite(value)
    if here.any():
        axes.errorbar(at[here], value[here], arms[:, here], linestyle="none", markersize=4, elinewidth=0.9, **look)
    return [*value[here], *(value - arms[0])[here], *(value + arms[1])[here]]


def bar(axes: Axes, found: Sequence[Record | None], shift: float, width: float, **look: Any) -> None:
    value, arms = _numbers(found)
    at, here = np.arange(len(value)) + shift, np.isfinite(value)
    if not here.any():
        return
    axes.bar(at[here], value[here], width, **look)
    axes.errorbar(at[here], value[here], arms[:, here], fmt="none", ecolor="black", elinewidth=0.8, capsize=1.5)


def named(axes: Axes, groups: Record) -> None:
    """The groups along the x axis."""
    names = list(groups)
    axes.set_xticks(range(len(names)), names, rotation=0 if max(map(len, names)) < 8 or len(names) < 3 else 30)
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.set_xlabel("learning rate")
    axes.grid(axis="y")
