"""Markdown as this package writes it (`comparison.md`, `summary.md`) -> HTML, by markdown-it-py.

Headings, paragraphs, lists, tables, pictures on a line of their own, fenced code; `code` and **bold** within a line.
Nothing else is markup: HTML, links, entities and backslashes in the text stay text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from urllib.parse import unquote

from markdown_it import MarkdownIt
from markdown_it.token import Token

from fluxentropy.markup import Content, Markup, el, join, visible

RULES = ("heading", "fence", "list", "table", "backticks", "emphasis", "image", "newline")
NUMBER = re.compile(
    r"[-+−]?[\d.,]+(e[-+]?\d+)?( ?%)?( ?[(\[][^a-z]*( to )?[^a-z]*[)\]])?|\[[-+\d.e, ]*\]|[-–]|\d+ of \d+"
)
Picture = Callable[[str, str], Content]  # (alt, name) -> what stands for a picture


def to_markup(text: str, *, picture: Picture, level: int = 1) -> Markup:
    """`text` as HTML, whose headings are `level` deeper.

    >>> to_markup("## A & B\\n\\nIs `x` **so**?", picture=lambda alt, name: None)
    '<h3>A &amp; B</h3>\\n<p>Is <code>x</code> <b>so</b>?</p>\\n'
    """
    parser = MarkdownIt("zero", {"maxNesting": 100}).enable(RULES)
    tokens = parser.parse(visible(text))
    cells: list[tuple[Token, str]] = []
    for place, token in enumerate(tokens):
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(int(token.tag[1]) + level, 6)}"
        elif token.type == "fence":
            _replace(token, scrolled(el("pre", el("code", token.content.removesuffix("\n")))))
        elif token.type == "inline":
            _inline(tokens[place - 1], token, tokens[place + 1], picture)
        elif token.type in ("th_open", "td_open"):
            cells.append((token, "".join(child.content for child in tokens[place + 1].children or [])))
        elif token.type == "table_open":
            _replace(token, '<div class="wide" tabindex="0" role="group" aria-label="table"><table>\n')
        elif token.type == "table_close":
            _replace(token, "</table></div>\n")
            _columns(cells)
            cells = []
    return Markup(parser.renderer.render(tokens, parser.options, {}))


def _replace(token: Token, markup: str) -> None:
    token.type, token.content = "html_block", markup


def _inline(opening: Token, inline: Token, closing: Token, picture: Picture) -> None:
    """A line's parts. Pictures that are all of a paragraph stand without it; in a line of text they stay text."""
    children = inline.children or []
    alone = bool(children) and all(child.type in ("image", "softbreak") for child in children)
    opening.hidden |= alone
    closing.hidden |= alone
    for child in children:
        if child.type == "image":
            name = unquote(str(child.attrs["src"]))
            if alone:
                _replace(child, join(picture(child.content.replace("_", " "), name)))
            else:
                child.type, child.content = "text", f"![{child.content}]({name})"
        elif child.markup == "**":
            child.tag = "b"
        elif child.nesting:  # one star, or lines below
            child.type, child.content, child.nesting = "text", child.markup, 0


def _columns(cells: Sequence[tuple[Token, str]]) -> None:
    """Columns of numbers stand to the right; an alignment in the text would be a style, which the page forbids."""
    width = sum(cell.tag == "th" for cell, _ in cells)
    for column in range(width):
        looks = {"class": "num"} if numbers(text for _, text in cells[width + column :: width]) else {}
        for cell, _ in cells[column::width]:
            cell.attrs = {"scope": "col", **looks} if cell.tag == "th" else {**looks}


def numbers(cells: Iterable[str]) -> bool:
    """Whether the cells of a column are numbers, as far as they hold something."""
    filled = [cell for cell in cells if cell]
    return bool(filled) and all(map(NUMBER.fullmatch, filled))


def table(head: Sequence[Content], *rows: Sequence[Content], label: str = "table") -> Markup:
    """A table in a box that scrolls where the page is narrow; columns of numbers stand to the right."""
    numeric = [numbers(map(_text, column)) for column in zip(*rows, strict=True)] or [False] * len(head)
    looks = ["num" if number else None for number in numeric]
    heads = (el("th", cell, scope="col", class_=look) for cell, look in zip(head, looks, strict=True))
    body = (el("tr", (el("td", cell, class_=look) for cell, look in zip(row, looks, strict=True))) for row in rows)
    return scrolled(el("table", el("thead", el("tr", heads)), el("tbody", body)), label=label)


def _text(cell: Content) -> str:
    """What a cell says, without elements."""
    return re.sub("<[^>]*>", "", join(cell))


def scrolled(content: Content, *, label: str = "details") -> Markup:
    """A box that scrolls sideways, by keyboard too."""
    return el("div", content, class_="wide", tabindex=0, role="group", aria_label=label)
