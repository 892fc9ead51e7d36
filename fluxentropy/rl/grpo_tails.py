"""Pictures of a run's single responses: how heavy the tails of their entropies are, and which tokens move the entropy.

`responses.parquet` has a row a response with `step`, `prompt`, `length` and `entropy`, the sum of H_k (nats);
`attribution/*.parquet` a row a token, as `attribution.write_attribution` writes it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from fluxentropy.errors import SourceError
from fluxentropy.figures import DOUBLE, GREY, new_figure
from fluxentropy.rl.attribution import FOLDER, QUADRANTS, by_quadrant
from fluxentropy.rl.precision import Precision, entropy_precision

BLUE, RUST, GREEN, VIOLET = "#2f6fa7", "#b4501e", "#2e7d5b", "#7a5195"
NOTE: dict[str, Any] = {"loc": "left", "fontsize": 7, "color": GREY}
RESPONSES = ("step", "prompt", "length", "entropy")
ATTRIBUTION = ("step", "prompt", "advantage", "logp", "entropy", "change")
QUANTILES = ((1.0, "largest", RUST), (0.99, "99%", VIOLET), (0.9, "90%", GREEN), (0.5, "median", BLUE))
BANDS = (0.0, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999, 1.0)  # of a token's probability
Z = 1.96
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
LOOKS = {
    "positive_rare": ("A > 0, rare", "#7fb2dd"), "positive_common": ("A > 0, common", BLUE),
    "negative_rare": ("A < 0, rare", "#e0a27c"), "negative_common": ("A < 0, common", RUST),
}  # fmt: skip


def read_responses(run: Path) -> dict[str, np.ndarray] | None:
    """The responses of a run's probed steps; None where the run kept none."""
    return _read([run / "responses.parquet"], RESPONSES)


def read_attribution(run: Path) -> dict[str, np.ndarray] | None:
    """The tokens of a run's attributed steps; None where there are none."""
    return _read(sorted((run / FOLDER).glob("*.parquet")), ATTRIBUTION)


def _read(files: list[Path], columns: tuple[str, ...]) -> dict[str, np.ndarray] | None:
    files = [file for file in files if file.is_file()]
    if not files:
        return None
    try:
        table = ds.dataset([str(file) for file in files], format="parquet").to_table(columns=list(columns))
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f"{files[0]}: {error}") from None
    return {name: table.column(name).to_numpy() for name in columns} if table.num_rows else None


# --- tails ------------------------------------------------------------------------------------------------------------


def tails_figure(table: dict[str, np.ndarray], replicates: int = 200) -> Figure:
    """Entropies of single responses; their quantiles in samples of any size; the error over prompts a batch."""
    entropy = table["entropy"]
    figure = new_figure(DOUBLE, 2.5)
    histogram, quantiles, precision = figure.subplots(1, 3)
    histogram.hist(entropy, bins=min(60, max(8, len(entropy) // 15)), color=BLUE, log=True)
    histogram.axvline(entropy.mean(), color="black", linewidth=0.9, linestyle=(0, (4, 2)))
    histogram.set(xlabel="entropy of a response, ΣH (nats)", ylabel="responses")
    _plain(histogram.yaxis)
    histogram.set_title(f"{len(entropy):,} responses; dashed: mean", **NOTE)
    _quantiles(quantiles, entropy, replicates)
    found = _precision(table)
    if found is None:
        figure.delaxes(precision)
    else:
        _errors(precision, found)
    return figure


def _quantiles(axes: Axes, entropy: np.ndarray, replicates: int) -> None:
    """Means of sample quantiles: those of a light tail settle, the largest of a heavy one keeps growing."""
    rng = np.random.default_rng(0)
    sizes = [2**power for power in range(2, len(entropy).bit_length()) if 2**power <= len(entropy)]
    drawn = [rng.choice(entropy, (replicates, size)) for size in sizes]
    for q, label, colour in QUANTILES:
        means = [float(np.quantile(sample, q, axis=1).mean()) for sample in drawn]
        axes.plot(sizes, means, color=colour, marker="o", markersize=2.2, label=label)
    axes.set_xscale("log", base=2)
    _plain(axes.xaxis)
    axes.set(xlabel="responses in a sample", ylabel="quantile of ΣH (nats)")
    axes.set_title("mean sample quantiles", **NOTE)
    axes.legend(loc="best")


def _precision(table: dict[str, np.ndarray]) -> list[Precision] | None:
    """Of the last step that was probed, if all its prompts have as many responses."""
    here = table["step"] == table["step"].max()
    _, counts = np.unique(table["prompt"][here], return_counts=True)
    if len(counts) < 4 or len(set(counts)) > 1:
        return None
    order = np.argsort(table["prompt"][here], kind="stable")
    entropy, length = (table[name][here][order].reshape(len(counts), -1) for name in ("entropy", "length"))
    return entropy_precision(entropy, length) if entropy.sum() > 0 else None


def _errors(axes: Axes, found: list[Precision]) -> None:
    sizes = [row.prompts for row in found]
    for name, label, colour in (("per_sequence", "per sequence", BLUE), ("per_token", "per token", RUST)):
        spreads = [getattr(row, name) for row in found]
        axes.plot(sizes, [100 * spread.relative for spread in spreads], "o", markersize=3, color=colour, label=label)
        theory = [100 * spread.relative / spread.se * spread.theory if spread.se else np.nan for spread in spreads]
        axes.plot(sizes, theory, color=colour, linewidth=0.8)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(10, (1, 2, 5)))
    for axis in (axes.xaxis, axes.yaxis):
        _plain(axis)
    axes.set(xlabel="prompts in a batch", ylabel="standard error\n(% of the entropy)")
    axes.set_title("lines: 1/√prompts", **NOTE)
    axes.legend(loc="best")


def _plain(axis: Axis) -> None:
    """Numbers on a logarithmic axis as they are, none at the minor ticks."""
    axis.set_major_formatter(StrMethodFormatter("{x:,.10g}"))
    axis.set_minor_formatter(NullFormatter())


# --- attribution ------------------------------------------------------------------------------------------------------


def attribution_figure(table: dict[str, np.ndarray]) -> Figure:
    """The quadrants' changes over the steps, and over all of them by the token's probability. Bars are 95% intervals
    between the prompts of the update."""
    figure = new_figure(DOUBLE, 2.9)
    over_steps, by_probability = figure.subplots(1, 2, width_ratios=(3, 2))
    steps = np.unique(table["step"])
    parts = {name: np.array([_quadrant(table, step, name) for step in steps]) for name in QUADRANTS}  # (steps, 2)
    over_steps.axhline(0, color=GREY, linewidth=0.6)
    near = float(np.diff(steps).min()) if len(steps) > 1 else 1.0
    for place, (name, (label, colour)) in enumerate(LOOKS.items()):
        beside = steps + near * 0.08 * (place - 1.5)  # bars do not hide each other
        change, error = parts[name].T
        over_steps.errorbar(beside, change, Z * error, fmt="none", ecolor=colour, elinewidth=0.6, alpha=0.6)
        over_steps.plot(beside, change, color=colour, marker="o", markersize=2.2, linewidth=0.9, label=label)
    total = np.sum([part[:, 0] for part in parts.values()], axis=0)
    over_steps.plot(steps, total, color="black", linewidth=0.9, linestyle=(0, (4, 2)), label="sum")
    over_steps.set(xlabel="optimizer step", ylabel=f"change of entropy\n{_scaled(over_steps.yaxis)}")
    over_steps.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
    over_steps.set_title("this batch's part; rare: ln p < −H; bars: 95%", **NOTE)
    figure.legend(*over_steps.get_legend_handles_labels(), loc="outside lower center", ncols=5)
    _by_probability(by_probability, table, len(steps))
    return figure


def _quadrant(table: dict[str, np.ndarray], step: int, name: str) -> tuple[float, float]:
    """The sum over a quadrant's tokens of a step, and its standard error between prompts."""
    here = table["step"] == step
    prompt, advantage, logp, entropy, change = (table[column][here] for column in ATTRIBUTION[1:])
    sums = np.bincount(prompt, change * by_quadrant(advantage, logp < -entropy)[name])
    return float(sums.sum()), float(np.sqrt(len(sums)) * sums.std(ddof=1)) if len(sums) > 1 else 0.0


def _by_probability(axes: Axes, table: dict[str, np.ndarray], steps: int) -> None:
    """Sums over the tokens of each band of probabilities, for either sign of the advantage, rare ones on top."""
    band = np.clip(np.searchsorted(BANDS, np.exp(table["logp"]), side="right") - 1, 0, len(BANDS) - 2)
    for shift, inside, label, colour in (
        (-0.2, table["advantage"] > 0, "A > 0", BLUE), (0.2, table["advantage"] < 0, "A < 0", RUST),
    ):  # fmt: skip
        sums = np.bincount(band[inside], table["change"][inside], minlength=len(BANDS) - 1) / steps
        axes.barh(np.arange(len(sums)) + shift, sums, height=0.4, color=colour, label=label)
    axes.axvline(0, color=GREY, linewidth=0.6)
    shares = np.bincount(band, minlength=len(BANDS) - 1) / len(band)
    labels = [
        f"{low:g}–{high:g} ({'<1%' if 0 < share < 0.005 else f'{share:.0%}'})"
        for low, high, share in zip(BANDS[:-1], BANDS[1:], shares, strict=True)
    ]
    axes.set_yticks(np.arange(len(labels)), labels)
    axes.invert_yaxis()
    axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    axes.set(xlabel=f"mean change a step\n{_scaled(axes.xaxis)}", ylabel="p of the token (share of tokens)")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2)


def _scaled(axis: Axis) -> str:
    """The unit of changes, with a power of ten that keeps the numbers on the axis short."""
    largest = float(np.abs(axis.get_data_interval()).max())
    power = int(np.floor(np.log10(largest))) if largest > 0 else 0
    if -2 <= power <= 3:
        return "(nats a sequence)"
    axis.set_major_formatter(lambda value, _: f"{value / 10**power:.3g}".replace("-", "−"))
    return f"(10{str(power).translate(RAISED)} nats a sequence)"
