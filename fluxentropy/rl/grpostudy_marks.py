"""What the pictures of a study of probed runs share: groups along the x axis, values and bars with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import matplotlib.colors
import numpy as np
from matplotlib.axes import Axes

Record = Mapping[str, Any]


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
