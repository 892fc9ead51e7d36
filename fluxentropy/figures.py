"""What all pictures share: the style of a paper, files of fixed bytes, the looks and labels of models.

Pictures are drawn with matplotlib's objects, never with pyplot, and nothing global changes:

    with paper():
        figure = new_figure(SINGLE, 2.5)
        figure.add_subplot().plot([1, 2, 3])
    save(figure, folder / "curve")          # curve.png, curve.svg
"""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib import font_manager, patheffects
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from scipy.optimize import isotonic_regression

from fluxentropy.runs.files import atomic_path

# --- colours ----------------------------------------------------------------------------------------------------------


# Where the scale passes, in OKLCH (lightness, chroma, hue): from the brightness of the page to its contrary. Lightness
# alone tells the steps apart, so eyes of every colour vision, and grey prints, keep them in order.
LIGHT_STOPS = ((0.97, 0.02, 105), (0.87, 0.12, 110), (0.72, 0.13, 155), (0.54, 0.11, 230), (0.32, 0.13, 290))
DARK_STOPS = ((0.26, 0.05, 290), (0.42, 0.11, 275), (0.57, 0.10, 230), (0.74, 0.14, 155), (0.93, 0.15, 108))


def scale_css(levels: int) -> str:
    """Variables --q0, --i0, …: the steps of the scale, and letters of black or white on each; on dark pages others."""
    light, dark = (_variables(palette(stops, levels)) for stops in (LIGHT_STOPS, DARK_STOPS))
    return f":root{{{light}}}\n@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}\n"


def _variables(colours: np.ndarray) -> str:
    letters = np.where(luminance(colours) > 0.179, "#000", "#fff").tolist()  # at 0.179 both have a contrast of 4.58
    steps = np.round(colours * 255).astype(np.uint8).tolist()
    return "".join(
        f"--q{level}:#{bytes(step).hex()};--i{level}:{letter};"
        for level, (step, letter) in enumerate(zip(steps, letters, strict=True))
    )


def palette(stops: Sequence[tuple[float, float, float]], levels: int) -> np.ndarray:
    """Colours along OKLCH `stops` of rising or falling lightness, in even steps of it. -> (levels, 3) sRGB in 0..1"""
    lightness, chroma, hue = np.array(sorted(stops)).T
    L = np.linspace(stops[0][0], stops[-1][0], levels)
    a = np.interp(L, lightness, chroma * np.cos(np.radians(hue)))
    b = np.interp(L, lightness, chroma * np.sin(np.radians(hue)))
    return oklab_to_srgb(np.stack([L, a, b], axis=1))


def oklab_to_srgb(lab: np.ndarray) -> np.ndarray:
    """Colours in OKLab (https://bottosson.github.io/posts/oklab) as sRGB, clipped to 0..1. (n, 3) -> (n, 3)"""
    roots = lab @ np.array(
        [[1, 1, 1], [0.3963377774, -0.1055613458, -0.0894841775], [0.2158037573, -0.0638541728, -1.2914855480]]
    )
    linear = roots**3 @ np.array(
        [
            [4.0767416621, -1.2684380046, -0.0041960863],
            [-3.3077115913, 2.6097574011, -0.7034186147],
            [0.2309699292, -0.3413193965, 1.7076147010],
        ]
    )
    linear = np.clip(linear, 0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def luminance(srgb: np.ndarray) -> np.ndarray:
    """Relative luminance, from 0 for black to 1 for white, as WCAG 2 defines it. (n, 3) -> (n,)"""
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    return linear @ np.array([0.2126, 0.7152, 0.0722])


# --- style and files --------------------------------------------------------------------------------------------------


SINGLE, DOUBLE = 3.4, 7.0  # inches: one column of a paper, and two
FONT = "DejaVu Sans"  # comes with matplotlib, so pictures are the same everywhere
GREY = "#595959"  # for notes, contrast 7 on white

STYLE = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#404040",
    "axes.labelsize": 8,
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 8,
    "figure.dpi": 300,
    "font.family": FONT,
    "font.size": 8,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.5,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "lines.linewidth": 1.2,
    "svg.fonttype": "path",  # letters as outlines: labels are placed by the widths of this very font
    "svg.hashsalt": "fluxentropy",
    "text.hinting": "no_hinting",  # widths then scale from the PNG's resolution to the SVG's
    "text.parse_math": False,  # a model's name may hold two dollars
    "xtick.labelsize": 7,
    "xtick.major.width": 0.6,
    "ytick.labelsize": 7,
    "ytick.major.width": 0.6,
}

LARGE = 40.0  # square inches, from which a PNG has 200 dpi instead of 300


@contextlib.contextmanager
def paper() -> Iterator[None]:
    """Draw and save in the style of a paper, whatever the user's matplotlibrc says."""
    with matplotlib.style.context(["default", STYLE]):
        yield


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of `width` x `height` inches, whose parts keep clear of each other."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def settle(figure: Figure) -> None:
    """Lay the figure out, so that places in it can be measured."""
    engine = figure.get_layout_engine()
    assert engine is not None
    for _ in range(2):  # axes of equal aspect need some rounds
        engine.execute(figure)
    figure.draw_without_rendering()


def save(figure: Figure, path: str | os.PathLike[str]) -> list[Path]:
    """Write `path`.png and `path`.svg, each whole or not at all. The same figure gives the same bytes. -> both

    Errors: `RunError` names a path that cannot be written.
    """
    dpi = 200 if math.prod(figure.get_size_inches()) > LARGE else 300
    files = [Path(f"{os.fspath(path)}{suffix}") for suffix in (".png", ".svg")]
    with paper():
        settle(figure)
        figure.set_layout_engine("none")  # what is laid out stays, at each resolution
        for file, metadata in zip(files, ({"Software": None}, {"Date": None, "Creator": None}), strict=True):
            with atomic_path(file) as aside:
                figure.savefig(aside, dpi=dpi, metadata=metadata)
    return files


def running_median(column: np.ndarray, window: int, places: int = 150) -> tuple[np.ndarray, np.ndarray]:
    """The median of the `window` values around up to `places` even places, fewer towards the ends. -> places, medians

    Windows are symmetric, down to a third of their width at either end. NaN are passed over; a window of nothing but
    NaN gives NaN.

    >>> running_median(np.array([1.0, 9.0, 2.0, np.nan, 3.0]), 3)
    (array([0, 1, 2, 3, 4]), array([5. , 2. , 5.5, 2.5, 3. ]))
    """
    n = len(column)
    at = np.unique(np.linspace(0, n - 1, min(n, places)).round().astype(np.int64))
    medians = np.full(len(at), np.nan)
    for i, place in enumerate(at):
        half = max(min(place, n - 1 - place, window // 2), -(-window // 6) if window > 1 else 0)
        around = column[max(place - half, 0) : place + half + 1]
        around = around[np.isfinite(around)]
        if len(around):
            medians[i] = np.median(around)
    return at, medians


# --- models -----------------------------------------------------------------------------------------------------------

# One hue a family, after Okabe and Ito's palette: OKLCH chroma and hue; the last is grey.
HUES = ((0.13, 250), (0.16, 45), (0.12, 162), (0.14, 350), (0.13, 82), (0.14, 305), (0.10, 200), (0.0, 0))
MARKERS = ("o", "s", "^", "d", "v", "P", "X", "p", "<", ">", "h", "*")  # one a family
DARK, MIDDLE, LIGHT = 0.36, 0.54, 0.65  # OKLCH lightness of the largest model, of an only one, and of the smallest
_SIZE = re.compile(r"(?<![A-Za-z0-9.])(?:(\d+)x)?(\d+(?:\.\d+)?)([MBT])(?![A-Za-z0-9])", re.IGNORECASE)
_VARIANT = re.compile(r"([-_ ](instruct|chat|base|it|tiny|mini|small|medium|large|xl))+$", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class ModelLook:
    """How a model is drawn: families differ in hue and marker, the sizes of a family in shade."""

    colour: str  # "#rrggbb"
    marker: str  # of matplotlib
    family: str
    size: float | None  # parameters, as the name says them


def model_look(labels: Sequence[str]) -> list[ModelLook]:
    """The looks of models that stand in one picture; the larger of a family is the darker.

    >>> [(look.family, look.size) for look in model_look(["Qwen_Qwen2.5-Coder-3B-Instruct", "gemma-3-270m", "gpt2"])]
    [('Qwen2.5-Coder', 3000000000.0), ('gemma-3', 270000000.0), ('gpt2', None)]
    """
    parsed = [_family_and_size(label) for label in labels]
    families: dict[str, list[int]] = {}  # folded name -> places in `labels`
    for place, (family, _) in enumerate(parsed):
        families.setdefault(family.casefold(), []).append(place)
    looks: dict[int, ModelLook] = {}
    for number, places in enumerate(families.values()):
        shades = np.linspace(LIGHT, DARK, len(places)) if len(places) > 1 else [MIDDLE]
        chroma, hue = HUES[number % len(HUES)]
        for place, lightness in zip(sorted(places, key=lambda place: parsed[place][1] or 0), shades, strict=True):
            looks[place] = ModelLook(
                colour=_hex(float(lightness), chroma, hue),
                marker=MARKERS[number % len(MARKERS)],
                family=parsed[places[0]][0],
                size=parsed[place][1],
            )
    return [looks[place] for place in range(len(labels))]


def _family_and_size(name: str) -> tuple[str, float | None]:
    """`meta-llama_Llama-3.2-1B-Instruct` -> ("Llama-3.2", 1e9)"""
    name = _without_owner(name)
    if not (match := _SIZE.search(name)):
        return _VARIANT.sub("", name) or name, None
    experts, number, unit = match.groups()
    family = name[: match.start()].rstrip("-_ .:") or name
    return family, int(experts or 1) * float(number) * {"M": 1e6, "B": 1e9, "T": 1e12}[unit.upper()]


def _without_owner(name: str) -> str:
    """`Qwen/Qwen2.5-3B`, `Qwen--Qwen2.5-3B`, `Qwen_Qwen2.5-3B` -> `Qwen2.5-3B`"""
    name = re.split(r"/|--", name.rstrip("/-"))[-1] or name
    owner, _, rest = name.partition("_")
    named_after = rest[:1].isalpha() and _SIZE.search(rest.partition("_")[0])
    return rest if named_after and not re.search(r"\d", owner) else name


def _hex(lightness: float, chroma: float, hue: float) -> str:
    """An OKLCH colour as #rrggbb."""
    angle = math.radians(hue)
    srgb = oklab_to_srgb(np.array([[lightness, chroma * math.cos(angle), chroma * math.sin(angle)]]))[0]
    return f"#{bytes(np.round(srgb * 255).astype(np.uint8).tolist()).hex()}"


def short_labels(names: Sequence[str]) -> list[str]:
    """Readable labels: names without what they share at their end, and without owners, as long as all still differ.

    >>> short_labels(["HuggingFaceTB_SmolLM2-1.7B-Instruct_avg.json", "meta-llama_Llama-3.2-1B-Instruct_avg.json"])
    ['SmolLM2-1.7B', 'Llama-3.2-1B']
    """
    labels = list(names)
    for shorten in (_without_shared_end, lambda all_: [*map(_without_owner, all_)], _without_instruct):
        shorter = shorten(labels)
        if all(shorter) and len(set(shorter)) == len(names):
            labels = shorter
    return labels


def _without_shared_end(names: list[str]) -> list[str]:
    if len(names) < 2:
        return names
    shared = os.path.commonprefix([name[::-1] for name in names])[::-1]  # noqa: RUF071 (letters, not folders)
    boundary = re.search(r"[_./](?=[^\W\d_])", shared)
    return [name[: boundary.start() - len(shared)] for name in names] if boundary else names


def _without_instruct(names: list[str]) -> list[str]:
    shorter = [re.sub(r"[-_]instruct$", "", name, flags=re.IGNORECASE) for name in names]
    return shorter if all(len(short) < len(name) for short, name in zip(shorter, names, strict=True)) else names


# --- labels that do not overlap ---------------------------------------------------------------------------------------


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
