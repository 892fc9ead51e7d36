from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import UndefinedError
from markupsafe import Markup
from pages import Page

from fluxentropy.markup import UNPRINTABLE, environment, markdown, page, parts, sign

texts = st.text(st.characters(codec="utf-8")) | st.text("<>&\"'/=! abonclick\n\t\r\x00{}%#")


@settings(deadline=None)
@given(content=texts, value=texts)
def test_any_text_comes_back_as_text(content: str, value: str) -> None:
    def shown(text: str) -> str:
        return UNPRINTABLE.sub(lambda match: sign(match[0]), text)

    (found,) = Page(environment().from_string('<p data-tip="{{ value }}">{{ content }}</p>').render(vars())).elements
    assert found == ("p", {"data-tip": shown(value)}, [shown(content)])


@settings(deadline=None)
@given(text=texts)
def test_any_text_comes_back_from_each_part(text: str) -> None:
    """Whatever a macro, a filter or Markdown does to it, no element and no attribute comes of it."""
    part = parts()
    for made, plain in (
        (part.facts([(text, text)]), part.facts([("a", "a")]) if text else part.facts([])),
        (part.code(text, text, text or "a"), part.code("a", "a", "a")),
        (part.table([text], [[text], ["a"]], text), part.table(["a"], [["a"], ["a"]], "a")),
        (part.picture(text, 1, 1, text, text, False), part.picture("a", 1, 1, "a", "a", False)),
        (part.items([(text, text)]), part.items([("a", "a")])),
        (part.link(text, text), part.link("a", "a")),
    ):
        found, wanted = (
            [(tag, sorted(names)) for tag, names, _ in Page(one).elements if tag != "bdi"] for one in (made, plain)
        )
        assert found == wanted


def test_only_markup_is_markup() -> None:
    assert environment().from_string("{{ a }}{{ b }}{{ c }}{{ d }}").render(a="<", b=Markup("<br>"), c=None, d=3) == (
        "&lt;<br>3"
    )
    with pytest.raises(UndefinedError, match="'gone' is undefined"):
        environment().from_string("{{ gone }}").render()
    with pytest.raises(UndefinedError):
        page("tokens.html", rules="", title="t")


def test_a_long_table_says_how_many_rows_are_left_out() -> None:
    made = Page(parts().table(["a", "b"], [["x", str(n)] for n in range(45)]))
    assert len(made.all("tr")) == 41 and made.texts("p") == ["5 more rows are left out."]
    assert [given.get("class") for given in made.all("td")[:2]] == [None, "num"]
    assert len(Page(parts().table(["a"], [[""]] * 45, most=None)).all("tr")) == 46


# --- Markdown ---------------------------------------------------------------------------------------------------------

TEXT = """\
First *line* of __two__
goes on with ![not](alone.png)

- one
  and on
  - inner `a|b`
- two

| name | x | p |
| :---: | --- | ---: |
| a\\|b | +1.5 [0.1, 2] | 0.5 |
| `<i>` | -2 | - |

![a_b](c ä.png)

![a_b](c%20ä.png)

![not](a picture)

```sh
## not a heading

<b>
```
#### Small
"""
PLAIN = (
    r"<b>a</b> [x](https://example.com) <https://example.com> &lt;b&gt;&amp; \* \| a  b ![x](javascript:a) 1) <!-- -->"
)


def markup(text: str) -> str:
    def picture(alt: str, name: str) -> Markup:
        return Markup('<img alt="{}" src="{}">').format(alt, name)

    made = markdown(text, picture=picture, level=1)
    return re.sub(r"\n(?=<)|(?<=>)\n", "", made)


def test_all_that_the_package_writes() -> None:
    box = '<div class="wide" tabindex="0" role="group" aria-label='
    assert markup(TEXT) == (
        "<p>First *line* of __two__\ngoes on with ![not](alone.png)</p>"
        "<ul><li>one\nand on<ul><li>inner <code>a|b</code></li></ul></li><li>two</li></ul>"
        f'{box}"table"><table><thead><tr><th scope="col">name</th><th scope="col" class="num">x</th>'
        '<th scope="col" class="num">p</th></tr></thead><tbody>'
        '<tr><td>a|b</td><td class="num">+1.5 [0.1, 2]</td><td class="num">0.5</td></tr>'
        '<tr><td><code>&lt;i&gt;</code></td><td class="num">-2</td><td class="num">-</td></tr></tbody></table></div>'
        '<p>![a_b](c ä.png)</p><img alt="a b" src="c ä.png"><p>![not](a picture)</p>'
        f'{box}"details"><pre><code>## not a heading\n\n&lt;b&gt;</code></pre></div>'
        "<h5>Small</h5>"
    )


def test_all_else_stays_text() -> None:
    """No HTML, no links, no entities, no pictures from elsewhere: what is in the text is what a reader sees."""
    shown = PLAIN.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    assert markup(PLAIN) == f"<p>{shown}</p>"
    assert markup("<div>\n\n> a\n\n    b\n\n---\n\n[x]: y\n\x00\x1b") == (
        "<p>&lt;div&gt;</p><p>&gt; a</p><p>b</p><p>---</p><p>[x]: y\n␀␛</p>"
    )
