"""What the pictures of a diagnosis share: colours, grids of panels, labels and limits."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fluxentropy.figure_labels import lettering
from fluxentropy.figures import DOUBLE, GREY, SINGLE, new_figure

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
