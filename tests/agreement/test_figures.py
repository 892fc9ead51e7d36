"""agreement_figures"""

from __future__ import annotations

import itertools
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from matplotlib.collections import QuadMesh
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from fluxentropy.agreement.figures import SHOWN, agreement_figures, draw_agreement
from fluxentropy.agreement.statistics import Agreement, measure_agreement
from fluxentropy.figures import luminance, paper, short_labels

UNIT = "mean entropy (nats)"
NAMES = ["entropies", "ranks", "distance_matrix", "pca_models", "explained_variance", "rank_spread"]
FAMILIES = [f"owner_{family}-{size}-Instruct" for family in "abcd" for size in ("135M", "1.7B", "3B", "30B", "70B")]


def scores(n: int, models: int, *, missing: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(n + models)
    found = rng.gamma(4, 0.5, size=(n, 1)) + rng.normal(size=(n, models)) * 0.3 + np.arange(models) * 0.2
    found[rng.random(found.shape) < missing] = np.nan
    return found


def figures_of(values: np.ndarray, names: list[str], baseline: int = 0, replicates: int = 20) -> dict[str, Figure]:
    agreement = measure_agreement(values, names, replicates=replicates)
    with paper():
        return dict(agreement_figures(values, short_labels(names), agreement, baseline=baseline, unit=UNIT))


@pytest.fixture(scope="module")
def eight() -> tuple[np.ndarray, Agreement, dict[str, Figure]]:
    values = scores(5003, 8, missing=0.01)
    values[0, 0], values[1, 1] = np.inf, -np.inf
    agreement = measure_agreement(values, FAMILIES[:8], replicates=20)
    with paper():
        return (
            values,
            agreement,
            dict(agreement_figures(values, short_labels(FAMILIES[:8]), agreement, baseline=2, unit=UNIT)),
        )


# --- files ------------------------------------------------------------------------------------------------------------


def test_every_picture_is_written_twice_with_the_same_bytes(tmp_path: Path) -> None:
    values = scores(60, 3, missing=0.05)
    agreement = measure_agreement(values, FAMILIES[:3], replicates=20)
    files = [
        draw_agreement(values, ["x", "y", "z"], agreement, baseline=1, unit=UNIT, out=tmp_path / folder)
        for folder in ("first", "again")
    ]
    assert [file.relative_to(tmp_path / "first").as_posix() for file in files[0]] == [
        f"{name}.{suffix}" for name in NAMES for suffix in ("png", "svg")
    ]
    for one, other in zip(*files, strict=True):
        assert one.read_bytes() == other.read_bytes()
        if one.suffix == ".svg":
            assert ET.parse(one).getroot().tag == "{http://www.w3.org/2000/svg}svg"
        else:
            with Image.open(one) as image:
                image.verify()


# --- letters ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def drawn_texts(monkeypatch: pytest.MonkeyPatch) -> list[Text]:
    """The texts that a figure really draws, unlike those of ticks out of sight."""
    found: list[Text] = []
    draw = Text.draw

    def record(self: Text, renderer: object) -> None:
        if self.get_visible() and self.get_text():
            found.append(self)
        draw(self, renderer)  # type: ignore[arg-type]

    monkeypatch.setattr(Text, "draw", record)
    return found


@pytest.mark.parametrize(
    ("values", "names"),
    [
        (scores(5, 2), FAMILIES[:2]),
        (scores(150, 8), FAMILIES[:8]),
        (scores(3000, 5, missing=0.1), FAMILIES[:5]),
        (
            scores(30, 12),
            [f"organisation-of-many-letters_model-{i:02d}-with-a-long-name-of-its-own" for i in range(12)],
        ),
        (scores(30, 2), ["a-name-of-" + "very-" * 20 + "many-letters", "b" * 70]),
        (scores(40, 20), FAMILIES),
        (scores(40, 3), ["模型-1B", "$a$", "_hidden\n"]),
        (np.repeat(scores(50, 1), 4, axis=1) * [1, 1, 1, 2], FAMILIES[:4]),  # three coincide, all are collinear
    ],
    ids=["2x5", "8x150", "5x3000", "long", "long2", "20", "odd", "coincident"],
)
def test_letters_are_large_enough_apart_and_inside(
    values: np.ndarray, names: list[str], drawn_texts: list[Text]
) -> None:
    for name, figure in figures_of(values, names).items():
        with paper():
            for _ in range(3):  # the rounds of `settle`; what the last one draws counts
                drawn_texts.clear()
                figure.draw_without_rendering()
        texts = {id(text): text for text in drawn_texts}.values()
        boxes = [(text.get_window_extent(), text.get_text()) for text in texts]
        width, height = figure.bbox.size
        assert all(text.get_fontsize() >= 7 for text in texts)
        for box, text in boxes:
            assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height, (name, text)
        for (one, text), (other, other_text) in itertools.combinations(boxes, 2):
            assert not one.padded(-1).overlaps(other.padded(-1)), (name, text, other_text)


# --- what is drawn ----------------------------------------------------------------------------------------------------


def test_entropies_are_thinned_evenly_in_the_order_of_the_baseline(
    eight: tuple[np.ndarray, Agreement, dict[str, Figure]],
) -> None:
    values, _, drawn = eight
    (axes,) = drawn["entropies"].axes
    ordered = values[np.argsort(values[:, 2])]
    ordered = ordered[np.isfinite(ordered[:, 2])]
    ordered[~np.isfinite(ordered)] = np.nan
    points = [line for line in axes.lines if line.get_linestyle() == "None" and len(line.get_xdata()) > 1]
    assert len(points) == 8
    for model, line in zip([0, 1, 3, 4, 5, 6, 7, 2], points, strict=True):
        np.testing.assert_array_equal(line.get_xdata(), np.arange(1, len(ordered) + 1, 3))
        np.testing.assert_array_equal(line.get_ydata(), ordered[::3, model])
    assert len(points[0].get_xdata()) <= SHOWN
    assert f"every 3rd of {len(ordered):,} texts shown; lines: running median of" in axes.get_title(loc="left")
    assert axes.get_ylabel() == UNIT and "c-135M (baseline)" not in axes.get_xlabel()
    assert "a-3B (baseline)" in axes.get_xlabel()


def test_ranks_are_those_of_the_texts_that_both_have_scored(
    eight: tuple[np.ndarray, Agreement, dict[str, Figure]],
) -> None:
    values, agreement, drawn = eight
    panels = drawn["ranks"].axes
    for axes, model in zip(panels, [0, 1, 3, 4, 5, 6, 7], strict=False):
        pair = values[np.isfinite(values[:, [2, model]]).all(axis=1)][:, [2, model]]
        ranks = scipy.stats.rankdata(pair, axis=0)
        expected = ranks[np.argsort(ranks[:, 0])][::3]
        np.testing.assert_array_equal(np.stack(axes.lines[0].get_data(), axis=1), expected)
        rho = scipy.stats.spearmanr(pair).statistic
        low, high = agreement.intervals["spearman"][2, model]
        assert axes.get_title().endswith(f"\nρ = {rho:.2f} [{low:.2f}, {high:.2f}]")
    assert not panels[7].axison


@pytest.mark.parametrize("models", [2, 3, 4, 6, 7, 10, 13])
def test_there_is_one_panel_of_ranks_for_each_other_model(models: int) -> None:
    values = scores(20, models)
    agreement = measure_agreement(values, FAMILIES[:models], replicates=0)
    with paper():
        figures = agreement_figures(values, FAMILIES[:models], agreement, baseline=models - 1, unit=UNIT)
        ranks = dict(itertools.islice(figures, 2))["ranks"]
    assert sum(axes.axison for axes in ranks.axes) == models - 1
    assert all("[" not in axes.get_title() for axes in ranks.axes)  # no intervals, no brackets


def test_the_matrix_shows_distances_below_and_correlations_above_in_the_order_of_the_tree(
    eight: tuple[np.ndarray, Agreement, dict[str, Figure]],
) -> None:
    _, agreement, drawn = eight
    axes = drawn["distance_matrix"].axes[0]
    labels = np.array(short_labels(FAMILIES[:8]))[list(agreement.order)].tolist()
    assert [text.get_text() for text in axes.get_xticklabels()] == labels
    assert [text.get_text() for text in axes.get_yticklabels()] == labels
    meshes = [mesh for mesh in axes.collections if isinstance(mesh, QuadMesh)]
    assert len(axes.texts) == 8 * 7
    for text in axes.texts:
        column, row = (int(at) for at in text.get_position())
        i, j = agreement.order[row], agreement.order[column]
        number = agreement.spearman[i, j] if row < column else agreement.euclidean[i, j]
        decimals = len(text.get_text().partition(".")[2])
        assert float(text.get_text()) == pytest.approx(number, abs=0.501 * 10**-decimals)
        mesh = meshes[int(row < column)]
        back = luminance(mesh.to_rgba(np.array([number]))[0, :3])
        ink = luminance(np.array(to_rgb(text.get_color())))
        assert (max(back, ink) + 0.05) / (min(back, ink) + 0.05) >= 4.5


def test_points_of_pca_have_true_distances_and_labels_with_the_variance(
    eight: tuple[np.ndarray, Agreement, dict[str, Figure]],
) -> None:
    _, agreement, drawn = eight
    (axes,) = drawn["pca_models"].axes
    points = np.array([line.get_xydata()[0] for line in axes.lines if line.get_marker() not in ("None", "")])
    np.testing.assert_array_equal(points, agreement.coordinates[:, :2])
    across, up = axes.transData.transform([(1, 1)])[0] - axes.transData.transform([(0, 0)])[0]
    assert across == pytest.approx(up)
    assert axes.get_xlabel() == f"PC1 of {UNIT}, {agreement.explained_variance_ratio[0]:.1%} of the variance"
    assert {text.get_text() for text in axes.texts} == set(short_labels(FAMILIES[:8]))


def test_shares_and_spreads_are_those_of_the_agreement(
    eight: tuple[np.ndarray, Agreement, dict[str, Figure]],
) -> None:
    _, agreement, drawn = eight
    (axes,) = drawn["explained_variance"].axes
    shares = 100 * agreement.explained_variance_ratio
    np.testing.assert_allclose([bar.get_height() for bar in axes.patches], shares)
    np.testing.assert_allclose(axes.lines[0].get_ydata(), np.cumsum(shares))
    assert [text.get_text() for text in axes.get_xticklabels()] == [f"{k}\n{x:.1f}" for k, x in enumerate(shares, 1)]
    (axes,) = drawn["rank_spread"].axes
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), agreement.rank_sd_by_quintile)
    limits = np.array([segment[:, 1] for segment in axes.collections[0].get_segments()])  # type: ignore[attr-defined]
    np.testing.assert_allclose(limits, agreement.intervals["rank_sd_by_quintile"])


def test_two_models_have_one_component_and_no_interval_is_no_line() -> None:
    drawn = figures_of(scores(30, 2), FAMILIES[:2], replicates=0)
    for name in ("explained_variance", "rank_spread"):
        (axes,) = drawn[name].axes
        assert not axes.collections and "interval" not in axes.get_title(loc="left")
    assert len(drawn["explained_variance"].axes[0].patches) == 1
