"""Pages from the templates in `templates/`, which escape all that is put in; and Markdown as this package writes it.

A `str` is text, only what a template made is markup.

    >>> parts().heading("1 < 2 <script>")
    Markup('<h3>1 &lt; 2 &lt;script&gt;</h3>\\n')
"""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar
from urllib.parse import unquote

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup

# --- pages ------------------------------------------------------------------------------------------------------------


BIDI_CONTROLS = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")  # all controls but tab and line end
LOADER = PackageLoader("fluxentropy.report")  # fluxentropy/templates
RULES = ("heading", "fence", "list", "table", "backticks", "emphasis", "image", "newline")

NUMBER = re.compile(
    r"[-+−]?[\d.,]+(e[-+]?\d+)?( ?%)?( ?[(\[][^a-z]*( to )?[^a-z]*[)\]])?|\[[-+\d.e, ]*\]|[-–]|\d+ of \d+"
)

Drawn = Callable[[str, str], Markup]  # (alt, name) -> what stands for a picture


@cache
def environment() -> Environment:
    found = Environment(
        loader=LOADER,
        autoescape=True,
        undefined=StrictUndefined,
        finalize=visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {"given": given, "clip": clipped, "plain": plain, "place": place, "columns": columns_of_numbers}
    return found


def parts() -> Any:
    """The macros of `parts.html` as functions that give markup."""
    return environment().get_template("parts.html").module


def page(template: str, *, rules: str, **values: Any) -> str:
    """A whole page, with `report.css` and the further `rules` as its style sheet."""
    style = LOADER.get_source(environment(), "report.css")[0] + rules
    digest = "sha256-" + base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return environment().get_template(template).render(style=Markup(style), digest=digest, **values)


# --- text -------------------------------------------------------------------------------------------------------------


def visible(value: Any) -> Any:
    """What a template puts in: text with signs for control characters, nothing for None, all else as it is."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return UNPRINTABLE.sub(lambda match: sign(match[0]), value)
    return "" if value is None else value


def sign(control: str) -> str:
    """A sign for a character that HTML cannot hold or would change.

    >>> sign("\\r"), sign("\\x7f"), sign("\\x85")
    ('␍', '␡', '�')
    """
    code = ord(control)
    return chr(0x2400 + code) if code < 0x20 else "␡" if code == 0x7F else "\ufffd"


def given(text: object, limit: int = 200) -> Markup:
    """Text of a user or a corpus, cut to `limit` characters, which cannot turn the direction of what is around it."""
    if isinstance(text, Markup):
        return text
    return Markup("<bdi>{}</bdi>").format(visible(clipped(str(text), limit)))


def clipped(text: str, limit: int) -> str:
    """
    >>> clipped("entropy", 4), clipped("entropy", 7)
    ('ent…', 'entropy')
    """
    return text if len(text) <= limit else text[: limit - 1] + "…"


def plain(value: object) -> str:
    """
    >>> plain(12345), plain(True), plain("a")
    ('12,345', 'True', 'a')
    """
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def place(number: float) -> str:
    """A coordinate, to a hundredth.

    >>> place(0.1 + 0.2), place(10)
    ('0.3', '10')
    """
    return f"{number:.2f}".rstrip("0").rstrip(".")


def columns_of_numbers(rows: Sequence[Sequence[object]], head: Sequence[object]) -> list[Markup]:
    """The attribute of each column of a table. Errors: `ValueError` where a row is not as long as `head`."""
    texts = [[cell.striptags() if isinstance(cell, Markup) else str(cell) for cell in column]
             for _, *column in zip(head, *rows, strict=True)]  # fmt: skip
    return [Markup(' class="num"') if _numbers(column) else Markup() for column in texts]


def _numbers(cells: Iterable[str]) -> bool:
    """Whether the cells of a column are numbers, as far as they hold something."""
    filled = [cell for cell in cells if cell]
    return bool(filled) and all(map(NUMBER.fullmatch, filled))


# --- Markdown ---------------------------------------------------------------------------------------------------------


def markdown(text: str, *, picture: Drawn, level: int = 1) -> Markup:
    """`text` as HTML, whose headings are `level` deeper.

    Headings, paragraphs, lists, tables, pictures on a line of their own, fenced code, `code` and **bold** in a line:
    nothing else is markup. HTML, links, entities and backslashes in the text stay text.

    >>> markdown("## A & B\\n\\nIs `x` **so**?", picture=lambda alt, name: Markup())
    Markup('<h3>A &amp; B</h3>\\n<p>Is <code>x</code> <b>so</b>?</p>\\n')
    """
    parser = MarkdownIt("zero", {"maxNesting": 100}).enable(RULES)
    tokens = parser.parse(visible(text))
    cells: list[tuple[Token, str]] = []
    for at, token in enumerate(tokens):
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(int(token.tag[1]) + level, 6)}"
        elif token.type == "fence":
            _replace(token, parts().code(token.content.removesuffix("\n")))
        elif token.type == "inline":
            _inline(tokens[at - 1], token, tokens[at + 1], picture)
        elif token.type in ("th_open", "td_open"):
            cells.append((token, "".join(child.content for child in tokens[at + 1].children or [])))
        elif token.type == "table_open":
            _replace(token, '<div class="wide" tabindex="0" role="group" aria-label="table"><table>\n')
        elif token.type == "table_close":
            _replace(token, "</table></div>\n")
            _stand(cells)
            cells = []
    return Markup(parser.renderer.render(tokens, parser.options, {}))


def _replace(token: Token, markup: str) -> None:
    token.type, token.content = "html_block", markup


def _inline(opening: Token, inline: Token, closing: Token, picture: Drawn) -> None:
    """A line's parts. Pictures that are all of a paragraph stand without it; in a line of text they stay text."""
    children = inline.children or []
    alone = bool(children) and all(child.type in ("image", "softbreak") for child in children)
    opening.hidden |= alone
    closing.hidden |= alone
    for child in children:
        if child.type == "image":
            name = unquote(str(child.attrs["src"]))
            if alone:
                _replace(child, picture(child.content.replace("_", " "), name))
            else:
                child.type, child.content = "text", f"![{child.content}]({name})"
        elif child.markup == "**":
            child.tag = "b"
        elif child.nesting:  # one star, or lines below
            child.type, child.content, child.nesting = "text", child.markup, 0


def _stand(cells: Sequence[tuple[Token, str]]) -> None:
    """Columns of numbers stand to the right; an alignment in the text would be a style, which the page forbids."""
    width = sum(cell.tag == "th" for cell, _ in cells)
    for column in range(width):
        looks = {"class": "num"} if _numbers(text for _, text in cells[width + column :: width]) else {}
        for cell, _ in cells[column::width]:
            cell.attrs = {"scope": "col", **looks} if cell.tag == "th" else {**looks}


# --- charts -----------------------------------------------------------------------------------------------------------
#
# A chart is made of numbers and texts here, in units that are scaled to the width of its column; `chart` in
# `templates/parts.html` draws it, and `report.css` has the colours.


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


@dataclass(frozen=True, kw_only=True)
class Chart:
    """What is drawn, in units from the top left."""

    WIDTH: ClassVar[int] = 380
    HEIGHT: ClassVar[int] = 225
    LEFT: ClassVar[int] = 56  # of the frame, as the next three
    RIGHT: ClassVar[int] = 370
    TOP: ClassVar[int] = 10
    BOTTOM: ClassVar[int] = 185

    title: str
    label: str  # of the x axis
    unit: str  # of the y axis
    rows: Sequence[tuple[float, str]]  # y of a grid line, and its number
    feet: Sequence[tuple[float, str]]  # x, and what is written there
    bars: Sequence[tuple[float, float, float, float]] = ()  # x, y, width, height
    areas: Sequence[tuple[str, str]] = ()  # outline, class
    lines: Sequence[tuple[str, str]] = ()  # points, class
    dots: Sequence[tuple[float, float, str]] = ()  # x, y, class
    mark: float | None = None  # x of a dashed line
    legend: Sequence[tuple[str, str]] = ()  # class, name


def histogram(edges: np.ndarray, counts: np.ndarray, *, title: str, label: str, mark: float | None = None) -> Chart:
    """Bars of `counts` (B,) between `edges` (B + 1,); a dashed line at `mark`."""
    x, y = _axes((edges[0], edges[-1]), (0, max(float(counts.max(initial=0)), 1)))
    bars = [
        (x(low) + 0.4, y(count), max(x(high) - x(low) - 0.8, 0.4), y(0) - y(count))
        for low, high, count in zip(edges[:-1], edges[1:], counts.tolist(), strict=True)
        if count
    ]
    at = x(mark) if mark is not None and edges[0] <= mark <= edges[-1] else None
    return Chart(title=title, label=label, unit="texts", rows=_rows(y), feet=_feet(x), bars=bars, mark=at)


def lines(given: Sequence[Line], *, title: str, label: str, unit: str) -> Chart | None:
    """Up to LINES lines over one axis, with a legend below where there are several; None where there is none."""
    shown = [line for line in map(_thinned, given[:LINES]) if len(line.x)]
    if not shown:
        return None
    spans = [(min(a.min() for a in axis), max(a.max() for a in axis)) for axis in _columns(shown)]
    x, y = _axes(*spans)
    looks = [f"s{place % COLOURS}" + " dashed" * (place >= COLOURS) for place in range(len(shown))]
    paths, dots = [], []
    for line, look in zip(shown, looks, strict=True):
        if len(line.x) > 1:
            paths.append((" ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in zip(line.x, line.y, strict=True)), look))
        else:
            dots.append((x(line.x[0]), y(line.y[0]), look))
    more = f" {len(given) - LINES} more lines are not drawn." if len(given) > LINES else ""
    legend = [(look, line.name) for look, line in zip(looks, shown, strict=True)] if len(shown) > 1 else []
    return Chart(
        title=title + more,
        label=label,
        unit=unit,
        rows=_rows(y),
        feet=_feet(x),
        lines=paths,
        dots=dots,
        legend=legend,
    )


def areas(at: np.ndarray, shares: np.ndarray, *, title: str, label: str, name: str) -> Chart:
    """Stacked shares (P, K) of K ordered things over P pieces that end at `at` (P,), each as dark as it is high."""
    x, y = _axes((0, float(at[-1])), (0, 1))
    starts = [0.0, *at[:-1].tolist()]
    tops = np.cumsum(np.nan_to_num(shares), axis=1)
    below = np.concatenate([np.zeros((len(tops), 1)), tops[:, :-1]], axis=1)
    kinds = shares.shape[1]
    drawn = [
        (_step_area(x, y, starts, at.tolist(), below[:, k], tops[:, k]), f"f{shade(k, kinds)}")
        for k in range(kinds)
        if (tops[:, k] > below[:, k]).any()
    ]
    legend = [(f"f{shade(k, kinds)}", f"{name} {k}") for k in sorted({0, kinds // 2, kinds - 1})]
    unit = "share of the blocks"
    return Chart(title=title, label=label, unit=unit, rows=_rows(y), feet=_feet(x), areas=drawn, legend=legend)


def columns(names: Sequence[str], values: Sequence[float], *, title: str, label: str, unit: str) -> Chart:
    """A bar for each name, from zero up."""
    x, y = _axes((0, len(values)), (min(0.0, *values), max(*values, 1e-12)))
    bars = [
        (x(place) + 2, y(max(value, 0)), max(x(place + 1) - x(place) - 4, 1), abs(y(0) - y(value)))
        for place, value in enumerate(values)
    ]
    step = math.ceil(len(names) / 12)
    feet = [(x(place + 0.5), clipped(name, 9)) for place, name in enumerate(names) if place % step == 0]
    return Chart(title=title, label=label, unit=unit, rows=_rows(y), feet=feet, bars=bars)


def shade(place: int, of: int) -> int:
    """The shade of one of `of` ordered things, without the ends of the scale, which are close to the page.

    >>> [shade(place, 4) for place in range(4)]
    [3, 9, 14, 20]
    """
    return round(3 + (SHADES - 7) * place / max(of - 1, 1))


# --- parts ------------------------------------------------------------------------------------------------------------


def _axes(across: tuple[float, float], up: tuple[float, float]) -> tuple[Axis, Axis]:
    (x0, x1), (y0, y1) = (_apart(*map(float, span)) for span in (across, up))
    room = 0.04 * (y1 - y0)
    return Axis(x0, x1, Chart.LEFT, Chart.RIGHT), Axis(
        y0 - room * (y0 != 0), y1 + room * (y1 != 1), Chart.BOTTOM, Chart.TOP
    )


def _apart(low: float, high: float) -> tuple[float, float]:
    """The same span, or one around it where it has no width."""
    if high - low > 1e-12 * max(abs(low), abs(high), 1e-300):
        return low, high
    return (low - 0.05 * abs(low), high + 0.05 * abs(high)) if low else (0.0, 1.0)


def _rows(y: Axis) -> list[tuple[float, str]]:
    return [(y(tick), short(tick)) for tick in _ticks(y.low, y.high, 4)]


def _feet(x: Axis) -> list[tuple[float, str]]:
    return [(x(tick), short(tick)) for tick in _ticks(x.low, x.high, 5)]


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
