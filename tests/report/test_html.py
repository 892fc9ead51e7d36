"""markup"""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import UndefinedError
from markupsafe import Markup
from pages import Page

from fluxentropy.report.html import (
    UNPRINTABLE,
    Chart,
    Line,
    areas,
    columns,
    environment,
    histogram,
    lines,
    markdown,
    page,
    parts,
    short,
    sign,
)

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


finite = st.floats(-1e300, 1e300, allow_subnormal=False)


@given(st.lists(st.tuples(finite, finite | st.just(float("nan"))), min_size=1, max_size=40))
@settings(max_examples=60, deadline=None)
def test_lines_stay_within_the_frame(points: list[tuple[float, float]]) -> None:
    x, y = (np.array(column) for column in zip(*points, strict=True))
    drawn = lines([Line(name="a", x=x, y=y)], title="t", label="x", unit="y")
    known = np.isfinite(y).sum()
    assert (drawn is None) == (known == 0)
    if drawn is None:
        return
    places = [tuple(map(float, place.split(","))) for group, _ in drawn.lines for place in group.split()]
    places += [(a, b) for a, b, _ in drawn.dots]
    assert all(
        Chart.LEFT - 0.1 <= a <= Chart.RIGHT + 0.1 and Chart.TOP - 0.1 <= b <= Chart.BOTTOM + 0.1 for a, b in places
    )
    assert len(drawn.lines) == (known > 1) and len(drawn.dots) == (known == 1)


def test_bars_are_as_high_as_their_counts() -> None:
    drawn = histogram(np.array([0.0, 1, 2, 3]), np.array([10, 0, 5]), title="t", label="x", mark=1.5)
    (_, top, _, high), (_, _, _, low) = drawn.bars
    assert high == pytest.approx(2 * low) and top + high == pytest.approx(Chart.BOTTOM)
    assert drawn.mark == pytest.approx((Chart.LEFT + Chart.RIGHT) / 2)
    (_, _, _, low), (_, _, _, high) = columns(["a", "b"], [2.0, 4.0], title="t", label="x", unit="y").bars
    assert high == pytest.approx(2 * low)


def test_areas_fill_the_frame() -> None:
    shares = np.array([[0.25, 0.75], [1.0, 0.0]])
    drawn = areas(np.array([10.0, 40.0]), shares, title="t", label="x", name="bin")
    outlines = [re.findall(r"([\d.]+) ([\d.]+)", path) for path, _ in drawn.areas]
    sizes = [_area([(float(a), float(b)) for a, b in outline]) for outline in outlines]
    whole = (Chart.RIGHT - Chart.LEFT) * (Chart.BOTTOM - Chart.TOP)
    assert [size / whole for size in sizes] == pytest.approx([0.25 / 4 + 3 / 4, 0.75 / 4], abs=0.002)


def test_all_of_a_chart_is_drawn() -> None:
    given = [Line(name="<a>", x=np.array([0.0, 1]), y=np.array([1.0, 2])), Line(name="b", x=np.ones(1), y=np.ones(1))]
    drawn = lines(given, title="<t>", label="<x>", unit="<y>")
    assert drawn is not None
    page = Page(parts().chart(drawn))
    assert page.texts("figcaption") == page.texts("title") == ["<t>"]
    assert page.texts("text", class_="mid name") == ["<x>", "<y>"] and page.texts("li") == ["<a>", "b"]
    assert [place["points"] for place in page.all("polyline")] == [points for points, _ in drawn.lines]
    assert len(page.all("circle")) == 1 and len(page.all("line")) == len(drawn.rows)
    assert page.texts("text", class_="end") == [text for _, text in drawn.rows]


def _area(points: list[tuple[float, float]]) -> float:
    """The shoelace formula."""
    pairs = zip(points, [*points[1:], points[0]], strict=True)
    return abs(sum(a * d - b * c for (a, b), (c, d) in pairs)) / 2


@pytest.mark.parametrize("value", [0.0, -3.5, 12.0, 1e4, 2.5e6, 3e9, 4e12])
def test_short_numbers_say_the_same(value: float) -> None:
    text = short(value)
    size = {"k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}.get(text[-1], 1)
    assert float(text.rstrip("kMGT")) * size == pytest.approx(value)
