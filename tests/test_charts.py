from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pages import Page

from fluxentropy.charts import Chart, Line, areas, columns, histogram, lines, short
from fluxentropy.markup import parts

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
