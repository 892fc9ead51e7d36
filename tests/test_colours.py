from __future__ import annotations

import re

import numpy as np
import pytest

from fluxentropy.colours import DARK_STOPS, LIGHT_STOPS, luminance, oklab_to_srgb, palette, scale_css


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
