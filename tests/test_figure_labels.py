from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.text import Text

from fluxentropy.figure_labels import label_ends, label_points, lettering, spread
from fluxentropy.figures import model_look, new_figure, paper, save

SHORT, LONG = "model-{}B", "an-organisation_a-model-with-a-name-of-sixty-letters-{:02d}-Instr"


@given(st.text(max_size=120), st.integers(2, 30))
def test_lettering_keeps_the_letters_in_lines_that_fit(label: str, width: int) -> None:
    lines = lettering(label, width).split("\n")
    known = "".join(c for c in label if c.isascii() and c.isprintable())
    assert max(map(len, lines)) <= max(width, len("(no name)"))
    left = iter("".join(lines))
    assert all(letter in left for letter in known)


def test_lettering_breaks_names_where_they_join() -> None:
    assert lettering("meta-llama_Llama-3.2-1B", 12).split("\n") == ["meta-llama_", "Llama-3.2-1B"]
    assert lettering("x" * 30, 12).split("\n") == ["x" * 12, "x" * 12, "x" * 6]
    assert lettering("tab\tnewline\n语") == "tab\\tnewline\\n\\u8bed"
    assert lettering("") == "(no name)"


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.floats(0, 0.3))
def test_spread_keeps_a_gap_the_order_and_the_range(values: list[float], gap: float) -> None:
    places = np.array(values)
    out = spread(places, gap, 0.0, 1.0)
    order = np.argsort(places, kind="stable")
    fits = min(gap, 1 / max(len(values) - 1, 1))
    assert np.diff(out[order]).min(initial=np.inf) >= fits - 1e-9
    assert out.min() >= -1e-9 and out.max() <= 1 + 1e-9
    if np.diff(places[order]).min(initial=np.inf) >= gap:
        np.testing.assert_allclose(out, places, atol=1e-9)


def test_spread_moves_as_little_as_possible() -> None:
    places = np.array([0.5, 0.52, 0.55, 0.9])
    grid = itertools.product(np.linspace(0.4, 1.0, 25), repeat=4)
    allowed = [other for other in map(np.array, grid) if np.diff(other).min() >= 0.1 - 1e-9]
    best = min(float(np.sum((other - places) ** 2)) for other in allowed)
    assert np.sum((spread(places, 0.1, 0.0, 1.0) - places) ** 2) <= best + 1e-9


def boxes(texts: list[Text], pad: float = 0.0) -> np.ndarray:
    return np.array([text.get_window_extent().padded(pad).extents for text in texts])  # (n, 4)


def touches(one: np.ndarray, other: np.ndarray) -> bool:
    return bool(one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3])


def clouds() -> list[tuple[str, str, np.ndarray]]:
    """A name, the form of the labels, points (n, 2) in -1..1"""
    rng = np.random.default_rng(0)
    line = np.linspace(-1, 1, 20)
    corners = np.array([[-1, -1], [1, 1], [1, -1], [-1, 1], [-1, 0.99]])
    return [
        ("one", LONG, np.zeros((1, 2))),
        ("two", LONG, rng.uniform(-1, 1, (2, 2))),
        ("eight", LONG, rng.uniform(-1, 1, (8, 2)) * (1, 0.2)),
        ("twenty", LONG, rng.uniform(-1, 1, (20, 2)) * (1, 0.3)),
        ("coincident", SHORT, np.ones((2, 2))),
        ("all coincident", LONG, np.zeros((20, 2))),
        ("row", SHORT, np.stack([line, 0 * line], axis=1)),
        ("column", LONG, np.stack([0 * line, line], axis=1)),
        ("diagonal", SHORT, np.stack([line, line], axis=1)),
        ("corners", LONG, corners),
    ]


def cloud_axes(points: np.ndarray) -> Axes:
    axes = new_figure(7.0, 3.0).add_subplot()
    axes.plot(*points.T, "o", markersize=6.5)
    axes.set(xlim=(-1.3, 1.3), ylim=(-1.3, 1.3))
    return axes


@pytest.mark.parametrize(("name", "form", "points"), clouds(), ids=[name for name, _, _ in clouds()])
def test_labels_hide_neither_points_nor_labels_nor_leave_the_frame(
    name: str, form: str, points: np.ndarray, tmp_path: Path
) -> None:
    labels = [lettering(form.format(i)) for i in range(len(points))]
    with paper():
        axes = cloud_axes(points)
        texts = label_points(axes, points, labels)
        save(axes.figure, tmp_path / "cloud")  # type: ignore[arg-type]
        assert [text.get_text() for text in texts] == labels
        found, frame = boxes(texts), axes.get_window_extent().extents
        dots = axes.transData.transform(points)
    assert (found[:, :2] >= frame[:2]).all() and (found[:, 2:] <= frame[2:]).all()
    assert not any(touches(one, other) for one, other in itertools.combinations(found, 2))
    marks = np.concatenate([dots - 3 * 300 / 72, dots + 3 * 300 / 72], axis=1)
    assert not any(touches(label, mark) for label in found for mark in marks)


def test_points_are_labelled_alike_each_time_and_lines_lead_to_far_labels() -> None:
    points = np.zeros((20, 2))
    with paper():
        first, again = cloud_axes(points), cloud_axes(points)
        one = boxes(label_points(first, points, ["x" * 20] * 20))
        two = boxes(label_points(again, points, ["x" * 20] * 20))
    np.testing.assert_array_equal(one, two)
    dot, point = first.transData.transform(points[0]), 300 / 72
    gaps = np.hypot(*np.maximum(np.maximum(one[:, :2] - dot, dot - one[:, 2:]), 0).T)
    ends = [first.transAxes.transform(line.get_xydata()) for line in first.lines[1:]]
    assert len(ends) >= (gaps > 12 * point).sum() > 10
    np.testing.assert_allclose([end[0] for end in ends], [dot] * len(ends), atol=0.01)
    reached = [
        ((one[:, :2] <= end[1] + 4 * point) & (end[1] - 4 * point <= one[:, 2:])).all(axis=1).any() for end in ends
    ]
    assert all(reached)


def test_a_label_larger_than_the_frame_is_still_written() -> None:
    with paper():
        axes = new_figure(1.0, 1.0).add_subplot()
        assert label_points(axes, np.array([[0.5, 0.5]]), ["wide" * 20])[0].get_text() == "wide" * 20


@pytest.mark.parametrize("lines", [1, 3])
def test_labels_at_ends_stand_apart_right_of_the_axes_in_the_order_of_the_ends(lines: int, tmp_path: Path) -> None:
    ends = np.array([1.0, 1.001, 0.2, 1.002, 0.0, np.nan])
    labels = ["\n".join([f"model-{i}"] * lines) for i in range(6)]
    with paper():
        axes = new_figure(4.0, 3.0).add_subplot()
        axes.set_ylim(0, 1)
        label_ends(axes, ends, labels, model_look(labels))
        save(axes.figure, tmp_path / "ends")  # type: ignore[arg-type]
        found = boxes(axes.texts)
        edge, canvas = axes.get_window_extent().x1, axes.figure.bbox.extents
    assert not any(touches(one, other) for one, other in itertools.combinations(found, 2))
    assert (found[:, 0] > edge).all() and (found[:, 2] <= canvas[2]).all() and (found[:, :2] >= 0).all()
    assert np.argsort(found[[0, 1, 2, 3, 4], 1]).tolist() == [4, 2, 0, 1, 3]
