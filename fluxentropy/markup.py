"""HTML that is safe by construction: a `str` is text and is escaped, only what `el` made is markup.

    >>> el("p", "1 < 2 ", el("b", "<script>"), class_="note")
    '<p class="note">1 &lt; 2 <b>&lt;script&gt;</b></p>'

Names of elements and attributes come from the program, never from data.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable

BIDI_CONTROLS = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
VOID = frozenset({"br", "img", "input", "meta"})


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


Content = str | int | None | Iterable["Content"]
Attribute = str | int | float | bool | None


def el(tag: str, *content: Content, **attributes: Attribute) -> Markup:
    """An element. `class_="a"` is the attribute class, `aria_label` is aria-label; None and False leave one out."""
    given = "".join(_attribute(name, value) for name, value in attributes.items())
    if tag in VOID:
        return Markup(f"<{tag}{given}>")
    return Markup(f"<{tag}{given}>{join(content)}</{tag}>")


def join(content: Content) -> Markup:
    """Pieces of content, one after the other."""
    if content is None:
        return Markup()
    if isinstance(content, Markup):
        return content
    if isinstance(content, str | int):
        return Markup(escape_lines(str(content)))
    return Markup("".join(join(piece) for piece in content))


def _attribute(name: str, value: Attribute) -> str:
    name = name.removesuffix("_").replace("_", "-")
    if value is None or value is False:
        return ""
    if value is True:
        return f" {name}"
    return (
        f' {name}="{escape_lines(f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value))}"'
    )


# --- text -> markup ---------------------------------------------------------------------------------------------------


def escape(text: str) -> str:
    """`text` as content of an element or of a quoted attribute; signs stand for control characters."""
    return html.escape(UNPRINTABLE.sub(lambda match: picture(match[0]), text))


def escape_lines(text: str) -> str:
    """Like `escape`, with line ends and tabs kept."""
    return html.escape(visible(text))


def visible(text: str) -> str:
    """`text` with signs for control characters, but for line ends and tabs."""
    return UNPRINTABLE.sub(lambda match: match[0] if match[0] in "\n\t" else picture(match[0]), text)


def picture(control: str) -> str:
    """A sign for a character that HTML cannot hold or would change.

    >>> picture("\\r"), picture("\\x7f"), picture("\\x85")
    ('␍', '␡', '�')
    """
    code = ord(control)
    return chr(0x2400 + code) if code < 0x20 else "␡" if code == 0x7F else "\ufffd"


def given(text: object, limit: int = 200) -> Markup:
    """Text of a user or a corpus, cut to `limit` characters, which cannot turn the direction of what is around it."""
    return el("bdi", clipped(str(text), limit))


def clipped(text: str, limit: int) -> str:
    """
    >>> clipped("entropy", 4), clipped("entropy", 7)
    ('ent…', 'entropy')
    """
    return text if len(text) <= limit else text[: limit - 1] + "…"
