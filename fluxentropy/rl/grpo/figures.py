"""The pictures of a finished run of GRPO: its entropy and reward, what explains the changes, and what tails there are.

    figures(run)        # run/figures/entropy_reward.png, .svg, ...

from `metrics.csv` (a row a step; columns "probe_*" are `ProbeRecord.row()` of the probed steps), and where they
are there `responses.parquet` (a row a response of the probed steps) and `attribution/*.parquet` (`write_attribution`).
A picture whose columns are not there is left out. Bars and bands are 95% intervals, 1.96 standard errors.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from fluxentropy.errors import RunError, SourceError, UsageError
from fluxentropy.figures import DOUBLE, GREY, SINGLE, new_figure, paper, save
from fluxentropy.rl.probe.attribution import FOLDER, QUADRANTS, by_quadrant
from fluxentropy.rl.probe.estimate import Estimate, Precision, entropy_precision
from fluxentropy.runs.tables import Columns, read_metrics

# --- tails ------------------------------------------------------------------------------------------------------------
#
# `responses.parquet` has a row a response with `step`, `prompt`, `length` and `entropy`, the sum of H_k (nats);
# `attribution/*.parquet` a row a token, as `attribution.write_attribution` writes it.


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


# --- reward as a function of entropy ----------------------------------------------------------------------------------
#
# With x = e^H it is a straight line, fitted by least squares: a = -Cov(x, R)/Var(x), b = R̄ + a x̄. Where the entropy is
# used up, H = 0, the reward is -a + b: more can only come from elsewhere. Source: Cui et al. 2025, an empirical law; H
# is per token there (nats).
#
# Standard errors: those of least squares with independent residuals of equal variance, or, since the steps of a run are
# not independent, a moving-block bootstrap. The ceiling usually lies outside the entropies that were seen: its error
# holds if the law does.


LARGEST = 700.0  # nats; e^H is no float64 beyond 709


@dataclass(frozen=True, kw_only=True)
class RewardFit:
    """a, b and the ceiling -a + b (in units of the reward), with standard errors.

    `covariance` (2, 2) is that of (a, b); `r_squared` the share of the reward's variance that the curve explains, NaN
    where the reward does not vary; `lowest` and `highest` the entropies (nats) that were fitted, `points` how many.
    """

    a: Estimate
    b: Estimate
    ceiling: Estimate
    covariance: np.ndarray
    r_squared: float
    residual_sd: float
    lowest: float
    highest: float
    points: int

    def predict(self, entropy: float) -> Estimate:
        """-a e^H + b at an entropy (nats); the error is that of the curve, without the residual's spread."""
        return _at(entropy, self.a.value, self.b.value, self.covariance)


def fit_reward(
    entropy: np.ndarray, reward: np.ndarray, *, block: int | None = None, replicates: int = 1000, seed: int = 0
) -> RewardFit:
    """Fit R = -a e^H + b to the steps of a run. entropy (nats a token) and reward (n,)

    `block` None: errors of least squares. Otherwise they are the spread over `replicates` series made of blocks of so
    many successive steps, about as many as the residuals stay correlated; at most n/2.

    Errors: `UsageError` for fewer than 3 steps, entropies that are all equal, values that are not finite, entropies
    above 700 nats, and blocks outside [1, n/2].

    >>> fit = fit_reward(np.log([1.0, 2.0, 3.0]), np.array([0.7, 0.5, 0.3]))
    >>> round(fit.a.value, 6), round(fit.b.value, 6), round(fit.ceiling.value, 6)
    (0.2, 0.9, 0.7)
    """
    H, R = (np.asarray(column, np.float64) for column in (entropy, reward))
    _check(H, R, block)
    x = np.exp(H)
    a, b = _fit_line(x, R)
    residuals = R - (b - a * x)
    variance = float(residuals @ residuals / (len(R) - 2))
    covariance = _least_squares(x, variance) if block is None else _bootstrap(x, R, block, replicates, seed)
    total = float(((R - R.mean()) ** 2).sum())
    return RewardFit(
        a=Estimate(float(a), float(covariance[0, 0] ** 0.5)),
        b=Estimate(float(b), float(covariance[1, 1] ** 0.5)),
        ceiling=_at(0.0, float(a), float(b), covariance),
        covariance=covariance,
        r_squared=1 - float(residuals @ residuals) / total if total else float("nan"),
        residual_sd=variance**0.5,
        lowest=float(H.min()),
        highest=float(H.max()),
        points=len(H),
    )


def _check(H: np.ndarray, R: np.ndarray, block: int | None) -> None:
    if H.ndim != 1 or H.shape != R.shape:
        raise UsageError(
            f"entropies of shape {H.shape} and rewards of shape {R.shape}: give one of each for every step"
        )
    if len(H) < 3:
        raise UsageError(f"{len(H)} steps: a curve of 2 parameters with errors needs at least 3")
    for name, column in (("entropy", H), ("reward", R)):
        if not np.isfinite(column).all():
            raise UsageError(f"the {name} of step {int(np.argmin(np.isfinite(column)))} is not finite: leave it out")
    if H.max() > LARGEST:
        raise UsageError(f"an entropy of {H.max():g} nats: e^H is no number; use the entropy per token")
    if not np.ptp(np.exp(H)) > 0:
        raise UsageError(f"every entropy is {H[0]:g}: nothing to fit")
    if block is not None and not 1 <= block <= len(H) // 2:
        raise UsageError(f"blocks of {block} steps: use 1 to {len(H) // 2}, half of the run")


def _fit_line(x: np.ndarray, R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(a, b) of R = -a x + b along the last axis."""
    centred = x - x.mean(-1, keepdims=True)
    a = -(centred * R).sum(-1) / (centred**2).sum(-1)
    return a, R.mean(-1) + a * x.mean(-1)


def _least_squares(x: np.ndarray, variance: float) -> np.ndarray:
    spread = ((x - x.mean()) ** 2).sum()
    mean = x.mean()
    return variance * np.array([[1 / spread, mean / spread], [mean / spread, 1 / len(x) + mean**2 / spread]])


def _bootstrap(x: np.ndarray, R: np.ndarray, block: int, replicates: int, seed: int) -> np.ndarray:
    n = len(x)
    rng = np.random.default_rng(seed)
    starts = rng.integers(0, n - block + 1, size=(replicates, -(-n // block)))
    at = (starts[..., None] + np.arange(block)).reshape(replicates, -1)[:, :n]
    varies = np.ptp(x[at], axis=1) > 0
    return np.cov(np.stack(_fit_line(x[at[varies]], R[at[varies]])))


def _at(entropy: float, a: float, b: float, covariance: np.ndarray) -> Estimate:
    slope = np.array([-np.exp(entropy), 1.0])
    return Estimate(float(slope @ [a, b]), float(max(slope @ covariance @ slope, 0.0) ** 0.5))


# --- figures ----------------------------------------------------------------------------------------------------------


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
