"""The pictures of a comparison of controllers: rewards and entropies by step, pass@k, differences with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fluxentropy.comparison_figures import COLOURS, FOREST, NOTE, RESAMPLED, band, forest, resampled, unique
from fluxentropy.figures import DOUBLE, GREY, SINGLE, new_figure, paper, save
from fluxentropy.rl.grpocompareoptions import NONE
from fluxentropy.rl.grpojudging import ENTROPY, LOWEST, REWARD
from fluxentropy.verdict import LEVEL

Record = Mapping[str, Any]
WINDOW = 0.05  # of the steps: what a point of a curve is the mean of
TREATED = (REWARD, "greedy accuracy", "pass@")  # families of the forest plot, in this order


def draw_comparison(record: Record, records: Sequence[Record], out: Path) -> list[Path]:
    """Draw `grpo_comparison.json` and the records of its cells into the folder `out`, as PNG and SVG. -> the files"""
    runs: dict[str, dict[int, Record]] = {}
    for one in records:
        runs.setdefault(one["arm"], {})[one["seed"]] = one
    with paper():
        figures = {
            "trajectories": trajectories(record, runs),
            "pass_at_k": passes(record),
            "effects": effects(record),
        }
        return [file for name, figure in figures.items() if figure for file in save(figure, out / name)]


def colours_of(record: Record) -> dict[str, str]:
    """A colour for each arm; `none` is grey."""
    others = [name for name in record["arms"] if name != NONE]
    return {NONE: GREY} | {name: COLOURS[place % len(COLOURS)] for place, name in enumerate(others)}


def smoothed(values: np.ndarray, width: int) -> np.ndarray:
    """Means over a window of `width` steps around each, shorter at the ends. (S, T) -> (S, T)

    >>> smoothed(np.array([[0.0, 3.0, 6.0]]), 3).tolist()
    [[1.5, 3.0, 4.5]]
    """
    half, T = width // 2, values.shape[1]
    sums = np.cumsum(np.pad(values, ((0, 0), (1, 0))), axis=1)
    low, high = np.maximum(np.arange(T) - half, 0), np.minimum(np.arange(T) + half + 1, T)
    return np.asarray((sums[:, high] - sums[:, low]) / (high - low))


def trajectories(record: Record, runs: Mapping[str, Mapping[int, Record]]) -> Figure:
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
    for axes in panels.values():
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.grid(axis="y")
    lines, labels = unique(*panels.values())
    figure.legend(lines, labels, loc="outside lower center", ncols=min(len(labels), 4), handlelength=3.2)
    return figure


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


def effects(record: Record) -> Figure | None:
    """Two forest plots: rewards, accuracies and pass@k, and entropies; a row an arm, against `none`."""
    by_family: dict[str, list[Record]] = {}
    for one in record["comparisons"]:
        if one["seeds"]:
            by_family.setdefault(one["family"], []).append(one)
    if not by_family:
        return None
    above = [family for family in by_family if family.startswith(TREATED)]
    rows: list[list[str | Record]] = [_headed(by_family, families) for families in (above, [ENTROPY, LOWEST])]
    figure = new_figure(DOUBLE, 0.19 * sum(map(len, rows)) + 1.6)
    upper, lower = figure.subplots(2, 1, height_ratios=[len(part) + 1 for part in rows])
    forest(upper, rows[0], "difference", f"difference to {NONE}; above 0 is better", digits=3)
    forest(lower, rows[1], "difference", f"difference to {NONE} (nats per token)", digits=3)
    shown = [one for one in record["comparisons"] if one["seeds"]]
    upper.set_title(FOREST + RESAMPLED * resampled(shown, "difference"), **NOTE)
    return figure


def _headed(by_family: Mapping[str, Sequence[Record]], families: Sequence[str]) -> list[str | Record]:
    """The rows of a forest plot: the name of each family before its comparisons."""
    found: list[str | Record] = []
    for family in families:
        found += [family, *by_family[family]]
    return found
