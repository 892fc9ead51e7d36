"""figures"""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from fluxentropy.errors import RunError
from fluxentropy.figures import (
    DARK_STOPS,
    DOUBLE,
    LIGHT_STOPS,
    SINGLE,
    label_ends,
    label_points,
    lettering,
    luminance,
    model_look,
    new_figure,
    oklab_to_srgb,
    palette,
    paper,
    running_median,
    save,
    scale_css,
    short_labels,
    spread,
)

PUBLISHED = [
    "HuggingFaceTB_SmolLM2-1.7B-Instruct",
    "HuggingFaceTB_SmolLM2-135M-Instruct",
    "meta-llama_Llama-3.2-1B-Instruct",
    "meta-llama_Llama-3.2-3B-Instruct",
    "Qwen_Qwen2.5-3B-Instruct",
    "Qwen_Qwen2.5-Coder-3B-Instruct",
]


def curve(width: float = SINGLE, height: float = 2.0) -> Figure:
    with paper():
        figure = new_figure(width, height)
        axes = figure.add_subplot()
        axes.scatter(range(5), range(5), rasterized=True)
        axes.plot([0, 4], [4, 0], clip_on=True)
        axes.set(xlabel="costs $5, or $6", ylabel="entropy (nats)", title="ρ")
    return figure


# --- files ------------------------------------------------------------------------------------------------------------


def test_pyplot_is_never_imported() -> None:
    code = "import sys, fluxentropy.agreement.figures; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_png_and_an_svg_of_the_size_asked_for(tmp_path: Path) -> None:
    assert save(curve(), tmp_path / "sub" / "v1.5") == [tmp_path / "sub" / "v1.5.png", tmp_path / "sub" / "v1.5.svg"]
    with Image.open(tmp_path / "sub" / "v1.5.png") as image:
        assert image.size == (SINGLE * 300, 2.0 * 300)
        assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
    svg = ET.parse(tmp_path / "sub" / "v1.5.svg").getroot()
    assert svg.attrib["width"] == f"{SINGLE * 72:g}pt"
    assert svg.find(".//{http://www.w3.org/2000/svg}text") is None  # letters are outlines
    assert not [element for element in svg.iter() if element.tag.endswith(("}date", "}creator"))]
    assert sorted(path.name for path in (tmp_path / "sub").iterdir()) == ["v1.5.png", "v1.5.svg"]


def test_large_pictures_have_fewer_dots(tmp_path: Path) -> None:
    with Image.open(save(curve(DOUBLE, 6.0), tmp_path / "large")[0]) as image:
        assert image.size == (DOUBLE * 200, 6.0 * 200)


def test_the_same_picture_is_the_same_bytes_whatever_the_settings(tmp_path: Path) -> None:
    first = [file.read_bytes() for file in save(curve(), tmp_path / "first")]
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "svg.hashsalt": None, "savefig.dpi": 20}):
        before = dict(matplotlib.rcParams)
        again = [file.read_bytes() for file in save(curve(), tmp_path / "again")]
        assert dict(matplotlib.rcParams) == before
    assert first == again


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot write .*file/curve\.png"):
        save(curve(), tmp_path / "file" / "curve")


# --- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 30, 400])
def test_running_medians_use_every_value_around_a_place(n: int) -> None:
    column = np.random.default_rng(n).normal(size=n)
    column[:: max(n // 7, 2)] = np.nan
    places, medians = running_median(column, 21)
    assert len(places) == min(n, 150) and places[0] == 0 and places[-1] == n - 1
    for place, median in zip(places, medians, strict=True):
        half = min(10, max(place, 4)) if place < n / 2 else min(10, max(n - 1 - place, 4))
        around = [x for i, x in enumerate(column) if abs(i - place) <= half and not np.isnan(x)]
        np.testing.assert_equal(median, np.median(around) if around else np.nan)


# --- models -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "family", "size"),
    [
        ("HuggingFaceTB_SmolLM2-1.7B-Instruct", "SmolLM2", 1.7e9),
        ("HuggingFaceTB_SmolLM2-135M-Instruct_awesome-chatgpt-prompts_entropy_token_avg.json", "SmolLM2", 135e6),
        ("meta-llama_Llama-3.2-1B-Instruct", "Llama-3.2", 1e9),
        ("meta-llama/Llama-3.2-1B", "Llama-3.2", 1e9),
        ("models--meta-llama--Llama-3.2-1B", "Llama-3.2", 1e9),
        ("Qwen2.5-Coder-3B-Instruct", "Qwen2.5-Coder", 3e9),
        ("smollm2-135m-instruct", "smollm2", 135e6),
        ("smollm2_135m", "smollm2", 135e6),
        ("my_model_1b", "my_model", 1e9),
        ("gemma-3-270m", "gemma-3", 270e6),
        ("llama3.1:8b", "llama3.1", 8e9),
        ("Mixtral-8x7B-v0.1", "Mixtral", 56e9),
        ("Qwen3-30B-A3B", "Qwen3", 30e9),
        ("Phi-3-mini-4k-instruct", "Phi-3-mini-4k", None),  # a length, not a size
        ("gpt2", "gpt2", None),
        ("gpt2-medium", "gpt2", None),
        ("7b", "7b", 7e9),
        ("instruct", "instruct", None),
        ("模型-7B", "模型", 7e9),
        ("", "", None),
        ("//", "//", None),
    ],
)
def test_family_and_size_from_the_name(name: str, family: str, size: float | None) -> None:
    (look,) = model_look([name])
    assert (look.family, look.size) == (family, size)


def brightness(colour: str) -> float:
    return float(luminance(np.array([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)])))


def test_a_family_shares_hue_and_marker_and_the_larger_is_darker() -> None:
    looks = model_look(["a-1.7B", "b-1B", "A-135M", "a-360m", "gpt2", "gpt2"])
    assert [look.marker for look in looks] == ["o", "s", "o", "o", "^", "^"]
    assert [look.family for look in looks] == ["a", "b", "a", "a", "gpt2", "gpt2"]
    assert brightness(looks[0].colour) < brightness(looks[3].colour) < brightness(looks[2].colour)
    assert len({look.colour for look in looks}) == 6


def test_twelve_families_differ_without_colour_and_are_seen_on_white() -> None:
    looks = model_look([f"{family}-{size}" for family in "abcdefghijkl" for size in ("1B", "2B", "3B")])
    assert len({look.marker for look in looks}) == 12
    assert len({(look.marker, look.colour) for look in looks}) == 36
    assert all(1.05 / (brightness(look.colour) + 0.05) >= 3 for look in looks)  # WCAG for graphics


def test_short_labels_of_the_published_table() -> None:
    short = ["SmolLM2-1.7B", "SmolLM2-135M", "Llama-3.2-1B", "Llama-3.2-3B", "Qwen2.5-3B", "Qwen2.5-Coder-3B"]
    assert short_labels([f"{name}_awesome-chatgpt-prompts_entropy_token_avg.json" for name in PUBLISHED]) == short
    assert short_labels(PUBLISHED) == short


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        ([], []),
        (["Qwen/Qwen2.5-3B-Instruct"], ["Qwen2.5-3B"]),
        (["runs/one/gemma-3-270m", "runs/two/gemma-3-270m"], ["one", "two"]),
        (["Qwen_Qwen2.5-3B", "unsloth_Qwen2.5-3B"], ["Qwen", "unsloth"]),
        (["a/x-1B", "b/x-1B", "b/y-1B"], ["a/x-1B", "b/x-1B", "b/y-1B"]),
        (["x-1B", "x-1B-Instruct"], ["x-1B", "x-1B-Instruct"]),
        (["same", "same"], ["same", "same"]),
        (["x-1B.Q4_1.gguf", "x-3B.Q4_1.gguf"], ["x-1B", "x-3B"]),
    ],
)
def test_short_labels_stay_apart(names: list[str], labels: list[str]) -> None:
    assert short_labels(names) == labels


@given(st.lists(st.text("aB1_/-. ", min_size=1, max_size=12), unique=True, max_size=5))
def test_different_names_have_different_labels(names: list[str]) -> None:
    labels = short_labels(names)
    assert len(set(labels)) == len(names) and all(labels)


def test_oklab_of_the_primary_colours() -> None:
    lab = [
        [1, 0, 0],
        [0, 0, 0],
        [0.62796, 0.22486, 0.12585],
        [0.86644, -0.23389, 0.17950],
        [0.45201, -0.03246, -0.31153],
    ]
    srgb = [[1, 1, 1], [0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]
    np.testing.assert_allclose(oklab_to_srgb(np.array(lab)), srgb, atol=2e-3)
    np.testing.assert_allclose(luminance(np.array(srgb)), [1, 0, 0.2126, 0.7152, 0.0722], atol=1e-12)


@pytest.mark.parametrize(("stops", "sign"), [(LIGHT_STOPS, -1), (DARK_STOPS, 1)])
def test_steps_are_in_order_of_brightness(stops: tuple[tuple[float, float, float], ...], sign: int) -> None:
    colours = palette(stops, 24)
    assert colours.shape == (24, 3)
    steps = np.diff(np.cbrt(luminance(colours))) * sign  # the cube root is about what the eye sees
    assert steps.min() > 0.3 * steps.mean()


def test_letters_can_be_read_on_every_step() -> None:
    rules = re.findall(r"--q(\d+):#(\w{6});--i\1:#(000|fff);", scale_css(24))
    assert [int(level) for level, _, _ in rules] == [*range(24), *range(24)]  # light, then dark
    for _, background, letters in rules:
        back = luminance(np.array([int(background[at : at + 2], 16) / 255 for at in (0, 2, 4)]))
        brighter, darker = (1.0, back) if letters == "fff" else (back, 0.0)
        assert (brighter + 0.05) / (darker + 0.05) >= 4.5


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
