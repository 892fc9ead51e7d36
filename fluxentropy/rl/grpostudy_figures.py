"""The pictures of a study of probed runs: predictions, validity, parts, tokens, prompts."""

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

from fluxentropy.figures import DOUBLE, GREY, new_figure, paper, save
from fluxentropy.rl.grpo_tails import BLUE, GREEN, LOOKS, NOTE, RUST, VIOLET
from fluxentropy.rl.stepanswers import PREDICTIONS

Record = Mapping[str, Any]
Z = 1.96
MARKS = {"first": (BLUE, "o"), "predicted": (RUST, "s"), "snis": (GREEN, "^")}
PARTS = {
    "optimizer": {"batch": ("this batch", BLUE), "momentum": ("momentum", RUST), "decay": ("weight decay", GREEN)},
    "pairs": {
        "identical": ("same response", RUST), "same_prompt": ("same prompt", GREEN),
        "cross_prompt": ("other prompts", BLUE),
    },
}  # fmt: skip


def draw_study(record: Record, out: Path) -> list[Path]:
    """Draw `study.json` into the folder `out`, as PNG and SVG; what is missing is left out. -> the files"""
    with paper():
        return [file for name, figure in study_figures(record) for file in save(figure, out / name)]


def study_figures(record: Record) -> Iterator[tuple[str, Figure]]:
    """The names and figures that `draw_study` saves. Use it within `paper()`."""
    groups = record["groups"]
    if any(group["predictions"] for group in groups.values()):
        yield "predictions", predictions(record)
    if any({"eta_star", "effective_share"} & group["validity"].keys() for group in groups.values()):
        yield "validity", validity(groups)
    if any(group["optimizer"] or group["pairs"] for group in groups.values()):
        yield "parts", parts(groups)
    if any(group["tokens"] for group in groups.values()):
        yield "tokens", tokens(groups)
    if any(group["prompts"] for group in groups.values()):
        yield "prompts", prompts(groups)


def colours(labels: Sequence[str]) -> dict[str, str]:
    """A colour for each learning rate, in their order, from dark to light."""
    places = np.linspace(0.05, 0.85, len(labels)) if len(labels) > 1 else [0.3]
    return {
        label: matplotlib.colors.to_hex(matplotlib.colormaps["viridis"](at))
        for label, at in zip(labels, places, strict=True)
    }


# --- predictions ------------------------------------------------------------------------------------------------------


def predictions(record: Record) -> Figure:
    """Left: each step's predicted against its measured change. Right: the relative error of each prediction."""
    figure = new_figure(DOUBLE, 3.3)
    each, error = figure.subplots(1, 2)
    _points(each, record)
    _errors(error, record)
    for axes, columns in ((each, 2), (error, 3)):
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="lower center", bbox_to_anchor=(0.5, -0.42), ncols=columns, columnspacing=1.2)
    return figure


def _points(axes: Axes, record: Record) -> None:
    name = next(one for one in PREDICTIONS if any(one in group["predictions"] for group in record["groups"].values()))
    keys = [f"{one}_per_{record['unit']}{end}" for one in ("measured", name) for end in ("", "_se")]
    look = colours(list(record["groups"]))
    reach, smallest = 0.0, np.inf
    for label in record["groups"]:
        found = record["points"][label]
        if any(key not in found for key in keys):
            continue
        m, se_m, p, se_p = (np.array([np.nan if x is None else x for x in found[key]]) for key in keys)
        here = np.isfinite(m + p)
        if not here.any():
            continue
        bars: dict[str, Any] = {"fmt": "none", "elinewidth": 0.5, "alpha": 0.35}
        axes.errorbar(p[here], m[here], Z * se_m[here], Z * se_p[here], ecolor=look[label], **bars)
        axes.plot(p[here], m[here], "o", color=look[label], markersize=3, markeredgewidth=0, label=label)
        reach = max(reach, float(np.nanmax(np.abs([p[here], m[here]]))))
        smallest = min(smallest, float(np.nanmedian(np.abs(m[here]))))
    end = 1.3 * (reach or 1e-9)
    linear = float(np.clip(smallest, end / 1e3, end))
    line = np.concatenate([-np.geomspace(end, linear / 20, 100), np.geomspace(linear / 20, end, 100)])
    share = record["tolerance"]
    axes.fill_between(line, line * (1 - share), line * (1 + share), color=GREY, alpha=0.2, linewidth=0, zorder=0)
    axes.plot(line, line, color=GREY, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
    for scale in (axes.set_xscale, axes.set_yscale):
        if end > 5 * linear:
            scale("symlog", linthresh=linear, linscale=0.6)
    axes.set(xlim=(-end, end), ylim=(-end, end))
    axes.set(xlabel=f"predicted, {PREDICTIONS[name]} (nats a {record['unit']})", ylabel="measured change")
    axes.set_title(f"dashed: equal; grey: within {share:.0%}; bars: 95%", **NOTE)
    axes.tick_params(axis="x", rotation=45)


def _errors(axes: Axes, record: Record) -> None:
    groups, seen = record["groups"], []
    for place, (name, (colour, mark)) in enumerate(MARKS.items()):
        found = [group["predictions"].get(name, {}).get("rms_true") for group in groups.values()]
        seen += _dots(axes, found, 0.18 * (place - 1), color=colour, marker=mark, label=PREDICTIONS[name])
    axes.axhline(record["tolerance"], color=GREY, linewidth=0.8, linestyle=(0, (4, 3)))
    if positive := [value for value in seen if value > 0]:
        axes.set_yscale("log")
        low = max(min(positive), 1e-4) / 2
        axes.set_ylim(low, max(*positive, record["tolerance"]) * 2)
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    _named(axes, groups)
    axes.set(ylabel="error / measured change (rms, noise taken off)")
    axes.set_title(f"95% intervals; dashed: tolerated {record['tolerance']:.0%}", **NOTE)


def validity(groups: Record) -> Figure:
    """Left: eta* and the ghost radius. Right: the effective sample size."""
    figure = new_figure(DOUBLE, 2.5)
    far, sample = figure.subplots(1, 2)
    for place, (key, label, colour, mark) in enumerate(
        (("eta_star", "eta*", BLUE, "o"), ("ghost_radius", "ghost radius", RUST, "s"))
    ):
        found = [group["validity"].get(key) for group in groups.values()]
        _dots(far, found, 0.2 * (place - 0.5), color=colour, marker=mark, label=label)
    far.axhline(1, color=GREY, linewidth=0.8, linestyle=(0, (4, 3)))
    far.set_yscale("log")
    far.set(ylabel="reach of the expansion (steps)")
    far.set_title("medians of steps with 95% intervals; dashed: the step", **NOTE)
    far.legend(loc="best")
    found = [group["validity"].get("effective_share") for group in groups.values()]
    _dots(sample, found, 0, color=BLUE, marker="o")
    sample.axhline(0.5, color=GREY, linewidth=0.8, linestyle=(0, (4, 3)))
    sample.set(ylim=(0, 1.05), ylabel="effective sample size / responses")
    sample.set_title("dashed: warned of below", **NOTE)
    for axes in (far, sample):
        _named(axes, groups)
    return figure


# --- parts ------------------------------------------------------------------------------------------------------------


def parts(groups: Record) -> Figure:
    """A row a kind of parts. Left: shares of a step's change. Right: shares of the magnitude."""
    kinds = [kind for kind in PARTS if any(group[kind] for group in groups.values())]
    figure = new_figure(DOUBLE, 2.6 * len(kinds))
    titles = {"optimizer": "first-order change, by the optimizer's step", "pairs": "this batch's part, by pairs"}
    for kind, (signed, size) in zip(kinds, figure.subplots(len(kinds), 2, squeeze=False), strict=True):
        for axes, key in ((signed, "share"), (size, "size")):
            _bars(axes, groups, kind, key)
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
            _named(axes, groups)
        signed.set(ylabel="share of a step's change")
        size.set(ylabel="Σ |part| / Σ Σ |parts|", ylim=(0, 1.05))
        _limited(signed)
        signed.set_title(f"{titles[kind]}; 95% intervals", **NOTE)
        signed.legend(loc="best")
    return figure


def _bars(axes: Axes, groups: Record, kind: str, key: str) -> None:
    for place, (name, (label, colour)) in enumerate(PARTS[kind].items()):
        found = [group[kind]["parts"][name][key] if group[kind] else None for group in groups.values()]
        _bar(axes, found, 0.26 * (place - 1), 0.24, color=colour, label=label)
    axes.axhline(0, color="black", linewidth=0.6)


def _limited(axes: Axes) -> None:
    """Keep the bars readable where a whole near 0 makes intervals endless."""
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, -3), min(high, 4))


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
            _bar(axes, [one[key] for one in found], shift, 0.18, color=colour, label=label)
            ticks = [np.nan if one["tokens"]["value"] is None else one["tokens"]["value"] for one in found]
            axes.plot(np.arange(len(ticks)) + shift, ticks, "_", color="black", markersize=9, markeredgewidth=1.4)
        axes.set_title(f"shares of {title}; black lines: of the tokens", **NOTE)
        axes.set(ylim=(0, None))
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        _named(axes, known)
    tops[0].legend(loc="best")
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
    """Left: the relative error over prompts, per token. Right: prompts needed."""
    known = {label: group for label, group in groups.items() if group["prompts"]}
    figure = new_figure(DOUBLE, 2.9)
    curve, needed = figure.subplots(1, 2)
    look = colours(list(known))
    for label, group in known.items():
        by = group["prompts"]["by_responses"]
        for G, style in ((min(by, key=int), (0, (4, 2))), (max(by, key=int), "-")):
            found = by[G]["curve"]["per_token"]
            sizes = [int(size) for size in sorted(found, key=int)]
            values = [found[str(size)]["value"] for size in sizes]
            name = f"{label}, {G} response{'s' * (G != '1')} each"
            curve.plot(sizes, values, color=look[label], linestyle=style, marker="o", markersize=2.2, label=name)
    curve.set_xscale("log", base=2)
    curve.set_yscale("log")
    curve.yaxis.set_major_locator(LogLocator(10, (1, 2, 5)))
    curve.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    curve.yaxis.set_minor_formatter(NullFormatter())
    curve.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    curve.set(xlabel="prompts", ylabel="standard error / entropy per token")
    curve.set_title("batches drawn from a step's; medians of steps", **NOTE)
    curve.legend(loc="best", fontsize=6)
    for place, (share, colour) in enumerate((("0.01", RUST), ("0.05", VIOLET), ("0.1", BLUE))):
        found = [
            group["prompts"]["by_responses"][max(group["prompts"]["by_responses"], key=int)]["needed"]["per_token"][
                share
            ]
            for group in known.values()
        ]
        _dots(needed, found, 0.2 * (place - 1), color=colour, marker="o", label=f"{float(share):.0%}")
    needed.set_yscale("log")
    needed.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    needed.yaxis.set_minor_formatter(NullFormatter())
    needed.set(ylabel="prompts needed")
    needed.set_title("for a relative error of (all responses, 95% intervals)", **NOTE)
    needed.legend(loc="best", ncols=3)
    _named(needed, known)
    return figure


# --- parts of pictures ------------------------------------------------------------------------------------------------


def _numbers(found: Sequence[Record | None]) -> tuple[np.ndarray, np.ndarray]:
    """Values (n,) and the lengths of their intervals' arms (2, n); NaN where there is none."""
    rows = [
        [np.nan if one is None or one[key] is None else one[key] for key in ("value", "low", "high")] for one in found
    ]
    value, low, high = np.array(rows, dtype=float).T
    return value, np.maximum(np.nan_to_num([value - low, high - value]), 0)


def _dots(axes: Axes, found: Sequence[Record | None], shift: float, **look: Any) -> list[float]:
    """Values with intervals, at the places of the groups. -> all ends that were drawn"""
    value, arms = _numbers(found)
    at = np.arange(len(value)) + shift
    here = np.isfinite(value)
    if here.any():
        axes.errorbar(at[here], value[here], arms[:, here], linestyle="none", markersize=4, elinewidth=0.9, **look)
    return [*value[here], *(value - arms[0])[here], *(value + arms[1])[here]]


def _bar(axes: Axes, found: Sequence[Record | None], shift: float, width: float, **look: Any) -> None:
    value, arms = _numbers(found)
    at, here = np.arange(len(value)) + shift, np.isfinite(value)
    if not here.any():
        return
    axes.bar(at[here], value[here], width, **look)
    axes.errorbar(at[here], value[here], arms[:, here], fmt="none", ecolor="black", elinewidth=0.8, capsize=1.5)


def _named(axes: Axes, groups: Record) -> None:
    """The groups along the x axis."""
    names = list(groups)
    axes.set_xticks(range(len(names)), names, rotation=0 if max(map(len, names)) < 8 or len(names) < 3 else 30)
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.set_xlabel("learning rate" if "," not in "".join(names) else "learning rate, controller")
    axes.grid(axis="y")
