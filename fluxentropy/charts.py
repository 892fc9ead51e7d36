"""Small charts as inline SVG: they take the colours of the page, light, dark or printed, and need no picture file.

All are drawn on W x H units and scaled to the width of their column; the style sheet `report.css` has their colours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fluxentropy.markup import Markup, clipped, el

W, H = 380, 225
LEFT, RIGHT, TOP, BOTTOM = 56, 10, 10, 40
COLOURS = 8  # classes s0 … s7 of the style sheet
SHADES = 24  # classes f0 … f23, of ordered things
POINTS = 300  # of a line, at most
LINES = 16  # in a chart, at most


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of a chart; places where `y` is NaN are passed over."""

    name: str
    x: np.ndarray
    y: np.ndarray


@dataclass(frozen=True)
class Axis:
    """Maps numbers from `low`…`high` to units from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def histogram(edges: np.ndarray, counts: np.ndarray, *, title: str, label: str, mark: float | None = None) -> Markup:
    """Bars of `counts` (B,) between `edges` (B + 1,); a dashed line at `mark`."""
    x, y = _axes((edges[0], edges[-1]), (0, max(float(counts.max(initial=0)), 1)))
    bars = [
        el("rect", x=x(low) + 0.4, width=max(x(high) - x(low) - 0.8, 0.4), y=y(count), height=y(0) - y(count))
        for low, high, count in zip(edges[:-1], edges[1:], counts.tolist(), strict=True)
        if count
    ]
    line = _mark(x, mark) if mark is not None and edges[0] <= mark <= edges[-1] else None
    return _chart(title, _frame(x, y, label, "texts"), el("g", bars, class_="bars"), line)


def lines(given: Sequence[Line], *, title: str, label: str, unit: str) -> Markup:
    """Up to LINES lines over one axis, with a legend below where there are several."""
    shown = [line for line in map(_thinned, given[:LINES]) if len(line.x)]
    if not shown:
        return Markup()
    spans = [(min(a.min() for a in axis), max(a.max() for a in axis)) for axis in _columns(shown)]
    x, y = _axes(*spans)
    drawn = [
        el("polyline", points=" ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in zip(line.x, line.y, strict=True)),
           class_=f"line s{place % COLOURS}" + " dashed" * (place >= COLOURS))
        if len(line.x) > 1
        else el("circle", cx=x(line.x[0]), cy=y(line.y[0]), r=3, class_=f"dot s{place % COLOURS}")
        for place, line in enumerate(shown)
    ]  # fmt: skip
    more = f" {len(given) - LINES} more lines are not drawn." if len(given) > LINES else ""
    legend = el("ul", (_key(place, line.name) for place, line in enumerate(shown)), class_="legend")
    return _chart(title + more, _frame(x, y, label, unit), *drawn, after=legend if len(shown) > 1 else None)


def areas(at: np.ndarray, shares: np.ndarray, *, title: str, label: str, name: str) -> Markup:
    """Stacked shares (P, K) of K ordered things over P pieces that end at `at` (P,), each as dark as it is high."""
    x, y = _axes((0, float(at[-1])), (0, 1))
    starts = [0.0, *at[:-1].tolist()]
    tops = np.cumsum(np.nan_to_num(shares), axis=1)
    below = np.concatenate([np.zeros((len(tops), 1)), tops[:, :-1]], axis=1)
    kinds = shares.shape[1]
    drawn = [
        el("path", d=_step_area(x, y, starts, at.tolist(), below[:, k], tops[:, k]), class_=f"f{shade(k, kinds)}")
        for k in range(kinds)
        if (tops[:, k] > below[:, k]).any()
    ]
    ends = [el("li", el("i", class_=f"f{shade(k, kinds)}"), f"{name} {k}") for k in sorted({0, kinds // 2, kinds - 1})]
    return _chart(title, _frame(x, y, label, "share of the blocks"), *drawn, after=el("ul", ends, class_="legend"))


def columns(names: Sequence[str], values: Sequence[float], *, title: str, label: str, unit: str) -> Markup:
    """A bar for each name, from zero up."""
    x, y = _axes((0, len(values)), (min(0.0, *values), max(*values, 1e-12)))
    bars = [
        el("rect", x=x(place) + 2, width=max(x(place + 1) - x(place) - 4, 1), y=y(max(value, 0)),
           height=abs(y(0) - y(value)))
        for place, value in enumerate(values)
    ]  # fmt: skip
    step = math.ceil(len(names) / 12)
    ticks = [
        el("text", clipped(name, 9), x=x(place + 0.5), y=H - BOTTOM + 14, class_="mid")
        for place, name in enumerate(names)
        if place % step == 0
    ]
    return _chart(title, _frame(x, y, label, unit, across=False), el("g", bars, class_="bars"), *ticks)


def shade(place: int, of: int) -> int:
    """The shade of one of `of` ordered things, without the ends of the scale, which are close to the page.

    >>> [shade(place, 4) for place in range(4)]
    [3, 9, 14, 20]
    """
    return round(3 + (SHADES - 7) * place / max(of - 1, 1))


# --- parts ------------------------------------------------------------------------------------------------------------


def _chart(title: str, *parts: Markup | None, after: Markup | None = None) -> Markup:
    """A figure whose caption also names it for those who cannot see it."""
    name = el("title", title)
    drawing = el("svg", name, parts, viewBox=f"0 0 {W} {H}", role="img", class_="chart")
    return el("figure", el("figcaption", title), drawing, after, class_="small")


def _axes(across: tuple[float, float], up: tuple[float, float]) -> tuple[Axis, Axis]:
    (x0, x1), (y0, y1) = (_apart(*map(float, span)) for span in (across, up))
    room = 0.04 * (y1 - y0)
    return Axis(x0, x1, LEFT, W - RIGHT), Axis(y0 - room * (y0 != 0), y1 + room * (y1 != 1), H - BOTTOM, TOP)


def _apart(low: float, high: float) -> tuple[float, float]:
    """The same span, or one around it where it has no width."""
    if high - low > 1e-12 * max(abs(low), abs(high), 1e-300):
        return low, high
    return (low - 0.05 * abs(low), high + 0.05 * abs(high)) if low else (0.0, 1.0)


def _frame(x: Axis, y: Axis, label: str, unit: str, *, across: bool = True) -> Markup:
    """Grid, ticks, and the names of the axes."""
    rows = [
        (el("line", x1=LEFT, x2=W - RIGHT, y1=y(tick), y2=y(tick)),
         el("text", short(tick), x=LEFT - 6, y=y(tick) + 4, class_="end"))
        for tick in _ticks(y.low, y.high, 4)
    ]  # fmt: skip
    feet = [
        el("text", short(tick), x=x(tick), y=H - BOTTOM + 14, class_="mid")
        for tick in _ticks(x.low, x.high, 5)
        if across
    ]
    names = [
        el("text", label, x=(LEFT + W - RIGHT) / 2, y=H - 6, class_="mid name"),
        el(
            "text",
            unit,
            x=0,
            y=0,
            transform=f"translate(12 {(TOP + H - BOTTOM) / 2:.0f}) rotate(-90)",
            class_="mid name",
        ),
    ]
    return el("g", rows, feet, names, class_="frame")


def _mark(x: Axis, value: float) -> Markup:
    return el("line", x1=x(value), x2=x(value), y1=TOP, y2=H - BOTTOM, class_="mark")


def _key(place: int, name: str) -> Markup:
    return el(
        "li", el("i", class_=f"s{place % COLOURS}" + " dashed" * (place >= COLOURS)), el("bdi", clipped(name, 40))
    )


def _step_area(
    x: Axis, y: Axis, starts: Sequence[float], ends: Sequence[float], low: np.ndarray, high: np.ndarray
) -> str:
    """The outline of an area that is constant over each piece."""
    over = [f"{x(at):.1f} {y(top):.1f}" for a, b, top in zip(starts, ends, high, strict=True) for at in (a, b)]
    under = [f"{x(at):.1f} {y(foot):.1f}" for a, b, foot in zip(starts, ends, low, strict=True) for at in (a, b)]
    return "M" + "L".join([*over, *reversed(under)]) + "Z"


def _thinned(line: Line) -> Line:
    """`line` without what is no number, in at most POINTS places, the last included."""
    there = np.isfinite(line.x) & np.isfinite(line.y)
    x, y = line.x[there], line.y[there]
    kept = np.unique(np.linspace(0, len(x) - 1, min(len(x), POINTS)).round().astype(np.int64)) if len(x) else slice(0)
    return Line(name=line.name, x=x[kept], y=y[kept])


def _columns(shown: Sequence[Line]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    return [line.x for line in shown], [line.y for line in shown]


def _ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers within `low`…`high`.

    >>> _ticks(0, 1, 4), _ticks(1.07, 5.13, 5)
    ([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], [2.0, 3.0, 4.0, 5.0])
    """
    raw = (high - low) / about
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(size * unit for size in (1, 2, 2.5, 5, 10) if size * unit >= raw * 0.8)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(place * step, 12) for place in range(first, last + 1)]


def short(number: float) -> str:
    """
    >>> short(1200000.0), short(0.05), short(250.0), short(25000.0)
    ('1.2M', '0.05', '250', '25k')
    """
    for size, sign in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(number) >= size:
            return f"{number / (1e3 if sign == 'k' else size):.4g}{sign}"
    return f"{number:.4g}"
