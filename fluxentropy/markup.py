"""Pages from the templates in `templates/`, which escape all that is put in; and Markdown as this package writes it.

A `str` is text, only what a template made is markup.

    >>> parts().heading("1 < 2 <script>")
    Markup('<h3>1 &lt; 2 &lt;script&gt;</h3>\\n')
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any
from urllib.parse import unquote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup

BIDI_CONTROLS = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")  # all controls but tab and line end
LOADER = PackageLoader("fluxentropy")  # fluxentropy/templates
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
