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
from pathlib import Path

import matplotlib.style
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fluxentropy.colours import oklab_to_srgb
from fluxentropy.store import atomic_path

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
    for _ in range(3):  # axes of equal aspect need some rounds
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
