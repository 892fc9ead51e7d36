"""Labels in pictures: letters that can be drawn, and places where labels hide neither points nor each other."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from matplotlib import font_manager, patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from scipy.optimize import isotonic_regression

from fluxentropy.figures import FONT, GREY, ModelLook, settle

SIZE = 7  # of the letters, in printer's points


def lettering(label: str, width: int = 26) -> str:
    """`label` as it can be drawn: lines of `width` letters, broken at `-_/.` where possible, none outside the font.

    >>> lettering("meta-llama_Llama-3.2-1B-Instruct"), lettering("模型-7B")
    ('meta-llama_Llama-3.2-1B-\\nInstruct', '\\\\u6a21\\\\u578b-7B')
    """
    known = _known_letters()
    text = "".join(c if ord(c) in known and c.isprintable() else ascii(c)[1:-1] for c in label)
    return "\n".join(re.findall(rf".{{1,{width}}}(?:(?<=[-_/. ])|$)|.{{1,{width}}}", text)) or "(no name)"


@cache
def _known_letters() -> frozenset[int]:
    return frozenset(font_manager.get_font(font_manager.findfont(FONT)).get_charmap())


# --- at the ends of lines ---------------------------------------------------------------------------------------------


def label_ends(axes: Axes, ends: np.ndarray, labels: Sequence[str], looks: Sequence[ModelLook]) -> None:
    """Write each label right of the axes, at the height `ends` (n,) of its line's end, or as near as others allow."""
    unit = _unit_of(axes)
    bottom, top = axes.get_ylim()
    heights = np.nan_to_num((ends - bottom) / (top - bottom), nan=0.5)
    lines = 1 + max(label.count("\n") for label in labels)
    places = spread(heights, 1.3 * SIZE * lines * unit / axes.get_window_extent().height, 0.0, 1.0)
    for y0, y1, label, look in zip(heights, places, labels, looks, strict=True):
        style: dict[str, Any] = {"transform": axes.transAxes, "clip_on": False, "color": look.colour}
        axes.plot([0.995, 1.02, 1.03], [y0, y1, y1], **style, linewidth=0.6)
        axes.plot([1.03], [y1], **style, marker=look.marker, markersize=4.5, markeredgewidth=0)
        axes.text(1.045, y1, label, transform=axes.transAxes, va="center", fontsize=SIZE, linespacing=1.0)


def spread(places: np.ndarray, gap: float, low: float, high: float) -> np.ndarray:
    """The places nearest to `places` (n,), in the same order, that keep `gap` apart within `low`..`high`.

    Where they do not all fit, they stand evenly over `low`..`high`.

    >>> spread(np.array([5.0, 5.0, 1.0]), 1.0, 0.0, 10.0)
    array([4.5, 5.5, 1. ])
    """
    steps = np.arange(len(places)) * min(gap, (high - low) / max(len(places) - 1, 1))
    order = np.argsort(places, kind="stable")
    kept = isotonic_regression(places[order] - steps).x
    out = np.empty(len(places))
    out[order] = np.clip(kept, low, max(low, high - steps[-1])) + steps
    return out


# --- beside points ----------------------------------------------------------------------------------------------------


def label_points(axes: Axes, points: np.ndarray, labels: Sequence[str], *, clear: float = 4.0) -> list[Text]:
    """Write a label beside each point: in the frame, off all points and other labels, with a line unless next to it.

    points: (n, 2) in data units; `clear` is the radius of a point's mark, in printer's points. Call it last: limits and
    the size of the axes must not change after. Nothing is random.
    """
    unit = _unit_of(axes)
    frame = axes.get_window_extent()
    dots = axes.transData.transform(points)  # (n, 2) pixels
    halo = [patheffects.withStroke(linewidth=1.5, foreground="white")]
    style: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": SIZE, "linespacing": 1.0, "path_effects": halo}
    texts = [axes.text(0.5, 0.5, label, transform=axes.transAxes, **style) for label in labels]
    halves = np.array([[box.width, box.height] for box in (text.get_window_extent() for text in texts)]) / 2
    halves += np.array([2.5, 1.0]) * unit
    centres = _label_places(dots, halves, np.array(frame.extents).reshape(2, 2), clear, unit)
    to_fraction = axes.transAxes.inverted().transform
    for text, centre, half, dot in zip(texts, centres, halves, dots, strict=True):
        x, y = to_fraction(centre)
        text.set_position((float(x), float(y)))
        near = np.clip(dot, centre - half, centre + half)
        if np.hypot(*(near - dot)) > (clear + 4) * unit:
            line = to_fraction(np.stack([dot, near]))
            axes.plot(line[:, 0], line[:, 1], color=GREY, linewidth=0.4, transform=axes.transAxes, zorder=1)
    return texts


def _unit_of(axes: Axes) -> float:
    """Pixels in a printer's point, once the figure is laid out."""
    figure = axes.get_figure(root=True)
    assert isinstance(figure, Figure)
    settle(figure)
    return figure.dpi / 72


def _label_places(dots: np.ndarray, halves: np.ndarray, frame: np.ndarray, clear: float, unit: float) -> np.ndarray:
    """Centres (n, 2) for labels that reach `halves` (n, 2) from there, near `dots` (n, 2) and in `frame` (2, 2).

    Each label in turn takes the cheapest of many places around its point and over the whole frame, given where the
    others stand, until none moves. That depends on who comes first; of four such orders the cheapest result stays.
    """
    outer = np.argsort(np.hypot(*(dots - dots.mean(axis=0)).T), kind="stable")
    found = []
    for order in (outer, outer[::-1], np.argsort(dots[:, 0], kind="stable"), np.argsort(-dots[:, 0], kind="stable")):
        centres = np.full(dots.shape, np.inf)
        costs = np.full(len(dots), np.inf)
        for _ in range(6):
            before = centres.copy()
            for index in order:
                centres[index], costs[index] = _best_place(index, centres, dots, halves, frame, clear, unit)
            if np.array_equal(before, centres):
                break
        found.append((float(costs.sum()), centres))
    return min(found, key=lambda pair: pair[0])[1]


def _best_place(
    index: int, centres: np.ndarray, dots: np.ndarray, halves: np.ndarray, frame: np.ndarray, clear: float, unit: float
) -> tuple[np.ndarray, float]:
    """The centre (2,) for the label `index` that costs least, given the others' `centres`, and what it costs in pixels.

    Hidden points and labels cost most, then lines through labels, then lines through points, then the line's length.
    """
    dot, half, others = dots[index], halves[index], np.arange(len(dots)) != index
    choices = _choices(dot, half, frame, clear, unit)
    length = np.hypot(*(np.clip(dot, choices - half, choices + half) - dot).T)  # of the line to the label
    hits = _overlap(choices, half, centres[others], halves[others]) + _overlap(choices, half, dots, clear * unit)
    cost = 1e6 * hits + length
    nearest = np.argsort(cost, kind="stable")[:100]
    choices, cost, length = choices[nearest], cost[nearest], length[nearest]
    line = _line_to(dot, choices, half)  # (16, k, 2)
    placed = others & np.isfinite(centres[:, 0])
    lines = _line_to(dots[placed], centres[placed], halves[placed]).reshape(-1, 2)
    struck = _overlap(line, 0, centres[placed], halves[placed]).any(axis=0) + (_overlap(choices, half, lines, 0) > 0)
    strangers = dots[np.hypot(*(dots - dot).T) > unit]
    crossed = _overlap(line, 0, strangers, clear * unit).any(axis=0)
    apart = np.maximum(np.abs(choices[:, None] - strangers) - half, 0)  # (k, m, 2) from the label to other points
    doubt = np.clip(10 - (np.hypot(*apart.T).min(axis=0, initial=np.inf) - length) / unit, 0, 15)  # whose label is it?
    aside = (choices - dot) / half
    aside /= np.maximum(np.hypot(*aside.T), 1e-9)[:, None]
    outwards = (dot - dots.mean(axis=0)) / (np.hypot(*(dot - dots.mean(axis=0))) + unit)
    taste = 2 * np.abs(aside.prod(axis=1)) - 0.5 * aside @ outwards  # right above, below or beside; outwards
    cost += 1e4 * struck + unit * (100 * crossed + doubt + taste)
    best = int(np.argmin(cost))
    return choices[best], float(cost[best])


def _choices(dot: np.ndarray, half: np.ndarray, frame: np.ndarray, clear: float, unit: float) -> np.ndarray:
    """Centres (k, 2) to choose from: rings around the point, and a grid, as far as the label stays in the frame."""
    low, high = frame[0] + half, frame[1] - half
    if np.any(low > high):  # a label larger than the frame
        return (frame.sum(axis=0) / 2)[None]
    angles = np.radians(np.arange(0, 360, 15))
    reach = (clear + 1.5 + np.array([0, 2, 5, 9, 14, 20, 28, 38]))[:, None, None] * unit  # (8, 1, 1)
    rings = dot + np.stack([np.cos(angles), np.sin(angles)], axis=-1) * (half + reach)  # (8, 24, 2)
    grid = np.stack(np.meshgrid(*np.linspace(low, high, 20).T), axis=-1)
    choices = np.concatenate([rings.reshape(-1, 2), grid.reshape(-1, 2)])
    return choices[np.all((choices >= low) & (choices <= high), axis=1)]


def _line_to(dot: np.ndarray, centres: np.ndarray, half: np.ndarray) -> np.ndarray:
    """Places along the lines from `dot` to the nearest point of each label. (…, 2) -> (16, …, 2)"""
    near = np.clip(dot, centres - half, centres + half)
    return dot + np.linspace(0.0, 1.0, 16)[:, None, None] * (near - dot)


def _overlap(
    centres: np.ndarray, half: np.ndarray | float, others: np.ndarray, reach: np.ndarray | float
) -> np.ndarray:
    """How many boxes around `others` (m, 2) each box around `centres` (…, 2) touches. -> (…,)"""
    return np.all(np.abs(centres[..., None, :] - others) < half + np.asarray(reach), axis=-1).sum(axis=-1)
