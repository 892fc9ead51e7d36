"""The pictures of a finished run of GRPO: its entropy and reward, what explains the changes, and what tails there are.

    figures(run)        # run/figures/entropy_reward.png, .svg, ...

from `metrics.csv` (a row a step; columns "probe_*" are `ProbeRecord.row()` of the probed steps), and where they
are there `responses.parquet` (a row a response of the probed steps) and `attribution/*.parquet` (`write_attribution`).
A picture whose columns are not there is left out. Bars and bands are 95% intervals, 1.96 standard errors.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fluxentropy.errors import RunError, SourceError
from fluxentropy.figures import DOUBLE, GREY, SINGLE, new_figure, paper, save
from fluxentropy.metricsfile import Columns, read_metrics
from fluxentropy.rl.grpo_tails import (
    BLUE,
    GREEN,
    NOTE,
    RUST,
    VIOLET,
    attribution_figure,
    read_attribution,
    read_responses,
    tails_figure,
)
from fluxentropy.rl.rewardfit import fit_reward

Z = 1.96
CHANGE = "change of entropy (nats a sequence)"


def figures(run: Path) -> list[Path]:
    """Draw what can be drawn of the run in folder `run`, as PNG and SVG, into `run`/figures. -> the files

    Errors: `SourceError` for a folder without `metrics.csv`, or with one that cannot be read or has no row; `RunError`
    where the folder cannot be written.
    """
    try:
        metrics = read_metrics(run / "metrics.csv", words=True)
    except RunError as error:
        raise SourceError(f"{error}: give the folder of a run of GRPO") from error
    with paper():
        return [file for name, figure in run_figures(run, metrics) for file in save(figure, run / "figures" / name)]


def run_figures(run: Path, metrics: Columns) -> Iterator[tuple[str, Figure]]:
    """The names and figures that `figures` saves. Use it within `paper()`."""
    yield "entropy_reward", _entropy_reward(metrics)
    if some(metrics, "probe_measured_per_sequence", "probe_first_per_sequence"):
        yield "predicted_measured", _predicted_measured(metrics)
    if some(metrics, "probe_kernel_total", "probe_kernel_identical"):
        yield "kernel", _kernel(metrics)
    if some(metrics, "probe_batch_per_sequence", "probe_momentum_per_sequence"):
        yield "split", _split(metrics)
    if (found := _fit(metrics)) is not None:
        yield "reward_fit", found
    if (table := read_responses(run)) is not None:
        yield "tails", tails_figure(table)
    if (table := read_attribution(run)) is not None:
        yield "attribution", attribution_figure(table)


# --- parts of pictures ------------------------------------------------------------------------------------------------


def some(metrics: Columns, *names: str) -> bool:
    """Whether there is a step that has all of these numbers."""
    return all(name in metrics for name in names) and bool(
        np.isfinite(np.stack([metrics[name] for name in names])).all(0).any()
    )


def _line(axes: Axes, metrics: Columns, name: str, **look: Any) -> bool:
    """The numbers of a column over the steps that have them, with a band of 1.96 NAME_se."""
    if not some(metrics, name):
        return False
    here = np.isfinite(metrics[name])
    step, value = metrics["step"][here], metrics[name][here]
    if f"{name}_se" in metrics:
        half = Z * np.nan_to_num(metrics[f"{name}_se"][here])
        axes.fill_between(step, value - half, value + half, color=look.get("color"), alpha=0.2, linewidth=0)
    axes.plot(step, value, marker="o" if len(step) < 40 else None, markersize=2.2, **look)
    return True


def _steps(axes: Axes) -> None:
    axes.set_xlabel("optimizer step")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))


def _zero(axes: Axes) -> None:
    axes.axhline(0, color=GREY, linewidth=0.6, zorder=1)


def _entropy_reward(metrics: Columns) -> Figure:
    """Entropy per token, per sequence, and the reward, one above the other."""
    figure = new_figure(SINGLE, 4.6)
    token, sequence, reward = figure.subplots(3, 1, sharex=True)
    _line(token, metrics, "entropy_per_token", color=BLUE)
    token.set_ylabel("entropy\n(nats a token)")
    token.set_title("bands: 95% intervals between prompts", **NOTE)
    _line(sequence, metrics, "entropy_naive", color=RUST, label="−mean log-probability", linewidth=0.8)
    _line(sequence, metrics, "entropy_per_sequence", color=BLUE, label="mean ΣH")
    sequence.set_ylabel("entropy\n(nats a sequence)")
    _line(reward, metrics, "reward", color=GREEN, label="training")
    _line(reward, metrics, "eval_reward", color=VIOLET, label="evaluation")
    reward.set_ylabel("mean reward")
    for axes in (sequence, reward):
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="best")
    _steps(reward)
    return figure


def _predicted_measured(metrics: Columns) -> Figure:
    """Left the first order, right the second, against the change by importance weights on the same responses."""
    orders = [("probe_first_per_sequence", "predicted, first order")]
    if some(metrics, "probe_predicted_per_sequence", "probe_measured_per_sequence"):
        orders.append(("probe_predicted_per_sequence", "predicted, first and second order"))
    figure = new_figure(SINGLE * len(orders) + 0.2, SINGLE)
    for axes, (name, label) in zip(figure.subplots(1, len(orders), squeeze=False)[0], orders, strict=True):
        measured, predicted = metrics["probe_measured_per_sequence"], metrics[name]
        here = np.isfinite(measured) & np.isfinite(predicted)
        x, y = measured[here], predicted[here]
        errors = [
            Z * np.nan_to_num(metrics.get(f"{column}_se", np.zeros(len(here)))[here])
            for column in ("probe_measured_per_sequence", name)
        ]
        low = min((x - errors[0]).min(), (y - errors[1]).min(), 0.0)
        high = max((x + errors[0]).max(), (y + errors[1]).max(), 0.0)
        margin = 0.03 * (high - low) or 1e-6
        ends = (low - margin, high + margin)
        axes.plot(ends, ends, color=GREY, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
        axes.errorbar(x, y, xerr=errors[0], yerr=errors[1], fmt="none", ecolor=BLUE, elinewidth=0.5, alpha=0.35)
        axes.plot(x, y, "o", color=BLUE, markersize=3, markeredgewidth=0)
        axes.set(xlim=ends, ylim=ends, aspect="equal", xlabel=f"measured {CHANGE}", ylabel=label)
        off = float(np.sqrt(np.mean((y - x) ** 2)))
        axes.set_title(f"{len(x)} steps; RMS difference {off:.2g}; dashed: equal", **NOTE)
        axes.locator_params(nbins=5)
    return figure


KINDS = (
    ("identical", "same response", RUST),
    ("same_prompt", "same prompt", GREEN),
    ("cross_prompt", "other prompts", BLUE),
)


def _kernel(metrics: Columns) -> Figure:
    """Which pairs of responses carry this batch's part of the change, and the share of the kernel's diagonal."""
    figure = new_figure(DOUBLE, 2.8)
    parts, shares = figure.subplots(1, 2)
    _zero(parts)
    columns = {kind: metrics[f"probe_kernel_{kind}"] for kind, *_ in KINDS}
    for kind, label, colour in KINDS:
        _line(parts, metrics, f"probe_kernel_{kind}", color=colour, label=label)
    parts.set_ylabel(CHANGE)
    parts.set_title("this batch's part, by kind of pair", **NOTE)
    figure.legend(*parts.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    here = np.isfinite(np.stack(list(columns.values()))).all(0)
    size = np.sum([np.abs(column[here]) for column in columns.values()], axis=0)
    for kind, label, colour in KINDS:
        share = np.abs(columns[kind][here]) / np.where(size > 0, size, np.nan)
        shares.plot(metrics["step"][here], share, color=colour, label=label, marker="o", markersize=2.2)
    shares.set(ylabel="|part| / sum of |parts|", ylim=(0, 1))
    shares.set_title("share; a diagonal kernel would have all in 'same response'", **NOTE)
    for axes in (parts, shares):
        _steps(axes)
    return figure


SPLIT = (("batch", "this batch", BLUE), ("momentum", "momentum", RUST), ("decay", "weight decay", GREEN))


def _split(metrics: Columns) -> Figure:
    """AdamW's parts of the first-order change: each probed step's, and summed over them, with what was measured."""
    figure = new_figure(DOUBLE, 2.8)
    each, summed = figure.subplots(1, 2)
    for axes in (each, summed):
        _zero(axes)
    here = np.isfinite(metrics["probe_batch_per_sequence"])
    step = metrics["step"][here]
    for part, label, colour in SPLIT:
        name = f"probe_{part}_per_sequence"
        if _line(each, metrics, name, color=colour, label=label):
            summed.plot(step, np.nancumsum(metrics[name][here]), color=colour, label=label)
    if some(metrics, "probe_measured_per_sequence"):
        total = np.nancumsum(metrics["probe_measured_per_sequence"][here])
        summed.plot(step, total, color="black", linewidth=0.9, linestyle=(0, (4, 2)), label="measured, whole step")
    each.set_ylabel(CHANGE)
    summed.set_ylabel("nats a sequence")
    summed.set_title("summed over the probed steps", **NOTE)
    each.set_title("first-order change by AdamW's parts", **NOTE)
    figure.legend(*summed.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    for axes in (each, summed):
        _steps(axes)
    return figure


def _fit(metrics: Columns) -> Figure | None:
    """Reward against entropy with R = -a e^H + b, where there are steps enough."""
    if not some(metrics, "reward", "entropy_per_token"):
        return None
    H, R = metrics["entropy_per_token"], metrics["reward"]
    here = np.isfinite(H) & np.isfinite(R)
    if here.sum() < 4 or not np.ptp(H[here]) > 0:
        return None
    n = int(here.sum())
    fit = fit_reward(H[here], R[here], block=max(1, round(n ** (1 / 3))))
    figure = new_figure(SINGLE, 2.8)
    axes = figure.add_subplot()
    grid = np.linspace(0, fit.highest, 120)
    curve = [fit.predict(entropy) for entropy in grid]
    middle, half = (np.array(values) for values in zip(*curve, strict=True))
    axes.fill_between(grid, middle - Z * half, middle + Z * half, color=BLUE, alpha=0.15, linewidth=0)
    seen = grid >= fit.lowest
    axes.plot(grid[seen], middle[seen], color=BLUE)
    axes.plot(grid[~seen], middle[~seen], color=BLUE, linestyle=(0, (4, 3)), linewidth=0.9)
    points = axes.scatter(H[here], R[here], c=metrics["step"][here], cmap="viridis", s=7, linewidths=0, zorder=3)
    figure.colorbar(points, ax=axes, pad=0.02, aspect=30).set_label("optimizer step")
    ceiling = fit.ceiling
    axes.errorbar(0, ceiling.value, yerr=Z * ceiling.se, fmt="o", color=RUST, markersize=4, capsize=2, clip_on=False)
    axes.set(xlabel="entropy (nats a token)", ylabel="mean reward of a step", xlim=(0, None))
    axes.set_title(
        f"R = −a exp(H) + b: a = {fit.a.value:.3g} ± {Z * fit.a.se:.1g}, b = {fit.b.value:.3g} ± {Z * fit.b.se:.1g}\n"
        f"at H = 0: {ceiling.value:.3g} ± {Z * ceiling.se:.1g} (95%, if the law holds); R² = {fit.r_squared:.2f}",
        **NOTE,
    )
    return figure
