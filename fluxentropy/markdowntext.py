"""Markdown as this package writes it (`comparison.md`, `summary.md`) -> HTML.

Headings, paragraphs, lists of two levels, tables, pictures on a line of their own, fenced code; `code` and **bold**
within a line. Nothing else is markup: HTML in the text stays text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

from fluxentropy.markup import Content, Markup, el, join

INLINE = re.compile(r"`([^`]+)`|\*\*([^*]+)\*\*")
PICTURE = re.compile(r"!\[([^\]]*)\]\(([^)\s]+)\)")
RULE = re.compile(r"\|( *:?-+:? *\|)+")
NUMBER = re.compile(
    r"[-+−]?[\d.,]+(e[-+]?\d+)?( ?%)?( ?[(\[][^a-z]*( to )?[^a-z]*[)\]])?|\[[-+\d.e, ]*\]|[-–]|\d+ of \d+"
)
CELL = re.compile(r"(?<!\\)\|")


def to_markup(text: str, *, picture: Callable[[str, str], Content], level: int = 1) -> Markup:
    """`text` as HTML, whose headings are `level` deeper. `picture(alt, name)` is what stands for a picture.

    >>> to_markup("## A & B\\n\\nIs `x` **so**?", picture=lambda alt, name: None)
    '<h3>A &amp; B</h3><p>Is <code>x</code> <b>so</b>?</p>'
    """
    return join(_block(block, picture, level) for block in _blocks(text.splitlines()))


def _blocks(lines: list[str]) -> Iterator[list[str]]:
    """Lines that stand together: up to an empty one, or from fence to fence."""
    block: list[str] = []
    fenced = False
    for line in lines:
        if line.startswith("```"):
            fenced = not fenced
        if (line.strip() or fenced) and not (line.startswith("#") and not fenced):
            block.append(line)
            continue
        if block:
            yield block
        block = []
        if line.startswith("#"):
            yield [line]
    if block:
        yield block


def _block(block: list[str], picture: Callable[[str, str], Content], level: int) -> Content:
    first = block[0]
    if first.startswith("#"):
        depth = len(first) - len(first.lstrip("#"))
        return el(f"h{min(depth + level, 6)}", _inline(first[depth:].strip()))
    if first.startswith("```"):
        return scrolled(el("pre", el("code", "\n".join(line for line in block if not line.startswith("```")))))
    if found := PICTURE.fullmatch(first.strip()):
        return picture(found[1].replace("_", " "), found[2])
    if len(block) > 1 and first.startswith("|") and RULE.fullmatch(block[1].strip()):
        return table(*(_cells(line) for line in [first, *block[2:]]))
    if first.startswith("- "):
        return _list(block)
    return el("p", _inline(" ".join(line.strip() for line in block)))


def _list(block: list[str]) -> Markup:
    """Items, which may go on over lines and hold items of their own."""
    items: list[tuple[str, list[str]]] = []
    for line in block:
        if line.startswith("- "):
            items.append((line[2:].strip(), []))
        elif line.startswith("  - "):
            items[-1][1].append(line[4:].strip())
        elif items[-1][1]:
            items[-1][1][-1] += f" {line.strip()}"
        else:
            items[-1] = (f"{items[-1][0]} {line.strip()}", [])
    return el(
        "ul",
        (el("li", _inline(text), el("ul", (el("li", _inline(one)) for one in more)) if more else None)
         for text, more in items),
    )  # fmt: skip


def _cells(line: str) -> list[Content]:
    return [_inline(cell.strip().replace("\\|", "|")) for cell in CELL.split(line.strip().removeprefix("|"))[:-1]]


def _inline(text: str) -> list[Content]:
    found: list[Content] = []
    at = 0
    for match in INLINE.finditer(text):
        code, bold = match.groups()
        found += [text[at : match.start()], el("code", code) if code else el("b", bold)]
        at = match.end()
    return [*found, text[at:]]


def table(head: Sequence[Content], *rows: Sequence[Content], label: str = "table") -> Markup:
    """A table in a box that scrolls where the page is narrow; columns of numbers stand to the right."""
    numeric = [bool(cells := [text for cell in column if (text := _text(cell))]) and all(map(NUMBER.fullmatch, cells))
               for column in zip(*rows, strict=True)] or [False] * len(head)  # fmt: skip
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
