from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from PIL import Image

from fluxentropy.colours import luminance
from fluxentropy.errors import RunError
from fluxentropy.figures import DOUBLE, SINGLE, model_look, new_figure, paper, running_median, save, short_labels

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
    code = "import sys, fluxentropy.agreement_figures; sys.exit('matplotlib.pyplot' in sys.modules)"
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
