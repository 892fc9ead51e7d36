from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fluxentropy.charts import BOTTOM, LEFT, RIGHT, TOP, H, Line, W, areas, columns, histogram, lines, short

finite = st.floats(-1e300, 1e300, allow_subnormal=False)


def numbers(markup: str, name: str) -> list[float]:
    return [float(value) for value in re.findall(rf' {name}="(-?[\d.]+)"', markup)]


@given(st.lists(st.tuples(finite, finite | st.just(float("nan"))), min_size=1, max_size=40))
@settings(max_examples=60, deadline=None)
def test_lines_stay_within_the_frame(points: list[tuple[float, float]]) -> None:
    x, y = (np.array(column) for column in zip(*points, strict=True))
    drawn = lines([Line(name="a", x=x, y=y)], title="t", label="x", unit="y")
    assert "nan" not in drawn and "inf" not in drawn
    found = re.findall(r'points="([^"]*)"', drawn)
    places = [tuple(map(float, place.split(","))) for group in found for place in group.split()]
    assert all(LEFT - 0.1 <= a <= W - RIGHT + 0.1 and TOP - 0.1 <= b <= H - BOTTOM + 0.1 for a, b in places)
    assert bool(places) == (np.isfinite(y).sum() > 1)


def test_bars_are_as_high_as_their_counts() -> None:
    drawn = histogram(np.array([0.0, 1, 2, 3]), np.array([10, 0, 5]), title="t", label="x", mark=1.5)
    heights = numbers(drawn, "height")
    assert len(heights) == 2 and heights[0] == pytest.approx(2 * heights[1], rel=0.001)
    drawn = columns(["a", "b"], [2.0, 4.0], title="t", label="x", unit="y")
    heights = numbers(drawn, "height")
    assert heights[1] == pytest.approx(2 * heights[0], rel=0.001)


def test_areas_fill_the_frame() -> None:
    shares = np.array([[0.25, 0.75], [1.0, 0.0]])
    drawn = areas(np.array([10.0, 40.0]), shares, title="t", label="x", name="bin")
    outlines = [re.findall(r"([\d.]+) ([\d.]+)", path) for path in re.findall(r' d="([^"]*)"', drawn)]
    sizes = [_area([(float(a), float(b)) for a, b in outline]) for outline in outlines]
    whole = (W - RIGHT - LEFT) * (H - BOTTOM - TOP)
    assert [size / whole for size in sizes] == pytest.approx([0.25 / 4 + 3 / 4, 0.75 / 4], abs=0.002)


def _area(points: list[tuple[float, float]]) -> float:
    """The shoelace formula."""
    pairs = zip(points, [*points[1:], points[0]], strict=True)
    return abs(sum(a * d - b * c for (a, b), (c, d) in pairs)) / 2


@pytest.mark.parametrize("value", [0.0, -3.5, 12.0, 1e4, 2.5e6, 3e9, 4e12])
def test_short_numbers_say_the_same(value: float) -> None:
    text = short(value)
    size = {"k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}.get(text[-1], 1)
    assert float(text.rstrip("kMGT")) * size == pytest.approx(value)
